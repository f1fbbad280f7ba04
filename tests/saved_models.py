"""Every kind of converted model that is saved in the tests, by name, and a process that loads them."""

import os
import pathlib
import subprocess
import sys

import torch
from unets import FEW, build, inputs

import tfq
from tfq import TfqConfig

TIMESTEPS = (7, 421)
TEMPORAL = ("fold", "cache", "tib", "select", "float")
WEIGHTS = {
    "int8": {},
    "int4": {"weights": "int4"},
    "weight_only": {"weights": "int4", "activations": "float"},
}
# name -> (UNet, dtype, whether it is calibrated, TfqConfig)
CASES = {}
for _weights, _settings in WEIGHTS.items():
    for _temporal in TEMPORAL:
        for _ranges in ("timestep", "dynamic"):
            if _weights == "weight_only" and _ranges == "timestep":
                continue
            CASES[f"{_weights}-{_temporal}-{_ranges}"] = (
                "attention",
                torch.float32,
                _ranges == "timestep" or _temporal in ("cache", "tib", "select"),
                {**_settings, "temporal": _temporal, "activation_ranges": _ranges},
            )
for _name in [*FEW, "fourier", "learned", "timestep_classes", "cross_text_time", "cross_linear"]:
    CASES[f"{_name}-select"] = (_name, torch.float32, True, {"temporal": "select"})
for _name in ("attention", "scale_shift", "cross"):
    CASES[f"{_name}-bfloat16"] = (_name, torch.bfloat16, False, {})
    CASES[f"{_name}-bfloat16-table"] = (_name, torch.bfloat16, True, {"temporal": "tib"})
CASES["static"] = ("plain", torch.float32, True, {"activation_ranges": "static"})
CASES["drop_tib"] = ("plain", torch.float32, True, {"drop_tib": True})
CASES["output_tap"] = (
    "plain",
    torch.float32,
    True,
    {"temporal": "select", "fsc_output_tap": True},
)
CASES["excluded"] = ("attention", torch.float32, True, {"modules_to_not_convert": ["mid_block"]})
CASES["one_source"] = ("attention", torch.float32, False, {"split_skip": False})
_rounded = {"reconstruction": "block", "reconstruction_steps": 0, "weights": "int4"}
CASES["reconstructed"] = ("cross", torch.float32, True, {**_rounded, "temporal": "select"})
CASES["int8_attention"] = ("cross", torch.float32, False, {"attention": "int8"})

LOAD = """
import json, pathlib, sys
import torch
sys.path.insert(0, sys.argv[1])
import tfq
from diffusers import UNet2DConditionModel, UNet2DModel
from unets import run

for folder in pathlib.Path(sys.argv[2]).iterdir():
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    unet = {"UNet2DModel": UNet2DModel}.get(name, UNet2DConditionModel).from_pretrained(folder)
    torch.save(run(unet, torch.load(folder / "inputs.pt")), folder / f"{sys.argv[3]}.pt")
print(tfq.info()["isa"])
"""


def convert(name):
    """The model of a case, converted, and inputs: known timesteps, but one where that may be."""
    unet_name, dtype, calibrated, settings = CASES[name]
    unet = build(unet_name, dtype)
    calibration = [inputs(unet, TIMESTEPS)] if calibrated else None
    tfq.convert(unet, TfqConfig(**settings), calibration=calibration)
    return unet, inputs(unet, TIMESTEPS if settings.get("drop_tib") else (421, 33))


def load_in_new_process(root, level):
    """Load and run all models below `root` in a process of its own; returns the level it ran at.

    The outputs are left as ``<level>.pt`` beside each model.
    """
    here = pathlib.Path(__file__).resolve().parent
    completed = subprocess.run(
        [sys.executable, "-c", LOAD, str(here), str(root), level],
        cwd=here.parent,
        env={**os.environ, "TFQ_MAX_ISA": level},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.split()[-1]
