"""Quality of a converted model: sampled from the same noise as the float model.

python bench/quality.py                     # animeface64, DDIM eta 0, 20 steps, 6 images
python bench/quality.py --model fashion32 --images 16
"""

import argparse
import copy
import time

import machine
import models
from harness import print_table

import tfq

ARMS = {
    "W8A8 dynamic": (dict(activation_ranges="dynamic"), False),
    "W8A8 static per timestep": (dict(), True),
    "W8A8 static": (dict(activation_ranges="static"), True),
}


def measure(unet, scheduler, reference, options, calibrated, args):
    """One row: converted as `options` say, sampled, compared."""
    converted = copy.deepcopy(unet)
    start = time.perf_counter()
    scheduler_arguments = (
        dict(scheduler=scheduler, num_inference_steps=args.steps) if calibrated else {}
    )
    tfq.convert(converted, tfq.TfqConfig(**options), **scheduler_arguments)
    seconds = time.perf_counter() - start
    images = models.sample(converted, scheduler, args.steps, args.images, args.seed)
    report = tfq.report(converted).to_dict()
    return {
        "psnr": models.psnr(images, reference),
        "temporal_error": report["temporal"]["max_error"],
        "native_mac_share": report["native_mac_share"],
        "weight_bytes": report["weight_bytes"],
        "convert_seconds": seconds,
    }


def main():
    """Run all arms, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=("animeface64", "fashion32"), default="animeface64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--seed", type=int, default=123)
    args = parser.parse_args()
    facts = machine.facts()
    loaded = getattr(models, args.model)()
    if loaded is None:
        parser.exit(1, f"{args.model}: not found in {models.SHARED_MODELS}\n")
    unet, scheduler = loaded
    reference = models.sample(unet, scheduler, args.steps, args.images, args.seed)

    results = {}
    for name, (options, calibrated) in ARMS.items():
        results[name] = measure(unet, scheduler, reference, options, calibrated, args)
    print(
        f"{args.model} (trained), DDIM eta 0, {args.steps} steps, {args.images} images, "
        f"same noise; {facts['cpu']}, isa {facts['isa']}"
    )
    print_table(
        ("arm", "PSNR to float", "temporal error", "native MACs", "weights", "convert"),
        [
            (
                name, f"{r['psnr']:.2f} dB", f"{r['temporal_error']:.2g}",
                f"{100 * r['native_mac_share']:.2f} %", f"{r['weight_bytes'] / 1e6:.1f} MB",
                f"{r['convert_seconds']:.0f} s",
            )
            for name, r in results.items()
        ],
    )  # fmt: skip
    path = machine.write_results(
        f"quality-{args.model}", facts, {"arguments": vars(args), "arms": results}
    )
    print(f"written: {path.relative_to(models.ROOT)}")


if __name__ == "__main__":
    main()
