"""What quantization does to the model's output at every call, taken back by three numbers a channel.

Part of the output's error is not noise. Rounding shrinks the output a little and leans on the noisy
image, and a sampler adds up what returns at every step where it averages noise: the images come out
brighter and with more grain than the float model's. With y the float output at timestep t, x the sample
and z the quantized output,

    z = (1 + a) y + b x + c + noise        (a, b, c for each timestep and channel)

is a linear regression over the calibration calls, and ``(z - b x - c) / (1 + a)`` takes its systematic
part back. (That noise correlates with the output, and a and c for each timestep, is an observation of
He et al., "PTQD", NeurIPS 2023; the term in x is ours.)
"""

import torch
from torch import nn

from tfq.distributed import failing_together, gather, is_mine
from tfq.models import arguments_of, call_of, images_of, out_channels, output_of
from tfq.temporal import VALUE_SLOT

# Columns of the regression: float output, sample, 1; behind them the error.
_REGRESSORS = 3
# Weight of the expectation that a, b and c are 0, in pixels. At the noisiest timesteps y and x hardly
# differ, and what tells them apart would be fitted to the few calibration images.
_PRIOR_PIXELS = 16


class OutputCorrection(nn.Module):
    """Forward hook of a converted UNet: ``gain * output + slope * sample + offset``.

    A timestep without a row takes the nearest one's.

    Parameters
    ----------
    values : Tensor
        float32 ``(rows,)``, the timesteps of the rows.
    table : Tensor
        float32 ``(rows, 3, channels)``: gain, slope and offset.
    arguments : tuple of str
        Names of the arguments of the model's ``forward``, in order.
    """

    def __init__(self, values, table, arguments):
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("table", table)
        self.arguments = tuple(arguments)

    def correct(self, model, args, kwargs, output):
        """The model's output, tuple or dataclass, with its ``sample`` corrected."""
        call = call_of(self.arguments, args, kwargs)
        images, timestep = images_of(call), torch.as_tensor(call["timestep"])
        if timestep.dim() == 2:  # a transformer's row
            timestep = timestep[:, VALUE_SLOT]
        if isinstance(output, tuple):
            return (self(output[0], images, timestep), *output[1:])
        return type(output)(sample=self(output.sample, images, timestep))

    def forward(self, output, sample, timestep):
        """Corrected output, of its own dtype.

        Parameters
        ----------
        output : Tensor
            ``(batch, channels, height, width)``.
        sample : Tensor
            ``(batch, in_channels, height, width)``, the model's input.
        timestep : Tensor or number
            Of all images, or ``(batch,)``.
        """
        timesteps = torch.as_tensor(timestep, dtype=torch.float32, device=output.device).reshape(-1)
        row = (timesteps[:, None] - self.values[None, :]).abs().argmin(1)
        gain, slope, offset = self.table[row][..., None, None].unbind(1)
        sample = _aligned(sample, output.shape[1]).float()
        return (output.float() * gain + sample * slope + offset).to(output.dtype)


def empty_correction(model, rows):
    """As :func:`fit_correction` makes it for so many timesteps, without values."""
    table = torch.empty(rows, _REGRESSORS, out_channels(model), device="meta")
    return OutputCorrection(torch.empty(rows, device="meta"), table, arguments_of(model)[0])


def correct_output(model):
    """Let ``model.output_correction`` correct the outputs from now on; returns the hook's handle."""
    return model.register_forward_hook(model.output_correction.correct, with_kwargs=True)


def _aligned(sample, channels):
    """The channel of the sample that each channel of the output belongs to.

    A model with further inputs has them behind the image; one that learns a variance has it behind the
    noise.
    """
    if sample.shape[1] == channels:
        return sample
    return sample[:, torch.arange(channels, device=sample.device) % sample.shape[1]]


def fit_correction(model, calls, outputs, progress=None):
    """The correction of a converted model, from recorded calls of the float one.

    Parameters
    ----------
    model : UNet2DModel or UNet2DConditionModel
        Converted.
    calls : list of dict
        Arguments of ``model.forward``.
    outputs : list of Tensor
        What the float model returned, ``(batch, channels, height, width)``.
    progress : callable, optional
        ``progress(done, total, label)``.

    Returns
    -------
    OutputCorrection
    """
    moments = {}
    with failing_together():
        for index in filter(is_mine, range(len(calls))):
            call = calls[index]
            quantized = output_of(model(**{**call, "return_dict": False}))
            moments[index] = _moments(outputs[index], images_of(call), quantized)
            if progress is not None:
                progress(index + 1, len(calls), "output correction")
    sums = {}
    for index, images in gather(moments).items():
        timesteps = torch.as_tensor(calls[index]["timestep"], dtype=torch.float32).reshape(-1)
        for timestep, image in zip(timesteps.expand(len(images)).tolist(), images, strict=True):
            sums[timestep] = sums.get(timestep, 0) + image
    values = sorted(sums)
    table = torch.stack([solve(sums[timestep]) for timestep in values]).float()
    return OutputCorrection(torch.tensor(values), table, arguments_of(model)[0])


def _moments(output, sample, quantized):
    """Sums over the pixels of all products of (y, x, 1, z - y), float64 ``(batch, channels, 4, 4)``."""
    y = output.double().flatten(2)
    x = _aligned(sample, output.shape[1]).double().flatten(2)
    error = quantized.double().flatten(2) - y
    columns = torch.stack([y, x, torch.ones_like(y), error], dim=2)
    return (columns @ columns.mT).cpu()


def solve(moments):
    """Gain, slope and offset of the output, and the sample, from the sums of their products.

    Parameters
    ----------
    moments : Tensor
        float64 ``(channels, 4, 4)``: sums of the products of (y, x, 1, z - y).

    Returns
    -------
    Tensor
        float64 ``(3, channels)``; (1, 0, 0) for a channel whose squared error would not become smaller.
    """
    n = _REGRESSORS
    gram, cross, square = moments[:, :n, :n], moments[:, :n, n], moments[:, n, n]
    pixels = gram[:, 2, 2, None]
    ridge = torch.diag_embed(_PRIOR_PIXELS * gram.diagonal(dim1=1, dim2=2) / pixels + 1e-30)
    a, b, c = torch.linalg.solve(gram + ridge, cross).unbind(1)
    w = torch.stack([a, b, c], dim=1)
    left = square - 2 * (w * cross).sum(1) + (w[:, None] @ gram @ w[..., None])[:, 0, 0]
    helps = (1 + a > 0) & (left / (1 + a).square() < square)
    corrected = torch.stack([1 / (1 + a), -b / (1 + a), -c / (1 + a)])
    identity = torch.tensor([1.0, 0.0, 0.0], dtype=corrected.dtype)[:, None]
    return torch.where(helps, corrected, identity)
