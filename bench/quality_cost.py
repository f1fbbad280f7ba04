"""What a conversion costs: seconds and peak memory of calibration, and the size of the saved file.

Peaks of memory never fall, so every measurement is made in a process of its own.
"""

import multiprocessing
import pathlib
import tempfile
import time

import models
import torch

import tfq
from tfq.calibrate import run_trajectory

COST_STEPS = 50
COST_PRECISIONS = ("uniform", "auto")
SIZE_ARMS = {
    "int8": dict(weights="int8", precision="uniform"),
    "int8, drop_tib": dict(weights="int8", precision="uniform", drop_tib=True),
    "int4": dict(weights="int4", precision="uniform"),
    "int4, drop_tib": dict(weights="int4", precision="uniform", drop_tib=True),
}


def _peak_bytes():
    """Largest resident memory of this process so far (VmHWM of Linux)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise NotImplementedError("peak memory needs VmHWM in /proc/self/status")


def _load(model):
    loaded = models.random_weights(model) if model == "ddpm-cifar10" else getattr(models, model)()
    return loaded[0].requires_grad_(False), loaded[1]


@torch.no_grad()
def _float_trajectory(model, steps, threads):
    torch.set_num_threads(threads)
    unet, scheduler = _load(model)
    config = tfq.TfqConfig()
    start = time.perf_counter()
    run_trajectory(unet, scheduler, steps, config.calibration_samples, config.seed)
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}


def _conversion(model, steps, threads, options):
    torch.set_num_threads(threads)
    unet, scheduler = _load(model)
    start = time.perf_counter()
    try:
        tfq.convert(unet, tfq.TfqConfig(**options), scheduler=scheduler, num_inference_steps=steps)
    except NotImplementedError as error:
        return {"not_available": str(error) or "not implemented"}
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}


def _in_own_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _best(results):
    """Element-wise smallest of repeated measurements; the first where it is not available."""
    if "not_available" in results[0]:
        return results[0]
    return {name: min(result[name] for result in results) for name in results[0]}


def cost(model, steps=COST_STEPS, rounds=2):
    """Seconds and peak memory of a W8A8 conversion, beside a float run of the calibration batch.

    Parameters
    ----------
    model : str
        Name in :mod:`models`.
    steps : int
        Of the calibration trajectory.
    rounds : int
        Repetitions, interleaved; the smallest counts.

    Returns
    -------
    dict
        ``float`` and one entry for each precision: ``seconds``, ``peak_bytes`` and, relative to
        ``float``, ``trajectories`` and ``memory``; or ``not_available``.
    """
    threads = torch.get_num_threads()
    rows = {"float": [], **{precision: [] for precision in COST_PRECISIONS}}
    for _ in range(rounds):
        rows["float"].append(_in_own_process(_float_trajectory, model, steps, threads))
        for precision in COST_PRECISIONS:
            options = dict(precision=precision)
            rows[precision].append(_in_own_process(_conversion, model, steps, threads, options))
    best = {name: _best(results) for name, results in rows.items()}
    for precision in COST_PRECISIONS:
        if "not_available" not in best[precision]:
            best[precision] |= {
                "trajectories": best[precision]["seconds"] / best["float"]["seconds"],
                "memory": best[precision]["peak_bytes"] / best["float"]["peak_bytes"],
            }
    return best


def _weight_bytes(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.safetensors"))


def sizes(load, steps=COST_STEPS, arms=SIZE_ARMS):
    """Size of saved models, tables included, as a fraction of the float32 file.

    A row counts only if the file loads and gives the outputs of the model that was saved.

    Parameters
    ----------
    load : callable
        Returns (UNet2DModel, scheduler).
    steps : int
        Timesteps in the tables.
    arms : dict of str to dict
        Options of :class:`tfq.TfqConfig`.

    Returns
    -------
    dict
        ``float32`` and each arm: ``bytes`` and ``fraction``, or ``not_available``.
    """
    with tempfile.TemporaryDirectory() as folder:
        load()[0].save_pretrained(folder)
        whole = _weight_bytes(folder)
    rows = {"float32": {"bytes": whole, "fraction": 1.0}}
    for name, options in arms.items():
        try:
            size = _saved_bytes(*load(), steps, options)
        except NotImplementedError as error:
            rows[name] = {"not_available": str(error) or "not implemented"}
        else:
            rows[name] = {"bytes": size, "fraction": size / whole}
    return rows


@torch.no_grad()
def _saved_bytes(unet, scheduler, steps, options):
    config = tfq.TfqConfig(calibration_samples=1, **options)
    tfq.convert(unet, config, scheduler=scheduler, num_inference_steps=steps)
    if not getattr(unet, "is_quantized", False):
        raise NotImplementedError("a converted model cannot be saved in this version")
    size = unet.config.sample_size
    noise = torch.randn(
        1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0)
    )
    timestep = unet.time_embedding.values[-1]
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        loaded = type(unet).from_pretrained(folder)
        if not torch.equal(loaded(noise, timestep).sample, unet(noise, timestep).sample):
            raise RuntimeError(
                f"the saved model ({config.weights}) gives other outputs once loaded"
            )
        return _weight_bytes(folder)
