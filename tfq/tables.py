"""Tables and numbers as plain text."""


def counted(number, noun):
    """A number of things: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def align(rows):
    """Rows of strings as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
