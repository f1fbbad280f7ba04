"""Whole converted UNets on a card: against the CPU, and as CUDA graphs."""

import copy

import pytest
import torch
from tolerance import assert_same_bits, assert_signal_to_noise
from torch.utils import _pytree as pytree

pytest.importorskip("diffusers")

from unets import CONDITIONAL, build, inputs, run  # noqa: E402

import tfq  # noqa: E402

NAMES = ["attention", "scale_shift", "classes", "cross", "cross_text_time"]
MIN_SNR = 30  # dB to the CPU: activations that round to the other side


def on_card(kwargs):
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, kwargs)


def convert(name, attention="float"):
    """A converted model with rows for four timesteps, on the CPU; a card multiplies depths of 16."""
    unet = build(name, **({"cross_attention_dim": 32} if name in CONDITIONAL else {}))
    calls = [inputs(unet, timesteps=(t, t)) for t in (1, 251, 501, 751)]
    config = tfq.TfqConfig(precision="uniform", attention=attention)
    return tfq.convert(unet, config, calibration=calls)


@pytest.mark.parametrize("attention", ["float", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_as_on_the_cpu(name, attention):
    unet = convert(name, attention)
    kwargs = inputs(unet, timesteps=(1, 7))
    expected = run(unet, kwargs)
    assert_signal_to_noise(run(unet.cuda(), on_card(kwargs)).cpu(), expected, MIN_SNR)


def test_graph_with_attention_on_integers():
    eager = convert("cross", "int8").cuda()
    unet = tfq.graph(copy.deepcopy(eager))
    for timestep in (1, 751):
        kwargs = on_card(inputs(eager, timesteps=(1, 1), seed=timestep)) | {"timestep": timestep}
        assert_same_bits(run(unet, kwargs).cpu(), run(eager, kwargs).cpu())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps_on_card", [False, True])
def test_one_graph_serves_every_timestep(name, timesteps_on_card):
    eager = convert(name).cuda()
    unet = tfq.graph(copy.deepcopy(eager))
    for timesteps in ((1, 1), (751, 751), (251, 501), (7, 7)):
        kwargs = inputs(eager, timesteps=timesteps, seed=timesteps[0])
        on_host = kwargs["timestep"]
        kwargs = on_card(kwargs)
        if not timesteps_on_card:
            kwargs["timestep"] = on_host
        # A row that is computed in float is one product for all images here, and one each in eager calls.
        assert_signal_to_noise(run(unet, kwargs), run(eager, kwargs), 60)
        if eager.time_embedding.is_table() and not timesteps_on_card:
            assert_same_bits(run(unet, kwargs).cpu(), run(eager, kwargs).cpu())
    assert len(unet.forward.captured) == 1


def test_text_is_computed_when_it_changes():
    eager = convert("cross").cuda()
    unet = tfq.graph(copy.deepcopy(eager))
    kwargs = on_card(inputs(eager, timesteps=(1, 251))) | {"timestep": 251}
    other = kwargs | {"encoder_hidden_states": torch.randn_like(kwargs["encoder_hidden_states"])}
    small = kwargs | {"sample": kwargs["sample"][..., :8]}
    for call in (kwargs, other, small, kwargs, other, small):
        assert_same_bits(run(unet, call).cpu(), run(eager, call).cpu())


def test_a_replay_does_not_wait():
    unet = tfq.graph(convert("cross").cuda())
    kwargs = on_card(inputs(unet, timesteps=(1, 251))) | {"timestep": 251}
    run(unet, kwargs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for timestep in (1, 501, 751):
            run(unet, kwargs | {"timestep": timestep})
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_on_several_streams():
    """Their inputs have the same memory in the graph: a call begins when the one before has ended."""
    eager = convert("cross").cuda()
    unet = tfq.graph(copy.deepcopy(eager))
    calls = [on_card(inputs(eager, timesteps=(1, 1), seed=i)) | {"timestep": 251} for i in range(4)]
    expected = [run(eager, call) for call in calls]
    run(unet, calls[0])
    torch.cuda.synchronize()
    outputs = []
    for i in range(40):
        with torch.cuda.stream(torch.cuda.Stream()):
            outputs.append(run(unet, calls[i % 4]))
    torch.cuda.synchronize()
    for i, output in enumerate(outputs):
        assert_same_bits(output.cpu(), expected[i % 4].cpu(), str(i))
