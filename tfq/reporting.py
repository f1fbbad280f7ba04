"""What a converted model is made of: which kernel runs each layer, and what it costs in accuracy."""

import json
import pathlib

from tfq import backends, heat_maps, models, page
from tfq import nn as quantized
from tfq.adapters import base_modules
from tfq.quantizer import QPARAMS_WIDTH
from tfq.ranges import range_ends

_FORMATS = (".json", ".html", ".png")


class Report:
    """Result of :func:`report`; ``str()`` is a table."""

    def __init__(self, values, comparison=None, ranges=()):
        self._values, self._comparison, self._ranges = values, comparison, ranges

    def to_dict(self):
        """``{native_mac_share, weight_bytes, layers, temporal, unfused}``, JSON-serialisable.

        ``layers`` is a list of ``{name, type, path, reason, macs, weight_bits, range, error}``: path is
        the kernel family that runs the layer ("conv2d_s8", "gemm_s8", "reference", "reference_int16",
        "weight_only" or "torch"), reason why it stays float or is treated more finely, macs its
        multiply-adds for one image, range how its input is quantised ("timestep", "static", "dynamic",
        "dynamic per token"; None: not quantized),
        error the relative L2 error of its weights, output_error the estimated relative error of the model's
        output that it causes (None: not estimated). ``native_mac_share`` is over the multiply-adds of all
        Conv2d and Linear layers.
        ``temporal`` is ``{mode, mean_error, max_error, chosen_tib_share, maps}``: relative L2 error of the
        temporal features to the float model's; of "select" the share of (timestep, block) that took the
        quantized block; maps by timestep and block of the errors and of tau, or None after loading.
        ``unfused`` has the names of the blocks that run child by child, because a hook or an adapter was
        put on a child, or another processor on an attention.
        With a comparison there is ``comparison``, its :meth:`tfq.Comparison.to_dict`.
        """
        if self._comparison is None:
            return self._values
        return {**self._values, "comparison": self._comparison.to_dict()}

    def save(self, path):
        """Write the report as ``.json``, ``.html`` or ``.png``, by the suffix of `path`.

        The page needs no network; it has images and speed if the report has a comparison.
        """
        path = pathlib.Path(path)
        check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")
        elif path.suffix == ".html":
            rendered = page.render(self._values, self._comparison, self._ranges)
            path.write_text(rendered, encoding="utf-8")
        else:
            self._draw().save(path)

    def _summary(self):
        values, temporal = self._values, self._values["temporal"]
        unfused = f"\n{len(values['unfused'])} blocks run unfused" if values["unfused"] else ""
        native = sum(layer["path"] in backends.NATIVE_PATHS for layer in values["layers"])
        return (
            f"native multiply-adds {100 * values['native_mac_share']:.2f} %, {native} of "
            f"{len(values['layers'])} layers, {values['weight_bytes'] / 1e6:.2f} MB; temporal "
            f"{temporal['mode']}, error mean {temporal['mean_error']:.3g} max {temporal['max_error']:.3g}"
            f"{unfused}"
        )

    def _rows(self):
        header = (
            "layer",
            "type",
            "path",
            "bits",
            "range",
            "MMAC",
            "weight error",
            "output error",
            "reason",
        )
        rows = [
            (
                layer["name"], layer["type"], layer["path"], str(layer["weight_bits"]),
                layer["range"] or "", f"{layer['macs'] / 1e6:.2f}", _number(layer["error"]),
                _number(layer["output_error"]), layer["reason"],
            )
            for layer in self._values["layers"]
        ]  # fmt: skip
        return [header, *rows]

    def __repr__(self):
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        measured = [] if self._comparison is None else [str(self._comparison)]
        return "\n".join([self._summary(), *measured, "", *lines])

    def _maps(self):
        return heat_maps.temporal_maps(self._values["temporal"]["maps"])

    def _axes(self):
        maps = self._values["temporal"]["maps"]
        return maps["timesteps"], maps["blocks"]

    def _draw(self):
        from PIL import Image, ImageDraw, ImageFont

        text, font, maps = str(self), ImageFont.load_default(), self._maps()
        box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
        width, height = heat_maps.size(maps, *self._axes()) if maps else (0, 0)
        top = int(box[3]) + 40
        image = Image.new("RGB", (max(int(box[2]) + 40, width), top + height), "white")
        ImageDraw.Draw(image).multiline_text((20, 20), text, fill="black", font=font)
        for shown in maps:
            top = heat_maps.paste(image, top, *shown, *self._axes())
        return image


def check_suffix(path):
    """Raise ValueError if a report cannot be written as `path`."""
    if path.suffix not in _FORMATS:
        raise ValueError(f"Report.save: path must end in {', '.join(_FORMATS)}, got {str(path)!r}")


def _number(value):
    return "" if value is None else f"{value:.4f}"


def report(unet, *, comparison=None):
    """Report on a model converted by :func:`tfq.convert`.

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
    comparison : Comparison, optional
        Of :func:`tfq.compare`: adds quality, speed and images.

    Returns
    -------
    Report
    """
    conversion = getattr(unet, "_tfq_conversion", None)
    if conversion is None:
        raise TypeError(
            f"report: needs a model converted by tfq.convert, got a {models.described(unet)}"
        )
    modules = base_modules(unet)
    moved = _moved_layers(unet, [plan.name for plan in conversion.plans])
    layers = [
        _layer(modules.get(moved.get(plan.name, plan.name)), plan) for plan in conversion.plans
    ]
    total = sum(layer["macs"] for layer in layers)
    native = sum(layer["macs"] for layer in layers if layer["path"] in backends.NATIVE_PATHS)
    return Report(
        {
            "native_mac_share": native / total if total else 0.0,
            "weight_bytes": weight_bytes(unet),
            "layers": layers,
            "temporal": {"mode": conversion.config.temporal, **conversion.temporal.summary()},
            "unfused": [
                name
                for name, module in unet.named_modules()
                if hasattr(module, "is_fused") and not module.is_fused()
            ],
        },
        comparison,
        _ranges(
            unet,
            [
                (plan.name, modules.get(moved.get(plan.name, plan.name)))
                for plan in conversion.plans
            ],
        ),
    )


def _ranges(unet, layers):
    """(layer, timesteps, lower, upper ends) of each input whose range is by timestep."""
    embedding, ranges = unet.time_embedding, []
    timesteps = embedding.values.tolist()
    for name, module in layers:
        quantizer = getattr(module, "input", None)
        if quantizer is not None and quantizer.ranges == "timestep" and quantizer.slot is not None:
            scale, _, zero_point = (
                embedding.table[:, quantizer.slot :][:, :QPARAMS_WIDTH].double().T
            )
            lows, highs = range_ends(scale, zero_point)
            ranges.append((name, timesteps, lows.tolist(), highs.tolist()))
    return ranges


def weight_bytes(module):
    """Bytes of all parameters and buffers of a module, shared storage counted once."""
    tensors = {t.data_ptr(): t for t in [*module.parameters(), *module.buffers()] if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _moved_layers(unet, names):
    """Where layers of the temporal path are now: name in the float model -> name."""
    source, places = unet.time_embedding.source, unet.time_embedding.places
    block = "time_embedding.tib"
    if source is not None and source.replaces_float:
        block = "time_embedding.source" + (".tib" if hasattr(source, "tib") else ".block.tib")
    moved = {name: f"{block}.{place}" for name, place in places.items()}
    for name in names:
        parent, _, child = name.rpartition(".")
        if parent in places:
            moved[name] = f"{moved[parent]}.{child}"
    return moved


def _layer(module, plan):
    path, ranges, reason = "torch", None, plan.reason
    bits = 0 if module is None else 8 * module.weight.element_size()  # 0: dropped
    if isinstance(module, (quantized.Linear, quantized.Conv2d, quantized.ShortcutConv2d)):
        bits = module.weight_bits
        family = "conv2d_s8" if isinstance(module, quantized.Conv2d) else "gemm_s8"
        path = family if backends.is_native(module.backend) else module.backend
        ranges = "dynamic per token" if module.input.per_token else module.input.ranges
        if module.backend == "weight_only":
            ranges, reason = None, module.float_reason or reason
        elif module.input.slot is None and plan.reason.startswith("temporal block"):
            ranges = "timestep"
    return {
        "name": plan.name, "type": plan.type, "path": path, "reason": reason, "macs": plan.macs,
        "weight_bits": bits, "range": ranges, "error": plan.weight_error,
        "output_error": plan.output_error,
    }  # fmt: skip
