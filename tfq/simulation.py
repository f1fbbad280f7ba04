"""Float layers that compute what their quantized forms will: the numbers, not the kernels."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from tfq.geometry import normalize_padding, unsupported_conv
from tfq.reference import MAX_UINT8, qparams_from_range

# Of a quantized layer, from coarse to fine.
ACTIVATIONS = ("int8", "int16", "float")


def fake_quantize(x, dims):
    """Quantize to uint8 and back, with one dynamic range over the dimensions `dims`.

    Parameters
    ----------
    x : Tensor
        Float, of any shape.
    dims : tuple of int

    Returns
    -------
    Tensor
        float32, shape of `x`; the formulas are those of docs/numerics.md.
    """
    x = x.float()
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    qparams = qparams_from_range(low.flatten(), high.flatten())
    scale, inverse, zero_point = (column.view(low.shape) for column in qparams.unbind(1))
    q = (x * inverse).round_().add_(zero_point).clamp_(0, MAX_UINT8)
    return q.sub_(zero_point).mul_(scale)


def apply_layer(layer, x, weight, bias=None):
    """A Conv2d or Linear on `x`, with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)
    return F.linear(x, weight, bias)


class SimulatedLayer:
    """One Conv2d or Linear with the input and the weights of its quantized form.

    Parameters
    ----------
    layer : torch.nn.Conv2d or torch.nn.Linear
    name : str
        For errors.
    activations : {"int8", "int16", "float"}
        int8: inputs have one range per image (Conv2d), token (Linear), or pixel and source; int16: so
        has what that leaves over.
    sources : tuple of int, optional
        Of a shortcut: channels of each source of the input; each has its own weights and scales.
    """

    def __init__(self, layer, name, activations, sources=None):
        self.layer = layer
        self.name = name
        self.activations = activations
        self.is_conv = isinstance(layer, nn.Conv2d)
        reason = unsupported_conv(layer) if self.is_conv else ""
        if reason:
            raise NotImplementedError(f"reconstruct_blocks: {name} has {reason}")
        channels = layer.weight.shape[1]
        self.by_pixel = bool(sources)
        self.sources = tuple(sources or (channels,))
        if sum(self.sources) != channels:
            raise ValueError(
                f"reconstruct_blocks: sources of {name} must add up to its {channels} input channels, "
                f"got {self.sources}"
            )
        self.weight = self.bias = None

    @property
    def group_columns(self):
        """Columns of the flattened weight that belong to each source."""
        taps = self.layer.weight[0, 0].numel()
        return tuple(channels * taps for channels in self.sources)

    def install(self, weights, bias):
        """Compute with these :class:`tfq.weights.QuantizedWeight`, one a source, and this bias."""
        self.weight = torch.cat([weight.dequantize() for weight in weights], dim=1)
        self.bias = bias

    def quantize_input(self, x, activations=None):
        """The float32 values that the integers of an input stand for; of other activations if given."""
        activations = activations or self.activations
        if activations == "float":
            return x.float()
        first = self._one_byte(x)
        return first if activations == "int8" else first + self._one_byte(x - first)

    def _one_byte(self, x):
        if not self.is_conv:
            return fake_quantize(x, (-1,))
        if self.by_pixel:
            return torch.cat([fake_quantize(p, (1,)) for p in x.split(self.sources, 1)], 1)
        return fake_quantize(x, (1, 2, 3))

    def product(self, x):
        """The layer on what :meth:`quantize_input` returned, float32."""
        return apply_layer(self.layer, x, self.weight, self.bias)

    def __call__(self, x, *args, **kwargs):
        """In the place of the layer's forward."""
        return self.product(self.quantize_input(x)).to(x.dtype)

    def tokens(self, x, y, count, generator):
        """Random inputs of single outputs.

        Parameters
        ----------
        x, y : Tensor
            Input and output of the layer.
        count : int
            At most that many; all if there are fewer.
        generator : torch.Generator
            Of the CPU.

        Returns
        -------
        tuple of Tensor
            ``(tokens, k)`` and ``(tokens, n)``, the flattened taps and the outputs.
        """
        channel_dim = 1 if self.is_conv else -1
        y = y.movedim(channel_dim, -1)
        chosen = torch.randperm(y[..., 0].numel(), generator=generator)[:count].to(x.device)
        outputs = y.reshape(-1, y.shape[-1])[chosen]
        if not self.is_conv:
            return x.reshape(-1, x.shape[-1])[chosen], outputs
        kernel, stride, pads = normalize_padding(
            self.layer.kernel_size, self.layer.stride, self.layer.padding
        )
        top, bottom, left, right = pads
        windows = F.pad(x, (left, right, top, bottom))
        windows = windows.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        height, width = y.shape[1:3]
        image, pixel = chosen // (height * width), chosen % (height * width)
        return windows[image, :, pixel // width, pixel % width].flatten(1), outputs


@contextlib.contextmanager
def replaced_forward(modules, functions):
    """Run `functions` (by name) in the place of the forward of `modules`; always restored."""
    kept = {name: modules[name].__dict__.get("forward") for name in functions}
    try:
        for name, function in functions.items():
            modules[name].forward = function
        yield
    finally:
        for name, forward in kept.items():
            if forward is None:
                modules[name].__dict__.pop("forward", None)
            else:
                modules[name].forward = forward
