"""Whole UNets on a CUDA card: tfq.graph against torch.compile in bfloat16, and where the time goes.

    python bench/gpu_unet.py [--only sdxl:2,sd15:8] [--pair] [--seconds 6] [--limit 540] [--dry-run]

Published configurations with random weights: SDXL (batch 1, 2), SD1.5 (2, 8), the CIFAR-10 DDPM (64). The
alternatives take turns in one process, each timed call after an untimed one of the same: tfq with static
ranges per timestep, timesteps from the host, key and value of the text computed once, as in sampling; the
same with launches that do not overlap, and with attention on integers; torch.compile(mode="max-autotune")
with CUDA graphs in bfloat16, channels_last; and the same float model as a plain CUDA graph. Float attention
is in all of them torch's, on the backend that torch chooses for the card; the kernels tell which. Beside
them: the decibels between their outputs, bytes of the models, and of one call of each the kernels by their
share and by class (products, convolutions, norms, quantisation, attention). Each row is held to what
targets.py says that it must reach. A run that ends at --limit is continued by the next; what torch.compile
found is in its own cache.
"""

import argparse
import collections
import copy
import statistics

import kernel_classes
import models
import targets
import torch
from card import DRY_RUN, begin
from harness import print_table
from torch.utils import _pytree as pytree

import tfq
from tfq.reporting import weight_bytes
from tfq.shapes import example_inputs

ROWS = [("ddpm-cifar10", 64), ("sd15", 8), ("sd15", 2), ("sdxl", 2), ("sdxl", 1)]
# What a dry run does in their place: names of tests/unets.py.
_DRY_ROWS = [("attention", 2), ("cross", 1), ("cross_text_time", 1)]
TIMESTEPS = (1, 251, 501, 751)
CALIBRATION_SHRINK = 4  # ranges of random weights decide nothing: a smaller image finds them sooner
KERNELS_SHOWN = 12


def build(name, card):
    """The float model in bfloat16, on the CPU."""
    if not card.dry_run:
        return models.random_weights(name)[0].bfloat16()
    import unets

    return unets.build(name).bfloat16()


def random_inputs(unet, batch, shrink=1):
    """Keyword arguments of a call but the timestep, random, on the CPU."""
    kwargs = example_inputs(unet, batch, torch.Generator().manual_seed(0))
    del kwargs["timestep"]
    if shrink > 1:
        size = max(8, kwargs["sample"].shape[-1] // shrink)
        kwargs["sample"] = kwargs["sample"][..., :size, :size].contiguous()
    if "encoder_hidden_states" in kwargs:
        kwargs["encoder_hidden_states"] = torch.randn_like(kwargs["encoder_hidden_states"])
    return kwargs


def convert(unet, attention="auto"):
    """A converted copy with ranges for TIMESTEPS, nearest rounding: what else is decided costs no time."""
    unet = copy.deepcopy(unet)
    small = random_inputs(unet, 1, CALIBRATION_SHRINK)
    calls = [small | {"timestep": timestep} for timestep in TIMESTEPS]
    config = tfq.TfqConfig(precision="uniform", drop_tib=True, attention=attention)
    return tfq.convert(unet, config, calibration=calls)


class Arms:
    """name -> function of an index that makes a call and returns the output."""

    def __init__(self, card, unet, batch, pair):
        self.card = card
        kwargs = random_inputs(unet, batch)
        kwargs["sample"] = kwargs["sample"].contiguous(memory_format=torch.channels_last)
        self.kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(card.device), kwargs)
        self.tfq = convert(unet).to(card.device)
        self.calls = {"tfq": self._host(self._graph(self.tfq))}
        if not pair:
            self.calls["tfq, launches in turn"] = self._in_turn(copy.deepcopy(self.tfq))
            on_integers = convert(unet, "int8").to(card.device)
            self.calls["tfq, int8 attention"] = self._host(self._graph(on_integers))
        self.float = unet.to(card.device).to(memory_format=torch.channels_last)
        self.calls["torch.compile bf16"] = self._device(self._compile(self.float))
        if not pair and not card.dry_run:
            self.calls["bf16 graph"] = self._captured(self.float)

    def _graph(self, unet):
        return unet if self.card.dry_run else tfq.graph(unet)

    def _compile(self, unet):
        if self.card.dry_run:
            return torch.compile(unet, backend="eager")
        return torch.compile(unet, mode="max-autotune")

    @torch.no_grad()
    def _captured(self, unet):
        call = self._device(unet)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(3):
                call(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call(0)

        def replay(i):
            graph.replay()
            return output

        return replay

    def _host(self, unet):
        @torch.no_grad()
        def call(i):
            return unet(timestep=TIMESTEPS[i % len(TIMESTEPS)], **self.kwargs).sample

        return call

    def _in_turn(self, unet):
        call = self._host(self._graph(unet))

        def run(i):
            with self.card.launches_in_turn():  # as they are captured, by the first call
                return call(i)

        return run

    def _device(self, unet):
        timesteps = [torch.tensor(t, device=self.card.device) for t in TIMESTEPS]

        @torch.no_grad()
        def call(i):
            return unet(timestep=timesteps[i % len(timesteps)], **self.kwargs).sample

        return call


def profile(card, call):
    """(name of a kernel, microseconds) of one call, in the order of the launches."""
    activity = torch.profiler.ProfilerActivity
    call(0)
    card.synchronize()
    activities = [activity.CPU if card.dry_run else activity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        call(0)
        card.synchronize()
    events = sorted(recorded.events(), key=lambda event: event.time_range.start)
    if card.dry_run:
        return [(event.name, event.self_cpu_time_total) for event in events]
    on_card = torch.autograd.DeviceType.CUDA
    return [
        (event.name, event.device_time)
        for event in events
        if event.device_type == on_card and not event.is_user_annotation
    ]


def by_name(kernels):
    """(name, calls, microseconds) of a profile, longest first."""
    total, count = collections.Counter(), collections.Counter()
    for name, us in kernels:
        total[name[:120]] += us
        count[name[:120]] += 1
    return [(name, count[name], us) for name, us in total.most_common() if us > 0]


def decibels(output, expected):
    """Of the signal over the difference."""
    output, expected = output.double(), expected.double()
    noise = (output - expected).square().sum()
    return float("inf") if noise == 0 else (10 * (expected.square().sum() / noise).log10()).item()


def measure(card, name, batch, options):
    """The row of a model and a batch size."""
    unet = build(name, card)
    arms = Arms(card, unet, batch, options.pair)
    outputs = {arm: call(0).clone() for arm, call in arms.calls.items()}
    for call in arms.calls.values():
        for i in range(3):
            call(i)
    card.synchronize()
    once = {arm: card.time(lambda call=call: call(0)) for arm, call in arms.calls.items()}
    rounds = max(3, min(200, int(options.seconds * 1e6 / (2 * sum(once.values())))))
    times = {arm: [] for arm in arms.calls}
    for i in range(rounds):
        for arm, call in arms.calls.items():
            call(i)
            times[arm].append(card.time(lambda call=call, i=i: call(i)))
    profiles = {arm: profile(card, call) for arm, call in arms.calls.items()}
    reference = outputs["torch.compile bf16"]
    ratios = sorted(b / a for a, b in zip(times["tfq"], times["torch.compile bf16"], strict=True))
    return {
        "kind": "unet",
        "model": f"{name}:{batch}",
        "ms": {arm: statistics.median(values) * 1e-3 for arm, values in times.items()},
        "compile_over_tfq": statistics.median(ratios),
        "compile_over_tfq_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "rounds": rounds,
        "db_to_compile": {arm: decibels(out, reference) for arm, out in outputs.items()},
        "bytes": {"tfq": weight_bytes(arms.tfq), "bf16": weight_bytes(arms.float)},
        "device_layouts_bytes": device_layout_bytes(arms.tfq),
        "in_float": [
            layer["name"]
            for layer in tfq.report(arms.tfq).to_dict()["layers"]
            if layer["path"] == "weight_only"
        ],
        "class_us": {arm: kernel_classes.totals(found) for arm, found in profiles.items()},
        "attention_kernels": {
            arm: sorted({n[:120] for n, _ in found if kernel_classes.class_of(n) == "attention"})
            for arm, found in profiles.items()
        },
        "kernels": {arm: by_name(found) for arm, found in profiles.items()},
    }


def device_layout_bytes(unet):
    """Bytes of what the CUDA kernels need and is kept beside the model's own tensors."""
    from tfq.ops import _cuda

    tensors = [*unet.buffers(), *unet.parameters()]
    kept = (
        cache.get(tensor)
        for cache in (_cuda._weights, _cuda._interleaved, _cuda._tap_sums)
        for tensor in tensors
    )
    return sum(entry[1].nbytes for entry in kept if entry is not None)


def print_kernels(name, row):
    """The longest kernels of each arm."""
    for arm, kernels in row["kernels"].items():
        total = sum(us for *_, us in kernels) or 1
        print(f"\n{name}, {arm}: {total:.0f} us in kernels")
        table = [
            [kernel[:80], str(count), f"{us:.0f}", f"{100 * us / total:.1f} %"]
            for kernel, count, us in kernels[:KERNELS_SHOWN]
        ]
        print_table(["kernel", "calls", "us", "share"], table)


def print_classes(name, row):
    """Milliseconds in the kernels of each class, by arm."""
    print(f"\n{name}, ms in kernels")
    table = [
        [arm, *(f"{sums[kind] * 1e-3:.2f}" for kind in kernel_classes.CLASSES)]
        for arm, sums in row["class_us"].items()
    ]
    print_table(["arm", *kernel_classes.CLASSES], table)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="for the timed calls of a row")
    parser.add_argument("--only", default="", help="rows, as sdxl:2,sd15:8")
    parser.add_argument("--pair", action="store_true", help="tfq and torch.compile alone")
    options, card, results = begin("unet-cuda", parser, arguments, limit=540)
    only = [name for name in options.only.split(",") if name]
    for name, batch in _DRY_ROWS if card.dry_run else ROWS:
        if not only or f"{name}:{batch}" in only:
            results.add(
                f"{name}:{batch}",
                lambda name=name, batch=batch: measure(card, name, batch, options),
            )
            torch._dynamo.reset()
    targets.judge(results)
    for name, row in results.rows.items():
        print_kernels(name, row)
        print_classes(name, row)
    print()
    arms = (
        "tfq", "tfq, launches in turn", "tfq, int8 attention", "torch.compile bf16", "bf16 graph",
    )  # fmt: skip
    table = [
        [name, *(f"{row['ms'][arm]:.2f}" if arm in row["ms"] else "" for arm in arms),
         f"{row['compile_over_tfq']:.2f}x", f"{row['db_to_compile']['tfq']:.1f}",
         f"{(row['bytes']['tfq'] + row['device_layouts_bytes']) / row['bytes']['bf16']:.2f}",
         targets.verdict(row)]
        for name, row in results.rows.items()
    ]  # fmt: skip
    header = [
        "model:batch",
        "tfq ms",
        "in turn ms",
        "int8 attention ms",
        "compile ms",
        "graph ms",
        "compile / tfq",
        "dB",
        "bytes / bf16",
        "must",
    ]
    print_table(header, table)
    print(targets.summary(results))
    if card.dry_run:
        print(DRY_RUN)
    results.finish()


if __name__ == "__main__":
    main()
