"""Temporal-information-aware reconstruction: the block's weights rounded for all its outputs at once.

Huang et al., "Temporal Feature Matters" (TPAMI 2025), minimizes over the rounding of every weight of the
block the error of all n temporal features, summed over the timesteps. The released recipe is AdaRound
(Nagel et al., ICML 2020): a rectified sigmoid per weight, Adam at 1e-3, batches of 32 timesteps, a
regularizer of weight 0.01 whose exponent falls from 20 to 2 after a fifth of the steps.

The timesteps are few (tens) and the inputs of a layer many (hundreds), so the rounding has more freedom
than there are equations, and rounding with error feedback nearly solves it in closed form. The gradient
steps start there, and the best rounding seen is kept.
"""

import torch

from tfq.rounding import round_with_feedback
from tfq.weights import QuantizedWeight, per_channel, quantize_weight

STEPS = 2000
_BATCH = 32
_LEARNING_RATE = 1e-3
_REGULARIZER = 0.01
_WARMUP = 0.2
_EXPONENTS = (20.0, 2.0)
# Rounded weights are measured this often; after this many measurements without a better one, stop.
_MEASURE_EVERY = 100
_PATIENCE = 5


class _SoftLayer:
    """A linear layer whose weights are between the two nearest grid points, by a sigmoid each."""

    def __init__(self, layer, start, bits):
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.scale = start.scale
        self.zero = torch.zeros_like(start.scale) if bits == 8 else start.zero_point.float()
        self.low, self.high = (-127, 127) if bits == 8 else (0, 15)
        self.bits = bits
        weight = layer.weight.detach().float()
        exact = weight / per_channel(self.scale, weight) + per_channel(self.zero, weight)
        started = start.q.float()
        # The two candidates contain the start; where it is not a neighbour, it and the next towards w.
        self.floor = torch.where(
            started <= exact, torch.minimum(started, exact.floor()), started - 1
        )
        self.floor = torch.maximum(self.floor, started - 1).clamp_(self.low, self.high - 1)
        fraction = (exact - self.floor).clamp_(0.01, 0.99)
        upper = started > self.floor
        fraction = torch.where(upper, fraction.clamp(min=0.51), fraction.clamp(max=0.49))
        self.alpha = -torch.log(1.2 / (fraction + 0.1) - 1)
        self.alpha.requires_grad_(True)

    def choice(self):
        return (1.2 * torch.sigmoid(self.alpha) - 0.1).clamp(0, 1)

    def soft_weight(self, choice):
        q = self.floor + choice
        return (q - per_channel(self.zero, q)) * per_channel(self.scale, q)

    def rounded(self):
        q = self.floor + (self.alpha.detach() >= 0)
        if self.bits == 8:
            return QuantizedWeight(q.to(torch.int8), self.scale)
        return QuantizedWeight(q.to(torch.uint8), self.scale, self.zero.to(torch.uint8))

    def apply(self, x, weight):
        return torch.nn.functional.linear(x, weight, self.bias)


def _outputs(tib, layers, weights, hidden):
    embedded = tib.finish_embedding(layers[0].apply(hidden, weights[0]))
    inputs = tib.projection_inputs(embedded)
    return [
        layer.apply(x, weight)
        for layer, weight, x in zip(layers[1:], weights[1:], inputs, strict=True)
    ]


def _loss(outputs, exact):
    """Squared error summed over channels and blocks, averaged over timesteps."""
    return sum((o - e).pow(2).sum() for o, e in zip(outputs, exact, strict=True)) / len(exact[0])


def closed_form(tib, hidden, exact, bits):
    """Each layer rounded with error feedback on what reaches it; targets are the float outputs."""
    linear_2 = tib.embedding.linear_2
    first = round_with_feedback(linear_2.weight, quantize_grid(linear_2.weight, bits), hidden)
    bias = None if linear_2.bias is None else linear_2.bias.float()
    embedded = tib.finish_embedding(torch.nn.functional.linear(hidden, first.dequantize(), bias))
    float_inputs = tib.projection_inputs(
        tib.finish_embedding(torch.nn.functional.linear(hidden, linear_2.weight.float(), bias))
    )
    weights = [first]
    for layer, x, float_x in zip(
        tib.projections, tib.projection_inputs(embedded), float_inputs, strict=True
    ):
        weights.append(round_with_feedback(layer.weight, None, x, float_x))
    return weights


def reconstruct_tib(tib, hidden, exact, bits, config, progress=None):
    """Rounded weights of ``linear_2`` and of each projection.

    Parameters
    ----------
    tib : FloatTIB
    hidden : Tensor
        float32 ``(timesteps, k)``: input of ``linear_2``.
    exact : list of Tensor
        Float features ``(timesteps, width)``.
    bits : {8, 4}
    config : TfqConfig
        ``reconstruction_steps`` (None: 2,000; 0: closed form alone) and ``seed``.
    progress : callable, optional
        ``progress(done, total, label)``.

    Returns
    -------
    list of QuantizedWeight

    Raises
    ------
    ValueError
        If the loss is not finite.
    """
    raise NotImplementedError
