"""What was measured on cards: the fastest tile of each product, and the time of the float alternative.

``dispatch.json`` is written by ``bench/sweep.py --install``:
``{"format": 1, "cards": [{"card": name, "arch": 10 * compute capability, "multiprocessors": count,
"products": [{"operation", "m", "n", "k", "tile", "splits", "us", "float_us"}, ...], ...}]}``.
A product is found by exactly its shape; the model of ``csrc/cuda/gemm_config.cpp`` decides for all others.
"""

import contextlib
import json
import pathlib

import torch

from tfq._ext import _C

PATH = pathlib.Path(__file__).with_name("dispatch.json")
FORMAT = 1


def load(path=PATH):
    """The cards of a dispatch file, a list of dicts.

    Raises
    ------
    ValueError
        If the file has another format.
    """
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{path}: a dispatch file of format {FORMAT} is required, got {data.get('format')}; sweep "
            f"again with this version's bench/sweep.py"
        )
    return data["cards"]


def entries(cards):
    """The native form of the cards' products."""
    return [
        (
            card["arch"], card["multiprocessors"],
            *(product[key] for key in ("operation", "m", "n", "k", "tile", "splits", "us")),
        )
        for card in cards
        for product in card["products"]
    ]  # fmt: skip


@contextlib.contextmanager
def installed(cards):
    """Launches consult these cards inside of the block, the shipped ones after it. Not for threads."""
    _C.cuda_set_dispatch_table(entries(cards))
    try:
        yield
    finally:
        _C.cuda_set_dispatch_table(entries(load()))


def card_of(device):
    """``{card, arch, multiprocessors}`` of a CUDA device."""
    facts = torch.cuda.get_device_properties(device)
    return {
        "card": facts.name,
        "arch": 10 * facts.major + facts.minor,
        "multiprocessors": facts.multi_processor_count,
    }


def slower_than_float(cards, card):
    """``{(operation, m, n, k): product}`` of what integers did not make faster on such a card."""
    return {
        tuple(product[key] for key in ("operation", "m", "n", "k")): product
        for other in cards
        if (other["arch"], other["multiprocessors"]) == (card["arch"], card["multiprocessors"])
        for product in other["products"]
        if product["float_us"] <= product["us"]
    }
