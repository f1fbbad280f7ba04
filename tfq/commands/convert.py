"""``tfq convert``: a folder with a float model becomes a folder with a converted one."""

import dataclasses
import pathlib
import shutil
import time

import tfq
from tfq.commands.configuration import read_config, read_text
from tfq.commands.folders import ModelFolder, parse_dtype, set_threads
from tfq.conversion import convert
from tfq.models import conditions_of
from tfq.pipelines import unet_of
from tfq.progress import progress_bar
from tfq.reporting import weight_bytes
from tfq.saving import beside_model, replaced_folder

_SCHEDULER = "scheduler_config.json"
# Of a pipeline's folder: what belongs to the place it was downloaded to.
_NOT_COPIED = (".cache", ".git")


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written."""

    out: str
    seconds: float
    float_weight_bytes: int
    weight_bytes: int
    native_mac_share: float
    float_layers: int
    ranges: str

    def to_dict(self):
        """JSON-serializable."""
        return dataclasses.asdict(self)

    def __str__(self):
        share = self.weight_bytes / self.float_weight_bytes
        return (
            f"{self.out}: {self.weight_bytes / 1e6:.1f} MB ({share:.3f} of the float model), "
            f"{100 * self.native_mac_share:.2f} % of the multiply-adds on integer kernels, "
            f"{self.float_layers} layers float, {self.ranges} ranges; converted in {self.seconds:.0f} s\n"
            f"load it with: import tfq; diffusers' from_pretrained({self.out!r})\n"
            f"layer by layer: tfq report {self.out}"
        )


def run(
    model, out, overwrite, dtype, steps, scheduler, prompts, no_calibration, checkpoint, config, threads,
    **options,
):  # fmt: skip
    """Convert `model` and write `out`; `options` are fields of TfqConfig.

    Returns
    -------
    Converted
    """
    settings = read_config(config, options)
    source = ModelFolder.open(model, scheduler)
    target = pathlib.Path(out).resolve()
    _check_target(source, target, overwrite)
    if no_calibration and prompts is not None:
        raise ValueError(
            "--prompts are calibrated with, which --no-calibration leaves out: give one"
        )
    set_threads(threads)
    if source.is_converted:
        raise ValueError(f"{model!r} is converted already; give the float model")
    dtype = parse_dtype(dtype)
    if prompts is None:
        whole = source.load_unet(dtype)
        calibration = {} if no_calibration else _own_trajectory(model, source, whole, steps)
    else:
        calibration = {"prompts": _read_prompts(prompts), "num_inference_steps": steps}
        whole = source.load_pipeline(dtype)
        calibration["scheduler"] = source.load_scheduler()
    unet = whole if prompts is None else unet_of(whole)
    float_bytes = weight_bytes(unet)
    started = time.perf_counter()
    with progress_bar() as progress:
        convert(whole, settings, progress=progress, checkpoint=checkpoint, **calibration)
    seconds = time.perf_counter() - started
    _check_target(source, target, overwrite)  # again: OUT may have changed during the conversion
    with replaced_folder(target) as partial:
        if source.is_pipeline:
            skip = shutil.ignore_patterns(source.unet.name, *_NOT_COPIED)
            shutil.copytree(source.root, partial, ignore=skip, dirs_exist_ok=True)
            tfq.save(unet, partial / source.unet.name)
        else:
            tfq.save(unet, partial)
            if source.scheduler is not None:
                shutil.copy(source.scheduler / _SCHEDULER, partial)
    report = tfq.report(unet).to_dict()
    return Converted(
        out, seconds, float_bytes, report["weight_bytes"], report["native_mac_share"],
        sum(layer["path"] == "torch" for layer in report["layers"]),
        _ranges(unet._tfq_conversion),
    )  # fmt: skip


def _ranges(conversion):
    kinds = {plan.ranges for plan in conversion.plans}
    if "timestep" in kinds:
        return f"{len(conversion.timesteps)}-timestep"
    return "static" if "static" in kinds else "dynamic"


def _own_trajectory(model, source, unet, steps):
    """Arguments of a conversion that calibrates on the UNet's own sampling."""
    scheduler = source.load_scheduler()
    if scheduler is None:
        raise ValueError(
            f"{model!r} has no scheduler to calibrate with: give --scheduler FOLDER, or --no-calibration "
            f"for ranges at run time"
        )
    if conditions_of(unet):
        raise ValueError(
            f"{model!r} needs text to calibrate with: give --prompts FILE, or --no-calibration for ranges "
            f"at run time"
        )
    return {"scheduler": scheduler, "num_inference_steps": steps}


def _read_prompts(file):
    lines = read_text("--prompts", file).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _check_target(source, target, overwrite):
    root = source.root.resolve()
    if target == root or root in target.parents or target in root.parents:
        raise ValueError(f"OUT {str(target)!r} and MODEL {str(root)!r} must not contain each other")
    if not target.exists():
        return
    if not overwrite:
        raise ValueError(f"{str(target)!r} exists; --overwrite replaces it")
    marker = "model_index.json" if source.is_pipeline else "config.json"
    if not (target / marker).is_file():
        raise ValueError(f"--overwrite replaces only a model, and {str(target)!r} has no {marker}")
    if others := _beside_output(source, target):
        raise ValueError(
            f"--overwrite replaces only a model, and {str(target)!r} holds more: "
            f"{', '.join(others[:5])}"
        )


def _beside_output(source, target):
    """What is in OUT and not written there: a converted model and, of a pipeline, copies from MODEL."""
    if not source.is_pipeline:
        return [name for name in beside_model(target) if name != _SCHEDULER]
    unet = target / source.unet.name
    copied = {path for path in _files(source.root) if not {*path.parts} & {*_NOT_COPIED}}
    others = {path for path in _files(target) if path.parts[0] != unet.name} - copied
    inside = beside_model(unet) if unet.is_dir() else []
    return sorted(map(str, others)) + [f"{unet.name}/{name}" for name in inside]


def _files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
