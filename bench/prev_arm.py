"""The baseline "Prev": ResBlocks reconstructed with their time projection inside, as BRECQ would.

The weights of conv1, time_emb_proj and conv2 of one ResBlock are rounded together so that the block's
output stays close to the float one on a few images. The projection is so fitted to what those images
show of it, which is what the Temporal Information Block avoids. Kept affordable: hundreds of steps
instead of 20,000, inputs from the float model, shortcut in float.
"""

import models
import torch
from temporal_arms import BITS, TemporalPath
from torch.func import functional_call

from tfq.adaround import regularizer, share_of, variable_of
from tfq.weights import per_channel, weight_grid

_LAYERS = ("conv1", "time_emb_proj", "conv2")
_IMAGES = 2
_BATCH = 4
# The released code of Huang et al. (TPAMI 2025): 1e-3, for 20,000 steps.
_LEARNING_RATE = 1e-2


class SoftRounding:
    """A weight between the two grid points around each value: ``floor(w / s) + h(v)``.

    Parameters
    ----------
    weight : Tensor
        Float ``(n, ...)``.
    """

    def __init__(self, weight):
        self.scale, self.zero_point = (per_channel(x, weight) for x in weight_grid(weight, BITS))
        scaled = weight.detach().float() / self.scale
        self.floor = scaled.floor()
        self.v = variable_of(scaled - self.floor)

    def opening(self):
        """h(v) in [0, 1]."""
        return share_of(self.v)

    def weight(self, opening):
        """Dequantized weight for an opening: h(v), or ``v >= 0`` at the end."""
        q = (self.floor + self.zero_point + opening).clamp(0, 2**BITS - 1)
        return (q - self.zero_point) * self.scale


def prev_weights(unet, scheduler, steps, seed, iterations):
    """Weights of ``linear_2`` (to nearest) and of each projection (with its ResBlock), dequantized.

    Parameters
    ----------
    unet : UNet2DModel
        Float; not changed.
    steps : int
        Of the sampling runs that give the inputs: two images, all steps.
    seed : int
        Of their noise and of the choice of batches.
    iterations : int
        Optimizer steps for each block, with four samples each.
    """
    path = TemporalPath(unet)
    weights = path.rounded_weights()
    inputs = _record_inputs(unet, scheduler, path.blocks, steps, seed)
    for index, block in enumerate(path.blocks):
        rounded = round_block(block, inputs.pop(0), seed + index, iterations)
        weights[1 + index] = rounded["time_emb_proj"]
    return weights


def _record_inputs(unet, scheduler, blocks, steps, seed):
    """(images, time embedding) of each block over a sampling run, lists of tensors."""
    recorded = [[] for _ in blocks]
    handles = [
        block.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args))
        for block, seen in zip(blocks, recorded, strict=True)
    ]
    try:
        models.sample(unet, scheduler, steps, _IMAGES, seed)
    finally:
        for handle in handles:
            handle.remove()
    return [
        tuple(
            torch.cat([args[i].expand(_IMAGES, *args[i].shape[1:]) for args in seen])
            for i in (0, 1)
        )
        for seen in recorded
    ]


def round_block(block, inputs, seed, iterations):
    """Dequantized weights of conv1, time_emb_proj and conv2, rounded together: dict by layer name."""
    images, embedded = inputs
    targets = _outputs(block, inputs)
    rounding = {name: SoftRounding(getattr(block, name).weight) for name in _LAYERS}
    optimizer = torch.optim.Adam([r.v for r in rounding.values()], _LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for iteration in range(iterations):
        batch = torch.randperm(len(images), generator=generator)[:_BATCH]
        openings = {name: r.opening() for name, r in rounding.items()}
        soft = {name: rounding[name].weight(h) for name, h in openings.items()}
        output = _call(block, soft, images[batch], embedded[batch])
        loss = (output - targets[batch]).square().sum(1).mean()
        loss = loss + regularizer(list(openings.values()), iteration, iterations)
        if not torch.isfinite(loss):
            raise ValueError(f"prev: loss {loss.item()} at iteration {iteration} of {iterations}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: r.weight((r.v.detach() >= 0).float()) for name, r in rounding.items()}


def block_error(block, inputs, weights):
    """Mean squared error of a block's output with `weights` (by layer name) in place of its own."""
    return (_outputs(block, inputs, weights) - _outputs(block, inputs)).square().mean().item()


def _call(block, weights, images, embedded):
    named = {f"{name}.weight": weight for name, weight in weights.items()}
    return functional_call(block, named, (images, embedded))


@torch.no_grad()
def _outputs(block, inputs, weights=None):
    parts = zip(*(x.split(_BATCH) for x in inputs), strict=True)
    return torch.cat([_call(block, weights or {}, *part) for part in parts])
