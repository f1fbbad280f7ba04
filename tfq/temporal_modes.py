"""The temporal features in each mode: built from the float block, measured against it.

Huang et al., "Temporal Feature Matters" (TPAMI 2025): finite-set calibration (FSC), cache-based
maintenance (CM) and disturbance-aware selection (DAS). All of it depends on the timestep alone, so it
is computed once, for every timestep of the table.
"""

import copy
import dataclasses
import math

import torch
from torch import nn

from tfq import models, temporal
from tfq.adaln import FloatAdaLN
from tfq.features import FeatureCache, QuantizedTIB, SelectedFeatures, fake_quantize
from tfq.reference import MAX_UINT8, qparams_from_range
from tfq.tiar import biases_of, layers_of, reconstruct_tib
from tfq.weights import quantize_weight

# Modes that need the timesteps before the first call.
TABLE_MODES = ("cache", "tib", "select")
# Where no timesteps are given, the temporal error is measured at these.
_PROBE_TIMESTEPS = (0.0, 1.0, 10.0, 100.0, 500.0, 999.0)
_SHRINK_STEPS = 80
_LEAST_SQUARES_ROUNDS = 4


@dataclasses.dataclass
class TemporalErrors:
    """Errors of the temporal features of a converted model, by timestep (row) and block (column).

    Parameters
    ----------
    timesteps : list of float
    blocks : list of str
    relative : Tensor
        ``(timesteps, blocks)``: relative L2 error of what runs.
    tib, cache : Tensor or None
        Squared L2 errors of the quantized block and of the cache; `tib` is
        ``(2, timesteps, blocks)``, without and with the output tap.
    chosen : Tensor or None
        bool ``(timesteps, blocks)``: where the selection took the block.
    """

    timesteps: list
    blocks: list
    relative: torch.Tensor
    tib: torch.Tensor | None = None
    cache: torch.Tensor | None = None
    chosen: torch.Tensor | None = None

    @property
    def tau(self):
        """``L(TIB) / L(cache)``, ``(2, timesteps, blocks)``: below 1 the selection takes the block."""
        return None if self.tib is None or self.cache is None else disturbance(self.tib, self.cache)

    def summary(self):
        """JSON-serializable: mean and largest error, share of the selection, maps as nested lists."""
        maps = {"timesteps": self.timesteps, "blocks": self.blocks}
        for name in ("relative", "tib", "cache", "chosen", "tau"):
            value = getattr(self, name)
            maps[name] = None if value is None else _finite(value.tolist())
        return {
            "mean_error": self.relative.mean().item() if self.relative.numel() else 0.0,
            "max_error": self.relative.max().item() if self.relative.numel() else 0.0,
            "chosen_tib_share": None if self.chosen is None else self.chosen.double().mean().item(),
            "maps": maps,
        }


def _finite(values):
    """Nested lists with None for what JSON cannot hold (tau over a cache that is exact)."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None


def disturbance(tib_error, cache_error):
    """``tau = L(TIB) / L(cache)``; where both are exact 1, so that the cache is taken."""
    exact = (tib_error == 0) & (cache_error == 0)
    return torch.where(exact, torch.ones_like(tib_error), tib_error / cache_error)


class FloatFeatures:
    """The temporal path of the float model, run module by module as the float model runs it."""

    def __init__(self, model):
        self.time_proj, self.embedding = model.time_proj, model.time_embedding
        self.embed_act = getattr(model, "time_embed_act", None)
        modules = dict(model.named_modules())
        self.blocks = {
            block["block"]: (modules[block["block"]], modules[block["name"]])
            for block in temporal.temporal_blocks(model)["blocks"]
            if hasattr(modules[block["block"]], "time_emb_proj")
        }

    def probes(self, timesteps):
        """Timesteps at which to measure the error where no table says: those of these that it knows."""
        known = getattr(self.time_proj, "num_embeddings", None)
        return [t for t in timesteps if known is None or t < known]

    def features(self, timestep, names):
        """Folded features of some blocks at one timestep, or None where the float model has none."""
        dtype = next(self.embedding.parameters()).dtype
        learned = isinstance(self.time_proj, nn.Embedding)
        timestep = torch.tensor([timestep])
        sinusoid = self.time_proj(timestep.long() if learned else timestep)
        embedded = self.embedding(sinusoid.to(dtype))
        if self.embed_act is not None:
            embedded = self.embed_act(embedded)
        if not torch.isfinite(embedded).all():
            return None  # a Fourier projection of timestep 0 takes its logarithm
        features = []
        for name in names:
            block, projection = self.blocks[name]
            active = embedded if block.skip_time_act else block.nonlinearity(embedded)
            features.append(block.fold_feature(projection(active)).float())
        return features


def float_features_of(model):
    """The temporal path of a float model."""
    return (FloatAdaLN if isinstance(model, models.TRANSFORMERS) else FloatFeatures)(model)


def relative_error(actual, expected):
    """``|actual - expected| / |expected|``."""
    norm = expected.float().norm().item()
    return (actual.float() - expected.float()).norm().item() / norm if norm else 0.0


def install_features(embedding, float_features, config, progress=None):
    """Give a TemporalEmbedding the source of its mode and measure the features against float.

    Returns
    -------
    TemporalErrors
    """
    errors = {}
    if embedding.slots and config.temporal in TABLE_MODES:
        source, errors = _build_source(embedding, config, progress)
        embedding.use_source(source)
    names = [name for name, _ in embedding.slots]
    timesteps, relative = [], []
    for timestep in embedding.values.tolist() or float_features.probes(_PROBE_TIMESTEPS):
        expected = float_features.features(timestep, names)
        if expected is None:
            continue
        row = embedding(temporal.encode_timesteps(torch.tensor([timestep])))
        actual = [
            row[:, slot : slot + f.shape[1]]
            for (_, slot), f in zip(embedding.slots, expected, strict=True)
        ]
        timesteps.append(timestep)
        relative.append([relative_error(a, e) for a, e in zip(actual, expected, strict=True)])
    return TemporalErrors(timesteps, names, torch.tensor(relative), **errors)


def _build_source(embedding, config, progress):
    values, tib = embedding.values, embedding.tib
    rows = range(len(values))
    exact = _by_timestep(lambda t: tib.features(values[t : t + 1])[0], rows)
    errors = {}
    block = cache = None
    if config.temporal in ("tib", "select"):
        block = quantize_tib(tib, values, exact, config, progress)
        index = torch.arange(len(values))
        block.output_ranges = None  # not known before the features are
        plain = _by_timestep(lambda t: block.features(values[t : t + 1], index[t : t + 1])[0], rows)
        ranges = _output_ranges(plain)
        tapped = [fake_quantize(f, r) for f, r in zip(plain, ranges.unbind(1), strict=True)]
        errors["tib"] = torch.stack([_squared_errors(plain, exact), _squared_errors(tapped, exact)])
        if config.fsc_output_tap:
            block.output_ranges = ranges
    if config.temporal in ("cache", "select"):
        cache = cache_features(exact, config.backend)
        index = torch.arange(len(values))
        errors["cache"] = _squared_errors(cache.features(values, index)[0], exact)
    if cache is None:
        return block, errors
    if block is None:
        return cache, errors
    tau = disturbance(errors["tib"][int(config.fsc_output_tap)], errors["cache"])
    errors["chosen"] = tau < 1
    selected = SelectedFeatures(block, cache, len(values))
    return selected.load(errors["chosen"]), errors


def _by_timestep(function, rows):
    """Features of all timesteps, a list of ``(timesteps, width)``; one at a time, as they are used."""
    return [torch.cat(parts) for parts in zip(*(function(t) for t in rows), strict=True)]


def _squared_errors(actual, exact):
    """``(timesteps, blocks)``."""
    pairs = zip(actual, exact, strict=True)
    return torch.stack([(a - e).double().pow(2).sum(1) for a, e in pairs], dim=1)


def _extremes(x):
    """Parameters of the range of each row of ``(timesteps, width)``."""
    return qparams_from_range(x.amin(1), x.amax(1))


def _output_ranges(features):
    return torch.stack([_extremes(f) for f in features], dim=1)


def quantize_tib(tib, values, exact, config, progress=None):
    """The block on integers, with finite-set calibration: min-max ranges by tap and timestep.

    The ranges of the projections' inputs are those of the quantized ``linear_2``. With
    ``reconstruction`` the weights are rounded by :func:`tfq.tiar.reconstruct_tib`, else to the nearest.

    Parameters
    ----------
    tib : FloatTIB
        Left as it is.
    values : Tensor
        float32 ``(timesteps,)``.
    exact : list of Tensor
        Float features, ``(timesteps, width)`` each.
    config : TfqConfig
    """
    bits = config.weight_bits
    hidden = torch.cat([tib.hidden(value) for value in values.split(1)])
    if config.reconstruction == "none":
        weights = [quantize_weight(layer.weight, bits) for layer in layers_of(tib)]
        biases = biases_of(tib)
    else:
        weights, biases = reconstruct_tib(
            tib, hidden, exact, bits, config.reconstruction_steps, config.seed, progress
        )
    block = QuantizedTIB(
        copy.deepcopy(tib), bits, len(values), config.fsc_output_tap, config.backend
    )
    count = len(block.tib.projections)
    block.load(weights, biases, torch.zeros(len(values), 1 + count, 3))
    block.ranges[:, 0] = _extremes(hidden)
    index = torch.arange(len(values))
    inputs = _by_timestep(
        lambda t: block.tib.projection_inputs(block.embed(values[t : t + 1], index[t : t + 1])),
        range(len(values)),
    )
    for i, x in enumerate(inputs):
        block.ranges[:, 1 + i] = _extremes(x)
    return block


def cache_features(exact, backend="native"):
    """8-bit cache of features, each row of each feature on the grid that fits it best.

    Parameters
    ----------
    exact : list of Tensor
        float32 ``(timesteps, width)`` of each block.
    """
    fitted = [fit_grid(feature) for feature in exact]
    cache = FeatureCache([f.shape[1] for f in exact], len(exact[0]), backend)
    q = torch.cat([q for q, _ in fitted], dim=1)
    return cache.load(q, torch.stack([qparams for _, qparams in fitted], dim=1))


def fit_grid(x):
    """Scale and zero-point of each row of least squared error, 8 bits.

    Shrinks the row's range about its middle (80 factors), and from the best of these alternates between
    rounding and the least-squares line through (q, x).

    Parameters
    ----------
    x : Tensor
        float32 ``(rows, width)``.

    Returns
    -------
    q : Tensor
        uint8 ``(rows, width)``.
    qparams : Tensor
        float32 ``(rows, 2)``, scale and zero point (a real number); ``x ~ (q - zero_point) * scale``.
    """
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    best = None
    for step in range(_SHRINK_STEPS):
        scale = half * (1 - step / 100) * 2 / MAX_UINT8
        best = _better(best, _round_to_line(x, scale, MAX_UINT8 / 2 - middle / _nonzero(scale)), x)
    for _ in range(_LEAST_SQUARES_ROUNDS):
        q = best[0]
        centred = q - q.mean(1, keepdim=True)
        slope = (centred * x).sum(1, keepdim=True) / _nonzero((centred**2).sum(1, keepdim=True))
        zero = q.mean(1, keepdim=True) - x.mean(1, keepdim=True) / _nonzero(slope)
        best = _better(best, (q, slope, zero), x)
        best = _better(best, _round_to_line(x, slope, zero), x)
    q, scale, zero = best
    return q.to(torch.uint8), torch.cat([scale, zero], dim=1)


def _nonzero(x):
    return torch.where(x == 0, torch.ones_like(x), x)


def _round_to_line(x, scale, zero):
    """A constant row is the line through itself: q = 0 and zero = -x at scale 1."""
    constant = scale == 0
    scale = _nonzero(scale)
    zero = torch.where(constant, -x[:, :1], zero)
    return (x / scale + zero).round().clamp(0, MAX_UINT8), scale, zero


def _better(best, candidate, x):
    """Row by row the one of least squared error, as the kernel dequantizes it."""
    if best is None:
        return candidate
    errors = [
        (((q - zero) * scale - x) ** 2).sum(1, keepdim=True) for q, scale, zero in (best, candidate)
    ]
    take = errors[1] < errors[0]
    return tuple(torch.where(take, new, old) for old, new in zip(best, candidate, strict=True))
