"""Layers that run in float on a card where integers did not make them faster.

Which they are is measured (:mod:`tfq.ops._dispatch`), so it depends on the card and on the shapes of a
call. The layer keeps its integers: they are expanded to the type of the activations before each product.
"""

import math

from tfq.nn import Conv2d, Linear, ShortcutConv2d


class _Ignore:
    """Recorder of inputs that records nothing: a block that is recorded runs operation by operation."""

    def add(self, *arguments):
        pass


def _layers(unet):
    """Layers that run, or would run, on integers natively; not those that make the rows."""
    return [
        module
        for name, module in unet.named_modules()
        if isinstance(module, (Linear, Conv2d, ShortcutConv2d))
        and not name.startswith("time_embedding.")
        and (module.backend == "native" or module.float_reason)
    ]


def trace_products(layers, call):
    """Products of `layers` during ``call()``: a list of (layer, key of the table, quantized input)."""
    seen = []

    def watch(layer):
        product, shapes = layer._product, dict(layer._parts())

        def watched(operation, q, qparams, suffix="", **epilogue):
            out = product(operation, q, qparams, suffix, **epilogue)
            n, *rest = shapes[suffix]
            # The output's own channels: of n, GEGLU leaves half.
            m = out.numel() // out.shape[1 if operation == "conv2d_s8" else -1]
            seen.append((layer, (operation, m, n, math.prod(rest)), q))
            return out

        layer.__dict__["_product"] = watched
        layer.input.recorder = _Ignore()

    try:
        for layer in layers:
            watch(layer)
        call()
    finally:
        for layer in layers:
            layer.__dict__.pop("_product", None)
            layer.input.recorder = None
    return seen


def prefer_float(unet, call, slower, card):
    """Let layers run in float whose products integers did not make faster; the others on integers.

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
        Converted.
    call : callable
        Runs it once, with the shapes in question.
    slower : dict
        From :func:`tfq.ops._dispatch.slower_than_float`.
    card : str
        Its name, for the reason that :func:`tfq.report` shows.
    """
    layers = _layers(unet)
    for layer in layers:
        layer.run_on("native")
    if not slower:
        return
    products = trace_products(layers, call)
    # What shares a quantized input shares its fate.
    kept = {id(layer) for layer, key, _ in products if key not in slower}
    while True:
        inputs = {id(q) for layer, _, q in products if id(layer) in kept}
        more = {id(layer) for layer, _, q in products if id(q) in inputs}
        if more <= kept:
            break
        kept |= more
    for layer in layers:
        mine = [
            slower[key] for other, key, _ in products if other is layer and id(layer) not in kept
        ]
        if mine:
            shapes = ", ".join(sorted({f"{p['m']}x{p['n']}x{p['k']}" for p in mine}))
            layer.run_on(
                "weight_only",
                f"float on {card}: {sum(p['float_us'] for p in mine):.1f} us, integers "
                f"{sum(p['us'] for p in mine):.1f} us ({shapes})",
            )
