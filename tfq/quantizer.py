"""From float to integer at every call: the inputs of the layers."""

import torch
from torch import nn

from tfq import backends

QPARAMS_WIDTH = 3


class InputQuantizer:
    """Turns the input of one layer (or of several that share it) into uint8.

    Parameters come from a row of the temporal table (``ranges`` is "timestep" or "static"), or from
    the data itself ("dynamic"). While ``recorder`` is set (calibration), each image quantized by its
    own range is reported to it with the row it came with.

    Parameters
    ----------
    name : str
        Of the layer, for the report.
    backend : str
        See :func:`tfq.backends.get`. "weight_only" and those of two bytes leave the input float.
    per_token : bool
        Dynamic ranges per token; such an input never becomes static.
    """

    def __init__(self, name, backend, per_token):
        self.name = name
        self.backend = backend
        self.per_token = per_token
        self.slot = None  # reserved place in a row; None: the layer never sees a row
        self.ranges = "dynamic"
        self.recorder = None

    def qparams(self, row):
        """float32 ``(batch, 3)`` from a row; None where the range is the data's own."""
        if self.ranges == "dynamic" or row is None:
            return None
        return row[:, self.slot : self.slot + QPARAMS_WIDTH]

    def _observe(self, result, row):
        if self.recorder is not None and row is not None and result[1] is not None:
            self.recorder.add(self, row, *result)
        return result

    def quantize(self, x, row=None):
        """Quantize images per sample, or tokens per token."""
        operations = backends.get(self.backend)
        if self.per_token:
            return operations.quantize(x, groups=x.numel() // x.shape[-1])
        return self._observe(operations.quantize(x, self.qparams(row)), row)

    def group_norm(self, norm, x, row=None, x2=None, silu=True, affine=None):
        """GroupNorm `norm` of ``cat([x, x2])``, SiLU, quantize; `affine` replaces its weight and bias."""
        parameters = norm._parameters
        weight, bias = (parameters["weight"], parameters["bias"]) if affine is None else affine
        result = backends.get(self.backend).group_norm_silu_quantize(
            x, norm.num_groups, weight, bias, norm.eps, x2=x2, silu=silu, qparams=self.qparams(row),
        )  # fmt: skip
        return self._observe(result, row)

    def layer_norm(self, norm, x):
        """LayerNorm `norm` of tokens, quantized per token.

        Its weight and bias may be ``(batch, channels)``: the images then go one by one.
        """
        operation = backends.get(self.backend).layer_norm_quantize
        if isinstance(norm, nn.Module):
            parameters = norm._parameters
            return operation(x, parameters["weight"], parameters["bias"], norm.eps)
        images = zip(x.unbind(), norm.weight.unbind(), norm.bias.unbind(), strict=True)
        q, qparams = zip(*(operation(*image, norm.eps) for image in images), strict=True)
        return torch.stack(q), None if qparams[0] is None else torch.cat(qparams)

    def geglu(self, x):
        """GEGLU of tokens, quantized per token."""
        return backends.get(self.backend).geglu_quantize(x)
