"""The picture of bench/profile.py: time of each operation, and how much of it the ceiling asks for."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

_SHOWN = 30
_DPI = 110


def draw(path, rows, python_seconds, ceiling_gops, ceiling_gbs):
    """A bar for each operation, the slowest first; its dark part is the time the ceiling allows.

    Parameters
    ----------
    path : pathlib.Path
    rows : list of breakdown.Row
        Slowest first; those past the thirtieth share a bar.
    python_seconds : float
        Time outside all operations.
    ceiling_gops, ceiling_gbs : float
        What the machine can do at most.

    Returns
    -------
    pathlib.Path
    """
    bars = []
    for row in rows[:_SHOWN]:
        share = row.rates(ceiling_gops * 1e9, ceiling_gbs * 1e9)[2]
        name = f"{row.work.family} {row.work.label}  x{row.calls}"
        bars.append((name, row.seconds * 1e3, min(1.0, share) * row.seconds * 1e3))
    rest = rows[_SHOWN:]
    bars.append((f"{len(rest)} other operations", sum(row.seconds for row in rest) * 1e3, 0.0))
    bars.append(("Python and what lies between", python_seconds * 1e3, 0.0))
    bars.reverse()
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(bars) + 1))
    names = [name for name, _, _ in bars]
    axes.barh(names, [took for _, took, _ in bars], color="#a6cee3", label="took")
    axes.barh(names, [least for _, _, least in bars], color="#1f78b4", label="at the ceiling")
    axes.set_xlabel("ms per call of the UNet")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"ceiling {ceiling_gops:.0f} GOP/s, {ceiling_gbs:.0f} GB/s", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    axes.margins(y=0.01)
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
    plt.close(figure)
    return path
