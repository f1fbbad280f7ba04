"""Memory of a converted UNet over many calls: resident size after the first tenth and at the end.

python bench/growth.py --steps 1000
"""

import argparse
import pathlib

import torch

import tfq
from tfq.demo.model import load_model
from tfq.shapes import example_inputs


def resident_bytes():
    """Resident set of this process, from /proc."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    unet, _ = load_model()
    inputs = example_inputs(unet, 1, torch.Generator().manual_seed(0))
    tfq.convert(unet, calibration=[inputs])
    with torch.no_grad():
        for step in range(args.steps):
            unet(**inputs)
            if step == args.steps // 10:
                before = resident_bytes()
    growth = resident_bytes() - before
    print(
        f"{before / 1e6:.1f} MB after {args.steps // 10} calls, {growth / 1e6:+.2f} MB until {args.steps}"
    )


if __name__ == "__main__":
    main()
