"""tfq.graph on the CPU: a replay has the bits of an eager call, and runs none of the model's Python."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tolerance import assert_same_bits
from unets import FEW, build, inputs, run

import tfq
from tfq import TfqConfig
from tfq.cpu_capture import CpuCapture, Pool

TIMESTEPS = (1, 251, 501, 751)
MODELS = [
    *FEW, "fourier", "centered", "identity_classes", "skips_scale_shift", "cross_time_cond",
    "cross_text_time", "cross_projected_text", "simple_cross_norm",
]  # fmt: skip


def convert(name, dtype=torch.float32, **settings):
    """A converted model with rows for four timesteps, and three calls."""
    unet = build(name, dtype)
    rows = [inputs(unet, timesteps=(t, t)) for t in TIMESTEPS]
    calls = [inputs(unet, timesteps=t, seed=t[1]) for t in ((1, 1), (751, 751), (251, 501))]
    return tfq.convert(unet, TfqConfig(precision="uniform", **settings), calibration=rows), calls


def check_replays(unet, calls, name=""):
    """The calls one after another, graphed and eager."""
    graphed, python = copy.deepcopy(unet), []
    graphed.conv_in.register_forward_hook(lambda *_: python.append(1))
    assert tfq.graph(graphed) is graphed
    run(graphed, calls[0])
    python.clear()
    for number, kwargs in enumerate(calls):
        assert_same_bits(run(graphed, kwargs), run(unet, kwargs), f"{name}, call {number}")
    assert not python, "a replay ran the model's Python"


@pytest.mark.parametrize("name", MODELS)
def test_replays_have_the_bits_of_eager_calls(name):
    check_replays(*convert(name), name)


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "int4"},
        {"activations": "float"},
        {"attention": "int8"},
        {"attention": "float"},
        {"temporal": "cache"},
        {"temporal": "tib"},
        {"temporal": "select"},
        {"temporal": "float"},
        {"activation_ranges": "dynamic"},
        {"drop_tib": True},
    ],
    ids=str,
)
def test_settings(settings):
    check_replays(*convert("cross", **settings))


def test_bfloat16():
    check_replays(*convert("cross", torch.bfloat16))


def test_reference_backend():
    check_replays(*convert("cross", backend="reference"))


def test_a_replay_reads_the_inputs_of_its_call():
    unet, _ = convert("cross")
    kwargs = inputs(unet, timesteps=(1, 251))
    other = kwargs | {"encoder_hidden_states": torch.randn_like(kwargs["encoder_hidden_states"])}
    moved = kwargs | {"sample": kwargs["sample"] + 1}
    check_replays(unet, [kwargs, other, moved, kwargs])


@pytest.mark.parametrize("timestep", [251, torch.tensor(251), torch.tensor([251])], ids=str)
def test_one_image(timestep):
    unet, _ = convert("cross")
    kwargs = inputs(unet, timesteps=(251,)) | {"timestep": timestep}
    check_replays(unet, [kwargs, kwargs | {"timestep": 751}])


def test_calls_of_several_threads():
    eager, _ = convert("attention")
    unet = tfq.graph(copy.deepcopy(eager))
    calls = [inputs(eager, timesteps=(1, 251), seed=seed) for seed in range(4)]
    expected = [run(eager, kwargs) for kwargs in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        outputs = list(pool.map(run, [unet] * 40, calls * 10))
    for number, output in enumerate(outputs):
        assert_same_bits(output, expected[number % len(calls)], f"call {number}")


def test_compiled():
    """The compiler leaves the replay alone, captured or not."""
    torch._dynamo.reset()
    eager, _ = convert("plain")
    unet, kwargs = tfq.graph(copy.deepcopy(eager)), inputs(eager, timesteps=(1, 251))
    compiled = torch.compile(unet, backend="eager")
    for _ in range(2):
        assert_same_bits(run(compiled, kwargs), run(eager, kwargs))
    assert len(unet.forward.captured) == 1


def test_written_weights_are_seen():
    eager, _ = convert("attention")
    unet = tfq.graph(copy.deepcopy(eager))
    kwargs = inputs(unet, timesteps=(1, 251))
    before = run(unet, kwargs)
    with torch.no_grad():
        for model in (eager, unet):
            model.conv_out.bias += 1
    after = run(unet, kwargs)
    assert_same_bits(after, run(eager, kwargs))
    assert not torch.equal(after, before)


def test_other_weights_do_not_take_the_memory_away():
    unet, _ = convert("attention")
    tfq.graph(unet)
    kwargs = inputs(unet, timesteps=(1, 251))
    before = run(unet, kwargs)
    for module in unet.modules():
        for values in (module._parameters, module._buffers):
            for name in values:
                values[name] = None if values[name] is None else values[name] * 0
    gc.collect()
    assert_same_bits(run(unet, kwargs), before)


def test_inference_mode_and_back():
    unet, _ = convert("cross")
    kwargs = inputs(unet, timesteps=(1, 251))
    expected = run(unet, kwargs)
    for first, second in (
        (torch.inference_mode, torch.no_grad),
        (torch.no_grad, torch.inference_mode),
    ):
        graphed = tfq.graph(copy.deepcopy(unet))
        for mode in (first, second, first):
            with mode():
                fresh = {k: v.clone() for k, v in kwargs.items()}
                assert_same_bits(graphed(**fresh).sample, expected)


def test_memory_is_used_again():
    """Sixteen times the same layer needs the memory of two of its outputs."""
    pool = Pool()
    x = torch.randn(4, 1000)

    def run_layers():
        y = x
        for _ in range(16):
            y = torch.cos(y) + x
        return y

    replay, output = CpuCapture()(run_layers, pool)
    expected = run_layers()
    assert_same_bits(output, expected)
    assert len(pool._blocks) <= 3
    x.neg_()
    replay()
    assert_same_bits(output, run_layers())
    assert not torch.equal(output, expected)


def test_a_replay_keeps_its_memory():
    x, pool = torch.randn(1000), Pool()
    replay, output = CpuCapture()(lambda: torch.cos(x).sum(), pool)
    memory, wanted = weakref.ref(pool), output.clone()
    del pool, output
    gc.collect()
    assert memory() is replay.pool
    replay()
    assert_same_bits(wanted, torch.cos(x).sum())
    del replay
    gc.collect()
    assert memory() is None


def test_pool_keeps_what_is_held_and_frees_the_rest():
    pool = Pool()
    like = torch.empty(64, 64, device="meta")
    first = pool.empty(like)
    view, unowned = first[3:], pool.unowned(first[3:])
    assert unowned.data_ptr() == view.data_ptr() and unowned.stride() == view.stride()
    address = first.data_ptr()
    del first
    assert pool.empty(like).data_ptr() != address  # `view` holds the block
    del view
    again = pool.empty(like)
    assert again.data_ptr() == address  # `unowned` does not
    outside = torch.zeros(3)
    assert pool.unowned(outside) is outside
    strided = pool.empty(torch.empty_strided((2, 3), (8, 1), dtype=torch.float64, device="meta"))
    assert strided.stride() == (8, 1) and strided.dtype is torch.float64
    assert pool.empty(torch.empty(0, device="meta")).shape == (0,)
