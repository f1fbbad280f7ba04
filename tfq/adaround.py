"""AdaRound (Nagel et al., ICML 2020): a weight's share of the upper of two grid points, as a sigmoid.

The numbers are those of the released code of Huang et al. (TPAMI 2025): a sigmoid stretched to
[-0.1, 1.1], and a regularizer of weight 0.01 whose exponent falls from 20 to 2 after a fifth of the steps.
"""

import torch

_STRETCH = 0.1
_REGULARIZER = 0.01
_WARMUP = 0.2
_EXPONENTS = (20.0, 2.0)


def variable_of(share):
    """Variable, with a gradient, whose :func:`share_of` is `share`, in (-0.1, 1.1)."""
    return torch.logit((share + _STRETCH) / (1 + 2 * _STRETCH)).requires_grad_(True)


def share_of(variable):
    """Share of the upper point, in [0, 1]; the variable rounds up where it is not negative."""
    return ((1 + 2 * _STRETCH) * torch.sigmoid(variable) - _STRETCH).clamp(0, 1)


def regularizer(shares, step, steps):
    """What undecided shares, a list of Tensor, cost at a step; 0 during the warm-up."""
    progress = (step / steps - _WARMUP) / (1 - _WARMUP)
    if progress < 0:
        return 0.0
    first, last = _EXPONENTS
    exponent = first + (last - first) * progress
    return _REGULARIZER * sum((1 - (2 * share - 1).abs().pow(exponent)).sum() for share in shares)
