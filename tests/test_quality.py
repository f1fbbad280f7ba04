"""The quality harness: its measures against closed forms, its baselines, and one tiny run."""

import json
import pathlib
import sys

import pytest
import torch
import unets

import tfq
from tfq import reference

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
sys.path.append(str(BENCH))

import models  # noqa: E402
import prev_arm  # noqa: E402
import quality  # noqa: E402
import quality_arms  # noqa: E402
import quality_cost  # noqa: E402
import quality_figures  # noqa: E402
import quality_frechet as frechet  # noqa: E402
import quality_metrics as metrics  # noqa: E402
import quality_tables as tables  # noqa: E402
import temporal_arms  # noqa: E402

STEPS = 2


@pytest.fixture(scope="module")
def small():
    unet, scheduler = models.fashion32()
    scheduler.set_timesteps(STEPS)
    return unet.requires_grad_(False), scheduler


@pytest.fixture(scope="module")
def timesteps(small):
    return small[1].timesteps.float().tolist()


def converted_copy(small, **options):
    unet, _ = models.fashion32()
    config = tfq.TfqConfig(calibration_samples=1, precision="uniform", **options)
    return tfq.convert(unet, config, scheduler=small[1], num_inference_steps=STEPS)


def test_feature_errors_by_hand():
    reference = [[torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])]]
    errors = metrics.feature_errors(
        [[torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])]], reference
    )
    assert errors["squared"].tolist() == [[16.0, 4.0]]
    assert errors["relative"].tolist() == [[0.8, 2.0]]
    assert errors["cosine"].tolist() == [[0.6, 0.0]]
    exact = metrics.summarize_errors(metrics.feature_errors(reference, reference))
    assert exact == {"mean_error": 0.0, "max_error": 0.0, "mean_cosine": 1.0, "min_cosine": 1.0}


def test_frechet_distance_of_scaled_and_moved_features():
    features = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    mean, covariance = metrics.moments(features)
    reference = metrics.FrechetReference(mean, covariance)
    assert abs(reference.distance(features)) < 1e-9
    # For y = a x + b both covariances commute: |m_y - m|^2 + (a - 1)^2 tr(C).
    moved = 1.5 * features + 2
    expected = (0.5 * mean + 2).square().sum() + 0.25 * covariance.trace()
    assert reference.distance(moved) == pytest.approx(expected.item(), rel=1e-9)


def test_bootstrap_is_paired():
    features = torch.randn(300, 4)
    reference = metrics.FrechetReference(torch.zeros(4).double(), torch.eye(4).double())
    same = metrics.paired_bootstrap(reference, features, features, resamples=20)
    assert same["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert same["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    near = features + 0.5
    paired = metrics.paired_bootstrap(reference, near, features, resamples=200)
    shuffled = near[torch.randperm(300)]
    unpaired = metrics.paired_bootstrap(reference, shuffled, features, resamples=200)
    assert paired["distance"] == pytest.approx(unpaired["distance"])
    width = {k: r["difference"]["high"] - r["difference"]["low"] for k, r in
             (("paired", paired), ("unpaired", unpaired))}  # fmt: skip
    assert width["paired"] < width["unpaired"]
    assert (
        paired["difference"]["low"] < paired["difference"]["value"] < paired["difference"]["high"]
    )
    with pytest.raises(ValueError, match=r"needs? the same images, got \(2, 4\) and \(3, 4\)"):
        metrics.paired_bootstrap(reference, features[:2], features[:3])


def test_bootstrap_is_not_biased_by_duplicates():
    # Duplicates raise the distance of the set that fits, and hardly that of the shrunken one.
    features = torch.randn(60, 30)
    reference = metrics.FrechetReference(*metrics.moments(features))
    result = metrics.paired_bootstrap(reference, features, 0.01 * features, resamples=100)
    assert (
        result["difference"]["low"] < result["difference"]["value"] < result["difference"]["high"]
    )


@torch.no_grad()
def test_temporal_path_is_the_models_own(small, timesteps):
    unet, _ = small
    path = temporal_arms.TemporalPath(unet)
    seen = {}
    handles = [
        block.time_emb_proj.register_forward_hook(lambda m, args, out: seen.update({m: out[0]}))
        for block in path.blocks
    ]
    unet(torch.randn(1, 1, 32, 32), timesteps[0])
    for handle in handles:
        handle.remove()
    for feature, block in zip(path.features(timesteps)[0], path.blocks, strict=True):
        assert torch.equal(feature, seen[block.time_emb_proj])


def test_features_of_the_fold_are_exact(small, timesteps):
    features = temporal_arms.TemporalPath(small[0]).features(timesteps)
    converted = temporal_arms.converted_features(converted_copy(small), timesteps)
    assert metrics.feature_errors(converted, features)["squared"].max() == 0


def test_features_of_the_integer_block(small, timesteps):
    path = temporal_arms.TemporalPath(small[0])
    converted = converted_copy(small, weights="int4", temporal="tib")
    weights = temporal_arms.converted_weights(converted)
    for own, rounded in zip(weights, path.rounded_weights(), strict=True):
        torch.testing.assert_close(own, rounded)

    def by_timestep(i, x):
        q, qparams = reference.quantize(x)
        return (q.float() - qparams[0, 2]) * qparams[0, 0]

    features = temporal_arms.converted_features(converted, timesteps)
    simulated = path.features(timesteps, weights, by_timestep)
    assert metrics.feature_errors(features, simulated)["relative"].max() < 1e-5


def test_output_tap_rounds_the_features(small, timesteps):
    plain = converted_copy(small, weights="int4", temporal="tib")
    tapped = converted_copy(small, weights="int4", temporal="tib", fsc_output_tap=True)
    features = temporal_arms.converted_features(plain, timesteps)
    for expected, actual in zip(
        features, temporal_arms.converted_features(tapped, timesteps), strict=True
    ):
        for feature, rounded in zip(expected, actual, strict=True):
            step = (feature.max().clamp(min=0) - feature.min().clamp(max=0)) / 255
            assert 0 < (rounded - feature).abs().max() <= 0.51 * step


def test_one_range_for_all_timesteps_costs_accuracy(small, timesteps):
    path = temporal_arms.TemporalPath(small[0])
    exact = path.features(timesteps)
    weights = [layer.weight for layer in path.layers]
    ranges = metrics.feature_errors(path.static_features(timesteps, weights), exact)
    rounded = metrics.feature_errors(path.static_features(timesteps, path.rounded_weights()), exact)
    assert 0 < ranges["relative"].mean() < 0.02 < rounded["relative"].mean() < 0.2


@torch.no_grad()
def test_features_are_overwritten_and_given_back(small, timesteps):
    unet, _ = small
    x, t = torch.randn(1, 1, 32, 32), timesteps[0]
    features = temporal_arms.TemporalPath(unet).features(timesteps)
    other = [[feature.flip(0) for feature in row] for row in features]
    converted = converted_copy(small)
    for model, overwritten in (
        (unet, temporal_arms.overwritten_projections),
        (converted, temporal_arms.overwritten_rows),
    ):
        plain = model(x, t).sample
        with overwritten(model, timesteps, features):
            assert torch.equal(model(x, t).sample, plain)
        with overwritten(model, timesteps, other):
            assert (model(x, t).sample - plain).abs().max() > 1e-2
        assert torch.equal(model(x, t).sample, plain)


def test_soft_rounding_starts_at_the_weight():
    weight = torch.randn(5, 40)
    soft = prev_arm.SoftRounding(weight)
    q = weight / soft.scale + soft.zero_point
    inside = (q >= 0) & (q <= 15)
    torch.testing.assert_close(
        soft.weight(soft.opening())[inside], weight[inside], atol=1e-5, rtol=0
    )
    hard = soft.weight((soft.v.detach() >= 0).float())
    torch.testing.assert_close(hard, tfq.weights.quantize_weight(weight, 4).dequantize())


def test_prev_starts_at_round_to_nearest_and_leaves_the_model_alone(small):
    unet, scheduler = unets.build("plain").requires_grad_(False), small[1]
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    nearest = temporal_arms.TemporalPath(unet).rounded_weights()
    for start, rounded in zip(
        nearest, prev_arm.prev_weights(unet, scheduler, 1, 0, 0), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(start, rounded)
    moved = prev_arm.prev_weights(unet, scheduler, 1, 0, 8)
    again = prev_arm.prev_weights(unet, scheduler, 1, 0, 8)
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(moved[1:], nearest[1:], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_prev_lowers_the_error_of_a_block(small):
    unet, scheduler = unets.build("plain").requires_grad_(False), small[1]
    block = temporal_arms.TemporalPath(unet).blocks[0]
    inputs = prev_arm._record_inputs(unet, scheduler, [block], STEPS, 0)[0]
    rounding = {}
    for iterations in (0, 60):
        rounding[iterations] = prev_arm.round_block(block, inputs, 0, iterations)
    errors = {n: prev_arm.block_error(block, inputs, weights) for n, weights in rounding.items()}
    assert errors[60] < errors[0]


def test_images_are_sampled_once(tmp_path, small, monkeypatch):
    unet, scheduler = small
    monkeypatch.setattr(frechet, "CHUNK", 2)
    images = frechet.sample_cached(tmp_path, 3, unet, scheduler, 1, seed=0)
    assert images.shape == (3, 1, 32, 32) and images.dtype == torch.uint8
    monkeypatch.setattr(models, "sample", lambda *args: pytest.fail("sampled again"))
    assert torch.equal(frechet.sample_cached(tmp_path, 3, unet, scheduler, 1, seed=0), images)


def test_fingerprint_follows_the_code(tmp_path):
    (tmp_path / "tfq").mkdir()
    source = tmp_path / "tfq" / "a.py"
    source.write_text("x = 1\n")
    first = frechet.fingerprint(tmp_path)
    (tmp_path / "tfq" / "notes.md").write_text("x")
    assert frechet.fingerprint(tmp_path) == first
    source.write_text("x = 2\n")
    assert frechet.fingerprint(tmp_path) != first


def test_text_between_markers(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("a\n<!-- quality:x -->\nold\n<!-- /quality:x -->\nb\n")
    tables.replace_between(path, "x", "new")
    assert path.read_text() == "a\n<!-- quality:x -->\nnew\n<!-- /quality:x -->\nb\n"
    with pytest.raises(
        ValueError, match="needs <!-- quality:y --> and <!-- /quality:y -->, once each"
    ):
        tables.replace_between(path, "y", "new")


def rows_with_errors(**errors):
    names = {"TIAR_FSC": "TIAR+FSC"}
    return {names.get(k, k): {"temporal": {"mean_error": v}} for k, v in errors.items()}


def test_ordering_is_judged():
    good = rows_with_errors(Prev=0.5, Freeze=0.4, TIAR_FSC=0.1, DAS=0.1, fold=0)
    assert tables.ordering(good).endswith("It holds.")
    equal = good | rows_with_errors(Freeze=0.5)
    assert "Prev 0.5 > Freeze 0.5" in tables.ordering(equal)
    assert "fold 0.01 = 0" in tables.ordering(good | rows_with_errors(fold=0.01))
    del good["DAS"]
    assert tables.ordering(good).endswith("Cannot be judged without DAS.")


def test_selection_is_checked_cell_by_cell():
    rows = {n: {"temporal": {"squared": s}} for n, s in
            (("TIAR+FSC", [[1.0, 4.0]]), ("CM", [[2.0, 3.0]]), ("DAS", [[1.0, 4.0]]))}  # fmt: skip
    assert "at 1 of 2 (t, i)" in tables.selection(rows)


def test_arm_that_does_not_exist_yet(small, monkeypatch):
    unet, scheduler = small

    def convert(*args, **kwargs):
        raise NotImplementedError("not in this version")

    run = quality_arms.Run(unet, scheduler, 1, 1, 0, 1)
    monkeypatch.setattr(tfq, "convert", convert)
    row, images, converted = run.measure(quality_arms.MAIN[0])
    assert row == {"not_available": "not in this version"} and images is None and converted is None
    table = tables.main_table(quality_arms.MAIN[:1], {quality_arms.MAIN[0].name: row})
    assert "not available: not in this version" in table


def test_sizes(small, monkeypatch):
    def saved(unet, scheduler, steps, options):
        if options["weights"] == "int4":
            raise NotImplementedError("later")
        return 4_000_000

    monkeypatch.setattr(quality_cost, "_saved_bytes", saved)
    rows = quality_cost.sizes(lambda: small, steps=1)
    parameters = sum(p.numel() for p in small[0].parameters())
    assert rows["float32"]["bytes"] == pytest.approx(4 * parameters, rel=0.01)
    assert rows["int8"]["fraction"] == 4_000_000 / rows["float32"]["bytes"]
    assert rows["int4"] == {"not_available": "later"}
    assert "not available: later" in tables.size_table(rows)


def test_cost_is_relative_to_float(monkeypatch):
    monkeypatch.setattr(quality_cost, "COST_PRECISIONS", ("uniform",))
    rows = quality_cost.cost("fashion32", steps=1, rounds=1)
    uniform, whole = rows["uniform"], rows["float"]
    assert uniform["trajectories"] == uniform["seconds"] / whole["seconds"]
    assert uniform["memory"] == uniform["peak_bytes"] / whole["peak_bytes"]
    assert whole["peak_bytes"] > 50e6
    assert "| uniform |" in tables.cost_table(rows)


def pictures(folder, seed):
    """One of each kind, of random values."""
    torch.manual_seed(seed)
    images = {"float32": torch.rand(2, 1, 8, 8) * 2 - 1, "W8A8": torch.rand(2, 1, 8, 8) * 2 - 1}
    timesteps, errors = [5.0, 0.0], torch.rand(2, 3, dtype=torch.float64)
    maps = {"a": {"relative": errors.tolist(), "cosine": errors.tolist()}}
    rows = {"a": [50.0 + seed, None]}
    return [
        path.read_bytes()
        for path in (
            quality_figures.sample_grid(folder / "a.png", "t", images, {"W8A8": "1 dB"}),
            quality_figures.psnr_over_steps(folder / "b.png", "t", rows),
            quality_figures.temporal_error_over_time(folder / "c.png", "t", timesteps, maps),
            quality_figures.tau_maps(folder / "d.png", "t", timesteps, {"x": (errors, errors / 2)}),
        )
    ]


def test_every_picture_shows_its_values(tmp_path):
    first, same, other = (pictures(tmp_path, seed) for seed in (0, 0, 1))
    assert first == same and all(a != b for a, b in zip(first, other, strict=True))
    assert all(data.startswith(b"\x89PNG") for data in first)


def test_one_tiny_run_is_resumed(tmp_path, monkeypatch, capsys):
    def pooled(images):
        return images.float().view(len(images), 32, 32)[:, ::16, ::16].flatten(1)

    def reference(cache, extract):
        return metrics.FrechetReference(*metrics.moments(torch.rand(20, 4) * 255))

    monkeypatch.setattr(frechet, "load_extractor", lambda: pooled)
    monkeypatch.setattr(frechet, "load_reference", reference)
    monkeypatch.setattr(frechet, "DATA", tmp_path)
    arguments = [
        "--model", "fashion32", "--steps", "2", "--images", "1", "--images-fd", "3", "--frechet",
        "--prev-iterations", "1", "--arms", "W8A8 (default),fold,Freeze", "--out", str(tmp_path / "out"),
        "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    quality.main(arguments)
    written = json.loads((tmp_path / "out" / "quality-fashion32.json").read_text())["results"]
    row = written["arms"]["W8A8 (default)"]
    assert 30 < row["psnr"] < 80 and len(row["psnr_per_step"]) == 2
    assert row["temporal"]["max_error"] == 0 and row["frechet"]["images"] == 3
    document = (tmp_path / "out" / "quality.md").read_text()
    assert f"| W8A8 (default) | {row['psnr']:.2f} dB |" in document
    assert "![fashion32-samples](images/quality/fashion32-samples.png)" in document
    assert "| fold |" in document and "| Freeze |" in document
    capsys.readouterr()
    quality.main(arguments)
    assert "W8A8 (default): known" in capsys.readouterr().out
