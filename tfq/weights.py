"""From float weights to integers: one scale (and zero-point) per output channel."""

import dataclasses

import torch

BITS = (8, 4)
_MAX_INT8 = 127
_MAX_INT4 = 15
# Least and greatest integer of a weight, by bits.
RANGES = {8: (-_MAX_INT8, _MAX_INT8), 4: (0, _MAX_INT4)}
# Search of the 4-bit grid: shrink factors of a channel's range, and the exponent of the error.
# As Huang et al. (TPAMI 2025) and the code of the conference version: 80 candidates, p = 2.4.
_SHRINK_STEPS = 80
_ERROR_POWER = 2.4
_CHUNK_ELEMENTS = 1 << 16
# Of a sum of rounding errors in float32.
_SUM_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Integer weights of one layer; the real weight is ``(q - zero_point) * scale``.

    Parameters
    ----------
    q : Tensor
        int8 ``(n, ...)`` in [-127, 127] (8 bits), or uint8 in [0, 15] (4 bits).
    scale : Tensor
        float32 ``(n,)``.
    zero_point : Tensor or None
        uint8 ``(n,)`` in [0, 15] for 4 bits; None for 8 bits, which are symmetric.
    """

    q: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None

    @property
    def bits(self):
        """8 or 4."""
        return 8 if self.zero_point is None else 4

    def dequantize(self):
        """Real weights, float32."""
        q = self.q.float()
        if self.zero_point is not None:
            q = q - per_channel(self.zero_point.float(), q)
        return q * per_channel(self.scale, q)


def per_channel(values, like):
    """``(n,)`` as ``(n, 1, ...)`` with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def weight_grid(weight, bits):
    """Scale and zero-point of each output channel.

    8 bits: ``max|w| / 127``, symmetric. 4 bits: asymmetric, the range (which contains 0) shrunk by the
    factor, of 80 from 1 to 0.21, that minimizes the sum of ``|w - w_q| ** 2.4``.

    Parameters
    ----------
    weight : Tensor
        Float ``(n, ...)``, finite.
    bits : {8, 4}

    Returns
    -------
    scale : Tensor
        float32 ``(n,)``; 1 for a channel of zeros.
    zero_point : Tensor or None
        float32 integers ``(n,)`` in [0, 15]; None for 8 bits.
    """
    if bits not in BITS:
        raise ValueError(f"weight_grid: bits must be 8 or 4, got {bits!r}")
    rows = weight.detach().float().flatten(1)
    if bits == 8:
        scale = rows.abs().amax(1) / _MAX_INT8
        return torch.where(scale > 0, scale, torch.ones_like(scale)), None
    step = max(1, _CHUNK_ELEMENTS // max(rows.shape[1], 1))
    grids = [_search_int4(chunk) for chunk in rows.split(step)]
    return torch.cat([scale for scale, _ in grids]), torch.cat([zero for _, zero in grids])


def _int4_grid(low, high):
    scale = (high - low) / _MAX_INT4
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round_().clamp_(0, _MAX_INT4)


def _search_int4(rows):
    low, high = rows.amin(1).clamp_(max=0), rows.amax(1).clamp_(min=0)
    best_scale, best_zero = _int4_grid(low, high)
    best_error = torch.full_like(best_scale, torch.inf)
    for step in range(_SHRINK_STEPS):
        factor = 1 - step / 100
        scale, zero = _int4_grid(low * factor, high * factor)
        q = (rows / scale[:, None]).round_().add_(zero[:, None]).clamp_(0, _MAX_INT4)
        q.sub_(zero[:, None]).mul_(scale[:, None]).sub_(rows)
        error = q.abs_().pow_(_ERROR_POWER).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def round_to_grid(weight, scale, zero_point):
    """:class:`QuantizedWeight` on a given grid (see :func:`weight_grid`).

    To the nearest integer, but 8-bit convolution kernels ``(n, c, height, width)`` keep their sums: see
    :func:`round_kernels`.
    """
    scaled = weight.detach().float() / per_channel(scale, weight)
    if zero_point is None:
        q = round_kernels(scaled) if scaled.dim() == 4 else scaled.round_()
        return QuantizedWeight(q.clamp_(-_MAX_INT8, _MAX_INT8).to(torch.int8), scale)
    q = scaled.round_().add_(per_channel(zero_point, weight)).clamp_(0, _MAX_INT4)
    return QuantizedWeight(q.to(torch.uint8), scale, zero_point.to(torch.uint8))


def round_kernels(scaled):
    """Round so that the sum of each kernel ``[n, c]`` is off by at most a half.

    Neighbouring pixels are alike, so what a rounded kernel is off by in all counts for more than where;
    nearest rounding leaves three times as much. Where the sum is off by more than a half, the elements
    that were closest to the other integer go there (as SQuant, Guo et al., ICLR 2022, section 3.3).

    Parameters
    ----------
    scaled : Tensor
        float32 ``(n, c, height, width)`` in units of the grid.

    Returns
    -------
    Tensor
        Integers as float32, each less than 1 from its element.
    """
    kernels = scaled.flatten(2)
    rounded = kernels.round()
    step = max(1, _CHUNK_ELEMENTS // max(kernels[:1].numel(), 1))
    for q, exact in zip(rounded.split(step), kernels.split(step), strict=True):
        error = q - exact
        while True:
            total = error.sum(2, keepdim=True)
            direction = total.sign() * (total.abs() > 0.5 + _SUM_TOLERANCE)
            if not direction.any():
                break
            farthest = (error * direction).argmax(2, keepdim=True)
            for values in (q, error):
                values.scatter_add_(2, farthest, -direction)
    return rounded.view_as(scaled)


def quantize_weight(weight, bits=8):
    """Round a float weight ``(n, ...)`` on its grid; see :func:`weight_grid`, :func:`round_to_grid`."""
    return round_to_grid(weight, *weight_grid(weight, bits))
