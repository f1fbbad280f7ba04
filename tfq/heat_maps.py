"""Maps of the temporal errors by timestep and block, for the report's HTML and PNG."""

import html
import math

_CELL = 14
_MARGIN = 44
_LOW, _HIGH = (247, 251, 255), (8, 48, 107)
_MISSING = (220, 220, 220)
# Map -> title; errors are shown by their logarithm.
_TITLES = {
    "relative": "Relative error of the features that run",
    "tib": "Squared error of the quantized block",
    "cache": "Squared error of the cache",
    "tau": "tau = error of the block / error of the cache",
    "chosen": "Selection: dark = block, light = cache",
}


def temporal_maps(maps):
    """What of a report's ``temporal["maps"]`` can be shown.

    Parameters
    ----------
    maps : dict or None
        Values ``(timesteps, blocks)``; of "tib" and "tau" two, without and with the output tap.

    Returns
    -------
    list of (str, list)
        Title and values; none for a map that is all zero.
    """
    shown = []
    for name, title in _TITLES.items():
        values = (maps or {}).get(name)
        if not values:
            continue
        if name in ("tib", "tau"):
            pairs = zip(("", ", output tap"), values, strict=True)
            shown += [(title + suffix, tapped) for suffix, tapped in pairs]
        elif name == "chosen" or any(any(row) for row in values):
            shown.append((title, values))
    return shown


def _colors(values):
    """RGB of each value: the logarithm between the least and the largest, light to dark."""
    logs = [
        [
            None if v is None else float(v) if isinstance(v, bool) else math.log10(max(v, 1e-30))
            for v in row
        ]
        for row in values
    ]
    known = [v for row in logs for v in row if v is not None]
    booleans = any(isinstance(v, bool) for row in values for v in row)
    low, high = (0.0, 1.0) if booleans else (min(known, default=0.0), max(known, default=1.0))
    span = (high - low) or 1.0

    def color(v):
        if v is None:
            return _MISSING
        share = (v - low) / span
        return tuple(round(a + (b - a) * share) for a, b in zip(_LOW, _HIGH, strict=True))

    return [[color(v) for v in row] for row in logs]


def _scale(values):
    known = [v for row in values for v in row if v is not None and not isinstance(v, bool)]
    return f"{min(known):.2g} (light) to {max(known):.2g} (dark), logarithmic" if known else ""


def panel(title, values, timesteps, blocks):
    """One map as an HTML panel: a column per timestep, ascending, a row per block."""
    width, height = _MARGIN + _CELL * len(values), _CELL * len(blocks) + 20
    cells = "".join(
        f'<rect x="{_MARGIN + _CELL * t}" y="{_CELL * b}" width="{_CELL}" height="{_CELL}" '
        f'fill="rgb{color}"><title>t={timesteps[t]:g}, {html.escape(blocks[b])}: {values[t][b]}</title>'
        f"</rect>"
        for t, row in enumerate(_colors(values))
        for b, color in enumerate(row)
    )
    labels = "".join(
        f'<text x="{_MARGIN - 4}" y="{_CELL * b + 11}" text-anchor="end">{b + 1}</text>'
        for b in range(len(blocks))
    )
    axis = f"timestep {timesteps[0]:g} to {timesteps[-1]:g}"
    low, high = (f"rgb{color}" for color in (_LOW, _HIGH))
    legend, scale = (
        f'<i style="background:linear-gradient(90deg,{low},{high})"></i>',
        _scale(values),
    )
    return (
        f'<div class="panel"><h3>{html.escape(title)}</h3>'
        f'<p class="muted legend">{legend if scale else ""}{html.escape(scale)}</p>'
        f'<svg class="map" width="{width + 20}" height="{height}" role="img" '
        f'aria-label="{html.escape(title)}">{cells}{labels}'
        f'<text x="{_MARGIN}" y="{height - 4}">{axis}</text></svg></div>'
    )


def paste(image, top, title, values, timesteps, blocks):
    """Draw one map on a PIL image below `top`; returns the next free row of pixels."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    draw.text((20, top), f"{title}: {_scale(values)}", fill="black")
    for t, row in enumerate(_colors(values)):
        for b, color in enumerate(row):
            x, y = _MARGIN + _CELL * t, top + 18 + _CELL * b
            draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=color)
    bottom = top + 18 + _CELL * len(blocks)
    draw.text(
        (_MARGIN, bottom + 2), f"timestep {timesteps[0]:g} to {timesteps[-1]:g}", fill="black"
    )
    return bottom + 30


def size(maps, timesteps, blocks):
    """Width and height that :func:`paste` needs for all of `maps`."""
    return _MARGIN + _CELL * len(timesteps) + 20, len(maps) * (48 + _CELL * len(blocks))
