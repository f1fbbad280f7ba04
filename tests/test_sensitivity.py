"""Precision by sensitivity: the estimate against the truth, and what is made of it."""

import pytest
import torch
from tolerance import MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise, signal_to_noise
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig, sensitivity
from tfq.calibrate import record_calls
from tfq.demo import load_model
from tfq.plan import LayerPlan, plan_layers
from tfq.shapes import trace_shapes
from tfq.simulation import SimulatedLayer, replaced_forward
from tfq.weights import quantize_weight

# Twelve random projections estimate a norm within 20 % (one deviation) where the timesteps weigh alike;
# where one of them makes up the error there is one projection of it. Seen: 2.7.
MAX_FACTOR = 4
MIN_CORRELATION = 0.95


def planned(unet, config):
    return plan_layers(unet, config, *trace_shapes(unet))


def converted_layers(unet):
    layers = tfq.report(unet).to_dict()["layers"]
    return {layer["name"]: layer for layer in layers if layer["error"] is not None}


def true_error(unet, plan, treatment, calls):
    """Relative error of the output with one layer quantized, measured."""
    modules = dict(unet.named_modules())
    layer = modules[plan.name]
    simulated = SimulatedLayer(layer, plan.name, treatment.activations, plan.sources)
    parts = layer.weight.split(simulated.sources, dim=1)
    bits = treatment.weight_bits
    simulated.install([quantize_weight(part, bits) for part in parts], layer.bias)
    squares = []
    for call in calls:
        expected = run(unet, call)
        with replaced_forward(modules, {plan.name: simulated}):
            difference = run(unet, call) - expected
        squares.append((difference.norm() / expected.norm()).item() ** 2)
    return (sum(squares) / len(squares)) ** 0.5


def assert_estimates_the_truth(unet, calls, config, names):
    plans = {plan.name: plan for plan in planned(unet, config) if plan.converted}
    picked = [plans[name] for name in names]
    estimated = sensitivity.estimate_errors(unet, picked, calls, config)
    assert set(estimated) == set(names)
    pairs = []
    for plan in picked:
        for treatment, error in zip(
            sensitivity.treatments(config), estimated[plan.name].errors, strict=True
        ):
            truth = true_error(unet, plan, treatment, calls)
            assert truth / MAX_FACTOR < error < truth * MAX_FACTOR, (
                f"{plan.name} {treatment}: {error:.3g} estimated, {truth:.3g} measured"
            )
            pairs.append((error, truth))
    logs = torch.tensor(pairs).log().T
    assert torch.corrcoef(logs)[0, 1] > MIN_CORRELATION
    assert logs[1].max() - logs[1].min() > 1.5, "layers that differ"


def test_estimate_on_a_trained_model():
    unet, scheduler = load_model()
    unet.requires_grad_(False)
    config = TfqConfig(weights="int4", calibration_samples=1)
    calls, _ = record_calls(unet, None, scheduler, 12, config)
    names = [plan.name for plan in planned(unet, config) if plan.converted]
    shortcuts = [name for name in names if name.endswith("conv_shortcut")]
    assert_estimates_the_truth(unet, calls, config, [*names[:: len(names) // 6], *shortcuts[-2:]])


def test_estimate_with_text_and_attention():
    """Random weights."""
    unet = build("cross").requires_grad_(False)
    calls = [inputs(unet, (t,), seed=t) for t in range(0, 960, 80)]
    names = [
        f"down_blocks.0.attentions.0.transformer_blocks.0.{child}"
        for child in ("attn1.to_v", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj")
    ]
    names += ["down_blocks.0.downsamplers.0.conv", "up_blocks.1.resnets.1.conv2"]
    assert_estimates_the_truth(unet, calls, TfqConfig(weights="int4"), names)


def test_treatments_go_from_what_is_asked_for_to_the_finest():
    def ladder(**config):
        return [(t.weight_bits, t.activations) for t in sensitivity.treatments(TfqConfig(**config))]

    assert ladder() == [(8, "int8"), (8, "int16"), (8, "float")]
    assert ladder(weights="int4") == [(4, "int8"), (8, "int8"), (8, "int16"), (8, "float")]
    assert ladder(activations="float") == [(8, "float")]
    assert ladder(weights="int4", activations="float") == [(4, "float"), (8, "float")]


def assert_same_estimates(first, second):
    """The same seed gives the same estimate."""
    assert first.keys() == second.keys()
    for name, estimate in first.items():
        assert estimate.errors == second[name].errors, name
        assert_same_bits(estimate.shifts, second[name].shifts, name)


def test_bias_takes_back_the_mean_error():
    """Trained weights; the mean error of each layer, over the images it was estimated with."""
    unet, scheduler = load_model()
    unet.requires_grad_(False)
    config = TfqConfig(weights="int4", error_budget=1e9)  # 4 bits everywhere: large errors
    calls, _ = record_calls(unet, None, scheduler, 12, TfqConfig(calibration_samples=1))
    converted = tfq.convert(clone(unet), config, calibration=calls)
    modules, layers = dict(unet.named_modules()), dict(converted.named_modules())
    plans = [
        plan
        for plan in planned(unet, config)
        if plan.converted and modules[plan.name].bias is not None
    ]
    plans = plans[::8]
    ratios = []
    for plan in plans:
        layer, errors = modules[plan.name], []
        simulated = SimulatedLayer(layer, plan.name, "int8", plan.sources)
        parts = layer.weight.split(simulated.sources, dim=1)
        weights = [quantize_weight(part, 4) for part in parts]
        for bias in (layer.bias, layers[plan.name].bias):
            simulated.install(weights, bias)
            outputs = []
            handle = layer.register_forward_hook(
                lambda module, args, output, simulated=simulated, outputs=outputs: outputs.append(
                    (simulated(args[0]) - output).movedim(1 if simulated.is_conv else -1, -1)
                )
            )
            for call in calls:
                run(unet, call)
            handle.remove()
            errors.append(torch.cat([o.flatten(0, -2) for o in outputs]).mean(0).norm().item())
        ratios.append(errors[1] / errors[0])
    assert max(ratios) < 0.05, f"of the mean error left: {max(ratios):.3g} ({len(ratios)} layers)"


def test_no_bias_where_the_layer_has_none_or_the_estimate_is_not_finite():
    plans = [LayerPlan(name, "Linear", weight_bits=8) for name in ("sound", "broken", "shared")]
    plans[2].weight_bits, plans[2].activations = 4, "float"  # not a treatment of this configuration
    shifts = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    estimates = {plan.name: sensitivity.Estimate([0.0, 0.0], shifts) for plan in plans}
    estimates["broken"] = sensitivity.Estimate([0.0, 0.0], shifts * float("nan"))
    found = sensitivity.bias_shifts(plans, estimates, TfqConfig())
    assert list(found) == ["sound"]
    assert_same_bits(found["sound"], shifts[0])


def test_coarsest_treatment_within_the_budget():
    config = TfqConfig(weights="int4", error_budget=0.1)
    errors = {
        "first": [0.1, 0.05, 0.01, 0.01],
        "second": [0.11, 0.05, 0.01, 0.01],
        "third": [0.5, 0.4, 0.01, 0.01],
        "fourth": [0.5, 0.4, 0.4, 0.01],
        "none": [0.5, 0.4, 0.4, 0.3],
        "as_good": [0.5, 0.4, 0.31, 0.3],
        "not_finite": [float("inf"), float("nan"), float("nan"), 0.01],
        "never_finite": [float("nan")] * 4,
    }
    plans = [LayerPlan(name, "Linear", weight_bits=4) for name in errors]
    kept = LayerPlan("kept", "Linear", converted=False, reason="because")
    estimates = {name: sensitivity.Estimate(e, torch.zeros(4, 1)) for name, e in errors.items()}
    sensitivity.refine_plans([*plans, kept], estimates, config)
    chosen = {plan.name: (plan.weight_bits, plan.activations, plan.output_error) for plan in plans}
    assert chosen.pop("never_finite")[:2] == (8, "float")
    assert chosen == {
        "first": (4, "int8", 0.1),
        "second": (8, "int8", 0.05),
        "third": (8, "int16", 0.01),
        "fourth": (8, "float", 0.01),
        "none": (8, "float", 0.3),
        "as_good": (8, "int16", 0.31),
        "not_finite": (8, "float", 0.01),
    }
    assert plans[0].reason == "" and kept.reason == "because" and kept.output_error is None
    assert plans[2].reason == (
        "over error_budget=0.1 with 4-bit weights, int8 activations (estimated 0.5): "
        "8-bit weights, int16 activations"
    )


def with_a_huge_residual():
    """Channel 0 of the residual stream is 1e9, and no layer but the norms has a weight for it."""
    unet = build("plain")
    with torch.no_grad():
        unet.conv_in.weight[0] = 0
        unet.conv_in.bias[0] = 1e9
        unet.down_blocks[0].downsamplers[0].conv.weight[:, 0] = 0
        # Skips of the last block: behind its hidden channels, the last one is that of conv_in.
        for resnet, hidden in zip(unet.up_blocks[1].resnets, (64, 32), strict=True):
            resnet.conv_shortcut.weight[:, hidden] = 0
    return unet


def test_a_huge_residual_does_not_wreck_the_model():
    unet = with_a_huge_residual()
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    made = {
        precision: tfq.convert(clone(unet), TfqConfig(precision=precision), calibration=[kwargs])
        for precision in ("uniform", "auto")
    }
    assert signal_to_noise(run(made["uniform"], kwargs), expected) < 20
    assert_signal_to_noise(run(made["auto"], kwargs), expected, MIN_UNET_SNR[torch.float32])
    finer = {n: la for n, la in converted_layers(made["auto"]).items() if la["reason"]}
    assert {"up_blocks.1.resnets.0.conv_shortcut", "up_blocks.1.resnets.1.conv_shortcut"} <= set(
        finer
    )
    assert len(finer) <= 5, "the others are fine as they are"
    budget = TfqConfig().error_budget
    assert all(f"over error_budget={budget:g}" in layer["reason"] for layer in finer.values())
    assert all("int16 activations" in layer["reason"] for layer in finer.values())
    assert all(layer["output_error"] <= budget for layer in finer.values())


@pytest.mark.parametrize("name", ["plain", "attention", "cross"])
def test_harmless_layers_stay_as_asked(name):
    """Random weights: the first layers of a UNet with few layers weigh more than those of a real one."""
    unet = build(name)
    config = TfqConfig(error_budget=0.03)
    layers = converted_layers(tfq.convert(unet, config, calibration=[inputs(unet)]))
    shortcuts = [n for n in layers if n.endswith("conv_shortcut")]
    assert len(shortcuts) >= 3
    assert {layer["path"] for layer in layers.values()} <= {"gemm_s8", "conv2d_s8"}
    assert {layer["reason"] for layer in layers.values()} == {""}
    assert all(0 < layer["output_error"] < 0.03 for layer in layers.values())


@pytest.mark.parametrize("config", [{}, {"weights": "int4"}], ids=str)
def test_no_budget_gives_the_finest_everywhere(config):
    unet = build("attention")
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    tfq.convert(unet, TfqConfig(error_budget=0.0, **config), calibration=[kwargs])
    layers = converted_layers(unet)
    assert {layer["path"] for layer in layers.values()} == {"gemm_s8", "conv2d_s8"}
    assert {layer["weight_bits"] for layer in layers.values()} == {8}
    finest = [la for la in layers.values() if la["reason"].endswith("int16 activations")]
    assert len(finest) > 0.8 * len(layers), (
        "one byte is as good where the weights make up the error"
    )
    assert all("over error_budget=0 with " in layer["reason"] for layer in finest)
    assert_signal_to_noise(run(unet, kwargs), expected, 35)


def test_a_limitless_budget_is_uniform_but_for_biases():
    unet = build("attention")
    kwargs = inputs(unet)
    limitless, uniform = (
        tfq.convert(clone(unet), config, calibration=[kwargs])
        for config in (TfqConfig(error_budget=float("inf")), TfqConfig(precision="uniform"))
    )
    expected = dict(uniform.named_buffers())
    for name, value in limitless.named_buffers():
        if "weight" in name:
            assert_same_bits(value, expected[name], name)
    paths = [
        {n: layer["path"] for n, layer in converted_layers(u).items()} for u in (limitless, uniform)
    ]
    assert paths[0] == paths[1]


def test_without_data_it_is_uniform():
    unet = build("attention")
    auto = tfq.convert(clone(unet))
    uniform = tfq.convert(clone(unet), TfqConfig(precision="uniform"))
    assert str(tfq.report(auto)) == str(tfq.report(uniform))
    assert {layer["output_error"] for layer in converted_layers(auto).values()} == {None}


@pytest.mark.parametrize("finer, path", [(1e-3, "gemm_s8"), (1.0, "weight_only")])
@pytest.mark.parametrize("sensitive", ["to_q", "to_k", "to_v"])
@pytest.mark.parametrize("name", ["attention", "cross"])
def test_layers_with_one_input_share_its_type(name, sensitive, finer, path, monkeypatch):
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)

    def estimate(model, plans, calls, config, progress=None):
        none = torch.zeros(3, 1)
        return {
            plan.name: sensitivity.Estimate(
                [1.0, finer, 1e-3] if plan.name.endswith(sensitive) else [1e-3, 1e-4, 1e-4], none
            )
            for plan in plans
            if plan.converted
        }

    monkeypatch.setattr(sensitivity, "estimate_errors", estimate)
    layers = converted_layers(tfq.convert(unet, calibration=[kwargs]))
    parents = {n.rpartition(".")[0] for n in layers if n.endswith(".to_q")}
    assert parents
    for parent in parents:
        for child in ("to_q", "to_k", "to_v"):
            layer = layers[f"{parent}.{child}"]
            assert layer["path"] == path, layer["name"]
            word = "over error_budget" if child == sensitive else f"shares its input with {parent}."
            assert layer["reason"].startswith(word)
        assert layers[f"{parent}.to_out.0"]["path"] == "gemm_s8"
    assert_signal_to_noise(run(unet, kwargs), expected, MIN_UNET_SNR[torch.float32])


def test_calibration_runs_once():
    unet = build("plain")
    samples, given = [], []
    unet.register_forward_pre_hook(
        lambda module, args, kwargs: samples.append(kwargs["sample"].shape[0])
        if type(kwargs["sample"]) is torch.Tensor else None,
        with_kwargs=True,
    )  # fmt: skip

    def calibration(model):
        given.append(model)
        for timestep in (5, 300, 700):
            model(**inputs(model, (timestep, timestep)))

    tfq.convert(clone(unet), calibration=calibration)
    assert len(given) == 1
    # The float model on the calls, on some images of them, and the lowered model on the calls: for its
    # ranges, and with them for the correction of its output.
    assert samples[:3] == samples[-3:] == samples[-6:-3] == [2, 2, 2]
    assert sum(samples[3:-6]) == sensitivity.SAMPLES
    calls = (inputs(unet, (t, t)) for t in (5, 300, 700))  # a generator can be run through once
    once = tfq.convert(clone(unet), calibration=calls)
    assert once.time_embedding.values.tolist() == [5.0, 300.0, 700.0]


def test_estimate_leaves_the_model_alone():
    unet = build("cross").requires_grad_(False)
    kwargs = inputs(unet)
    expected, state = run(unet, kwargs), torch.get_rng_state()
    config, seen = TfqConfig(), []
    estimates = [
        sensitivity.estimate_errors(
            unet, planned(unet, config), [kwargs], config, lambda *arguments: seen.append(arguments)
        )
        for _ in range(2)
    ]
    assert_same_estimates(*estimates)
    assert torch.equal(torch.get_rng_state(), state)
    assert not unet.is_gradient_checkpointing and not unet.training
    assert not any(module._forward_hooks for module in unet.modules())
    assert not any(p.requires_grad or p.grad is not None for p in unet.parameters())
    assert seen and seen[-1][0] == seen[-1][1] and seen[-1][2] == "sensitivity"
    assert_same_bits(run(unet, kwargs), expected)


def test_a_model_that_checkpoints_already():
    unet = build("attention").requires_grad_(False)
    config = TfqConfig()
    calls = [inputs(unet)]
    plain = sensitivity.estimate_errors(unet, planned(unet, config), calls, config)
    unet.enable_gradient_checkpointing()
    assert_same_estimates(
        sensitivity.estimate_errors(unet, planned(unet, config), calls, config), plain
    )
    assert unet.is_gradient_checkpointing
