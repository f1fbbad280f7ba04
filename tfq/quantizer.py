"""From float to integer: weights once, activations at every call."""

import torch

from tfq import backends

QPARAMS_WIDTH = 3
_MAX_WEIGHT = 127


def quantize_weight(weight):
    """Symmetric int8 quantisation per output channel, scale = max |w| / 127.

    Parameters
    ----------
    weight : Tensor
        Float ``(n, ...)``, finite.

    Returns
    -------
    q : Tensor
        int8, shape of `weight`, in [-127, 127].
    scale : Tensor
        float32 ``(n,)``; 1 for a channel of zeros.
    """
    rows = weight.detach().float().flatten(1)
    scale = rows.abs().amax(1) / _MAX_WEIGHT
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = (rows / scale[:, None]).round().clamp_(-_MAX_WEIGHT, _MAX_WEIGHT).to(torch.int8)
    return q.view(weight.shape), scale


class InputQuantizer:
    """Turns the input of one layer (or of several that share it) into uint8.

    Parameters come from a row of the temporal table (once ``use_table`` is set), from one fixed row
    (``fixed`` set), or from the data itself. While ``recorder`` is set (calibration), each dynamic
    range is reported to it with the row it came with.

    Parameters
    ----------
    name : str
        Of the layer, for the report.
    backend : {"native", "reference"}
    per_token : bool
        Dynamic ranges per token; such an input never becomes static.
    """

    def __init__(self, name, backend, per_token):
        self.name = name
        self.backend = backend
        self.per_token = per_token
        self.slot = None  # reserved place in a row; None: the layer never sees a row
        self.use_table = False
        self.fixed = None
        self.recorder = None

    @property
    def mode(self):
        """Kind of range, for the report: "timestep", "static" or "dynamic"."""
        if self.use_table:
            return "timestep"
        return "static" if self.fixed is not None else "dynamic"

    def _qparams(self, row, groups):
        if self.fixed is not None:
            return self.fixed.expand(groups, QPARAMS_WIDTH)
        if not self.use_table or row is None:
            return None
        return row[:, self.slot : self.slot + QPARAMS_WIDTH]

    def _observe(self, result, row):
        if self.recorder is not None and row is not None:
            self.recorder.add(self, row, result[1])
        return result

    def quantize(self, x, row=None):
        """Quantise images per sample, or tokens per token."""
        operations = backends.get(self.backend)
        if self.per_token:
            return operations.quantize(x, groups=x.numel() // x.shape[-1])
        return self._observe(operations.quantize(x, self._qparams(row, x.shape[0])), row)

    def group_norm(self, norm, x, row=None, x2=None, silu=True, affine=None):
        """GroupNorm `norm` of ``cat([x, x2])``, SiLU, quantise; `affine` replaces its weight and bias."""
        weight, bias = (norm.weight, norm.bias) if affine is None else affine
        result = backends.get(self.backend).group_norm_silu_quantize(
            x, norm.num_groups, weight, bias, norm.eps, x2=x2, silu=silu,
            qparams=self._qparams(row, x.shape[0]),
        )  # fmt: skip
        return self._observe(result, row)

    def layer_norm(self, norm, x):
        """LayerNorm `norm` of tokens, quantised per token."""
        return backends.get(self.backend).layer_norm_quantize(x, norm.weight, norm.bias, norm.eps)

    def geglu(self, x):
        """GEGLU of tokens, quantised per token."""
        return backends.get(self.backend).geglu_quantize(x)
