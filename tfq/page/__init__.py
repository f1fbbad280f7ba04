"""A report as one HTML page that needs no network."""

import base64
import html
import io
import pathlib

from tfq import heat_maps, pictures
from tfq._version import __version__
from tfq.backends import NATIVE_PATHS
from tfq.page import charts

_HERE = pathlib.Path(__file__).parent
# Ranges that are drawn large: those that change most over time.
_LARGE_RANGES = 6


def render(values, comparison=None, ranges=()):
    """The page.

    Parameters
    ----------
    values : dict
        :meth:`tfq.Report.to_dict`.
    comparison : tfq.Comparison, optional
    ranges : sequence of (str, list, list, list)
        Layer, timesteps, lower and upper ends of its input's range.

    Returns
    -------
    str
    """
    sections = [_cards(values, comparison)]
    if comparison is not None:
        sections += [_images(comparison), _measured(comparison)]
    sections += [_share(values), _maps(values["temporal"]), _ranges(ranges)]
    sections.append(_layers(values["layers"], {name: rest for name, *rest in ranges}))
    style, script = ((_HERE / name).read_text("utf-8") for name in ("style.css", "script.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>tfq report</title><style>{style}</style></head>\n<body>\n<h1>tfq report</h1>\n"
        f'<p class="muted">tfq {html.escape(__version__)}, temporal features: '
        f"{html.escape(values['temporal']['mode'])}</p>\n"
        f"{''.join(sections)}\n<script>{script}</script></body></html>\n"
    )


def _cards(values, comparison):
    layers = values["layers"]
    native = sum(layer["path"] in NATIVE_PATHS for layer in layers)
    size, note = f"{values['weight_bytes'] / 1e6:.1f} MB", "weights and tables"
    temporal = values["temporal"]
    cards = []
    if comparison is not None:
        note = f"of weights; {comparison.float_weight_bytes / 1e6:.1f} MB as {_name(comparison)}"
        speedup = comparison.speedup
        quality = comparison.to_dict()["psnr"]
        cards = [
            (
                f"{speedup.median:.2f}×",
                f"as fast as float, {speedup.low:.2f} to {speedup.high:.2f}",
            ),
            ("identical" if quality is None else f"{quality:.1f} dB", "PSNR to the float model"),
        ]
    cards += [
        (size, note),
        (f"{100 * values['native_mac_share']:.2f} %", "of multiply-adds on integer kernels"),
        (f"{native} of {len(layers)}", "layers on integers"),
        (f"{temporal['mean_error']:.2g}", f"mean temporal error (max {temporal['max_error']:.2g})"),
    ]
    body = "".join(
        f'<div class="card"><b>{html.escape(big)}</b><span class="muted">{html.escape(small)}</span></div>'
        for big, small in cards
    )
    return f'<div class="cards">{body}</div>\n'


def _name(comparison):
    dtype = comparison.float_dtype
    return str(dtype).removeprefix("torch.")


def _images(comparison):
    name = _name(comparison)
    sides = (
        (f"{name}", comparison.float_images),
        ("converted, from the same noise", comparison.images),
        (
            f"difference, {pictures.AMPLIFIED} times as strong (grey: none)",
            pictures.difference(comparison.float_images, comparison.images),
        ),
    )
    figures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="{_data_uri(images)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, images in sides
    )
    return f'<h2>Before and after</h2>\n<div class="images">{figures}</div>\n'


def _data_uri(images):
    buffer = io.BytesIO()
    pictures.grid(pictures.to_pixels(images)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _measured(comparison):
    rows = []
    for name, timing in ((_name(comparison), comparison.float_timing), ("tfq", comparison.timing)):
        low, high = timing.quartiles
        rows.append((name, *(1e3 * value for value in (timing.median, low, high))))
    facts, count = comparison.machine, len(comparison.images)
    measured = (
        f"Milliseconds per call of the UNet, {count} image{'s' if count > 1 else ''}: median and "
        f"quartiles of {len(comparison.timing.seconds)} calls in turns. {facts['threads']} threads on "
        f"{facts['cores']} cores of {facts['cpu']}, kernels at {facts['isa']}, torch {facts['torch']}."
    )
    panels = [_panel("Speed on this machine", charts.bars(rows, "ms"), measured)]
    steps = [
        (i, v) for i, v in enumerate(comparison.to_dict()["psnr_per_step"], 1) if v is not None
    ]
    if steps:
        text = "Of the sample after each step, to the float model's (peak 2)."
        chart = charts.line(*map(list, zip(*steps, strict=True)), "sampling step", "PSNR, dB")
        panels.append(_panel("Distance to the float trajectory", chart, text))
    return f'<h2>Quality and speed</h2>\n<div class="panels">{"".join(panels)}</div>\n'


def _panel(title, chart, text=""):
    return (
        f'<div class="panel"><h3>{html.escape(title)}</h3>'
        f'<p class="muted">{html.escape(text)}</p>{chart}</div>'
    )


def _share(values):
    layers = [layer for layer in values["layers"] if layer["macs"]]
    total = sum(layer["macs"] for layer in layers) or 1
    paths = sorted({layer["path"] for layer in layers}, key=lambda path: (path == "torch", path))
    parts, words = [], []
    for path in paths:
        share = 100 * sum(layer["macs"] for layer in layers if layer["path"] == path) / total
        parts.append(
            f'<i class="{path}" style="width:{share:.3f}%" title="{path} {share:.2f} %"></i>'
        )
        words.append(f"{path} {share:.2f} %")
    return (
        f'<h2>Where the multiply-adds run</h2>\n<div class="share">{"".join(parts)}</div>\n'
        f'<p class="muted">{html.escape("; ".join(words))}. Attention\'s own products are not counted.'
        f"</p>\n"
    )


def _maps(temporal):
    maps = temporal["maps"]
    shown = heat_maps.temporal_maps(maps)
    if not shown:
        return ""
    panels = "".join(
        heat_maps.panel(title, values, maps["timesteps"], maps["blocks"]) for title, values in shown
    )
    return (
        "<h2>Temporal features</h2>\n<p>One column per timestep, ascending; one row per ResBlock.</p>\n"
        f'<div class="panels">{panels}</div>\n'
    )


def _ranges(ranges):
    moving = [entry for entry in ranges if len(entry[1]) > 1]
    if not moving:
        return ""

    def change(entry):
        widths = [high - low for low, high in zip(entry[2], entry[3], strict=True)]
        return max(widths) / (min(widths) or 1e-30)

    largest = sorted(moving, key=change, reverse=True)[:_LARGE_RANGES]
    panels = "".join(
        _panel(name, charts.band(timesteps, lows, highs, "timestep", "range"))
        for name, timesteps, lows, highs in largest
    )
    return (
        f"<h2>Ranges over time</h2>\n<p>What each layer's input spans at each timestep: the "
        f"{len(largest)} whose range changes most of {len(moving)}. The table below has all.</p>\n"
        f'<div class="panels">{panels}</div>\n'
    )


_COLUMNS = (
    ("layer", False), ("type", False), ("path", False), ("bits", True), ("range", False),
    ("over time", False), ("MMAC", True), ("weight error", True), ("output error", True),
    ("reason", False),
)  # fmt: skip


def _layers(layers, ranges):
    head = "".join(
        f'<th scope="col"{" class=n" if numeric else ""}><button type="button">{name}</button></th>'
        for name, numeric in _COLUMNS
    )
    largest = {
        key: max((layer[key] or 0 for layer in layers), default=0) or 1
        for key in ("error", "output_error")
    }
    rows = "\n".join(_row(layer, ranges.get(layer["name"]), largest) for layer in layers)
    return (
        '<h2>Layers</h2>\n<div class="tools"><input type="search" id="search" '
        'placeholder="Search: conv1, torch, gemm_s8 …" aria-label="Search layers">'
        f'<span class="muted" id="shown">{len(layers)} of {len(layers)} layers</span></div>\n'
        f'<div class="scroll"><table id="layers"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
    )


def _row(layer, span, largest):
    def error(key):
        value = layer[key]
        if value is None:
            return '<td class="n" data-v="-1"></td>'
        width = 100 * value / largest[key]
        return (
            f'<td class="n" data-v="{value!r}">{value:.4f}'
            f'<span class="bar"><i style="width:{width:.1f}%"></i></span></td>'
        )

    chart, change = "", 0.0
    if span is not None:
        _, lows, highs = span
        change = max(highs) - min(lows)
        chart = charts.sparkline(lows, highs, f"{min(lows):.3g} to {max(highs):.3g}")
    text = {key: html.escape(str(layer[key] or "")) for key in ("name", "type", "path", "range")}
    return (
        f'<tr class="{text["path"]}"><td>{text["name"]}</td><td>{text["type"]}</td>'
        f'<td>{text["path"]}</td><td class="n">{layer["weight_bits"]}</td><td>{text["range"]}</td>'
        f'<td data-v="{change:012.4f}">{chart}</td>'
        f'<td class="n" data-v="{layer["macs"]}">{layer["macs"] / 1e6:.2f}</td>'
        f"{error('error')}{error('output_error')}"
        f'<td class="reason">{html.escape(layer["reason"])}</td></tr>'
    )
