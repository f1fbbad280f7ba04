"""Memory of SD1.5's UNet (random weights): the peak of a step, and the weights that stay resident.

    python bench/memory.py                              # a step of torch bf16 and of tfq, peaks compared
    python bench/memory.py --weights-only               # bytes of the weights alone; no step is made

Every arm is saved once and loaded and run in a process of its own, after `import torch` was measured
there: what counts is the largest resident memory from the start of the loading to the end of the step, and
of the step alone, above that; with tfq.graph the step is the one that captures. Resident weights are the
bytes of all parameters and buffers, tables included, as a fraction of the float32 model's.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

GRAPH = ", graph"
ARMS = {
    "torch bf16": ("bfloat16", None),
    "tfq W8A8 (bfloat16)": ("bfloat16", dict(weights="int8")),
    f"tfq W8A8 (bfloat16){GRAPH}": ("bfloat16", dict(weights="int8")),
    "tfq W8A8 (bfloat16), drop_tib": ("bfloat16", dict(weights="int8", drop_tib=True)),
    "tfq W4A8 (float32), drop_tib": ("float32", dict(weights="int4", drop_tib=True)),
    "tfq W4A8 (bfloat16), drop_tib": ("bfloat16", dict(weights="int4", drop_tib=True)),
}
BASELINE = "torch bf16"
STEPS = 50  # rows of the tables
CALIBRATION_SIZE = 16


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=("ddpm-cifar10", "sd15"), default="sd15")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default all", metavar="ARM")
    parser.add_argument("--weights-only", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument(
        "--step", nargs=3, metavar=("FOLDER", "DTYPE", "ARM"), help=argparse.SUPPRESS
    )
    return parser.parse_args()


def _status(field):
    """Bytes of a field of /proc/self/status."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def _inputs(unet):
    import torch

    from tfq.shapes import example_inputs

    inputs = example_inputs(unet, 1, torch.Generator().manual_seed(0))
    inputs["timestep"] = 0  # the last of every run
    return inputs


def run_step(folder, dtype, arm):
    """Load the model of `folder` and run a step; print three numbers of bytes.

    They are resident after ``import torch``, the peak of loading and step, and the peak of the step.
    """
    import torch

    before = _status("VmRSS")
    import diffusers

    import tfq  # which lets diffusers load a converted model

    dtype = getattr(torch, dtype)
    name = diffusers.UNet2DConditionModel.load_config(folder)["_class_name"]
    unet = getattr(diffusers, name).from_pretrained(folder, dtype=dtype)
    inputs = _inputs(unet)
    if arm.endswith(GRAPH):
        tfq.graph(unet)
    whole = _status("VmHWM")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with torch.no_grad():
        unet(**inputs)
    step = _status("VmHWM")
    print(before, max(whole, step), step)


def build(model, arm, folder):
    """Save the model of an arm in `folder`; bytes of its weights, and the dtype to load it with."""
    import models
    import torch

    import tfq
    from tfq.reporting import weight_bytes

    unet, scheduler = models.random_weights(model)
    dtype, options = ARMS[arm]
    unet = unet.to(getattr(torch, dtype))
    if options is not None:
        scheduler.set_timesteps(STEPS)
        inputs = _inputs(unet)
        # Small images: the size of the tables depends on the timesteps alone.
        inputs["sample"] = inputs["sample"][..., :CALIBRATION_SIZE, :CALIBRATION_SIZE]
        calls = [dict(inputs, timestep=t) for t in scheduler.timesteps.tolist()]
        tfq.convert(unet, tfq.TfqConfig(precision="uniform", **options), calibration=calls)
    unet.save_pretrained(folder)
    return weight_bytes(unet), dtype


def main():
    args = parse_arguments()
    if args.step:
        return run_step(*args.step)
    import machine
    import models
    from harness import print_table

    from tfq.reporting import weight_bytes

    facts = machine.facts()
    whole = weight_bytes(models.random_weights(args.model)[0].float())
    results = {}
    for arm in args.arms or ARMS:
        with tempfile.TemporaryDirectory() as folder:
            size, dtype = build(args.model, arm, folder)
            results[arm] = {"weight_bytes": size, "of_float32": size / whole}
            if args.weights_only:
                continue
            command = [sys.executable, __file__, "--step", folder, dtype, arm]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            before, with_loading, step = map(int, done.stdout.split())
            results[arm] |= {
                "step_peak_bytes": step - before, "peak_with_loading_bytes": with_loading - before
            }  # fmt: skip
    rows = []
    for arm, row in results.items():
        cells = [arm, f"{row['weight_bytes'] / 1e6:.1f}", f"{row['of_float32']:.3f}"]
        for name in ("step_peak_bytes", "peak_with_loading_bytes"):
            value, base = row.get(name), results.get(BASELINE, {}).get(name)
            cells.append("" if value is None else f"{value / 1e6:.0f}")
            cells.append(f"{value / base:.3f}" if value and base else "")
        rows.append(cells)
    print(f"{args.model} (random weights), batch 1, tables of {STEPS} timesteps; {facts['cpu']}")
    against = f"/ {BASELINE}"
    print_table(
        (
            "arm",
            "weights MB",
            "/ float32",
            "peak of a step MB",
            against,
            "with loading MB",
            against,
        ),
        rows,
    )
    if not args.no_write:
        name = f"memory-{args.model}{'-weights' * args.weights_only}"
        print("written:", machine.write_results(name, facts, results))


if __name__ == "__main__":
    main()
