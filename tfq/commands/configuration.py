"""From options of the command line to a TfqConfig."""

import json
import pathlib

from tfq.config import TfqConfig


def read_text(option, file):
    """The text of a file that an option of the command line names."""
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {option} {file!r}: {reason}") from error


def read_config(file, options):
    """A TfqConfig from a JSON file (or the defaults) and options that override it.

    Parameters
    ----------
    file : path or None
    options : dict
        Names of fields -> values; those not given on the command line are absent.
    """
    values = {}
    if file is not None:
        try:
            values = json.loads(read_text("--config", file))
        except json.JSONDecodeError as error:
            raise ValueError(f"--config {file!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"--config {file!r} must hold an object, got {type(values).__name__}")
    return TfqConfig.from_dict({**values, **options})
