"""Calibration in two processes: the same model as in one, and half of the calls in each."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch
from tolerance import assert_same_bits
from unets import build, inputs

import tfq
from tfq import TfqConfig, distributed
from tfq.ranges import RangeRecorder

PROCESSES = 2
RECIPES = pathlib.Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
UNIFORM = TfqConfig(precision="uniform", calibration_samples=2)
# name -> (config, how many calls of the calibration one process alone makes)
CASES = {
    "trajectories": (UNIFORM, 3 * 4),
    "calls": (dataclasses.replace(UNIFORM, range_estimator="ema"), 5),
    "recorded": (dataclasses.replace(UNIFORM, precision="auto", range_estimator="mse"), None),
    "reconstructed": (
        dataclasses.replace(UNIFORM, weights="int4", reconstruction="block", temporal="select"),
        None,
    ),
    "function": (UNIFORM, 2),
}


def calls(unet):
    """Five calls of different noise, batch and timestep."""
    for number in range(5):
        timestep = (900, 500, 100)[number % 3]
        yield inputs(unet, timesteps=(timestep,) * (1 + number % 2), seed=number)


def make(name):
    """Convert as the case says; the model, and how often the calibration called it."""
    unet, counted = build("attention"), []

    def count(module, args, kwargs):
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        if type(sample) is torch.Tensor:  # not the fake one that layers' shapes are found with
            counted.append(1)

    unet.register_forward_pre_hook(count, with_kwargs=True)
    config, _ = CASES[name]
    if name in ("trajectories", "recorded"):
        settings = {
            "scheduler": diffusers.DDIMScheduler(),
            "num_inference_steps": 4,
            "calibration": 3,
        }
    elif name == "function":
        settings = {"calibration": lambda model: [model(**inputs(model)) for _ in range(2)]}
    else:
        settings = {"calibration": calls(unet)}
    tfq.convert(unet, config, **settings)
    return unet, len(counted)


def worker(rank, folder):
    """One process: converts every case and keeps the result."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    for name in CASES:
        unet, counted = make(name)
        torch.save((unet.state_dict(), counted), f"{folder}/{name}-{rank}.pt")

    def broken(unet):
        # Only one of them fails, the other one would wait.
        if rank == 1:
            raise OverflowError("rank 1 has had enough")
        unet(**inputs(unet))

    try:
        tfq.convert(build("attention"), UNIFORM, calibration=broken)
    except Exception as error:
        pathlib.Path(folder, f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes made."""
    path = tmp_path_factory.mktemp("processes")
    here = pathlib.Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); import test_distributed; "
    commands = [
        f"{code}test_distributed.worker({rank}, {str(path)!r})" for rank in range(PROCESSES)
    ]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
            )
            for command in commands
        ]
        for process in running:
            try:
                _, errors = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                for other in running:
                    other.kill()
                raise
            assert process.returncode == 0, errors
    return path


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_model_of_one(folder, name, threads):
    threads(1)
    unet, alone = make(name)
    expected, counts = unet.state_dict(), []
    for rank in range(PROCESSES):
        state, counted = torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
        assert list(state) == list(expected)
        for key, value in expected.items():
            assert_same_bits(state[key], value)
        counts.append(counted)
    _, calls_alone = CASES[name]
    if calls_alone is not None:
        assert alone == calls_alone
    if name == "function":
        assert counts == [2, 2], "a function cannot be dealt out"
    elif name in ("trajectories", "calls"):
        assert sum(counts) == alone and max(counts) < alone, "each process does its share"
    else:
        assert max(counts) < alone


def test_an_error_in_one_process_ends_all(folder):
    assert (folder / "error-1").read_text() == "OverflowError: rank 1 has had enough"
    assert (folder / "error-0").read_text() == (
        "RuntimeError: convert: calibration failed in process 1: OverflowError: rank 1 has had enough"
    )


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_recipe_under_a_launcher(launcher, tmp_path, threads):
    """The commands of the recipe, word for word, on its own script."""
    threads(1)
    text = RECIPES.read_text("utf-8")
    (script,) = re.findall(r"```python\n(import accelerate.*?)```", text, re.DOTALL)
    (command,) = re.findall(rf"^({launcher} .* calibrate\.py)", text, re.MULTILINE)
    build("attention").save_pretrained(tmp_path / "ddpm")
    note = "pathlib.Path(f'{state.process_index}-of-{state.num_processes}').touch()"
    (tmp_path / "calibrate.py").write_text(f"{script}\nimport pathlib\n{note}\n")
    program, *arguments = command.split()
    found = shutil.which(program, path=pathlib.Path(sys.executable).parent)
    settings = {
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(pathlib.Path(tfq.__file__).parents[1]),
    }
    done = subprocess.run(
        [found, *arguments],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0-of-2").exists() and (tmp_path / "1-of-2").exists()
    unet = tfq.convert(
        diffusers.UNet2DModel.from_pretrained(tmp_path / "ddpm"),
        scheduler=diffusers.DDIMScheduler(),
        num_inference_steps=4,
        calibration=4,
    )
    saved = diffusers.UNet2DModel.from_pretrained(tmp_path / "ddpm-int8").state_dict()
    for name, value in unet.state_dict().items():
        assert_same_bits(saved[name], value)


def test_units_are_dealt_out_and_ordered(monkeypatch):
    assert all(map(distributed.is_mine, range(5)))
    assert distributed.gather({2: "b", 0: "a"}) == {0: "a", 2: "b"}
    monkeypatch.setattr(distributed, "_processes", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert [unit for unit in range(8) if distributed.is_mine(unit)] == [1, 4, 7]


def test_recorder_orders_images_by_unit():
    """The moving average depends on the order."""
    recorder, quantizer = RangeRecorder("ema"), object()
    for unit, high in ((2, 8.0), (0, 1.0)):
        recorder.begin(unit)
        recorder._now.timesteps.add(5.0)
        recorder._now.images[quantizer, 5.0] = [(0.0, high, None)]
    recorder.share([quantizer])
    assert recorder.range(quantizer, [5.0]) == (0.0, pytest.approx(0.95 * 1.0 + 0.05 * 8.0))
    assert recorder.range(quantizer, [6.0]) is None and recorder.timesteps == [5.0]
