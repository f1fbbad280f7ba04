"""Reconstruction of the temporal block: never worse than what it starts from, and repeatable."""

import pytest
import torch
from tolerance import assert_same_bits
from unets import build

from tfq import tiar
from tfq.features import FloatTIB
from tfq.reference import qparams_from_range, quantize
from tfq.temporal import temporal_blocks
from tfq.weights import quantize_weight

TIMESTEPS = (0.0, 3.0, 50.0, 421.0, 700.0, 999.0)
NAMES = ["plain", "scale_shift", "cross_time_act", "cross_post_act"]


def temporal_block(name="plain", timesteps=TIMESTEPS):
    """FloatTIB of a random UNet, the inputs of its ``linear_2`` and its float features."""
    unet = build(name).requires_grad_(False)
    blocks = [unet.get_submodule(block["block"]) for block in temporal_blocks(unet)["blocks"]]
    activation = getattr(unet, "time_embed_act", None)
    tib = FloatTIB(unet.time_proj, unet.time_embedding, blocks, activation)
    values = torch.tensor(timesteps)
    return tib, tib.hidden(values), tib.features(values)[0]


def nearest(tib, bits):
    return [quantize_weight(layer.weight, bits) for layer in tiar.layers_of(tib)]


def loss(tib, hidden, exact, weights, biases=None):
    """Of integer weights; with the float biases unless some are given."""
    real = [weight.dequantize() for weight in weights]
    biases = tiar.biases_of(tib) if biases is None else biases
    return tiar.block_loss(tiar.block_outputs(tib, real, biases, hidden), exact).item()


def assert_same(first, second):
    """Of two (weights, biases)."""
    for one, other in zip(first[0], second[0], strict=True):
        for field in ("q", "scale"):
            assert_same_bits(getattr(one, field), getattr(other, field))
    for one, other in zip(first[1], second[1], strict=True):
        assert_same_bits(one, other)


def test_rounding_by_timestep_is_the_quantization_of_the_kernels():
    x = torch.randn(5, 40) * torch.logspace(-2, 2, 5)[:, None]
    qparams = qparams_from_range(x.amin(1), x.amax(1))
    q, _ = quantize(x, qparams)
    expected = (q.float() - qparams[:, 2:]) * qparams[:, :1]
    torch.testing.assert_close(tiar.round_by_timestep(x), expected)
    x.requires_grad_(True)
    (tiar.round_by_timestep(x) * torch.arange(40.0)).sum().backward()
    assert_same_bits(x.grad, torch.arange(40.0).expand(5, 40).contiguous())


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_float_weights_are_the_features(name):
    tib, hidden, exact = temporal_block(name)
    weights, biases = [layer.weight for layer in tiar.layers_of(tib)], tiar.biases_of(tib)
    for output, feature in zip(
        tiar.block_outputs(tib, weights, biases, hidden), exact, strict=True
    ):
        assert 0 < (output - feature).norm() / feature.norm() < 0.02  # of the rounded inputs


def test_loss_by_hand():
    outputs, exact = [torch.tensor([[1.0, 2], [0, 0]])], [torch.tensor([[0.0, 0], [3, 0]])]
    assert tiar.block_loss(outputs * 2, exact * 2).item() == 2 * (1 + 4 + 9) / 2


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_closed_form_is_better_than_the_nearest(name, bits):
    tib, hidden, exact = temporal_block(name)
    weights, biases = tiar.reconstruct_tib(tib, hidden, exact, bits)
    assert [w.bits for w in weights] == [bits] * (1 + len(tib.projections)) == [bits] * len(biases)
    start = loss(tib, hidden, exact, nearest(tib, bits))
    found = loss(tib, hidden, exact, weights, biases)
    assert found <= start
    if bits == 4:
        assert found < 0.2 * start, f"{start:.3g} -> {found:.3g}"


@pytest.mark.parametrize("bits", [8, 4])
def test_closed_form_is_never_worse_than_the_nearest(bits):
    """Also where it has nothing to gain: many timesteps, one timestep, exact weights."""
    for timesteps in (torch.linspace(0, 999, 300).tolist(), (421.0,), (7.0, 7.0, 7.0)):
        tib, hidden, exact = temporal_block(timesteps=timesteps)
        found = loss(tib, hidden, exact, *tiar.reconstruct_tib(tib, hidden, exact, bits))
        assert found <= loss(tib, hidden, exact, nearest(tib, bits)), len(timesteps)
    tib, _, _ = temporal_block()
    for layer, weight in zip(tiar.layers_of(tib), nearest(tib, bits), strict=True):
        layer.weight.data = weight.dequantize()
    values = torch.tensor(TIMESTEPS)
    hidden, exact = tib.hidden(values), tib.features(values)[0]
    found = loss(tib, hidden, exact, *tiar.reconstruct_tib(tib, hidden, exact, bits))
    assert found <= loss(tib, hidden, exact, nearest(tib, bits))


@pytest.mark.parametrize("bits", [8, 4])
def test_steps_choose_the_recipe(bits):
    tib, hidden, exact = temporal_block()
    solved = tiar.closed_form(tib, hidden, exact, bits)
    for steps in (None, 0):
        found = tiar.reconstruct_tib(tib, hidden, exact, bits, steps)
        assert_same(found, solved)
    trained = tiar.reconstruct_tib(tib, hidden, exact, bits, 50)
    expected = tiar.adaround(tib, hidden, exact, nearest(tib, bits), 50, 0)
    assert_same(trained, (expected, tiar.biases_of(tib)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("steps", [1, 50, 120])
def test_adaround_is_never_worse_than_its_start(steps, bits):
    tib, hidden, exact = temporal_block()
    for start in (nearest(tib, bits), tiar.closed_form(tib, hidden, exact, bits)[0]):
        found = tiar.adaround(tib, hidden, exact, start, steps, seed=0)
        assert loss(tib, hidden, exact, found) <= loss(tib, hidden, exact, start)


def test_adaround_learns():
    tib, hidden, exact = temporal_block()
    start = nearest(tib, 4)
    found = tiar.adaround(tib, hidden, exact, start, 400, seed=0)
    before, after = loss(tib, hidden, exact, start), loss(tib, hidden, exact, found)
    assert after < 0.9 * before, f"{before:.3g} -> {after:.3g}"
    for one, other in zip(found, start, strict=True):
        assert_same_bits(one.scale, other.scale)
        assert int((one.q.int() - other.q.int()).abs().max()) <= 1, "neighbours on the same grid"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [None, 50])
def test_loss_that_is_not_finite(steps, value):
    tib, hidden, exact = temporal_block()
    exact[1][2, 5] = value
    message = f"convert: reconstruction of the temporal block: the loss is {value}"
    with pytest.raises(ValueError, match=message):
        tiar.reconstruct_tib(tib, hidden, exact, 4, steps)


@pytest.mark.parametrize("steps", [None, 60])
def test_repeats_itself_and_leaves_the_generator_alone(steps):
    tib, hidden, exact = temporal_block(timesteps=torch.linspace(0, 999, 50).tolist())
    before = [layer.weight.clone() for layer in tiar.layers_of(tib)]
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        expected = torch.get_rng_state()
        made.append(tiar.reconstruct_tib(tib, hidden, exact, 4, steps, seed=5))
        assert torch.equal(torch.get_rng_state(), expected)
    assert_same(*made)
    for weight, layer in zip(before, tiar.layers_of(tib), strict=True):
        assert_same_bits(layer.weight, weight)


def test_progress():
    tib, hidden, exact = temporal_block()
    seen = []
    tiar.reconstruct_tib(
        tib, hidden, exact, 4, 20, progress=lambda *arguments: seen.append(arguments)
    )
    assert seen == [(step, 20, "temporal block") for step in range(1, 21)]
