"""Command line of tfq: ``tfq demo`` and ``tfq info``, also as ``python -m tfq``."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap


def make_parser():
    """Build the parser; the commands check numbers themselves and name the allowed range."""
    parser = argparse.ArgumentParser(
        prog="tfq", description="INT8 diffusion UNets on native kernels."
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="convert the embedded model and compare it with float32",
        description="Sample the embedded model in float32 and in INT8 from the same noise; "
        "print a comparison and draw both.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--steps", type=int, default=20, help="DDIM steps, 1 to 1000")
    demo.add_argument("--images", type=int, default=16, help="images to sample")
    demo.add_argument("--seed", type=int, default=0, help="seed of the noise")
    demo.add_argument("--output", default="tfq-demo.png", help="PNG to write")
    demo.add_argument(
        "--threads",
        type=int,
        help="CPU threads; default: torch's own choice",
        default=argparse.SUPPRESS,
    )
    commands.add_parser(
        "info",
        help="show the version, the instruction set in use and the kernels",
        description="Show what this build of tfq can run.",
    )
    return parser


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


def main(argv=None):
    """Entry point of the ``tfq`` command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, or 2 after a message about something the user can mend.
    """
    parser = make_parser()
    arguments = vars(parser.parse_args(argv))
    command = arguments.pop("command")
    if command is None:
        parser.print_help()
        return 0
    # Imports stay inside the commands: torch takes seconds, and --help needs none of it.
    if command == "info":
        import tfq

        print(format_info(tfq.info(), shutil.get_terminal_size().columns))
        return 0

    from tfq.demo.run import DemoError, format_table, run_demo

    try:
        result = run_demo(**arguments)
    except (DemoError, ImportError) as error:
        print(f"tfq demo: {error}", file=sys.stderr)
        return 2
    print(format_table(result.rows))
    print(f"wrote {result.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
