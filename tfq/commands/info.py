"""``tfq info``."""

import dataclasses
import shutil
import textwrap

import tfq


@dataclasses.dataclass(frozen=True)
class Info:
    """What :func:`tfq.info` says, as aligned keys and values."""

    values: dict

    def to_dict(self):
        """The values."""
        return self.values

    def __str__(self):
        return format_info(self.values, shutil.get_terminal_size().columns)


def run():
    """Facts about this build and machine."""
    return Info(tfq.info())


def format_info(info, width):
    """Format the result of `tfq.info` as aligned keys and values.

    Parameters
    ----------
    info : dict
        Values are scalars, sequences or dicts.
    width : int
        Characters per line; longer values continue, indented, on the next.

    Returns
    -------
    str
    """
    column = max(map(len, info), default=0) + 2

    def text(value):
        if isinstance(value, dict):
            return ", ".join(f"{key}={text(item)}" for key, item in value.items()) or "none"
        if isinstance(value, (list, tuple, set, frozenset)):
            return ", ".join(map(text, value)) or "none"
        return "none" if value is None else str(value)

    return "\n".join(
        textwrap.fill(
            text(value),
            width=max(width, column + 20),
            initial_indent=key.ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, value in info.items()
    )
