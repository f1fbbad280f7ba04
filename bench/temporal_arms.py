"""Temporal features of every arm: read from converted models, or simulated for the paper's baselines.

The baselines "Prev", "Freeze" and TIAR without per-timestep ranges exist for comparison only, so they
are float simulations of the Temporal Information Block (Huang et al., "Temporal Feature Matters",
TPAMI 2025) and not a part of the package. Features are ``[timestep][block]`` lists of ``(width,)``.
"""

import contextlib

import torch
from torch.nn import functional as F

import tfq
from tfq import reference, temporal
from tfq.weights import quantize_weight

BITS = 4


class TemporalPath:
    """The Temporal Information Block of a float UNet, with weights and inputs that can be replaced.

    Parameters
    ----------
    unet : UNet2DModel
        Float, without class conditions.
    """

    def __init__(self, unet):
        partition = tfq.temporal_blocks(unet)
        if partition["conditions"]:
            raise NotImplementedError(
                f"temporal features depend on {', '.join(partition['conditions'])} too"
            )
        modules = dict(unet.named_modules())
        self.names = [block["block"] for block in partition["blocks"]]
        self.blocks = [modules[name] for name in self.names]
        self.time_proj, self.embedding = unet.time_proj, unet.time_embedding
        self.layers = [self.embedding.linear_2, *(block.time_emb_proj for block in self.blocks)]

    @torch.no_grad()
    def features(self, timesteps, weights=None, tap=None):
        """Temporal features.

        Parameters
        ----------
        timesteps : sequence of float
        weights : list of Tensor, optional
            In place of those of ``linear_2`` and of each projection; default: their own.
        tap : callable, optional
            ``tap(i, x)`` replaces the input of the i-th of these layers.
        """
        weights = [layer.weight for layer in self.layers] if weights is None else weights
        tap = (lambda i, x: x) if tap is None else tap
        return [self._at(timestep, weights, tap) for timestep in timesteps]

    def _at(self, timestep, weights, tap):
        hidden = self.embedding.linear_1(self.time_proj(torch.tensor([timestep])))
        hidden = tap(0, self.embedding.act(hidden))
        embedded = F.linear(hidden, weights[0], self.embedding.linear_2.bias)
        return [
            F.linear(
                tap(1 + i, block.nonlinearity(embedded)), weights[1 + i], block.time_emb_proj.bias
            )[0]
            for i, block in enumerate(self.blocks)
        ]

    def static_features(self, timesteps, weights):
        """Features with `weights` and one min-max range of each input for all timesteps (8 bits)."""
        ranges = {}

        def observe(i, x):
            low, high = ranges.get(i, (0.0, 0.0))
            ranges[i] = (min(low, x.min().item()), max(high, x.max().item()))
            return x

        self.features(timesteps, weights, observe)
        qparams = {
            i: reference.qparams_from_range(torch.tensor([low]), torch.tensor([high]))
            for i, (low, high) in ranges.items()
        }

        def quantized(i, x):
            q, _ = reference.quantize(x, qparams[i])
            return (q.float() - qparams[i][0, 2]) * qparams[i][0, 0]

        return self.features(timesteps, weights, quantized)

    def rounded_weights(self):
        """Weights of ``linear_2`` and of each projection, rounded to nearest on their 4-bit grid."""
        return [quantize_weight(layer.weight, BITS).dequantize() for layer in self.layers]


def converted_features(unet, timesteps):
    """Temporal features that a converted model's ResBlocks read at each timestep."""
    widths = _slot_widths(unet)
    rows = [unet.time_embedding(temporal.encode_timesteps(torch.tensor([t]))) for t in timesteps]
    return [
        [row[0, slot : slot + width].float() for (_, slot), width in widths.items()] for row in rows
    ]


def converted_weights(unet):
    """Weights of ``linear_2`` and of each projection in a model converted with ``temporal="tib"``."""
    return [layer.weight for layer in unet.time_embedding.source.layers]


def _slot_widths(unet):
    """(block, slot) -> width, in the order of the partition; raises if a feature is not in the row."""
    slots = dict(unet.time_embedding.slots)
    modules = dict(unet.named_modules())
    widths = {}
    for block in tfq.temporal_blocks(unet)["blocks"]:
        name = block["block"]
        if name not in slots or modules[name].time_embedding_norm != "default":
            raise NotImplementedError(f"the temporal feature of {name} is not in the row as it is")
        widths[name, slots[name]] = block["width"]
    return widths


@contextlib.contextmanager
def overwritten_rows(unet, timesteps, features):
    """A converted model whose ResBlocks read `features` instead of their own, while inside."""
    widths = _slot_widths(unet)
    at = dict(zip(timesteps, features, strict=True))

    def overwrite(module, args, rows):
        rows = rows.clone()
        for row in rows:
            cells = at[row[temporal.VALUE_SLOT].item()]
            for ((_, slot), width), cell in zip(widths.items(), cells, strict=True):
                row[slot : slot + width] = cell
        return rows

    handle = unet.time_embedding.register_forward_hook(overwrite)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def overwritten_projections(unet, timesteps, features):
    """A float UNet whose ResBlocks add `features` instead of their own, while inside."""
    path = TemporalPath(unet)
    at = dict(zip(timesteps, features, strict=True))
    current = []

    def see(module, args):
        current[:] = [at[timestep] for timestep in args[0].float().tolist()]

    def replace(index):
        return lambda module, args, output: torch.stack([cells[index] for cells in current])

    handles = [path.time_proj.register_forward_pre_hook(see)]
    for index, block in enumerate(path.blocks):
        handles.append(block.time_emb_proj.register_forward_hook(replace(index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
