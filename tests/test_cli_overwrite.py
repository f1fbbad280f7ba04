"""``tfq convert --overwrite``: it replaces what it wrote, and nothing that is anybody else's."""

import json
import shutil

import diffusers
import pytest
from unets import build

from tfq_cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Float models: a UNet with a scheduler beside it, and a pipeline."""
    root = tmp_path_factory.mktemp("models")
    unet, scheduler = build("plain"), diffusers.DDIMScheduler()
    unet.save_pretrained(root / "unet")
    scheduler.save_pretrained(root / "unet")
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(root / "pipeline")
    return {name: root / name for name in ("unet", "pipeline")}


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    "model, unet, foreign",
    [
        ("unet", "", ["notes.txt", "diffusion_pytorch_model_runs/notes.txt"]),
        (
            "pipeline",
            "unet",
            ["notes.txt", "scheduler/notes.txt", "unet/runs/notes.txt", ".git/HEAD"],
        ),
    ],
)
def test_overwrite_replaces_what_it_wrote(
    folders, tmp_path, capsys, monkeypatch, model, unet, foreign
):
    """Its own output; for anything else it refuses, before the conversion."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(folders[model], source)
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("of the float model")
    arguments = (source, out, "--no-calibration", "--overwrite")
    assert convert(*arguments) == 0
    written = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert convert(*arguments, "--weights", "int4") == 0
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    config = json.loads((out / unet / "config.json").read_text())["quantization_config"]["config"]
    assert config["weights"] == "int4"

    monkeypatch.setattr("tfq.commands.convert.convert", None)
    for file in foreign:
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text("mine")
        assert convert(*arguments) == 2
        error = capsys.readouterr().err
        shown = file.removesuffix("/notes.txt") if "runs" in file else file
        assert f"--overwrite replaces only a model, and {str(out)!r} holds more: {shown}\n" in error
        assert (out / file).read_text() == "mine"
        (out / file).unlink()
        if "runs" in file:
            (out / file).parent.rmdir()


def test_overwrite_looks_again_before_it_writes(folders, tmp_path, capsys, monkeypatch):
    """Conversions take hours."""

    def make_out(*arguments, **settings):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")

    monkeypatch.setattr("tfq.commands.convert.convert", make_out)
    assert convert(folders["unet"], tmp_path / "out") == 2
    assert "exists; --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
