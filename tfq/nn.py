"""Quantised layers: subclasses of torch's own, made from them with ``from_float``."""

import torch
from torch import nn

from tfq import backends
from tfq.geometry import normalize_padding
from tfq.quantizer import InputQuantizer, quantize_weight

# What torch's Conv2d reads of itself, also to print itself.
_CONV_ATTRIBUTES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode", "transposed", "output_padding", "_reversed_padding_repeated_twice",
)  # fmt: skip


class _QuantizedLayer:
    """What Linear and Conv2d share: packed weights, their scale, the quantiser of the input."""

    def _init_quantized(self, layer, name, backend, per_token):
        nn.Module.__init__(self)
        self.backend = backend
        self.name = name
        self.input = InputQuantizer(name, backend, per_token)
        self.train(False)

    def _register_weight(self, weight, suffix=""):
        q, scale = quantize_weight(weight)
        packed, weight_sum = backends.get("native").pack_weight(q)
        self.register_buffer(f"weight_packed{suffix}", packed)
        self.register_buffer(f"weight_scale{suffix}", scale)
        self.register_buffer(f"weight_sum{suffix}", weight_sum)

    def _register_bias(self, bias):
        value = (
            None
            if bias is None
            else nn.Parameter(bias.detach().float().clone(), requires_grad=False)
        )
        self.register_parameter("bias", value)

    @property
    def weight(self):
        """Dequantised weight, float32, as the float layer's; computed at each access."""
        q = backends.get("native").unpack_weight(self.weight_packed, self.weight_shape)
        return q * self.weight_scale.view(-1, *[1] * (len(self.weight_shape) - 1))

    def _check_channels(self, channels):
        # Packed weights are padded, so the kernels cannot tell 23 channels from 24.
        expected = self.weight_shape[1]
        if channels != expected:
            raise ValueError(
                f"{type(self).__name__} {self.name}: input must have {expected} channels, got {channels}"
            )

    def _packed(self, suffix=""):
        return tuple(getattr(self, f"weight_{part}{suffix}") for part in ("packed", "scale", "sum"))

    def token_product(self, q, qparams, **epilogue):
        """The layer (a Linear, a 1x1 Conv2d) on uint8 tokens; keywords as :func:`tfq.ops.gemm_s8`."""
        self._check_channels(q.shape[-1])
        weight, scale, weight_sum = self._packed()
        return backends.get(self.backend).gemm_s8(
            q, qparams, weight, scale, weight_sum, self.bias, **epilogue
        )


class Linear(_QuantizedLayer, nn.Linear):
    """Linear layer on the INT8 GEMM; its input is quantised per token.

    Use :meth:`from_float`. ``weight`` is a read-only, dequantised view of the packed integers.
    """

    def __init__(self, layer, name="", backend="native"):
        self._init_quantized(layer, name, backend, per_token=True)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight_shape = tuple(layer.weight.shape)
        self._register_weight(layer.weight)
        self._register_bias(layer.bias)

    @classmethod
    def from_float(cls, layer, name="", backend="native"):
        """Quantise a float ``torch.nn.Linear``."""
        return cls(layer, name, backend)

    def forward(self, x):
        """``(..., in_features)`` float32 or bfloat16 to ``(..., out_features)`` of the same dtype."""
        x = x.contiguous()
        return self.product(*self.input.quantize(x), out_dtype=x.dtype)

    product = _QuantizedLayer.token_product


class Conv2d(_QuantizedLayer, nn.Conv2d):
    """Convolution on the INT8 implicit GEMM; its input is quantised per image.

    Use :meth:`from_float`. ``weight`` is a read-only, dequantised view of the packed integers.
    """

    def __init__(self, layer, name="", backend="native"):
        reason = unsupported_conv(layer)
        if reason:
            raise NotImplementedError(f"tfq.nn.Conv2d: {name or 'the layer'} has {reason}")
        self._init_quantized(layer, name, backend, per_token=False)
        for attribute in _CONV_ATTRIBUTES:
            setattr(self, attribute, getattr(layer, attribute))
        self.pads = normalize_padding(self.kernel_size, self.stride, self.padding)[2]
        self.weight_shape = tuple(layer.weight.shape)
        self._register_weight(layer.weight)
        self._register_bias(layer.bias)

    @classmethod
    def from_float(cls, layer, name="", backend="native"):
        """Quantise a float ``torch.nn.Conv2d``."""
        return cls(layer, name, backend)

    def forward(self, x, row=None):
        """``(batch, in_channels, h, w)`` float32 or bfloat16 to the same dtype, channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.product(*self.input.quantize(x, row), out_dtype=x.dtype)

    def product(self, q, qparams, padding=None, **epilogue):
        """The layer on an input that is uint8 already; keywords as :func:`tfq.ops.conv2d_s8`."""
        self._check_channels(q.shape[1])
        weight, scale, weight_sum = self._packed()
        return backends.get(self.backend).conv2d_s8(
            q, qparams, weight, scale, weight_sum, self.bias, kernel_size=self.kernel_size,
            stride=self.stride, padding=self.pads if padding is None else padding, **epilogue,
        )  # fmt: skip


class ShortcutConv2d(_QuantizedLayer, nn.Conv2d):
    """1x1 convolution of a raw residual, one range per pixel and per source.

    A residual stream has no norm before it, and the halves of a skip concatenation differ in range by
    orders of magnitude. So each pixel of each source is quantised by its own range, each source has
    its own weights and scales, and the products are summed in float32 by the epilogue.

    Parameters
    ----------
    sources : sequence of int
        Channels of each source, in the order of concatenation.
    """

    def __init__(self, layer, sources, name="", backend="native"):
        self._init_quantized(layer, name, backend, per_token=True)
        for attribute in _CONV_ATTRIBUTES:
            setattr(self, attribute, getattr(layer, attribute))
        self.sources = tuple(sources)
        self.weight_shape = tuple(layer.weight.shape)
        for index, weight in enumerate(layer.weight.split(self.sources, dim=1)):
            self._register_weight(weight, f"_{index}")
        self._register_bias(layer.bias)

    @property
    def weight(self):
        """Dequantised weight, float32, as the float layer's; computed at each access."""
        unpack = backends.get("native").unpack_weight
        parts = []
        for index, channels in enumerate(self.sources):
            packed, scale, _ = self._packed(f"_{index}")
            parts.append(
                unpack(packed, (self.out_channels, channels, 1, 1)) * scale.view(-1, 1, 1, 1)
            )
        return torch.cat(parts, dim=1)

    def forward(self, x, x2=None):
        """Images of one or two sources (or their concatenation) to float32 or bfloat16 images."""
        if x2 is None:
            inputs = x.split(self.sources, dim=1)
        elif self.sources == (x.shape[1], x2.shape[1]):
            inputs = (x, x2)
        else:
            inputs = torch.cat([x, x2], dim=1).split(self.sources, dim=1)
        operations = backends.get(self.backend)
        out, bias = None, self.bias
        for index, source in enumerate(inputs):
            tokens = image_tokens(source)
            q, qparams = self.input.quantize(tokens)
            last = index == len(inputs) - 1
            out = operations.gemm_s8(
                q, qparams, *self._packed(f"_{index}"), bias, residual=out,
                out_dtype=x.dtype if last else torch.float32,
            )  # fmt: skip
            bias = None
        return token_image(out, x.shape[2:])


def image_tokens(image):
    """``(batch, channels, h, w)`` as ``(batch, h*w, channels)``, a view if it is channels_last."""
    return image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)


def token_image(tokens, size):
    """``(batch, h*w, channels)`` as channels_last ``(batch, channels, h, w)``, a view."""
    return tokens.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def unsupported_conv(layer):
    """Why a Conv2d has no INT8 kernel, or None."""
    if type(layer) is not nn.Conv2d:
        return f"type {type(layer).__name__}"
    if layer.groups != 1:
        return f"groups={layer.groups}"
    if tuple(layer.dilation) != (1, 1):
        return f"dilation={tuple(layer.dilation)}"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding mode {layer.padding_mode!r}, padding {layer.padding!r}"
    return None
