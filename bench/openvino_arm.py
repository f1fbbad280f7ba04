"""OpenVINO as an arm of bench/unet.py: the same UNet, static shapes, the faster precision hint, optionally
INT8.

INT8 is NNCF's post-training quantisation with its defaults and the benchmark's own inputs: what a user
gets from the documented path.
"""

import logging

import openvino
import torch
from torch.utils import _pytree as pytree

from tfq.timing import timed

CALIBRATION_CALLS = 8
# Above this many parameters one call calibrates and nothing corrects the biases, which needs models of
# parts of the model beside it: time does not depend on either.
LARGE = 1_000_000_000
# bfloat16 is slower than float32 where the CPU only emulates it.
HINTS = ("bf16", "f32")
TIMED_CALLS = 3


class _PlainUNet(torch.nn.Module):
    """Positional tensors in, tensor out, as a tracer wants it; float inputs in the dtype of the UNet."""

    def __init__(self, unet, spec):
        super().__init__()
        self.unet = unet
        self.spec = spec

    def forward(self, *tensors):
        dtype = self.unet.dtype
        tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        return self.unet(**pytree.tree_unflatten(tensors, self.spec)).sample.float()


def compile_unet(unet, inputs, int8):
    """(call, hint): the UNet compiled for `inputs`, with the hint whose calls are faster.

    The call takes no arguments and returns a tensor.

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
        Float32, or bfloat16 to save memory.
    inputs : dict
        Keyword arguments of a call; the shapes become static.
    int8 : bool
        Quantise with NNCF.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    tensors = [torch.tensor(v) if isinstance(v, int) else v for v in leaves]
    wrapper = _PlainUNet(unet, spec).eval()
    with torch.no_grad():
        model = openvino.convert_model(
            wrapper,
            example_input=tuple(tensors),
            input=[list(t.shape) for t in tensors],
        )
    arrays = [t.numpy() for t in tensors]
    if int8:
        import nncf

        large = sum(p.numel() for p in unet.parameters()) > LARGE
        nncf.set_log_level(logging.ERROR)
        generator = torch.Generator().manual_seed(1)
        samples = [
            [torch.randn(arrays[0].shape, generator=generator).numpy(), *arrays[1:]]
            for _ in range(1 if large else CALIBRATION_CALLS)
        ]
        settings = nncf.AdvancedQuantizationParameters(disable_bias_correction=large)
        model = nncf.quantize(model, nncf.Dataset(samples), advanced_parameters=settings)
    calls = {hint: _compiled(model, arrays, hint) for hint in HINTS}
    best = {hint: min(timed(call) for _ in range(TIMED_CALLS)) for hint, call in calls.items()}
    hint = min(best, key=best.get)
    return calls[hint], hint


def _compiled(model, arrays, hint):
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def call():
        return torch.from_numpy(request.infer(arrays)[0])

    return call
