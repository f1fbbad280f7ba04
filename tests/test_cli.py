"""The ``tfq`` command: help, errors, and models that go through it and back."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys

import diffusers
import pytest
import torch
from tolerance import assert_same_bits
from unets import build, inputs, run

import tfq
from tfq import timing
from tfq.commands import bench
from tfq.config import _CHOICES, TfqConfig
from tfq.progress import progress_bar
from tfq_cli import main, make_parser

COMMANDS = ("convert", "report", "quality", "bench", "demo", "info")
TINY = ["--steps", "2", "--calibration-samples", "1", "--precision", "uniform"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A UNet's folder with a scheduler beside it, one without, a pipeline's, and converted ones."""
    root = tmp_path_factory.mktemp("models")
    unet, scheduler = build("attention"), diffusers.DDIMScheduler()
    unet.save_pretrained(root / "bare")
    unet.save_pretrained(root / "unet")
    scheduler.save_pretrained(root / "unet")
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(root / "pipeline")
    (root / "pipeline" / "unet" / "notes.txt").write_text("of the float weights")
    build("cross").save_pretrained(root / "text")
    scheduler.save_pretrained(root / "text")
    assert main(["convert", str(root / "unet"), str(root / "converted"), *TINY]) == 0
    return root


def output(capsys, *arguments):
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """What a command that fails says."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    return captured.err


def help_of(*command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_imports_no_torch():
    code = (
        "import contextlib, sys, tfq_cli\n"
        "for command in ([], *([name] for name in sys.argv[1:])):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        tfq_cli.main([*command, '--help'])\n"
        "print(sorted({'torch', 'diffusers', 'tfq', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("usage: tfq") == 1 + len(COMMANDS)


def test_help_lists_the_commands(capsys):
    text = help_of(capsys=capsys)
    assert all(re.search(rf"\b{command}\b", text) for command in COMMANDS)
    assert main([]) == 0
    assert "usage: tfq" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["convert", "bench"])
def test_help_teaches_the_whole_configuration(command, capsys):
    text = help_of(command, capsys=capsys)
    for values in _CHOICES.values():
        # "float" weights are reserved: TfqConfig refuses them.
        for value in values:
            assert re.search(rf"\b{value}\b", text), value
    parser = make_parser()._subparsers._group_actions[0].choices[command]
    options = {action.dest for action in parser._actions}
    assert {field.name for field in dataclasses.fields(TfqConfig)} <= options


@pytest.mark.parametrize("command", ["convert a b", "bench a", "info"])
def test_an_unknown_option_shows_the_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--wights", "int4"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"usage: tfq {command.split()[0]}")
    assert "error: unrecognized arguments: --wights int4" in error


def test_help_states_the_defaults(capsys):
    text = help_of("convert", capsys=capsys)
    for field in dataclasses.fields(TfqConfig):
        stated = {str: f"{field.default} (default", int: f"(default {field.default})"}
        stated[float] = stated[int]
        found = stated.get(type(field.default), "")
        assert found in text or f"(default: {field.default}" in text or (
            f"{field.name}: {field.default} (default" in text
        ) or f"{field.default} (default: " in text, field.name  # fmt: skip


def test_converted_unet_is_the_one_that_python_makes(folders):
    expected = diffusers.UNet2DModel.from_pretrained(folders / "unet")
    config = TfqConfig(calibration_samples=1, precision="uniform")
    tfq.convert(expected, config, scheduler=diffusers.DDIMScheduler(), num_inference_steps=2)
    loaded = diffusers.UNet2DModel.from_pretrained(folders / "converted")
    assert_same_bits(run(loaded, inputs(loaded)), run(expected, inputs(expected)))
    assert (folders / "converted" / "scheduler_config.json").is_file()


def test_configuration_from_file_and_options(folders, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"weights": "int4", "seed": 3, "attention": "float"}))
    out = tmp_path / "out"
    printed = output(
        capsys, "convert", folders / "bare", out, "--no-calibration", "--config", file, "--seed", "5",
        "--keep-float", "mid_block", "down_blocks.0", "--no-split-skip", "--dtype", "bfloat16", "--json",
    )  # fmt: skip
    saved = json.loads((out / "config.json").read_text())["quantization_config"]
    assert saved["config"] == TfqConfig(
        weights="int4", seed=5, attention="float", split_skip=False,
        modules_to_not_convert=("mid_block", "down_blocks.0"),
    ).to_dict()  # fmt: skip
    assert saved["dtype"] == "bfloat16" and saved["rows"]["timesteps"] == []
    values = json.loads(printed)
    loaded = diffusers.UNet2DModel.from_pretrained(out, dtype=torch.bfloat16)
    report = tfq.report(loaded).to_dict()
    assert values["native_mac_share"] == report["native_mac_share"]
    assert values["weight_bytes"] == report["weight_bytes"] < values["float_weight_bytes"]
    assert values["ranges"] == "dynamic" and values["out"] == str(out)


def test_pipeline_goes_through(folders, tmp_path, capsys):
    out = tmp_path / "pipeline"
    printed = output(capsys, "convert", folders / "pipeline", out, *TINY)
    assert str(out) in printed and "2-timestep ranges" in printed
    assert {path.name for path in out.iterdir()} == {"model_index.json", "scheduler", "unet"}
    pipe = diffusers.DDIMPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert tfq.report(pipe.unet).to_dict()["native_mac_share"] > 0.9
    images = pipe(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)
    # Again, in its place.
    assert "exists; --overwrite replaces it" in refused(
        capsys, "convert", folders / "pipeline", out, *TINY
    )
    output(capsys, "convert", folders / "pipeline", out, *TINY, "--overwrite")
    assert {path.name for path in out.parent.iterdir()} == {"pipeline"}, "nothing is left beside"


@pytest.mark.filterwarnings("error:`torch_dtype` is deprecated")
def test_text_pipeline_calibrates_on_prompts(tmp_path, capsys):
    pipelines = pytest.importorskip("pipelines", reason="no transformers: text pipelines not built")
    pipelines.build("Stable Diffusion 1").save_pretrained(tmp_path / "sd15")
    (tmp_path / "prompts.txt").write_text("a fox\n\n a harbour at dawn \n")
    arguments = ["--prompts", tmp_path / "prompts.txt", "--steps", "2", "--precision", "uniform"]
    printed = output(capsys, "convert", tmp_path / "sd15", tmp_path / "int8", *arguments)
    assert "2-timestep ranges" in printed or "3-timestep ranges" in printed
    expected = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "sd15")
    config = TfqConfig(precision="uniform")
    tfq.convert(expected, config, prompts=["a fox", "a harbour at dawn"], num_inference_steps=2)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "int8")
    call = inputs(expected.unet)
    assert_same_bits(run(loaded.unet, call), run(expected.unet, call))


def test_interrupted_conversion_writes_nothing(folders, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt("run again with checkpoint='state' to continue")

    monkeypatch.setattr("tfq.commands.convert.convert", interrupt)
    assert main(["convert", str(folders / "unet"), str(tmp_path / "out")]) == 130
    expected = "tfq convert: interrupted. run again with checkpoint='state' to continue\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


def test_report_in_every_form(folders, tmp_path, capsys):
    printed = output(capsys, "report", folders / "converted")
    loaded = diffusers.UNet2DModel.from_pretrained(folders / "converted")
    assert printed.rstrip("\n") == str(tfq.report(loaded))
    assert json.loads(output(capsys, "report", folders / "converted", "--json")) == (
        tfq.report(loaded).to_dict()
    )
    page = tmp_path / "report.html"
    arguments = ["--original", folders / "unet", "--steps", "2", "--images", "1", "--output", page]
    printed = output(capsys, "report", folders / "converted", *arguments)
    assert "PSNR" in printed and "Before and after" in page.read_text("utf-8")


def test_quality(folders, tmp_path, capsys):
    picture = tmp_path / "images.png"
    arguments = [
        "quality",
        folders / "converted",
        folders / "unet",
        "--steps",
        "3",
        "--images",
        "2",
    ]
    text = output(capsys, *arguments, "--images-to", picture)
    values = json.loads(output(capsys, *arguments, "--json"))
    assert f"PSNR {values['psnr']:.2f} dB over 2 images after 3 steps" in text
    unets = [
        diffusers.UNet2DModel.from_pretrained(folders / name) for name in ("unet", "converted")
    ]
    scheduler = diffusers.DDIMScheduler()
    expected = tfq.compare(*unets, scheduler, num_inference_steps=3, images=2)
    assert values["psnr_per_step"] == expected.psnr_per_step
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_bench(folders, capsys, threads):
    arguments = ["bench", folders / "unet", "--seconds", "0.01", "--threads", "1"]
    values = json.loads(output(capsys, *arguments, "--weights", "int4", "--json"))
    assert list(values["arms"]) == ["float32", "bfloat16", "tfq", "tfq, graph"]
    assert all(arm["median_ms"] > 0 and arm["calls"] >= 7 for arm in values["arms"].values())
    assert values["arms"]["tfq"]["time_over_tfq"]["median"] == 1
    assert values["machine"]["threads"] == 1 and values["native_mac_share"] > 0.9
    text = output(capsys, "bench", folders / "converted", "--seconds", "0.01")
    assert "tfq" in text and "float32" not in text, "no original, nothing to compare with"


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_convert_says_which_ranges(folders, tmp_path, capsys, kind):
    arguments = ["convert", folders / "unet", tmp_path / "out", *TINY, "--activation-ranges", kind]
    assert f" {kind} ranges; converted in" in output(capsys, *arguments)


def test_bench_times_steps_of_sampling(folders, monkeypatch):
    """One arm alone is a graph, and its calls are replays: their timestep has a row."""
    graphs = {}

    def interleave(calls, **options):
        for name, call in calls.items():
            call()
            unet = inspect.getclosurevars(inspect.unwrap(call)).nonlocals["unet"]
            graphs[name] = len(unet.forward.captured) if "forward" in vars(unet) else None
        return timing.interleave(calls, **options)

    monkeypatch.setattr(bench, "interleave", interleave)
    for folder, others in (("unet", ("float32", "bfloat16", "tfq")), ("converted", ("tfq",))):
        graphs.clear()
        assert main(["bench", str(folders / folder), "--seconds", "0.01"]) == 0
        assert graphs == dict.fromkeys(others) | {"tfq, graph": 1}


def test_info_as_json(capsys):
    assert json.loads(output(capsys, "info", "--json")) == tfq.info()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["convert", "{none}", "{out}"], "'{none}' is not a folder; download a model first"),
        (["convert", "{root}", "{out}"], "'{root}' has no config.json: not the folder of a diffusers"),
        (["convert", "{bare}", "{out}"], "has no scheduler to calibrate with: give --scheduler FOLDER"),
        (["convert", "{bare}", "{out}", "--scheduler", "{root}"], "has no scheduler_config.json"),
        (["convert", "{unet}", "{unet}/int8"], "and MODEL '{unet}' must not contain each other"),
        (["convert", "{unet}", "{converted}"], "'{converted}' exists; --overwrite replaces it"),
        (["convert", "{unet}", "{root}", "--overwrite"], "must not contain each other"),
        (["convert", "{converted}", "{out}"], "'{converted}' is converted already; give the float"),
        (["convert", "{unet}", "{out}", "--weights", "int3"],
         "TfqConfig: weights must be one of int8, int4, float, got 'int3'"),
        (["convert", "{unet}", "{out}", "--config", "{none}"],
         "cannot read --config '{none}': No such file or directory"),
        (["convert", "{unet}", "{out}", "--dtype", "float16"],
         "--dtype must be one of float32, bfloat16, got 'float16'"),
        (["convert", "{unet}", "{out}", "--steps", "0"], "num_inference_steps must be at least 1, got 0"),
        (["convert", "{text}", "{out}"], "'{text}' needs text to calibrate with: give --prompts FILE, or"),
        (["convert", "{pipeline}", "{out}", "--prompts", "{none}"],
         "cannot read --prompts '{none}': No such file or directory"),
        (["convert", "{text}", "{out}", "--prompts", "{unet}/config.json"],
         "--prompts needs the folder of a whole pipeline"),
        (["convert", "{pipeline}", "{out}", "--prompts", "{none}", "--no-calibration"],
         "--prompts are calibrated with, which --no-calibration leaves out"),
        (["convert", "{unet}", "{out}", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["report", "{unet}"], "'{unet}' is not converted: convert it with `tfq convert {unet} OUT`"),
        (["report", "{converted}", "--output", "r.txt"], "path must end in .json, .html, .png"),
        (["quality", "{converted}", "{converted}"], "is converted; give the float model it was made"),
        (["quality", "{converted}", "{unet}", "--images-to", "x.jpg"],
         "--images-to must end in .png, got 'x.jpg'"),
        (["quality", "{converted}", "{unet}", "--images", "0"], "images must be at least 1, got 0"),
        (["quality", "{converted}", "{text}"],
         "cannot sample with the UNet alone, as the model needs encoder_hidden_states; compare images of"),
        (["bench", "{unet}", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["bench", "{unet}", "--seconds", "0"], "--seconds must be more than 0, got 0.0"),
    ],
    ids=lambda value: value[:60].replace("{", "").replace("}", "") if isinstance(value, str) else "",
)  # fmt: skip
def test_errors_in_one_line(folders, tmp_path, capsys, arguments, message):
    names = {name: folders / name for name in ("bare", "unet", "converted", "text", "pipeline")}
    names |= {"root": folders, "none": tmp_path / "none", "out": tmp_path / "out"}
    error = refused(capsys, *(argument.format(**names) for argument in arguments))
    assert error.startswith(f"tfq {arguments[0]}: ") and message.format(**names) in error
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_other_models_and_schedulers_are_named(folders, tmp_path, capsys):
    diffusers.AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "vae")
    error = refused(capsys, "convert", tmp_path / "vae", tmp_path / "out")
    assert "holds a AutoencoderKL; tfq converts UNet2DModel, UNet2DConditionModel, " in error
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "NoScheduler"}')
    error = refused(capsys, "convert", folders / "bare", tmp_path / "out", "--scheduler", tmp_path)
    assert f"holds a NoScheduler, which diffusers {diffusers.__version__} does not have" in error


@pytest.mark.parametrize("text, message", [("{", "is not JSON"), ("[1]", "must hold an object, got list"),
                                           ('{"bits": 8}', "unknown key 'bits'")])  # fmt: skip
def test_configuration_files_that_are_none(folders, tmp_path, capsys, text, message):
    (tmp_path / "config.json").write_text(text)
    arguments = [
        "convert",
        folders / "unet",
        tmp_path / "out",
        "--config",
        tmp_path / "config.json",
    ]
    assert message in refused(capsys, *arguments)


def test_overwrite_replaces_models_only(folders, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    error = refused(capsys, "convert", folders / "unet", tmp_path, "--overwrite")
    assert f"--overwrite replaces only a model, and {str(tmp_path)!r} has no config.json" in error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_progress_bars(tmp_path):
    with open(tmp_path / "bars", "w+", newline="") as stream:
        with progress_bar(stream) as progress:
            for label, total in (("first", 2), ("second", 2), ("third", None)):
                for done in (1, 2):
                    progress(done, total, label)
        stream.seek(0)
        drawn = stream.read()
    for label, end in (("first", "2/2"), ("second", "2/2"), ("third", "2it")):
        assert re.search(rf"{label}:[^\r]*{end}", drawn), label
    assert drawn.count("\n") == 3, "a bar each"


def test_work_that_takes_long_reports_progress(folders, tmp_path, capsys):
    output(capsys, "convert", folders / "unet", tmp_path / "out", *TINY)
    capsys.readouterr()
    arguments = ["--steps", "2", "--calibration-samples", "1", "--weights", "int4"]
    arguments += [
        "--reconstruction",
        "block",
        "--temporal",
        "select",
        "--reconstruction-steps",
        "2",
    ]
    assert main(["convert", str(folders / "unet"), str(tmp_path / "int4"), *arguments]) == 0
    drawn = capsys.readouterr().err
    for label in ("calibration:", "sensitivity:", "temporal block:", ".conv"):
        assert label in drawn, label
