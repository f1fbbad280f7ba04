"""The embedded model, the ``tfq`` command, and the training script on a handful of images."""

import math
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from tfq.commands.info import format_info  # noqa: E402
from tfq.demo import data, load_model, train  # noqa: E402
from tfq.demo.model import WEIGHTS, require  # noqa: E402
from tfq.demo.run import Row, caption, draw, format_table, grid_geometry  # noqa: E402
from tfq_cli import main  # noqa: E402

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_embedded_model_loads_as_float32():
    unet, scheduler = load_model()
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert not unet.training
    assert type(unet).__name__ == "UNet2DModel" and type(scheduler).__name__ == "DDIMScheduler"
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    with torch.no_grad():
        predicted = unet(torch.zeros(2, 1, 32, 32), 500).sample
    assert predicted.shape == (2, 1, 32, 32) and predicted.isfinite().all()


def test_embedded_files_fit_into_a_wheel():
    assert (
        (WEIGHTS / "diffusion_pytorch_model.safetensors").stat().st_size
        <= train.MAX_WEIGHT_BYTES
        == 8_000_000
    )
    assert "MIT License" in (WEIGHTS / "LICENSE").read_text()
    assert "Apache-2.0" in (WEIGHTS / "README.md").read_text()


def test_embedded_architecture_is_the_trained_one():
    unet, scheduler = load_model()
    for name, value in train.UNET_CONFIG.items():
        assert (
            tuple(unet.config[name]) == value
            if isinstance(value, tuple)
            else unet.config[name] == value
        ), name
    for name, value in data.SCHEDULER_CONFIG.items():
        assert scheduler.config[name] == value, name
    torch.testing.assert_close(scheduler.alphas_cumprod, data.make_alphas_cumprod(), rtol=0, atol=0)


def test_model_predicts_noise_better_than_nothing():
    """Answering 0 would have an error of 1; weights damaged on their way here would show."""
    unet, scheduler = load_model()
    dark = torch.zeros(16, 1, 32, 32, dtype=torch.uint8)
    assert data.evaluate(unet, dark, scheduler.alphas_cumprod, count=16, batch=16) < 0.3


@pytest.mark.parametrize(
    "count, columns, rows", [(1, 1, 1), (2, 2, 1), (5, 3, 2), (16, 4, 4), (17, 5, 4)]
)
def test_grid_holds_all_images_and_its_caption(count, columns, rows):
    assert grid_geometry(count)[:2] == (columns, rows)
    assert columns * 32 * grid_geometry(count)[2] >= 384


@pytest.mark.parametrize("count", [1, 3, 16])
def test_drawing_cuts_nothing_off(count):
    """The outermost pixels of the page stay empty, also below a caption much longer than a grid."""
    white = torch.ones(count, 1, 32, 32)
    black = -white
    page = draw(
        "A title",
        [("left", "short"), ("right", "a caption which is longer than its grid is wide " * 3)],
        [black, black],
    )
    for box in (
        (0, 0, page.width, 8),
        (0, page.height - 8, page.width, page.height),
        (0, 0, 8, page.height),
        (page.width - 8, 0, page.width, page.height),
    ):
        assert page.crop(box).convert("L").getextrema() == (255, 255), box
    assert (
        draw("A title", [("left", "a"), ("right", "b")], [black, white])
        .convert("L")
        .getextrema()[0]
        == 0
    )


def test_table_and_caption_show_every_figure():
    rows = (
        Row("float32", 50.0, 15_757_572, 0.0),
        Row("INT8", 12.5, 4_012_345, 0.9912, psnr=47.83, temporal_error=0.00125),
    )
    heading, rule, first, second = format_table(rows).splitlines()
    assert len({len(heading), len(rule), len(first), len(second)}) == 1
    assert first.split() == ["float32", "50.00", "1.00x", "15,757,572", "0.0", "%", "-", "-"]
    assert second.split() == [
        "INT8",
        "12.50",
        "4.00x",
        "4,012,345",
        "99.1",
        "%",
        "47.8",
        "dB",
        "0.0013",
    ]
    assert caption(rows[1], rows[0]) == "12.5 ms per step (4.00x), 4.0 MB of weights, PSNR 47.8 dB"
    assert "identical" in format_table(
        (rows[0], Row("INT8", 1.0, 1, 1.0, psnr=math.inf, temporal_error=0.0))
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "--steps must be between 1 and 1000, got 0"),
        (["--steps", "1001"], "--steps must be between 1 and 1000, got 1001"),
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--threads", "-1"], "--threads must be at least 1, got -1"),
        (["--output", "picture.jpg"], "--output must end in .png, got 'picture.jpg'"),
        (
            ["--output", "missing-folder/picture.png"],
            "cannot write --output 'missing-folder/picture.png': No such file or directory",
        ),
    ],
)
def test_demo_refuses_bad_arguments_in_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"tfq demo: {message}\n"
    assert not list(tmp_path.iterdir())


def test_demo_refuses_a_folder_as_output(capsys, tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert main(["demo", "--output", str(folder)]) == 2
    assert (
        capsys.readouterr().err
        == f"tfq demo: cannot write --output {str(folder)!r}: it is a folder\n"
    )


def test_missing_dependency_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"the demo needs diffusers .*pip install 'tfq\[demo\]'"):
        require("diffusers")
    assert main(["demo", "--output", str(tmp_path / "picture.png")]) == 2
    assert "pip install 'tfq[demo]'" in capsys.readouterr().err


def test_demo_writes_table_and_picture(capsys, tmp_path):
    output = tmp_path / "picture.png"
    assert main(["demo", "--steps", "2", "--images", "2", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "ms per step",
        "ratio",
        "weight bytes",
        "native MACs",
        "PSNR",
        "max temporal error",
        "float32",
        "INT8",
        " dB",
        f"wrote {output}",
    ):
        assert text in printed, text
    assert output.read_bytes()[:8] == PNG_SIGNATURE
    columns, rows, scale = grid_geometry(2)
    with image_module.open(output) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        assert picture.width >= 2 * columns * 32 * scale and picture.height >= rows * 32 * scale


def test_info_is_aligned(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("version") for line in lines)
    text = format_info(
        {
            "version": "1.0",
            "kernels": [f"kernel_{index}" for index in range(20)],
            "limits": {"a": 1},
            "archs": [],
        },
        width=40,
    )
    assert all(len(line) <= 40 for line in text.splitlines())
    starts = [line for line in text.splitlines() if not line.startswith(" ")]
    assert starts[0] == "version  1.0" and starts[-2:] == ["limits   a=1", "archs    none"]


def test_no_arguments_print_help():
    result = subprocess.run(
        [sys.executable, "-m", "tfq"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "demo" in result.stdout and "info" in result.stdout


def test_learning_rate_rises_then_falls_to_zero():
    rates = [train.learning_rate(step, steps=100, peak=1.0, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in zip(rates[10:-1], rates[11:], strict=True))


def test_noise_keeps_unit_variance():
    alphas_cumprod = data.make_alphas_cumprod()
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(64, 1, 32, 32, generator=generator) for _ in range(2))
    noisy = data.add_noise(clean, noise, torch.arange(0, 960, 15), alphas_cumprod)
    assert noisy.var().item() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(
        data.add_noise(clean, noise, torch.zeros(64, dtype=torch.long), alphas_cumprod),
        clean,
        atol=0.05,
        rtol=0,
    )


def test_images_are_checked_and_padded(tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "images.npz"
    numpy.savez(
        path,
        x_train=numpy.full((3, 28, 28), 255, numpy.uint8),
        x_test=numpy.zeros((3, 32, 32), numpy.uint8),
    )
    images = data.load_images(path, "x_train")
    assert images.shape == (3, 1, 32, 32) and images[0, 0, 1, 16] == 0 and images[0, 0, 2, 2] == 255
    values = data.normalize(images)
    assert values.min() == -1 and values.max() == 1
    with pytest.raises(
        ValueError, match=r"x_test must be uint8 of shape \(n, 28, 28\), got uint8 \(3, 32, 32\)"
    ):
        data.load_images(path, "x_test")
    with pytest.raises(ValueError, match="has no array 'labels'"):
        data.load_images(path, "labels")


def test_training_runs_saves_and_resumes(tmp_path):
    numpy = pytest.importorskip("numpy")
    path, out = tmp_path / "images.npz", tmp_path / "model"
    images = numpy.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=numpy.uint8)
    numpy.savez(path, x_train=images, x_test=images)
    arguments = [
        "--data",
        str(path),
        "--out",
        str(out),
        "--batch",
        "2",
        "--warmup",
        "1",
        "--init",
        str(WEIGHTS),
    ]
    assert train.main([*arguments, "--steps", "1"]) == 0
    assert train.main([*arguments, "--steps", "2", "--resume"]) == 0
    assert [line.split(",")[0] for line in (out / "log.csv").read_text().splitlines()] == [
        "step",
        "0",
        "1",
        "1",
        "2",
    ]
    assert (out / "diffusion_pytorch_model.safetensors").stat().st_size <= train.MAX_WEIGHT_BYTES
    for name in ("config.json", "scheduler_config.json", "LICENSE", "README.md"):
        assert (out / name).is_file(), name
