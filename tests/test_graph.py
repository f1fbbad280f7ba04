"""tfq.graph, with a stand-in for CUDA's capture: what is captured, what is replayed, what is refused.

The stand-in keeps what a function returned, and a replay writes into that memory and nothing else, as a
CUDA graph's does. While it captures, whatever would read a tensor on the host or make one from host data
raises: on a card that would wait, and break the capture.
"""

import contextlib
import copy
import pickle

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tolerance import assert_same_bits
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from unets import build, inputs, run

import tfq
from tfq import TfqConfig, capture
from tfq.graphs import GraphedForward
from tfq.shapes import example_inputs

HOST = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero", "unique")
} | {torch.tensor, torch.nonzero, torch.unique}  # fmt: skip


class NoHost(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in HOST, f"{function.__name__} in a capture"
        return function(*args, **(kwargs or {}))


class FakeCapture:
    """As tfq.cuda_capture.CudaCapture; counts."""

    def __init__(self):
        self.captures, self.replays, self.inside = 0, [], False

    def __deepcopy__(self, memo):
        return FakeCapture()

    def new_pool(self):
        return None

    @contextlib.contextmanager
    def in_order(self):
        self.inside = True
        yield
        self.inside = False

    def warm_up(self, run):
        assert self.inside
        run()

    def __call__(self, run, pool):
        number, self.captures = self.captures, self.captures + 1
        with NoHost():
            result = run()

        def replay():
            assert self.inside, "a replay that calls on other streams do not wait for"
            self.replays.append(number)
            with NoHost():
                again = run()
            if result is not None:
                result.sample.copy_(again.sample)

        return replay, result


def convert(name, **settings):
    """A converted model with rows for four timesteps."""
    unet = build(name)
    calls = [inputs(unet, timesteps=(t, t)) for t in (1, 251, 501, 751)]
    return tfq.convert(unet, TfqConfig(precision="uniform", **settings), calibration=calls)


def graphed(unet):
    """The model with the stand-in, and the stand-in."""
    fake = FakeCapture()
    unet = copy.deepcopy(unet)
    unet.forward = GraphedForward(unet, fake)
    return unet, fake


@pytest.mark.parametrize(
    "name, settings",
    [
        ("attention", {}),
        ("attention", {"temporal": "cache"}),
        ("attention", {"temporal": "tib"}),
        ("attention", {"temporal": "select"}),
        ("scale_shift", {}),
        ("classes", {}),
        ("cross", {}),
        ("cross", {"attention": "int8"}),
        ("cross_text_time", {}),
        ("cross_time_cond", {}),
        ("cross_projected_text", {}),
    ],
    ids=str,
)
def test_one_graph_serves_every_timestep(name, settings):
    eager = convert(name, **settings)
    unet, fake = graphed(eager)
    text_graphs = int(name in ("cross", "cross_text_time", "cross_time_cond"))
    text = inputs(eager).get("encoder_hidden_states")
    for timesteps in ((1, 1), (751, 751), (251, 501)):
        kwargs = inputs(eager, timesteps=timesteps, seed=timesteps[1])
        if text is not None:
            kwargs["encoder_hidden_states"] = text
        output = run(unet, kwargs)
        assert_same_bits(output, run(eager, kwargs))
    assert fake.captures == 1 + text_graphs
    step = text_graphs
    assert fake.replays == [0, step, step, step] if text_graphs else [0, 0, 0]


def test_text_is_computed_when_it_changes():
    eager = convert("cross")
    unet, fake = graphed(eager)
    kwargs = inputs(eager, timesteps=(1, 251))
    text = kwargs["encoder_hidden_states"]
    other = kwargs | {"encoder_hidden_states": torch.randn_like(text)}
    expected = run(eager, kwargs), run(eager, other)
    for call, wanted in ((kwargs, 0), (kwargs, 0), (other, 1), (kwargs, 0)):
        assert_same_bits(run(unet, call), expected[wanted])
    assert fake.replays == [0, 1, 1, 0, 1, 0, 1]
    text.copy_(other["encoder_hidden_states"])
    assert_same_bits(run(unet, kwargs), expected[1])
    assert fake.replays[-2:] == [0, 1]


def test_an_output_is_not_overwritten():
    unet, _ = graphed(convert("attention"))
    first = run(unet, inputs(unet, timesteps=(1, 1)))
    kept = first.clone()
    run(unet, inputs(unet, timesteps=(751, 751)))
    assert_same_bits(first, kept)


def test_a_timestep_without_a_row_runs_without_a_graph():
    eager = convert("attention")
    unet, fake = graphed(eager)
    kwargs = inputs(eager, timesteps=(1, 7))
    assert_same_bits(run(unet, kwargs), run(eager, kwargs))
    assert fake.captures == 0


def test_signatures_have_graphs_of_their_own():
    eager = convert("cross")
    unet, fake = graphed(eager)
    kwargs = inputs(eager, timesteps=(1, 251))
    small = kwargs | {"sample": kwargs["sample"][..., :8]}
    for call in (kwargs, small, kwargs, small):
        assert_same_bits(run(unet, call), run(eager, call))
    assert fake.captures == 4
    with torch.no_grad():
        (output,) = unet(kwargs["sample"], 1, kwargs["encoder_hidden_states"], return_dict=False)
    assert fake.captures == 4
    assert_same_bits(output, run(eager, kwargs | {"timestep": 1}))


@pytest.mark.parametrize("name", ["attention", "cross"])
@pytest.mark.parametrize(
    "timestep", [251, 251.0, torch.tensor(251), torch.tensor([251.0])], ids=str
)
def test_kinds_of_timesteps(name, timestep):
    eager = convert(name)
    unet, _ = graphed(eager)
    kwargs = inputs(eager) | {"timestep": timestep}
    assert_same_bits(run(unet, kwargs), run(eager, kwargs))


class ScaledText:
    """An attention processor; where an IP-Adapter's has it, its scale."""

    def __init__(self):
        self.scale = [2.0]

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **kwargs):
        if encoder_hidden_states is not None:
            encoder_hidden_states = self.scale[0] * encoder_hidden_states
        return AttnProcessor2_0()(attention, hidden_states, encoder_hidden_states, **kwargs)


def set_scale(model, scale):
    for processor in model.attn_processors.values():
        processor.scale[0] = scale


def test_another_structure_is_captured_anew():
    """Processors and FreeU; what stays as it is is captured once."""
    eager = convert("cross")
    unet, fake = graphed(eager)
    kwargs = inputs(eager, timesteps=(1, 251))
    run(unet, kwargs)
    captures = [fake.captures]
    for change in (
        lambda model: model.set_attn_processor(ScaledText()),
        lambda model: set_scale(model, 3.0),
        lambda model: model.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
        lambda model: model.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.4),
        lambda model: model.disable_freeu(),
        lambda model: model.set_attn_processor(AttnProcessor2_0()),
    ):
        change(eager)
        change(unet)
        for _ in range(2):
            assert_same_bits(run(unet, kwargs), run(eager, kwargs))
        captures.append(fake.captures)
    assert captures == sorted(set(captures))
    run(unet, kwargs)
    assert fake.captures == captures[-1]


def test_a_copy_captures_for_itself():
    unet, fake = graphed(convert("attention"))
    kwargs = inputs(unet, timesteps=(1, 251))
    expected = run(unet, kwargs)
    other = copy.deepcopy(unet)
    assert other.forward.unet is other and other.forward.captured == {}
    assert_same_bits(run(other, kwargs), expected)
    assert fake.captures == 1
    del other.forward
    assert_same_bits(run(other, kwargs), expected)


def test_a_pickled_model_captures_for_itself():
    unet = tfq.graph(convert("attention"))
    kwargs = inputs(unet, timesteps=(1, 251))
    expected = run(unet, kwargs)
    other = pickle.loads(pickle.dumps(unet))
    assert other.forward.unet is other and other.forward.captured == {}
    assert_same_bits(run(other, kwargs), expected)
    assert len(other.forward.captured) == 1


def test_a_model_that_is_not_converted_is_refused():
    with pytest.raises(
        TypeError, match="needs a UNet or a ControlNet converted by tfq.convert, got a UNet2DModel"
    ):
        tfq.graph(build("plain"))


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize(
    "name, settings",
    [
        ("attention", {"drop_tib": True}),
        ("attention", {"temporal": "select"}),
        ("scale_shift", {}),
        ("classes", {}),
        ("cross", {}),
        ("cross_text_time", {}),
    ],
    ids=str,
)
def test_nothing_of_a_call_is_left_on_the_cpu(name, settings, index):
    """On tensors that say they are on another device, without memory: what mixes devices raises."""
    unet, mode = convert(name, **settings), FakeTensorMode()
    if index and not unet.time_embedding.is_table():
        pytest.skip("its rows are no table")
    unet._forward_pre_hooks.clear()  # CheckInputs, which knows the devices that have kernels

    def elsewhere(value):
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(mode, meta, torch.device("meta"))

    state = {k: elsewhere(v) for k, v in [*unet.named_parameters(), *unet.named_buffers()]}
    kwargs = example_inputs(unet, 2) | {"timestep": torch.tensor([1, 251])}
    kwargs = pytree.tree_map_only(torch.Tensor, elsewhere, kwargs)
    rows = elsewhere(torch.tensor([0, 1])) if index else None
    with mode, torch.no_grad(), capture.rows(rows):
        out = torch.func.functional_call(unet, state, kwargs=kwargs).sample
    assert out.device.type == "meta" and out.shape == kwargs["sample"].shape
