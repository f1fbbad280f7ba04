"""Quantized layers: subclasses of torch's own, made from them with ``from_float``."""

import torch
from torch import nn

from tfq import backends, layouts
from tfq.geometry import normalize_padding, packed_shape, unsupported_conv
from tfq.ops import _checks
from tfq.quantizer import InputQuantizer
from tfq.weights import QuantizedWeight, quantize_weight

# What torch's Conv2d reads of itself, also to print itself.
_CONV_ATTRIBUTES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode", "transposed", "output_padding", "_reversed_padding_repeated_twice",
)  # fmt: skip


class DequantizedWeight(torch.Tensor):
    """A weight that was computed to be read: writing to it would change nothing, so it raises."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self):
        """The tensor."""
        return self.as_subclass(torch.Tensor)

    @data.setter
    def data(self, value):
        raise TypeError(
            "weight: a tfq layer holds integers, into which nothing can be added: fuse a LoRA into the "
            "float model, before tfq.convert, or leave it unfused"
        )


class QuantizedLayer:
    """What all layers share: packed weights, their grid, the quantizer of the input.

    ``float_reason`` says why a layer with integer activations runs in float; see :mod:`tfq.fallback`.
    """

    float_reason = ""

    def _init_quantized(self, layer, name, backend, per_token, bits):
        nn.Module.__init__(self)
        self.backend = backend
        self.name = name
        self.weight_bits = bits
        self.weight_shape = tuple(layer.weight.shape)
        self.input = InputQuantizer(name, backend, per_token)
        device = layer.weight.device
        for suffix, shape in self._parts():
            n, k = shape[0], torch.Size(shape[1:]).numel()
            dtype = torch.int8 if bits == 8 else torch.uint8
            buffers = {
                "packed": torch.empty(packed_shape(n, k, bits), dtype=dtype, device=device),
                "scale": torch.empty(n, device=device),
                "sum": torch.empty(n, dtype=torch.int32, device=device),
            }
            if bits == 4:
                buffers["zero_point"] = torch.empty(n, dtype=torch.uint8, device=device)
            for part, value in buffers.items():
                self.register_buffer(f"weight_{part}{suffix}", value)
        bias = layer.bias
        if bias is not None:
            bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)
        self.register_parameter("bias", bias)
        self.train(False)

    def run_on(self, backend, float_reason=""):
        """Take the operations of another backend, for the input too."""
        self.backend = self.input.backend = backend
        self.float_reason = float_reason

    def _parts(self):
        """(suffix of the buffers, shape) of each separately quantized part of the weight."""
        return [("", self.weight_shape)]

    def load_weight(self, *parts, bias=None):
        """Pack a :class:`tfq.weights.QuantizedWeight` for each part of the weight; replace the bias."""
        operations = backends.get("native")
        for (suffix, shape), weight in zip(self._parts(), parts, strict=True):
            if weight.bits != self.weight_bits or tuple(weight.q.shape) != tuple(shape):
                raise ValueError(
                    f"{type(self).__name__} {self.name}: weight{suffix} must be {self.weight_bits} bits "
                    f"of {tuple(shape)}, got {weight.bits} bits of {tuple(weight.q.shape)}"
                )
            if weight.bits == 8:
                packed, weight_sum = operations.pack_weight(weight.q)
            else:
                packed, weight_sum = operations.pack_weight_s4(weight.q, weight.zero_point)
                setattr(self, f"weight_zero_point{suffix}", weight.zero_point)
            setattr(self, f"weight_packed{suffix}", packed)
            setattr(self, f"weight_scale{suffix}", weight.scale)
            setattr(self, f"weight_sum{suffix}", weight_sum)
        if bias is not None:
            self.bias = nn.Parameter(bias.float(), requires_grad=False)
        return self

    def _packed(self, suffix):
        """(packed weight, in whatever layout it is; its zero-points or None) of a part."""
        buffers = self._buffers
        return buffers[f"weight_packed{suffix}"], buffers.get(f"weight_zero_point{suffix}")

    def _dequantized(self, suffix, shape):
        operations = backends.get("native")
        packed, zero_point = self._packed(suffix)
        packed = layouts.saved_weight(packed, zero_point, shape)
        scale = getattr(self, f"weight_scale{suffix}")
        if self.weight_bits == 8:
            return QuantizedWeight(operations.unpack_weight(packed, shape), scale).dequantize()
        q = operations.unpack_weight_s4(packed, shape)
        return QuantizedWeight(q, scale, zero_point).dequantize()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for suffix, shape in self._parts():
            name = f"{prefix}weight_packed{suffix}"
            zero_point = self._packed(suffix)[1]
            destination[name] = layouts.saved_weight(destination[name], zero_point, shape)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        for suffix, shape in self._parts():
            layouts.change(*self._packed(suffix), shape, layouts.SAVED)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.check_levels("load_state_dict")

    def check_levels(self, operation):
        """Raise ValueError unless weights that were read are of values the kernels take."""
        for suffix, _ in self._parts():
            packed, zero_point = self._packed(suffix)
            levels = packed if zero_point is None else zero_point  # all that 4 bits hold is taken
            part = "packed" if zero_point is None else "zero_point"
            name = ".".join(filter(None, (self.name, f"weight_{part}{suffix}")))
            _checks.require_levels(operation, name, levels)

    @property
    def weight(self):
        """Dequantized weight, float32, as the float layer's; computed at each access."""
        parts = [self._dequantized(*part) for part in self._parts()]
        return torch.cat(parts, dim=1).as_subclass(DequantizedWeight)

    def _check_channels(self, channels):
        # Packed weights are padded, so the kernels cannot tell 23 channels from 24.
        expected = self.weight_shape[1]
        if channels != expected:
            raise ValueError(
                f"{type(self).__name__} {self.name}: input must have {expected} channels, got {channels}"
            )

    def operands(self, suffix="", geglu=False):
        """(packed weight, scale, sum, zero-point or None, bias) of a product; `suffix` names a part."""
        weight, zero_point = self._packed(suffix)
        if weight.dim() != layouts.SAVED or _checks.has_cuda_kernels(weight):
            shape = dict(self._parts())[suffix]
            weight, zero_point = layouts.for_product(self.backend, weight, zero_point, shape, geglu)
        buffers = self._buffers
        return (
            weight,
            buffers[f"weight_scale{suffix}"],
            buffers[f"weight_sum{suffix}"],
            zero_point,
            self._parameters["bias"],
        )

    def _product(self, operation, q, qparams, suffix="", **epilogue):
        geglu = epilogue.get("activation") == "geglu"
        weight, scale, weight_sum, zero_point, bias = self.operands(suffix, geglu)
        if zero_point is not None:
            epilogue["weight_zero_point"] = zero_point
        product = getattr(backends.get(self.backend), operation)
        return product(
            q, qparams, weight, scale, weight_sum, epilogue.pop("bias", bias), **epilogue
        )

    def token_product(self, q, qparams, **epilogue):
        """The layer (a Linear, a 1x1 Conv2d) on quantized tokens; keywords as :func:`tfq.ops.gemm_s8`."""
        self._check_channels(q.shape[-1])
        return self._product("gemm_s8", q, qparams, **epilogue)


class Linear(QuantizedLayer, nn.Linear):
    """Linear layer on the INT8 GEMM; its input is quantized per token.

    Use :meth:`from_float`. ``weight`` is a read-only, dequantized view of the packed integers.
    """

    def __init__(self, layer, name="", backend="native", bits=8):
        self._init_quantized(layer, name, backend, per_token=True, bits=bits)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @classmethod
    def from_float(cls, layer, name="", backend="native", bits=8):
        """Quantize a float ``torch.nn.Linear``."""
        return cls(layer, name, backend, bits).load_weight(quantize_weight(layer.weight, bits))

    def forward(self, x):
        """``(..., in_features)`` float32 or bfloat16 to ``(..., out_features)`` of the same dtype."""
        x = x.contiguous()
        return self.product(*self.input.quantize(x), out_dtype=x.dtype)

    product = QuantizedLayer.token_product


class _QuantizedConv(QuantizedLayer, nn.Conv2d):
    def __new__(cls, layer=None, *args, **kwargs):
        # peft makes the layers of an adapter by calling the type of the layer they are beside.
        return nn.Conv2d(layer, *args, **kwargs) if isinstance(layer, int) else super().__new__(cls)

    def _init_conv(self, layer):
        for attribute in _CONV_ATTRIBUTES:
            setattr(self, attribute, getattr(layer, attribute))


class Conv2d(_QuantizedConv):
    """Convolution on the INT8 implicit GEMM; its input is quantized per image.

    Use :meth:`from_float`. ``weight`` is a read-only, dequantized view of the packed integers.
    """

    def __init__(self, layer, name="", backend="native", bits=8):
        reason = unsupported_conv(layer)
        if reason:
            raise NotImplementedError(f"tfq.nn.Conv2d: {name or 'the layer'} has {reason}")
        self._init_quantized(layer, name, backend, per_token=False, bits=bits)
        self._init_conv(layer)
        self.pads = normalize_padding(self.kernel_size, self.stride, self.padding)[2]

    @classmethod
    def from_float(cls, layer, name="", backend="native", bits=8):
        """Quantize a float ``torch.nn.Conv2d``."""
        return cls(layer, name, backend, bits).load_weight(quantize_weight(layer.weight, bits))

    def forward(self, x, row=None):
        """``(batch, in_channels, h, w)`` float32 or bfloat16 to the same dtype, channels_last."""
        if self.input.per_token:  # 1x1, planned as the projection of a transformer
            tokens = self.token_product(*self.input.quantize(image_tokens(x)), out_dtype=x.dtype)
            return token_image(tokens, x.shape[2:])
        x = x.contiguous(memory_format=torch.channels_last)
        return self.product(*self.input.quantize(x, row), out_dtype=x.dtype)

    def product(self, q, qparams, padding=None, **epilogue):
        """The layer on a quantized input; keywords as :func:`tfq.ops.conv2d_s8`."""
        self._check_channels(q.shape[1])
        return self._product(
            "conv2d_s8", q, qparams, kernel_size=self.kernel_size, stride=self.stride,
            padding=self.pads if padding is None else padding, **epilogue,
        )  # fmt: skip


class ShortcutConv2d(_QuantizedConv):
    """1x1 convolution of a raw residual, one range per pixel and per source.

    A residual stream has no norm before it, and the halves of a skip concatenation differ in range by
    orders of magnitude. So each pixel of each source is quantized by its own range, each source has
    its own weights and scales, and the products are summed in float32 by the epilogue.

    Parameters
    ----------
    sources : sequence of int
        Channels of each source, in the order of concatenation.
    """

    def __init__(self, layer, sources, name="", backend="native", bits=8):
        self.__dict__["sources"] = tuple(sources)  # torch's __setattr__ needs an initialized module
        self._init_quantized(layer, name, backend, per_token=True, bits=bits)
        self.sources = tuple(sources)
        self._init_conv(layer)

    def _parts(self):
        return [
            (f"_{index}", (self.weight_shape[0], channels, 1, 1))
            for index, channels in enumerate(self.sources)
        ]

    @classmethod
    def from_float(cls, layer, sources, name="", backend="native", bits=8):
        """Quantize a float 1x1 ``torch.nn.Conv2d``, source by source."""
        weights = (quantize_weight(part, bits) for part in layer.weight.split(sources, dim=1))
        return cls(layer, sources, name, backend, bits).load_weight(*weights)

    def forward(self, x, x2=None):
        """Images of one or two sources (or their concatenation) to float32 or bfloat16 images."""
        if x2 is None:
            inputs = x.split(self.sources, dim=1)
        elif self.sources == (x.shape[1], x2.shape[1]):
            inputs = (x, x2)
        else:
            inputs = torch.cat([x, x2], dim=1).split(self.sources, dim=1)
        out, bias = None, self.bias
        for index, source in enumerate(inputs):
            last = index == len(inputs) - 1
            out = self._product(
                "gemm_s8", *self.input.quantize(image_tokens(source)), suffix=f"_{index}", bias=bias,
                residual=out, out_dtype=x.dtype if last else torch.float32,
            )  # fmt: skip
            bias = None
        return token_image(out, x.shape[2:])

    def source_operands(self):
        """:meth:`operands` of each source; the bias is the first one's."""
        parts = [self.operands(suffix) for suffix, _ in self._parts()]
        return parts[:1] + [(*part[:-1], None) for part in parts[1:]]


def fold_modulation(norm, scale, shift):
    """Weight and bias of ``norm(x) * (1 + scale) + shift``, float32 ``(batch, channels)`` each."""
    if norm.weight is None:
        return 1 + scale, shift
    weight, bias = norm.weight.float(), 0 if norm.bias is None else norm.bias.float()
    return weight * (1 + scale), bias * (1 + scale) + shift


def image_tokens(image):
    """``(batch, channels, h, w)`` as ``(batch, h*w, channels)``, a view if it is channels_last."""
    return image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)


def token_image(tokens, size):
    """``(batch, h*w, channels)`` as channels_last ``(batch, channels, h, w)``, a view."""
    return tokens.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
