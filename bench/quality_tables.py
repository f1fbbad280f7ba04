"""Results of the quality harness as markdown, written between markers of a document."""

_MISSING = ""


def replace_between(path, name, text):
    """Put `text` between ``<!-- quality:NAME -->`` and ``<!-- /quality:NAME -->`` of a file.

    Raises
    ------
    ValueError
        If the file does not have the two markers, once each.
    """
    begin, end = f"<!-- quality:{name} -->", f"<!-- /quality:{name} -->"
    document = path.read_text()
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"{path}: needs {begin} and {end}, once each")
    before, rest = document.split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def markdown(header, rows):
    """A markdown table; the first column and notes to the left, the rest to the right."""
    align = ["---", *["---" if name == "note" else "--:" for name in header[1:]]]
    lines = [header, align, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def decibels(value):
    """PSNR; None is exact."""
    return "exact" if value is None else f"{value:.2f} dB"


def _table(header, arms, rows, cells):
    """A row for each measured arm: its name, ``cells(arm, row)``, its commit and its note."""
    header = ["arm", *header, "commit", "note"]
    lines = []
    for arm in arms:
        row = rows.get(arm.name)
        if row is None:
            continue
        if "not_available" in row:
            text = f"not available: {row['not_available']}"
            lines.append([arm.name, text, *[_MISSING] * (len(header) - 3), arm.note])
        else:
            lines.append([arm.name, *cells(arm, row), row["commit"], arm.note])
    return markdown(header, lines)


def main_table(arms, rows):
    """Arms of a whole model: quality, share of native arithmetic, size, time to convert."""

    def cells(arm, row):
        return [
            decibels(row["psnr"]), f"{row['temporal']['max_error']:.2g}",
            f"{100 * row['native_mac_share']:.2f} %", f"{row['weight_bytes'] / 1e6:.1f} MB",
            f"{row['convert_seconds']:.0f} s",
        ]  # fmt: skip

    header = ["PSNR to float", "temporal error", "native MACs", "weights", "convert"]
    return _table(header, arms, rows, cells)


def ablation_table(arms, rows):
    """Arms of the temporal path: error of the features, and what it does to the images."""

    def cells(arm, row):
        temporal = row["temporal"]
        share = temporal.get("chosen_tib_share")
        return [
            f"{temporal['mean_error']:.3g}", f"{temporal['max_error']:.3g}",
            f"{temporal['mean_cosine']:.6f}", f"{temporal['min_cosine']:.6f}",
            decibels(row["features_alone"]["psnr"]), decibels(row["psnr"]),
            _MISSING if arm.simulated or share is None else f"{100 * share:.0f} %",
        ]  # fmt: skip

    header = [
        "mean error", "max error", "mean cosine", "min cosine", "features alone", "W4A8", "block chosen",
    ]  # fmt: skip
    return _table(header, arms, rows, cells)


# What the paper leads to expect of the mean errors; the last is exact.
ORDER = (("Prev", ">"), ("Freeze", ">"), ("TIAR+FSC", ">="), ("DAS", ">="), ("fold", "= 0"))


def ordering(rows):
    """One sentence: whether the mean errors fall in the order that the paper leads to expect."""
    expected = "Expected of the mean errors: " + " ".join(f"{name} {sign}" for name, sign in ORDER)
    names = [name for name, _ in ORDER]
    absent = [name for name in names if "temporal" not in rows.get(name, {})]
    if absent:
        return f"{expected}. Cannot be judged without {', '.join(absent)}."
    errors = [rows[name]["temporal"]["mean_error"] for name in names]
    broken = [
        f"{ORDER[i][0]} {a:.3g} {ORDER[i][1]} {ORDER[i + 1][0]} {b:.3g}"
        for i, (a, b) in enumerate(zip(errors, errors[1:], strict=False))
        if a < b or (a == b and ORDER[i][1] == ">")
    ]
    if errors[-1] != 0:
        broken.append(f"{names[-1]} {errors[-1]:.3g} = 0")
    verdict = f"It does not hold that {', nor that '.join(broken)}." if broken else "It holds."
    return f"{expected}. {verdict}"


def selection(rows, block="TIAR+FSC", cache="CM", das="DAS"):
    """One sentence: (timestep, block) pairs where DAS is worse than the better of its two choices."""
    if any("temporal" not in rows.get(name, {}) for name in (block, cache, das)):
        return f"{das}: not available."
    maps = [rows[name]["temporal"]["squared"] for name in (das, block, cache)]
    cells = [
        (chosen, min(first, second))
        for lines in zip(*maps, strict=True)
        for chosen, first, second in zip(*lines, strict=True)
    ]
    worse = sum(chosen > best for chosen, best in cells)
    return (
        f"{das} is worse than the better of {block} and {cache} at {worse} of {len(cells)} (t, i)."
    )


def frechet_table(rows, scale=None):
    """Frechet distances beside the float model's, with the interval of their ratio, and the scale's."""
    judged = {name: row["frechet"] for name, row in rows.items() if "frechet" in row}
    if scale is not None:
        name = f"float, {scale['share']:.0%} of the pixels one level (1/255) off at random"
        judged[name] = scale
    if not judged:
        return "Not measured yet."
    first = next(iter(judged.values()))
    lines = [["float", f"{first['baseline']:.4f}", _MISSING, _MISSING]]
    for name, result in judged.items():
        difference, ratio = result["difference"], result["ratio"]
        lines.append(
            [
                name, f"{result['distance']:.4f}",
                f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]",
                f"{ratio['value']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]",
            ]
        )  # fmt: skip
    caption = (
        f"{first['images']} images a side from the same noise, against the whole training set; features: "
        f"{first['features']}; 95 % interval of a paired bootstrap, {first['resamples']} resamples."
    )
    header = ["arm", "Frechet distance", "difference to float", "ratio to float"]
    return f"{caption}\n\n{markdown(header, lines)}"


def size_table(rows):
    """Saved files."""
    lines = [
        [name, f"not available: {row['not_available']}", _MISSING]
        if "not_available" in row
        else [name, f"{row['bytes'] / 1e6:.2f} MB", f"{row['fraction']:.3f}"]
        for name, row in rows.items()
    ]
    return markdown(["saved model", "safetensors", "fraction of float32"], lines)


def cost_table(rows):
    """Conversion against a float run of the calibration batch."""
    lines = []
    for name, row in rows.items():
        if "not_available" in row:
            lines.append([name, f"not available: {row['not_available']}", *[_MISSING] * 3])
            continue
        trajectories, memory = row.get("trajectories", 1.0), row.get("memory", 1.0)
        lines.append(
            [
                name, f"{row['seconds']:.1f} s", f"{trajectories:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f} MiB", f"{memory:.2f}",
            ]
        )  # fmt: skip
    return markdown(
        ["W8A8 conversion", "time", "float trajectories", "peak memory", "of float inference"],
        lines,
    )


def readme_table(arms, documents):
    """Main rows of every model.

    Parameters
    ----------
    arms : sequence of str
    documents : dict of str to dict
        Model -> its results, ``{"arguments", "arms"}``; empty where there are none.
    """
    header, columns = ["PSNR to float"], []
    for model, document in documents.items():
        if document:
            facts = document["arguments"]
            header.append(f"{model}, DDIM {facts['steps']} steps, {facts['images']} images")
            columns.append(document["arms"])
    header.append("Frechet distance, ratio to float")
    lines = []
    for arm in arms:
        rows = [column.get(arm, {}) for column in columns]
        if not any("psnr" in row for row in rows):
            continue
        psnr = [decibels(row["psnr"]) if "psnr" in row else _MISSING for row in rows]
        ratios = [row["frechet"]["ratio"] for row in rows if "frechet" in row]
        shown = [f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in ratios]
        lines.append([arm, *psnr, *(shown or [_MISSING])])
    return markdown(header, lines)
