"""NaN and infinite inputs reach the output, as in a float model.

Integers have neither: quantization clamps whatever comes, so that a diverging sampler or a text encoder that
overflows would end in plausible images.
"""

import torch

from tfq import models

# Where infinity means that a token is left out.
_MASKS = ("attention_mask", "encoder_attention_mask", "cross_attention_kwargs")


class CarryNonFinite:
    """Forward hook of a converted model: of an image with a NaN or infinite input all outputs are NaN.

    The inputs are added up: of finite ones the sum times -0.0 is -0.0, which changes no bit of what it is
    added to, and of others it is NaN. (So it is if the sum itself overflows float32.) Nothing waits for a
    device.

    Parameters
    ----------
    arguments : tuple of str
        Names of the arguments of the model's ``forward``, in order.
    """

    def __init__(self, arguments):
        self.arguments = tuple(arguments)

    def __call__(self, model, args, kwargs, output):
        """Change the tensors of `output`, ``(batch, ...)`` each, in place."""
        call = models.call_of(self.arguments, args, kwargs)
        images, total = models.images_of(call), None
        for name, value in call.items():
            for tensor in () if name in _MASKS else _floats(value):
                if tensor.device == images.device:  # a timestep may be the host's
                    part = _sum_by_image(tensor, images.shape[0])
                    total = part if total is None else total + part
        total = total.abs_()
        for tensor in _floats(output):
            tensor.add_(total.view(-1, *[1] * (tensor.dim() - 1)), alpha=-0.0)


def _floats(value):
    """The floating-point tensors in a value."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _floats(part)


def _sum_by_image(tensor, batch):
    """float32 ``(batch,)``; of what is no batch of images ``(1,)``."""
    images = batch if tensor.dim() and tensor.shape[0] == batch else 1
    return tensor.float().reshape(images, -1).sum(1)


def carry_nonfinite(model):
    """Let NaN and infinite inputs reach the outputs from now on; returns the hook's handle."""
    hook = CarryNonFinite(models.arguments_of(model)[0])
    return model.register_forward_hook(hook, with_kwargs=True)
