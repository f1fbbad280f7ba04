import pytest
import torch

from tfq.rounding import Grid, InputMoments, _refit_scale, round_weight
from tfq.weights import quantize_weight


def correlated(tokens, inputs):
    """Inputs with a mean and strong correlations, as behind a norm and SiLU."""
    factors = max(1, inputs // 4)
    mixing = torch.randn(factors, inputs) / factors**0.5
    noise = 0.2 * torch.randn(tokens, inputs)
    x = torch.randn(tokens, factors) @ mixing + noise + torch.randn(inputs)
    return torch.nn.functional.silu(x)


def moments_of(x, y):
    moments = InputMoments(x.shape[1], y.shape[1], x.device)
    for pair in zip(x.split(100), y.split(100), strict=True):
        moments.add(*pair)
    return moments


def output_error(x, y, weight):
    """Mean squared output error with the best bias."""
    error = y - x @ weight.T
    return (error - error.mean(0)).pow(2).mean().item()


def test_moments_against_float64():
    x, y = correlated(333, 20), torch.randn(333, 7)
    covariance, cross, mean_x, mean_y = moments_of(x, y).finish()
    x, y = x.double(), y.double()
    torch.testing.assert_close(mean_x.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean_y.double(), y.mean(0), rtol=1e-5, atol=1e-6)
    x, y = x - x.mean(0), y - y.mean(0)
    torch.testing.assert_close(covariance.double(), x.T @ x / 333, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cross.double(), y.T @ x / 333, rtol=1e-4, atol=1e-5)


# 150 and 300 columns cross the boundary of a block of columns.
@pytest.mark.parametrize("inputs", [30, 150, 300])
@pytest.mark.parametrize("bits", [4, 8])
def test_better_than_nearest(inputs, bits):
    x, weight = correlated(2000, inputs), torch.randn(24, inputs)
    y = x @ weight.T
    moments = moments_of(x, y)
    grid, levels, _ = round_weight(weight, moments, bits, (inputs,))
    nearest = output_error(x, y, quantize_weight(weight, bits).dequantize())
    rounded = output_error(x, y, grid.values(levels))
    # Columns are correlated: making up for one another halves the error at least.
    assert rounded < 0.5 * nearest


def test_makes_up_for_an_error_in_the_input():
    clean, weight = correlated(4000, 32), torch.randn(16, 32)
    x = 0.9 * clean + 0.05 * torch.roll(clean, 1, dims=1)
    y = clean @ weight.T
    moments = moments_of(x, y)
    grid, levels, _ = round_weight(weight, moments, 8, (32,))
    assert output_error(x, y, grid.values(levels)) < 0.1 * output_error(x, y, weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_representable_weights_are_exact(bits):
    x, weight = correlated(1000, 40), quantize_weight(torch.randn(8, 40), bits).dequantize()
    moments = moments_of(x, x @ weight.T)
    grid, levels, _ = round_weight(weight, moments, bits, (40,))
    torch.testing.assert_close(grid.values(levels), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_and_integers(bits):
    x, weight = correlated(500, 36), torch.randn(8, 4, 3, 3)
    weight[3] = 0
    matrix = weight.flatten(1)
    moments = moments_of(x, x @ matrix.T)
    grid, levels, _ = round_weight(matrix, moments, bits, (9, 27))
    assert torch.equal(levels, levels.round())
    assert (grid.scale > 0).all()
    parts = grid.integers(levels, weight.shape)
    assert [tuple(part.q.shape) for part in parts] == [(8, 1, 3, 3), (8, 3, 3, 3)]
    for part in parts:
        assert part.bits == bits
        assert part.q.dtype == (torch.int8 if bits == 8 else torch.uint8)
        assert part.q.max() <= (127 if bits == 8 else 15)
        assert part.q.min() >= (-127 if bits == 8 else 0)
    joined = torch.cat([part.dequantize() for part in parts], dim=1)
    torch.testing.assert_close(joined.flatten(1), grid.values(levels), rtol=1e-6, atol=1e-7)
    assert not joined[3].any()


def test_groups_have_their_own_scales():
    x, weight = torch.randn(4000, 24), torch.randn(8, 24)
    weight[:, 16:] *= 100
    # Almost uncorrelated inputs: little of the wide weights' error can be made up for by the others.
    grid, levels, _ = round_weight(weight, moments_of(x, x @ weight.T), 4, (16, 8))
    assert (grid.scale[:, 1] > 20 * grid.scale[:, 0]).all()
    one_scale, one_levels, _ = round_weight(weight, moments_of(x, x @ weight.T), 4, (24,))
    narrow = (weight - grid.values(levels))[:, :16].norm()
    assert narrow < 0.7 * (weight - one_scale.values(one_levels))[:, :16].norm()


def test_refitted_scales_are_the_best():
    weight, root = torch.randn(8, 24), torch.randn(24, 24)
    hessian = root @ root.T
    grid = Grid.of(weight, 4, (24,))
    levels = grid.nearest(weight)
    refitted = _refit_scale(grid, levels, weight, hessian)

    def objective(scale):
        error = (weight - levels * scale).double()
        return (error @ hessian.double() * error).sum(1)

    best = objective(refitted.scale)
    assert (best < objective(grid.scale)).all()
    assert (best < objective(0.999 * refitted.scale)).all()
    assert (best < objective(1.001 * refitted.scale)).all()


def test_bias_takes_the_mean():
    x, weight = correlated(1000, 20), torch.randn(8, 20)
    y = x @ weight.T + torch.randn(8)
    grid, levels, bias = round_weight(weight, moments_of(x, y), 4, (20,))
    error = y - x @ grid.values(levels).T - bias
    assert error.mean(0).abs().max() < 1e-4


def test_fewer_tokens_than_inputs_and_dead_inputs():
    x, weight = correlated(20, 64), torch.randn(8, 64)
    x[:, 5] = 0
    grid, levels, _ = round_weight(weight, moments_of(x, x @ weight.T), 4, (64,))
    assert grid.values(levels).isfinite().all()
    x.zero_()
    grid, levels, _ = round_weight(weight, moments_of(x, x @ weight.T), 4, (64,))
    assert torch.equal(levels, Grid.of(weight, 4, (64,)).nearest(weight))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_moments(bad):
    x, y = torch.randn(50, 4), torch.randn(50, 2)
    for tensor in (x, y):
        kept = tensor[7, 1].item()
        tensor[7, 1] = bad
        with pytest.raises(ValueError, match="round_weight: the moments .* must be finite"):
            round_weight(torch.randn(2, 4), moments_of(x, y), 4, (4,))
        tensor[7, 1] = kept
