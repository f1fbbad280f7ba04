"""Charts as SVG elements that take their colours from the page's style sheet."""

import html
import math

WIDTH, HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 36


def _ticks(low, high, count=5):
    """Round values within [low, high], about `count` of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= count)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


class _Axes:
    """Maps values to pixels; x may run from high to low, as sampling does."""

    def __init__(self, x, low, high):
        self.first, self.last = x[0], x[-1]
        margin = 0.05 * ((high - low) or abs(high) or 1.0)
        self.low, self.high = low - margin, high + margin

    def x(self, value):
        span = (self.last - self.first) or 1.0
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.first) / span

    def y(self, value):
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    def path(self, xs, ys):
        points = (f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return "M" + "L".join(points)

    def frame(self, x_label, y_label):
        low, high = sorted((self.first, self.last))
        parts = []
        for tick in _ticks(self.low, self.high):
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
            )
        for tick in _ticks(low, high):
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:.4g}</text>'
            )
        middle = (HEIGHT - _BOTTOM + _TOP) / 2
        parts.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_label)}</text>'
            f'<text x="10" y="{middle}" text-anchor="middle" transform="rotate(-90 10 {middle})">'
            f"{html.escape(y_label)}</text>"
        )
        return "".join(parts)


def _svg(body, label, width=WIDTH, height=HEIGHT):
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{body}</svg>'


def line(xs, ys, x_label, y_label):
    """A line over `xs` in their order, with a dot and its value in a tooltip at each."""
    axes = _Axes(xs, min(ys), max(ys))
    dots = "".join(
        f'<circle class="dot" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3">'
        f"<title>{x:g}: {y:.4g}</title></circle>"
        for x, y in zip(xs, ys, strict=True)
    )
    body = f'{axes.frame(x_label, y_label)}<path class="line" d="{axes.path(xs, ys)}"/>{dots}'
    return _svg(body, f"{y_label} over {x_label}")


def band(xs, lows, highs, x_label, y_label):
    """The area between two lines over `xs`."""
    axes = _Axes(xs, min(lows), max(highs))
    return _svg(
        axes.frame(x_label, y_label) + _area(axes, xs, lows, highs), f"{y_label} over {x_label}"
    )


def _area(axes, xs, lows, highs):
    back = axes.path(xs[::-1], lows[::-1]).replace("M", "L", 1)
    return f'<path class="band" d="{axes.path(xs, highs)}{back}Z"/>'


def sparkline(lows, highs, label):
    """A small area without axes, for a cell of a table; 0 is a line."""
    width, height = 96, 22
    low, high = min(lows), max(highs)
    span = (high - low) or 1.0
    step = width / max(len(lows) - 1, 1)

    def points(values):
        values = values if len(values) > 1 else values * 2
        return [f"{i * step:.1f},{height * (high - v) / span:.1f}" for i, v in enumerate(values)]

    outline = "L".join(points(highs) + points(lows)[::-1])
    zero = f"{height * high / span:.1f}"
    return (
        f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(label)}"><title>{html.escape(label)}</title>'
        f'<path class="band" d="M{outline}Z"/>'
        f'<line class="grid" x1="0" x2="{width}" y1="{zero}" y2="{zero}"/></svg>'
    )


def bars(rows, unit):
    """Horizontal bars with the spread of their measurements.

    Parameters
    ----------
    rows : list of (str, float, float, float)
        Label, value, and the ends of its error bar; the last row is the one that stands out.
    unit : str
    """
    label_width, bar, gap = 76, 22, 10
    most = max(max(value, high) for _, value, _, high in rows) * 1.3
    scale = (WIDTH - label_width) / most
    parts = []
    for i, (label, value, low, high) in enumerate(rows):
        top = i * (bar + gap) + 4
        middle, kind = top + bar / 2, "strong" if i == len(rows) - 1 else "weak"
        left, right = (label_width + scale * end for end in (low, high))
        text = label_width + scale * max(value, high) + 8
        parts.append(
            f'<text x="{label_width - 8}" y="{middle + 4}" text-anchor="end">{html.escape(label)}</text>'
            f'<rect class="{kind}" x="{label_width}" y="{top}" width="{scale * value:.1f}" '
            f'height="{bar}" rx="3"/>'
            f'<path class="whisker" d="M{left:.1f},{middle}H{right:.1f}M{left:.1f},{middle - 5}v10'
            f'M{right:.1f},{middle - 5}v10"/>'
            f'<text x="{text:.1f}" y="{middle + 4}">{value:.3g} {html.escape(unit)}</text>'
        )
    return _svg("".join(parts), "Bars with spread", WIDTH, len(rows) * (bar + gap) + 4)
