"""Ranges of activations: what a calibration run records, and the estimators that condense it.

Every recorded image was quantized by its own range, so 256 counts on a known grid describe it: enough
for the extremes, for percentiles and for the error of a narrower range, at no cost in memory.
"""

import dataclasses

import torch

from tfq import temporal
from tfq.distributed import gather
from tfq.quantizer import QPARAMS_WIDTH
from tfq.reference import MAX_UINT8, qparams_from_range

# As in the released code of Huang et al. (TPAMI 2025): momentum of the moving average; shrink factors
# 1.00 to 0.21 of the search. It searches with |x|^2.4; here the error is squared, see _clipping_error.
_MOMENTUM = 0.95
_SHRINK_STEPS = 80
# Share of the values within the "percentile" range.
_COVERED = 0.9999


@dataclasses.dataclass
class _Seen:
    """What one unit of a calibration has shown: a call, or a trajectory."""

    timesteps: set
    images: dict  # (quantizer, timestep) -> list of (low, high, counts or None)


class RangeRecorder:
    """What was seen of each input at each timestep.

    Parameters
    ----------
    estimator : {"minmax", "ema", "percentile", "mse"}
    """

    def __init__(self, estimator):
        self.estimator = estimator
        self._units = {}
        self.begin(0)

    def begin(self, unit):
        """Note what follows as part of this unit of the calibration."""
        self._now = self._units.setdefault(unit, _Seen(set(), {}))

    def share(self, quantizers):
        """Put together what the processes of torch.distributed have seen."""
        number = {quantizer: index for index, quantizer in enumerate(quantizers)}
        mine = {
            unit: (seen.timesteps, {(number[q], t): v for (q, t), v in seen.images.items()})
            for unit, seen in self._units.items()
            if seen.timesteps
        }
        self._units = {
            unit: _Seen(timesteps, {(quantizers[n], t): v for (n, t), v in images.items()})
            for unit, (timesteps, images) in gather(mine).items()
        }

    def see(self, embedding, args):
        """Forward pre-hook of the TemporalEmbedding: notes the timesteps of each call."""
        self._now.timesteps.update(temporal.decode_timesteps(args[0]).tolist())

    def add(self, quantizer, row, q, qparams):
        """Record images ``(batch, ...)`` quantized with their own ``(batch, 3)``, and their rows."""
        scale, zero_point = qparams[:, 0].double(), qparams[:, 2].double()
        lows, highs = range_ends(scale, zero_point)
        timesteps = row[:, temporal.VALUE_SLOT].tolist()
        for i, observed in enumerate(zip(timesteps, lows.tolist(), highs.tolist(), strict=True)):
            timestep, low, high = observed
            counts = None
            if self.estimator in ("percentile", "mse"):
                counts = torch.bincount(_values(q[i]), minlength=MAX_UINT8 + 1)
            self._now.images.setdefault((quantizer, timestep), []).append((low, high, counts))

    @property
    def timesteps(self):
        """Timesteps seen, ascending."""
        return sorted(set().union(*(seen.timesteps for seen in self._units.values())))

    def range(self, quantizer, timesteps):
        """Estimated ``(low, high)`` over some timesteps, or None if one of them was not recorded."""
        images = []
        for timestep in timesteps:
            recorded = [
                image
                for seen in self._units.values()
                for image in seen.images.get((quantizer, timestep), ())
            ]
            if not recorded:
                return None
            images += recorded
        return _ESTIMATORS[self.estimator](images)


def range_ends(scale, zero_point):
    """Least and largest value that uint8 with a scale and a zero-point can be."""
    return -zero_point * scale, (MAX_UINT8 - zero_point) * scale


def _values(q):
    # In memory order: a permuted view would be copied.
    return (q.permute(1, 2, 0) if q.dim() == 3 else q).reshape(-1).int()


def _minmax(images):
    return min(low for low, _, _ in images), max(high for _, high, _ in images)


def _ema(images):
    low, high = images[0][:2]
    for next_low, next_high, _ in images[1:]:
        low = _MOMENTUM * low + (1 - _MOMENTUM) * next_low
        high = _MOMENTUM * high + (1 - _MOMENTUM) * next_high
    return low, high


def _points(images):
    """Values and how often they were seen, ascending."""
    levels = torch.linspace(0, 1, MAX_UINT8 + 1, dtype=torch.float64)
    values = torch.cat([low + (high - low) * levels for low, high, _ in images])
    counts = torch.cat([counts for _, _, counts in images]).double()
    order = values.argsort()
    return values[order], counts[order]


def _percentile(images):
    values, counts = _points(images)
    shares = counts.cumsum(0) / counts.sum()
    tail = (1 - _COVERED) / 2
    low = values[torch.searchsorted(shares, tail)]
    high = values[torch.searchsorted(shares, 1 - tail).clamp(max=len(values) - 1)]
    return min(low.item(), 0.0), max(high.item(), 0.0)


def _mse(images):
    values, counts = _points(images)
    low, high = _minmax(images)
    factors = [1 - step / 100 for step in range(_SHRINK_STEPS)]
    errors = [_clipping_error(values, counts, low * f, high * f) for f in factors]
    best = factors[min(range(_SHRINK_STEPS), key=errors.__getitem__)]
    return low * best, high * best


def _clipping_error(values, counts, low, high):
    """Sum of squared errors of a range: step^2 / 12 inside, the distance to it outside."""
    beyond = values - values.clamp(low, high)
    step = (high - low) / MAX_UINT8
    return (counts * (beyond**2 + (beyond == 0) * step**2 / 12)).sum().item()


_ESTIMATORS = {"minmax": _minmax, "ema": _ema, "percentile": _percentile, "mse": _mse}


def install_ranges(embedding, quantizers, recorder, ranges):
    """Build the table for the timesteps seen and make the recorded inputs static.

    Parameters
    ----------
    embedding : TemporalEmbedding
    quantizers : list of InputQuantizer
        Those with a reserved place in a row.
    recorder : RangeRecorder
    ranges : {"timestep", "static"}
    """
    timesteps = recorder.timesteps
    if not timesteps:
        raise ValueError("convert: calibration made no call of the UNet")
    rows = torch.cat([embedding.compute_rows(torch.tensor([t])) for t in timesteps])
    for quantizer in quantizers:
        spans = [timesteps] if ranges == "static" else [[t] for t in timesteps]
        estimated = [recorder.range(quantizer, span) for span in spans]
        if None in estimated:
            continue
        qparams = qparams_from_range(*torch.tensor(estimated).unbind(1))
        rows[:, quantizer.slot : quantizer.slot + QPARAMS_WIDTH] = qparams
        quantizer.ranges = ranges
    embedding.set_rows(torch.tensor(timesteps), rows)
