"""Where each millisecond of a converted UNet goes: operations, their work, their share of the ceiling.

    python bench/profile.py                                # DDPM CIFAR-10, batch 4
    python bench/profile.py --model sd15 --batch 1
    python bench/profile.py --threads 1 --clock cpu        # on a machine that is not quiet

The ceiling is measured in the same run (ceiling.cpp): multiply-adds out of registers, and copies. An
operation's share of it is the time its multiply-adds or its operands' bytes need at that rate, whichever is
longer, over the time it took. Weights are random: speed does not depend on them.
"""

import sys

if __name__ != "__main__":
    # The standard library has a module of this name, and its cProfile imports it: that one is meant.
    import importlib.util
    import sysconfig

    _spec = importlib.util.spec_from_file_location(
        __name__, sysconfig.get_path("stdlib") + "/profile.py"
    )
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])


def parse_arguments():
    import argparse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=("ddpm-cifar10", "sd15"), default="ddpm-cifar10")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--weights", choices=("int8", "int4"), default="int8")
    parser.add_argument("--attention", choices=("auto", "float", "int8"), default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: time the process computes, for one thread on a loaded machine",
    )  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--rows", type=int, default=40, help="operations in the table")
    parser.add_argument("--no-write", action="store_true", help="print only")
    return parser.parse_args()


def converted(args):
    """A call of the converted UNet without arguments."""
    import models
    import torch

    import tfq
    from tfq.shapes import example_inputs

    unet, _ = models.random_weights(args.model)
    unet = unet.to(getattr(torch, args.dtype))
    inputs = example_inputs(unet, args.batch, torch.Generator().manual_seed(0))
    inputs["timestep"] = 500
    config = tfq.TfqConfig(weights=args.weights, attention=args.attention, precision="uniform")
    tfq.convert(unet, config, calibration=[inputs])

    @torch.no_grad()
    def call():
        return unet(**inputs).sample

    return call


def table_row(row, total, ceiling, level):
    operations, moved, share = row.rates(ceiling[level] * 1e9, ceiling["memory"] * 1e9)
    work = row.work
    return (
        f"{work.family} {work.label}".rstrip(), str(row.calls), f"{row.seconds * 1e3:.3f}",
        f"{100 * row.seconds / total:.1f}", f"{operations / 1e9:.0f}" if work.operations else "",
        f"{row.calls * work.bytes / 1e6:.1f}", f"{moved / 1e9:.1f}", f"{100 * share:.0f}",
    )  # fmt: skip


def main():
    args = parse_arguments()
    import time

    import breakdown
    import ceiling
    import machine
    import profile_picture
    import torch
    from harness import print_table

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    if args.clock == "cpu" and threads > 1:
        sys.exit(f"--clock cpu adds up the threads: it needs --threads 1, got {threads}")
    facts = machine.facts()
    level = facts["isa"]
    most = ceiling.measure(threads)
    if level not in most:
        sys.exit(f"ceiling.cpp has no loop for level {level!r}, only for {sorted(most)}")
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    total, native, others = breakdown.break_down(converted(args), clock, args.repetitions)
    python = total - sum(row.seconds for row in (*native, *others))

    print(
        f"{args.model} ({args.dtype}, {args.weights}), batch {args.batch}, {threads} threads, "
        f"{args.clock} clock; {facts['cpu']}, {level}, load {facts['load']}"
    )
    print(f"ceiling: {most[level]:.0f} GOP/s, memory {most['memory']:.1f} GB/s")
    header = ("operation", "calls", "ms", "%", "GOP/s", "MB", "GB/s", "% of ceiling")
    rows = sorted((*native, *others), key=lambda row: -row.seconds)
    print_table(header, [table_row(row, total, most, level) for row in rows[: args.rows]])
    families = {}
    for row in rows:
        families[row.work.family] = families.get(row.work.family, 0.0) + row.seconds
    families["python and what lies between"] = python
    print()
    order = sorted(families.items(), key=lambda item: -item[1])
    print_table(
        ("family", "ms", "%"),
        [(name, f"{s * 1e3:.2f}", f"{100 * s / total:.1f}") for name, s in order if s > 1e-5],
    )
    calls = sum(row.calls for row in native)
    print(f"total {total * 1e3:.1f} ms; beside the operations {python / calls * 1e6:.1f} us a call")
    if args.no_write:
        return
    name = f"profile-{args.model}-b{args.batch}-t{threads}"
    results = {
        "arguments": vars(args), "ceiling": most, "total_ms": total * 1e3,
        "families_ms": {family: seconds * 1e3 for family, seconds in order},
        "rows": [
            {"calls": row.calls, "ms": row.seconds * 1e3} | row.work._asdict() for row in rows
        ],
    }  # fmt: skip
    path = machine.write_results(name, facts, results)
    picture = profile_picture.draw(
        path.with_suffix(".png"), rows, python, most[level], most["memory"]
    )
    print(f"written: {path} and {picture}")


if __name__ == "__main__":
    main()
