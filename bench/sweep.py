"""Every tile and split of the integer products of real UNets on a CUDA card, beside what is chosen.

    python bench/sweep.py [--install] [--seconds 0.02] [--within 1.6] [--limit 540] [--dry-run]

For each product of SDXL (batch 1, 2), SD1.5 (2, 8) and the CIFAR-10 DDPM (64; unet_products.py), each (tile,
parts of k) that the model of csrc/cuda/gemm_config.cpp puts within a factor of the best: bits against the
chosen one's, microseconds, TOPS, the modelled cycles, and the best of each schedule, with clusters and
without; and the time of the float alternative, bfloat16 with the weights expanded before each product.
sweep.json has all of it, dispatch.json the fastest of each product; --install puts those into the package's
own table (tfq/ops/dispatch.json). A run that ends at --limit is continued by the next; what is most of a
UNet's work comes first.

A product that a UNet runs with GEGLU is timed with it, for half as much is written and more computed, which
moves the best schedule. Its float alternative is the product alone: GEGLU is then part of the quantisation
that follows on either way. Other epilogues (residual, row of the timestep) are left out.
"""

import argparse
import json
import re
import statistics

import torch
import unet_products
import unet_shapes
from card import begin
from harness import print_table

from tfq import ops, weight_only
from tfq._ext import _C
from tfq.ops import _cuda, _dispatch

# The facts of the card that a dry run pretends to have, see DeviceFacts of csrc/cuda/device.h.
_DRY_DEVICE = (90, 132, 232448, 233472, True)
_DRY_LAYERS = [
    (1, unet_shapes.Linear(48, 32, 64, geglu=True)),
    (2, unet_shapes.Conv(32, 16, 6)),
    (1, unet_shapes.Conv(16, 32, 6, stride=2)),
]


def device_facts(card):
    """DeviceFacts of csrc/cuda/device.h."""
    if card.dry_run:
        return _DRY_DEVICE
    facts = torch.cuda.get_device_properties(card.device)
    return (
        10 * facts.major + facts.minor, facts.multi_processor_count,
        facts.shared_memory_per_block_optin, facts.shared_memory_per_multiprocessor,
        facts.major == 9,
    )  # fmt: skip


def candidates(description, within):
    """(tile, parts, modelled cycles) of each line of a choice that the model puts near the best."""
    found = re.findall(r"^(\S+) k/(\d+): (\d+) cycles", description, re.MULTILINE)
    found = [(tile, int(splits), int(cycles)) for tile, splits, cycles in found]
    return [entry for entry in found if entry[2] <= within * found[0][2]]


def schedule_of(tile):
    """How the warpgroups and blocks of a tile work together, from its name (csrc/cuda/tile.h)."""
    _, hopper, name = tile.partition("x128_")
    if not hopper:
        return "mma.sync"
    schedule = "ping-pong" if name.startswith("pp") else "cooperative"
    return f"{schedule}, cluster" if name.endswith("_c2") else schedule


def best_of_schedules(times):
    """Schedule -> least microseconds of ``{"<tile> k/<parts>": microseconds}``."""
    best = {}
    for name, us in times.items():
        schedule = schedule_of(name.split(" k/")[0])
        best[schedule] = min(us, best.get(schedule, us))
    return best


def print_schedules(rows):
    """What each schedule gains over the cooperative one without clusters, over the products that ran both."""
    gains = {}
    for row in rows:
        plain = row["schedules"].get("cooperative")
        for schedule, us in row["schedules"].items() if plain else ():
            gains.setdefault(schedule, []).append(plain / us)
    table = [
        [schedule, str(len(found)), f"{statistics.geometric_mean(found):.3f}x",
         f"{min(found):.3f}x to {max(found):.3f}x"]
        for schedule, found in gains.items()
    ]  # fmt: skip
    print_table(["schedule", "products", "of cooperative", "from to"], table)


class Product:
    """An operation of :mod:`tfq.ops` on the operands of one layer, and its float alternative."""

    def __init__(self, card, batch, layer):
        self.card, self.batch, self.layer = card, batch, layer
        self.operation, *self.shape = unet_products.key_of(batch, layer)
        self.name = f"{self.operation} {'x'.join(map(str, self.shape))}"

    def _operands(self):
        """(operands, arguments of the native operation alone)."""
        from operands import conv_operands, gemm_operands

        layer = self.layer
        if self.operation == "gemm_s8":
            # The CPU of a dry run has no kernel with GEGLU.
            gated = layer.geglu and not self.card.dry_run
            operands = gemm_operands(*self.shape, groups=self.shape[0])
            return operands, {"activation": "geglu"} if gated else {}
        shape = (
            self.batch, layer.channels, layer.size, layer.size, layer.out_channels, layer.kernel,
            layer.stride, layer.kernel // 2, 1,
        )  # fmt: skip
        return conv_operands(shape), {}

    def calls(self):
        """(the operation, the float alternative), functions of a copy's index."""
        operands, epilogue = self._operands()
        operands = self.card.place(operands)
        operands["out_dtype"] = torch.bfloat16
        x, qparams = operands.pop("x"), operands.pop("qparams")
        copies = self.card.copies_of(x.numel())
        xs = [x, *(torch.randint_like(x, 256) for _ in range(copies - 1))]
        floats = [value.bfloat16() for value in xs]
        native, alternative = getattr(ops, self.operation), getattr(weight_only, self.operation)
        return (
            lambda i: native(xs[i % copies], qparams, **operands, **epilogue),
            lambda i: alternative(floats[i % copies], None, **operands),
        )


def forced(card_facts, product, tile, splits, call):
    """`call` with this tile, whatever the library would choose."""
    operation, (m, n, k) = product.operation, product.shape
    entry = {
        "operation": operation,
        "m": m,
        "n": n,
        "k": k,
        "tile": tile,
        "splits": splits,
        "us": 1.0,
    }

    def run(i):
        with _dispatch.installed([{**card_facts, "products": [entry]}]):
            return call(i)

    return run


def sweep(product, options):
    """The row of a product."""
    card, facts = product.card, product.card.facts()
    m, n, k = product.shape
    tile, splits, text = _C.cuda_choose_product(
        product.operation, m, n, k, _cuda.WORKSPACE_VALUES, device_facts(card), []
    )
    call, alternative = product.calls()
    expected, calls, cycles = call(0), {}, {}
    for name, parts, modelled in candidates(text, options.within):
        calls[f"{name} k/{parts}"] = forced(facts, product, name, parts, call)
        cycles[f"{name} k/{parts}"] = modelled
    wrong = [
        name for name, forced_call in calls.items() if not torch.equal(forced_call(0), expected)
    ]
    times = card.interleaved({**calls, "float": alternative}, options.seconds)
    float_us = times.pop("float")
    best = min(times, key=times.get)
    return {
        "operation": product.operation, "shape": [m, n, k], "modelled": f"{tile} k/{splits}",
        "best": best, "schedules": best_of_schedules(times), "wrong": wrong, "us": times,
        "float_us": float_us, "cycles": cycles,
        "tops": {name: 2 * m * n * k / us * 1e-6 for name, us in times.items()},
        "kernels": card.kernel_names(calls[best]),
    }  # fmt: skip


def dispatch_card(results):
    """The fastest of each product, as tfq/ops/dispatch.json has a card."""
    products = []
    for row in results.rows.values():
        if row["wrong"]:
            continue
        tile, splits = row["best"].split(" k/")
        products.append(
            {
                "operation": row["operation"], **dict(zip("mnk", row["shape"], strict=True)),
                "tile": tile, "splits": int(splits), "us": round(row["us"][row["best"]], 3),
                "float_us": round(row["float_us"], 3),
            }
        )  # fmt: skip
    return {**results.document["machine"], **results.document["after"], "products": products}


def install(card, path=_dispatch.PATH):
    """Put a card's products in the place of what the file has for such a card."""
    key = (card["arch"], card["multiprocessors"])
    others = [c for c in _dispatch.load(path) if (c["arch"], c["multiprocessors"]) != key]
    write_dispatch(path, [*others, card])


def write_dispatch(path, cards):
    """A dispatch file, a line for each product."""
    text = json.dumps({"format": _dispatch.FORMAT, "cards": cards})
    path.write_text(text.replace('{"operation"', '\n{"operation"') + "\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.02, help="for each tile and shape")
    parser.add_argument("--within", type=float, default=1.6, help="of the best modelled cycles")
    parser.add_argument("--install", action="store_true", help="into the package's table")
    options, card, results = begin("sweep", parser, arguments, limit=540)
    for batch, layer in _DRY_LAYERS if options.dry_run else unet_products.by_share():
        product = Product(card, batch, layer)
        results.add(product.name, lambda product=product: sweep(product, options))
    results.save()
    measured = dispatch_card(results)
    write_dispatch(results.path.with_name("dispatch.json"), [measured])
    if options.install and not options.dry_run:
        install(measured)
    table = [
        [name, row["modelled"], f"{row['us'][row['modelled']]:.1f}", row["best"],
         f"{row['tops'][row['best']]:.0f}", f"{row['us'][row['modelled']] / row['us'][row['best']]:.2f}x",
         f"{row['float_us'] / row['us'][row['best']]:.2f}x"]
        for name, row in results.rows.items()
    ]  # fmt: skip
    print_table(
        ["product", "model's", "us", "best", "TOPS of best", "model's / best", "bf16 / best"], table
    )
    print_schedules(results.rows.values())
    results.finish()
    wrong = {name: row["wrong"] for name, row in results.rows.items() if row["wrong"]}
    if wrong:
        raise SystemExit(f"wrong results: {wrong}")


if __name__ == "__main__":
    main()
