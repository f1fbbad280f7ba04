"""Rounding a layer's weights with the second moments of its inputs, in closed form.

The integers of a layer are chosen so that its output, on the inputs it will see in the quantized
network, is close to the output of the float network: with weights W over inputs x and float outputs
y, both without their means,

    minimize  E|y - W x|^2 + damping * |W - W_float|^2      over W on the grid.

Without the grid the minimum is a linear regression (:func:`corrected_weight`), which also makes up
for the error that earlier layers left in x. Around it the objective is (W - W*) H (W - W*)^T, and
with H = L L^T the columns can be rounded one after the other, each making up for the rounding error
of those before it (:func:`round_columns`; GPTQ, Frantar et al., 2023, without its matrix inverse).
The mean of y - W x goes to the bias.
"""

import dataclasses

import torch

from tfq.weights import QuantizedWeight, weight_grid

_BLOCK_COLUMNS = 128
_LARGEST_REFIT = 0.2


class InputMoments:
    """Second moments of a layer's inputs, and of its target outputs with them.

    Parameters
    ----------
    inputs, outputs : int
    device : torch.device
    """

    def __init__(self, inputs, outputs, device):
        self.count = 0
        self._xx = torch.zeros(inputs, inputs, device=device)
        self._yx = torch.zeros(outputs, inputs, device=device)
        self._x = torch.zeros(inputs, device=device)
        self._y = torch.zeros(outputs, device=device)

    def add(self, x, y):
        """Add inputs ``(tokens, inputs)`` and target outputs ``(tokens, outputs)``, both float32."""
        self.count += x.shape[0]
        self._xx.addmm_(x.T, x)
        self._yx.addmm_(y.T, x)
        self._x += x.sum(0)
        self._y += y.sum(0)

    def finish(self):
        """Means and centered moments; the sums are consumed.

        Returns
        -------
        hessian : Tensor
            ``(inputs, inputs)``, the covariance of the inputs.
        cross : Tensor
            ``(outputs, inputs)``, the covariance of targets and inputs.
        mean_x, mean_y : Tensor
            ``(inputs,)`` and ``(outputs,)``.
        """
        mean_x, mean_y = self._x / self.count, self._y / self.count
        hessian = self._xx.div_(self.count).addr_(mean_x, mean_x, alpha=-1)
        cross = self._yx.div_(self.count).addr_(mean_y, mean_x, alpha=-1)
        return hessian, cross, mean_x, mean_y


@dataclasses.dataclass
class Grid:
    """The values a weight matrix ``(n, k)`` can take: ``level * scale``, integer levels.

    Parameters
    ----------
    bits : {8, 4}
    scale : Tensor
        float32 ``(n, groups)``.
    low, high : Tensor
        Smallest and largest level, float32 ``(n, groups)``.
    group : Tensor
        int64 ``(k,)``, the group of each column.
    """

    bits: int
    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    group: torch.Tensor

    @classmethod
    def of(cls, weight, bits, group_columns):
        """Grids of the column groups (their sizes) of a float ``(n, k)``, each by :func:`weight_grid`."""
        scales, lows, highs = [], [], []
        for part in weight.split(group_columns, dim=1):
            scale, zero_point = weight_grid(part, bits)
            largest = 2 ** (bits - 1) - 1 if zero_point is None else 2**bits - 1 - zero_point
            scales.append(scale)
            lows.append(torch.full_like(scale, -largest) if zero_point is None else -zero_point)
            highs.append(torch.full_like(scale, largest) if zero_point is None else largest)
        sizes = torch.tensor(group_columns, device=weight.device)
        group = torch.arange(len(group_columns), device=weight.device).repeat_interleave(sizes)
        return cls(bits, *(torch.stack(v, 1) for v in (scales, lows, highs)), group)

    def nearest(self, weight):
        """Levels ``(n, k)`` nearest to a float ``(n, k)``."""
        levels = (weight / self.scale[:, self.group]).round_()
        return torch.clamp(levels, self.low[:, self.group], self.high[:, self.group])

    def values(self, levels):
        """Real weights ``(n, k)`` of levels."""
        return levels * self.scale[:, self.group]

    def integers(self, levels, shape):
        """One :class:`QuantizedWeight` per group from levels ``(n, k)``; `shape` is the layer's weight's."""
        weights = []
        for index in range(self.scale.shape[1]):
            part = levels[:, self.group == index]
            part = part.reshape(shape[0], -1, *shape[2:])
            scale = self.scale[:, index].contiguous()
            if self.bits == 8:
                weights.append(QuantizedWeight(part.to(torch.int8), scale))
                continue
            zero_point = -self.low[:, index]
            q = part + zero_point.view(-1, *[1] * (part.dim() - 1))
            weights.append(QuantizedWeight(q.to(torch.uint8), scale, zero_point.to(torch.uint8)))
        return weights


def damped_factor(hessian, damping):
    """Add `damping` times the mean of the diagonal to it, in place; returns the Cholesky factor.

    Where float32 cannot factor the matrix, the damping grows tenfold until it can.
    """
    diagonal = hessian.diagonal()
    step = damping * diagonal.mean().clamp(min=torch.finfo(hessian.dtype).tiny)
    while True:
        diagonal += step
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return factor
        step = step * 9


def corrected_weight(weight, hessian, cross, factor):
    """The float weights that minimize the objective: ``W + (cross - W H0) H^-1``.

    Parameters
    ----------
    weight : Tensor
        ``(n, k)``, of the float layer.
    hessian : Tensor
        H, damped.
    cross : Tensor
        ``(n, k)``, of targets and inputs, plus ``damping * weight``.
    factor : Tensor
        Lower Cholesky factor of H.
    """
    return weight + torch.cholesky_solve((cross - weight @ hessian).T, factor).T


def round_columns(weight, hessian, grid, factor=None):
    """Levels close to `weight` in the norm of `hessian`.

    Columns are rounded in order of decreasing ``hessian[i, i]``. With H = L L^T and d = weight -
    rounded, the objective is the sum over i of ``(sum over j >= i of d_j L_ji)^2``: the column i is
    rounded after all j > i, to the level that makes its own term smallest.
    """
    order = hessian.diagonal().argsort(stable=True)
    factor, _ = torch.linalg.cholesky_ex(hessian[order][:, order])
    w = weight.T[order]
    group = grid.group[order].tolist()
    scale, low, high = grid.scale.T.contiguous(), grid.low.T.contiguous(), grid.high.T.contiguous()
    levels, error = torch.empty_like(w), torch.zeros_like(w)
    for end in range(len(w), 0, -_BLOCK_COLUMNS):
        start = max(0, end - _BLOCK_COLUMNS)
        carried = factor[end:, start:end].T @ error[end:]
        block = factor[start:end, start:end]
        pivots = block.diagonal().tolist()
        for i in range(end - start - 1, -1, -1):
            column, g = start + i, group[start + i]
            target = torch.add(w[column], carried[i], alpha=1 / pivots[i])
            level = torch.clamp((target / scale[g]).round_(), low[g], high[g])
            levels[column] = level
            error[column] = w[column] - level * scale[g]
            carried[:i].addr_(block[i, :i], error[column])
    result = torch.empty_like(w)
    result[order] = levels
    return result.T.contiguous()


def refit_scale(grid, levels, weight, hessian):
    """A :class:`Grid` whose scales minimize the objective for given levels, one group after the other."""
    scale = grid.scale.clone()
    error = weight - grid.values(levels)
    for index in range(scale.shape[1]):
        part = levels * (grid.group == index)
        weighted = part @ hessian
        norm = (weighted * part).sum(1)
        change = (weighted * error).sum(1) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        bound = _LARGEST_REFIT * scale[:, index]
        change = torch.minimum(torch.maximum(change, -bound), bound)
        scale[:, index] += change
        error -= part * change[:, None]
    return dataclasses.replace(grid, scale=scale)
