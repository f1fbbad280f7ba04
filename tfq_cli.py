"""Command line of tfq: ``tfq convert``, ``report``, ``quality``, ``bench``, ``demo``, ``info``.

Beside the package, not in it: importing tfq imports torch, which takes seconds, and ``--help`` needs
none of it. The commands are in :mod:`tfq.commands`.
"""

from __future__ import annotations

import argparse
import json
import sys

_MODEL = (
    "folder of a diffusers UNet, ControlNet, DiT or PixArt (config.json), or of a whole pipeline"
)

# The fields of tfq.TfqConfig, which also checks the values and names what is allowed.
_CONFIG = (
    ("weights", "BITS", "int8 (default), or int4: half the size, wants --reconstruction block"),
    ("activations", "TYPE", "int8 (default), or float: only the weights become integers"),
    ("activation-ranges", "KIND", "auto (default: timestep with calibration, else dynamic), timestep, "
     "static or dynamic"),
    ("range-estimator", "NAME", "of static ranges: minmax (default), ema, percentile or mse"),
    ("temporal", "MODE", "temporal features: fold (default, exact), cache, tib, select or float"),
    ("reconstruction", "KIND", "rounding by its effect on outputs: none (default), temporal or block"),
    ("precision", "KIND", "auto (default: sensitive layers get finer treatment) or uniform"),
    ("error-budget", "X", "relative error of the output one layer may cause (default 0.01)"),
    ("attention", "TYPE", "auto (default), float or int8"),
    ("backend", "NAME", "native (default), or reference: the same integers in plain torch, slowly"),
    ("calibration-samples", "N", "images per calibration trajectory (default 8)"),
    ("reconstruction-steps", "N", "gradient steps per block; default: what each reconstruction "
     "recommends"),
    ("seed", "N", "of the calibration noise (default 0)"),
)  # fmt: skip
_NUMBERS = {
    "error-budget": float,
    "calibration-samples": int,
    "reconstruction-steps": int,
    "seed": int,
}
_CONFIG_FLAGS = (
    ("drop-tib", "leave the float time embedding out of the file: other timesteps then raise"),
    ("fsc-output-tap", "with --temporal tib or select: quantize the features, too"),
)

_CONVERT = """\
Convert a diffusers model to INT8 or INT4 and save it.

The model of MODEL is calibrated on its own sampling runs, with the scheduler of the pipeline; one that
needs text through its pipeline, with --prompts. OUT becomes what MODEL is: a UNet's folder, or a
pipeline's folder with everything else copied. Load it with `import tfq` and diffusers' from_pretrained.
OUT is written whole or not at all.
"""
_CONVERT_EXAMPLES = """\
examples:
  tfq convert ddpm ddpm-int8                                   INT8, ranges by timestep
  tfq convert ddpm ddpm-int4 --weights int4 --reconstruction block --checkpoint state
  tfq convert sd15 sd15-int8 --prompts prompts.txt --steps 20   a pipeline with text
  tfq convert unet unet-int8 --no-calibration                  a UNet alone, ranges at run time
"""
_REPORT = """\
Show what a converted model is made of: which kernel runs each layer, why a layer stays float, what the
quantization costs. With --original the two are also sampled from the same noise and timed here.
"""
_REPORT_EXAMPLES = """\
examples:
  tfq report ddpm-int8                                         a table
  tfq report ddpm-int8 --output report.html                    one page, no network needed
  tfq report ddpm-int8 --original ddpm --output report.html    with images, quality and speed
"""
_QUALITY = """\
Sample with a converted model and with its float original from the same noise, and print how far apart
the two are (PSNR in dB: above 40 the images look the same).
"""
_BENCH = """\
Time a model on this machine. A float MODEL is timed in float32 and bfloat16 and converted (not saved)
to the given configuration, in turns; of a converted MODEL only its own time is measured. A UNet or
ControlNet also runs through tfq.graph, without its Python.
"""


def make_parser():
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tfq",
        description="INT8 diffusion UNets on native kernels.",
        epilog="`tfq COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_convert(commands)
    _add_report(commands)
    _add_quality(commands)
    _add_bench(commands)
    _add_demo(commands)
    info = _add(commands, "info", "show the version, the instruction set in use and the kernels",
                "Show what this build of tfq can run on this machine.")  # fmt: skip
    _add_common(info, threads=False)
    return parser


def _add(commands, name, summary, description, examples=None):
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    return parser


def _add_common(parser, threads=True):
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if threads:
        parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def _add_config(parser):
    group = parser.add_argument_group("configuration (the fields of tfq.TfqConfig)")
    group.add_argument("--config", metavar="FILE", help="JSON file; options below override it")
    for name, metavar, text in _CONFIG:
        kind = _NUMBERS.get(name, str)
        group.add_argument(
            f"--{name}", metavar=metavar, type=kind, help=text, default=argparse.SUPPRESS
        )
    for name, text in _CONFIG_FLAGS:
        group.add_argument(f"--{name}", action="store_true", help=text, default=argparse.SUPPRESS)
    group.add_argument(
        "--no-split-skip", dest="split_skip", action="store_false", default=argparse.SUPPRESS,
        help="one range for both halves of a skip concatenation",
    )  # fmt: skip
    group.add_argument(
        "--keep-float", dest="modules_to_not_convert", metavar="MODULE", nargs="+",
        help="modules (or parents) whose layers stay float", default=argparse.SUPPRESS,
    )  # fmt: skip


def _add_sampling(parser, images=8, steps=20):
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"sampling steps (default {steps})"
    )
    parser.add_argument("--images", type=int, default=images, help=f"batch (default {images})")
    parser.add_argument("--noise-seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--scheduler", metavar="FOLDER", help="scheduler's folder (default: that of the pipeline)"
    )


def _add_convert(commands):
    parser = _add(commands, "convert", "convert a model and save it", _CONVERT, _CONVERT_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT if it is a model and nothing else"
    )
    parser.add_argument(
        "--dtype", default="float32", help="of what stays float: float32 (default) or bfloat16"
    )
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument(
        "--steps", type=int, default=50, help="sampling steps of the calibration (default 50)"
    )
    calibration.add_argument(
        "--scheduler", metavar="FOLDER", help="scheduler's folder (default: that of the pipeline)"
    )
    calibration.add_argument(
        "--prompts",
        metavar="FILE",
        help="typical prompts, one a line: a pipeline with text is run on them",
    )
    calibration.add_argument(
        "--no-calibration", action="store_true", help="dynamic ranges: needs no scheduler, no time"
    )
    calibration.add_argument(
        "--checkpoint", metavar="FOLDER",
        help="keeps finished layers of --reconstruction block: run again to continue",
    )  # fmt: skip
    _add_config(parser)
    _add_common(parser)


def _add_report(commands):
    parser = _add(commands, "report", "show what a converted model is made of", _REPORT,
                  _REPORT_EXAMPLES)  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=f"converted; {_MODEL}")
    parser.add_argument("--original", metavar="MODEL", help="its float original, to compare with")
    parser.add_argument("--output", metavar="FILE", help="write .html, .png or .json")
    _add_sampling(parser)
    _add_common(parser)


def _add_quality(commands):
    parser = _add(commands, "quality", "compare a converted model with its original", _QUALITY)
    parser.add_argument("model", metavar="MODEL", help=f"converted; {_MODEL}")
    parser.add_argument("original", metavar="ORIGINAL", help="its float original")
    parser.add_argument("--images-to", metavar="FILE", help="write both sets of images as .png")
    _add_sampling(parser)
    _add_common(parser)


def _add_bench(commands):
    parser = _add(commands, "bench", "time a model on this machine", _BENCH)
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--batch", type=int, default=1, help="images per call (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="time to spend on measuring (default 20)"
    )
    _add_config(parser)
    _add_common(parser)


def _add_demo(commands):
    parser = _add(commands, "demo", "convert the embedded model and compare it with float32",
                  "Sample the embedded model in float32 and in INT8 from the same noise; print a "
                  "comparison and draw both.")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps, 1 to 1000 (default 20)")
    parser.add_argument("--images", type=int, default=16, help="images to sample (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument(
        "--output", default="tfq-demo.png", help="PNG to write (default tfq-demo.png)"
    )
    _add_common(parser)


def main(argv=None):
    """Entry point of the ``tfq`` command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code: 0; 2 after a message about something the user can mend; 130 when interrupted.
    """
    parser = make_parser()
    arguments, unknown = parser.parse_known_args(argv)
    arguments = vars(arguments)
    command, parser = arguments.pop("command"), arguments.pop("parser", parser)
    if unknown:  # argparse would print the usage of tfq, which has no options
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if command is None:
        parser.print_help()
        return 0
    import importlib

    as_json = arguments.pop("json")
    try:
        module = importlib.import_module(f"tfq.commands.{command}")
        result = module.run(**arguments)
    except (TypeError, ValueError, NotImplementedError, OSError, ImportError) as error:
        message = str(error).removeprefix(f"{command}: ")
        print(f"tfq {command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"tfq {command}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 130
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
