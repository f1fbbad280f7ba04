"""Two threads against one: a converted UNet, both in turns in one process.

python bench/threads.py --batch 4 --graph
"""

import argparse

import machine
import models
import torch
from harness import print_table

import tfq
from tfq.shapes import example_inputs
from tfq.timing import interleave, paired_ratio

COUNTS = (1, 2)
# Another count makes OpenMP start its threads anew, and the system takes some calls to place them.
UNTIMED_CALLS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("ddpm-cifar10", "sd15"), default="ddpm-cifar10")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--graph", action="store_true", help="through tfq.graph")
    parser.add_argument("--seconds", type=float, default=30.0, help="time to spend on measuring")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()

    unet, _ = models.random_weights(args.model)
    unet = unet.to(getattr(torch, args.dtype))
    inputs = example_inputs(unet, args.batch, torch.Generator().manual_seed(0))
    tfq.convert(unet, tfq.TfqConfig(precision="uniform"), calibration=[inputs])
    if args.graph:
        tfq.graph(unet)

    def runner(threads):
        @torch.no_grad()
        def call():
            torch.set_num_threads(threads)
            return unet(**inputs).sample

        return call

    facts = machine.facts()
    timings = interleave(
        {n: runner(n) for n in COUNTS}, seconds=args.seconds, untimed=UNTIMED_CALLS
    )
    ratio = paired_ratio(timings[1], timings[2])
    print(
        f"{args.model} ({args.dtype}{', graph' * args.graph}), batch {args.batch}; {facts['cpu']}, "
        f"{facts['isa']}, load {facts['load']}"
    )
    print_table(
        ("threads", "median ms", "best ms"),
        [(str(n), f"{t.median * 1e3:.1f}", f"{t.best * 1e3:.1f}") for n, t in timings.items()],
    )
    print(f"two threads against one: {ratio}")
    if not args.no_write:
        results = {str(n): timing.to_dict() for n, timing in timings.items()}
        results |= {"arguments": vars(args), "ratio": ratio.median}
        results |= {"interval": [ratio.low, ratio.high]}
        name = f"threads-{args.model}-b{args.batch}{'-graph' * args.graph}"
        print("written:", machine.write_results(name, facts, results))


if __name__ == "__main__":
    main()
