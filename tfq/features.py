"""Where the temporal features of a row come from: the float block, a quantized one, a cache, or both.

The four are the arms of Huang et al., "Temporal Feature Matters" (TPAMI 2025): the Temporal Information
Block in float; the block quantized with finite-set calibration (FSC), one range per activation and
timestep; the cache-based maintenance (CM) of its outputs; and the disturbance-aware selection (DAS)
between the two, per timestep and block.
"""

import torch
from torch import nn

from tfq import backends, capture
from tfq.nn import Linear
from tfq.ops._checks import is_traced
from tfq.quantizer import QPARAMS_WIDTH


def linear(layer, x):
    """A Linear in float32, whatever its weights are stored in."""
    # A kept block is stored in float16 once rows exist, and computed in float32.
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(x.float(), layer.weight.float(), bias)


class FloatTIB(nn.Module):
    """The Temporal Information Block in float: sinusoid, time MLP, projections.

    Parameters
    ----------
    time_proj, embedding : nn.Module
        The model's sinusoid and its TimestepEmbedding.
    blocks : list of ResnetBlock2D
        Those whose features it yields (their ``time_emb_proj`` and activation).
    embed_act : nn.Module, optional
        What the model applies to the time embedding before any block reads it.
    """

    def __init__(self, time_proj, embedding, blocks, embed_act=None):
        super().__init__()
        self.time_proj = time_proj
        self.embedding = embedding
        self.embed_act = embed_act
        self.activations = nn.ModuleList(
            nn.Identity() if block.skip_time_act else block.nonlinearity for block in blocks
        )
        self.projections = nn.ModuleList(block.time_emb_proj for block in blocks)

    def half(self):
        """Store the linear layers as float16; the sinusoid keeps its dtype."""
        self.embedding.half()
        self.projections.half()
        return self

    def hidden(self, values, condition=None):
        """Input of ``linear_2`` for float32 timesteps ``(batch,)``, float32."""
        learned = isinstance(self.time_proj, nn.Embedding)
        x = self.time_proj(values.long() if learned else values)
        if condition is not None:
            x = x.float() + linear(self.embedding.cond_proj, condition)
        x = linear(self.embedding.linear_1, x)
        return x if self.embedding.act is None else self.embedding.act(x)

    def embed(self, values, condition=None):
        """Time embedding ``(batch, embedding)``, float32."""
        return self.finish_embedding(
            linear(self.embedding.linear_2, self.hidden(values, condition))
        )

    def finish_embedding(self, x):
        """What follows ``linear_2``."""
        return x if self.embedding.post_act is None else self.embedding.post_act(x)

    def projection_inputs(self, embedded):
        """Input of each projection, a list of ``(batch, embedding)``."""
        active = embedded if self.embed_act is None else self.embed_act(embedded)
        return [activation(active) for activation in self.activations]

    def features(self, values, condition=None):
        """Temporal features, a list of ``(batch, width)``, and the time embedding; float32."""
        embedded = self.embed(values, condition)
        inputs = self.projection_inputs(embedded)
        return [
            linear(projection, x) for projection, x in zip(self.projections, inputs, strict=True)
        ], embedded


class QuantizedTIB(nn.Module):
    """The block on integers: ``linear_2`` and the projections, their inputs quantized by timestep.

    ``linear_1`` stays float, as in the released method. With ``output_ranges`` the features are
    rounded too.

    Parameters
    ----------
    tib : FloatTIB
        Becomes part of this module; its ``linear_2`` and projections are replaced.
    bits : {8, 4}
    rows : int
        Timesteps.
    output_tap : bool
    backend : {"native", "reference"}
    """

    replaces_float = True

    def __init__(self, tib, bits, rows, output_tap, backend):
        super().__init__()
        self.tib = tib
        self.tib.embedding.linear_2 = Linear(tib.embedding.linear_2, "linear_2", backend, bits)
        self.tib.projections = nn.ModuleList(
            Linear(layer, f"projections.{i}", backend, bits)
            for i, layer in enumerate(tib.projections)
        )
        self.backend = backend
        count = len(self.tib.projections)
        self.register_buffer("ranges", torch.empty(rows, 1 + count, QPARAMS_WIDTH))
        tap = torch.empty(rows, count, QPARAMS_WIDTH) if output_tap else None
        self.register_buffer("output_ranges", tap)

    @property
    def layers(self):
        """``linear_2`` and the projections."""
        return [self.tib.embedding.linear_2, *self.tib.projections]

    def load(self, weights, biases, ranges):
        """Fill in integers and biases of ``linear_2`` and each projection, and their ranges.

        ``ranges``: float32 ``(timesteps, 1 + projections, 3)``, qparams of each input.
        """
        for layer, weight, bias in zip(self.layers, weights, biases, strict=True):
            layer.load_weight(weight, bias=bias)
        self.ranges = ranges
        return self

    def _product(self, layer, x, qparams):
        q, _ = backends.get(self.backend).quantize(x.contiguous(), qparams.contiguous())
        return layer.product(q, qparams.contiguous())

    def embed(self, values, index):
        """Time embedding of `values` with the ranges of rows `index`."""
        product = self._product(
            self.tib.embedding.linear_2, self.tib.hidden(values), self.ranges[index, 0]
        )
        return self.tib.finish_embedding(product)

    def features(self, values, index, known=None, wanted=None):
        """Features (None for those not in `wanted`) and the time embedding at rows `index`."""
        ranges = self.ranges[index]
        embedded = self.embed(values, index)
        features = []
        for i, x in enumerate(self.tib.projection_inputs(embedded)):
            if wanted is not None and not wanted[i]:
                features.append(None)
                continue
            feature = self._product(self.tib.projections[i], x, ranges[:, 1 + i])
            if self.output_ranges is not None:
                feature = fake_quantize(feature, self.output_ranges[index, i], self.backend)
            features.append(feature)
        return features, embedded


def fake_quantize(x, qparams, backend="native"):
    """Round ``(batch, width)`` to the uint8 grid of each row's qparams ``(batch, 3)``."""
    q, _ = backends.get(backend).quantize(x.contiguous(), qparams.contiguous())
    return (q.float() - qparams[:, 2:]) * qparams[:, :1]


class FeatureCache(nn.Module):
    """Cache-based maintenance: the features of each timestep, in 8 bits with their own grid.

    Parameters
    ----------
    widths : list of int
        Values of each feature.
    rows : int
        Timesteps.
    """

    replaces_float = False

    def __init__(self, widths, rows, backend):
        super().__init__()
        self.widths = list(widths)
        self.backend = backend
        offsets = torch.tensor([0, *widths]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("q", torch.empty(rows, sum(widths), dtype=torch.uint8))
        self.register_buffer("qparams", torch.empty(rows, len(widths), 2))

    def load(self, q, qparams):
        """Fill in the table: uint8 ``(rows, width)`` and (scale, zero point) ``(rows, features, 2)``."""
        self.q, self.qparams = q, qparams
        return self

    def features(self, values, index, known=None):
        """Dequantized features at rows `index`; no time embedding."""
        gathered = backends.get(self.backend).temporal_gather(
            self.q, index, qparams=self.qparams, offsets=self.offsets
        )
        return list(gathered.split(self.widths, dim=1)), None


class SelectedFeatures(nn.Module):
    """Disturbance-aware selection: per timestep and block the quantized block or the cache.

    A timestep without a row runs through the block.

    Parameters
    ----------
    block : QuantizedTIB
    cache : FeatureCache
    """

    replaces_float = True

    def __init__(self, block, cache, rows):
        super().__init__()
        self.block = block
        self.cache = cache
        self.register_buffer(
            "chooses_block", torch.empty(rows, len(cache.widths), dtype=torch.bool)
        )

    def load(self, chooses_block):
        """Fill in the selection, bool ``(rows, features)``."""
        self.chooses_block = chooses_block
        return self

    def features(self, values, index, known):
        """Features chosen at rows `index`, and the time embedding where the block ran."""
        chosen = self.chooses_block[index] | ~known[:, None]
        on_device = is_traced(chosen) or capture.is_active()
        wanted = [True] * len(self.cache.widths) if on_device else chosen.any(0).tolist()
        cached, _ = self.cache.features(values, index)
        if not any(wanted):
            return cached, None
        computed, embedded = self.block.features(values, index, wanted=wanted)
        return [
            c if b is None else torch.where(chosen[:, i : i + 1], b, c)
            for i, (b, c) in enumerate(zip(computed, cached, strict=True))
        ], embedded
