"""Quality of converted models: every arm against the float model, sampled from the same noise.

    python bench/quality.py --model animeface64             # PSNR and temporal features of all arms
    python bench/quality.py --model fashion32 --frechet     # and Frechet distances
    python bench/quality.py --model animeface64 --arms 'W8*,DAS*'
    python bench/quality.py --sizes                         # saved files against float32
    python bench/quality.py --cost --model animeface64      # time and memory of a conversion

Writes bench/results/<machine>/quality-*.json, the tables in docs/quality.md and README.md, and the
pictures in docs/images/quality. Resumable: arms measured by the same package code with the same
arguments are taken from the JSON unless --rerun is given.
"""

import argparse
import fnmatch
import json
import pathlib
import shutil
import traceback

import machine
import models
import quality_cost
import quality_figures as figures
import quality_frechet as frechet
import quality_tables as tables
import torch
from quality_arms import ABLATION, MAIN, Run

IMAGES = {"animeface64": 6, "fashion32": 16}
# What half an hour on a core has time for.
PREV_ITERATIONS = {"animeface64": 200, "fashion32": 2000}
FRECHET_ARMS = (
    "W8A8 (default)", "W8A8 + reconstruction", "W4A8 round-to-nearest", "W4A8 + reconstruction",
)  # fmt: skip
GRID_ARMS = (
    "W8A8 (default)", "W4A8 round-to-nearest", "W4A8 + reconstruction", "W4 weight-only + reconstruction",
    "Prev", "Freeze", "TIAR+FSC", "CM", "DAS",
)  # fmt: skip
README_ARMS = (*FRECHET_ARMS, "W4 weight-only + reconstruction")
# Setting of the output tap -> the arm whose quantized block is compared with the cache.
TAU_PANELS = {"without output tap": "TIAR+FSC", "with output tap": "TIAR+FSC, output tap"}
_DEFAULT_CACHE = models.ROOT / "bench" / ".cache"


def parse_arguments(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=tuple(IMAGES), default="animeface64")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--images", type=int, help=f"for PSNR (default: {IMAGES})")
    parser.add_argument("--seed", type=int, default=123, help="of the noise (default: %(default)s)")
    parser.add_argument(
        "--arms", default="*", help="patterns of names, comma-separated (default: all)"
    )
    parser.add_argument("--rerun", action="store_true", help="measure again what is known")
    parser.add_argument("--frechet", action="store_true", help="Frechet distances (fashion32)")
    parser.add_argument("--images-fd", type=int, default=2000, help="a side (default: %(default)s)")
    parser.add_argument(
        "--prev-iterations", type=int,
        help=f"optimizer steps a ResBlock of the arm Prev (default: {PREV_ITERATIONS})",
    )  # fmt: skip
    parser.add_argument("--sizes", action="store_true", help="only the sizes of saved models")
    parser.add_argument("--cost", action="store_true", help="only the cost of a conversion")
    parser.add_argument(
        "--cache", type=pathlib.Path, default=_DEFAULT_CACHE, help="folder of sampled images"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="write results, tables and pictures there, not into the project",
    )
    args = parser.parse_args(argv)
    if args.images is None:
        args.images = IMAGES[args.model]
    if args.prev_iterations is None:
        args.prev_iterations = PREV_ITERATIONS[args.model]
    if args.frechet and args.model != "fashion32":
        parser.error("--frechet is for --model fashion32, whose training set is at hand")
    for name, least in (("steps", 1), ("images", 1), ("images_fd", 2), ("prev_iterations", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return args


class Output:
    """Where results, tables and pictures go: into the project, or into one folder."""

    def __init__(self, out, facts):
        self.facts, self.folder = facts, out
        docs = models.ROOT / "docs"
        self.document, self.readme = docs / "quality.md", models.ROOT / "README.md"
        self.pictures = docs / "images" / "quality"
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            self.document = pathlib.Path(shutil.copy(self.document, out))
            self.readme = pathlib.Path(shutil.copy(self.readme, out))
            self.pictures = out / "images" / "quality"

    def read(self, name):
        """Results written before, or an empty dict."""
        path = machine.results_path(name, self.facts, self.folder)
        return json.loads(path.read_text())["results"] if path.exists() else {}

    def write(self, name, results):
        """Write the JSON."""
        return machine.write_results(name, self.facts, results, self.folder)

    def table(self, name, text):
        """Print a table and put it into the document."""
        print(f"\n{text}")
        tables.replace_between(self.document, name, text)

    def origin(self):
        """Commit, day and load of a measurement that ends now."""
        commit = f"{self.facts['commit']}{'+' if self.facts['dirty'] else ''}"
        return {"commit": commit, "date": self.facts["date"], "load": machine.load()}

    def caption(self):
        """Machine, for above a table."""
        facts = self.facts
        return (
            f"{facts['cores']} cores of {facts['cpu']}, kernels at {facts['isa']}, {facts['threads']} "
            f"threads, torch {facts['versions']['torch']}, {facts['date'][:10]}."
        )


def select(arms, patterns):
    """Arms whose name matches one of the comma-separated patterns."""
    patterns = [pattern.strip() for pattern in patterns.split(",")]
    return [arm for arm in arms if any(fnmatch.fnmatchcase(arm.name, p) for p in patterns)]


class Session:
    """One model's results while they grow: what is known, what is measured, where it is written.

    Parameters
    ----------
    args : argparse.Namespace
    output : Output
    run : Run
    judge : frechet.Judge or None
    """

    def __init__(self, args, output, run, judge):
        self.args, self.output, self.run, self.judge = args, output, run, judge
        self.arguments = {
            name: getattr(args, name)
            for name in ("model", "steps", "images", "seed", "prev_iterations")
        }
        self.code = frechet.fingerprint()
        self.failed = []
        known = output.read(f"quality-{args.model}")
        # Rows of other code stay until their arm is measured again: each names its commit.
        known = known if known.get("arguments") == self.arguments else {}
        self.rows = known.get("arms", {})
        self.scale = judge.scale() if judge else known.get("frechet_scale")

    def is_known(self, arm):
        """Whether the arm needs no measurement."""
        row = self.rows.get(arm.name, {})
        if self.args.rerun or "psnr" not in row or row["code"] != self.code:
            return False
        return (
            not self._is_judged(arm) or row.get("frechet", {}).get("images") == self.args.images_fd
        )

    def measure(self, arm):
        """Measure an arm and write the JSON. One that fails is shown as such; the others go on."""
        images = None
        try:
            row, images, converted = self.run.measure(arm)
            if images is not None and self._is_judged(arm):
                row["frechet"] = self.judge.compare(arm, converted)
        except Exception as error:
            traceback.print_exc()
            row, images = {"not_available": f"failed with {type(error).__name__}: {error}"}, None
            self.failed.append(arm.name)
        missing = f"not available: {row.get('not_available')}"
        print(
            f"{arm.name}: {tables.decibels(row['psnr']) if 'psnr' in row else missing}", flush=True
        )
        self.rows[arm.name] = row | {"code": self.code, **self.output.origin()}
        if images is not None:
            path = self._samples(arm.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(images, path)
        self.save()

    def _is_judged(self, arm):
        return self.judge is not None and arm.name in FRECHET_ARMS

    def save(self):
        """Write the JSON; returns its path."""
        facts = {
            "arguments": self.arguments, "timesteps": self.run.timesteps, "arms": self.rows,
            "frechet_scale": self.scale,
        }  # fmt: skip
        return self.output.write(f"quality-{self.args.model}", facts)

    def _samples(self, arm):
        name = frechet.key(arm=arm, code=self.rows[arm]["code"], **self.arguments)
        return self.args.cache / "samples" / f"{name}.pt"

    def samples(self, arms):
        """Arm -> sampled images, of those arms whose images are in the cache."""
        paths = {arm: self._samples(arm) for arm in arms if "psnr" in self.rows.get(arm, {})}
        return {arm: torch.load(p, weights_only=True) for arm, p in paths.items() if p.exists()}


def draw(session):
    """Write the pictures of one model; returns name -> path."""
    run, model = session.run, session.args.model
    setting = f"{model}, DDIM eta 0, {run.steps} steps, same noise"
    available = {name: row for name, row in session.rows.items() if "psnr" in row}
    pictures = {}

    def draw_one(name, function, title, *facts):
        path = session.output.pictures / f"{model}-{name}.png"
        pictures[name] = function(path, title, *facts)

    images = {"float32": run.reference[-1].clamp(-1, 1)} | session.samples(GRID_ARMS)
    captions = {
        n: f"{tables.decibels(available[n]['psnr'])} to float" for n in images if n in available
    }
    draw_one("samples", figures.sample_grid, f"Samples: {setting}", images, captions)
    steps = {a.name: available[a.name]["psnr_per_step"] for a in MAIN if a.name in available}
    if steps:
        title = f"Distance to the float trajectory: {setting}, {run.images} images"
        draw_one("psnr", figures.psnr_over_steps, title, steps)
    maps = {a.name: available[a.name]["temporal"] for a in ABLATION if a.name in available}
    if maps:
        title = f"Error of the temporal features, 4-bit weights: {model}"
        draw_one("temporal", figures.temporal_error_over_time, title, run.timesteps, maps)
    panels = {
        label: tuple(
            torch.tensor(maps[name]["squared"], dtype=torch.float64) for name in (block, "CM")
        )
        for label, block in TAU_PANELS.items()
        if block in maps and "CM" in maps
    }
    if panels:
        title = f"Disturbance-aware selection: tau = L(quantized block) / L(cache); {model}"
        draw_one("tau", figures.tau_maps, title, run.timesteps, panels)
    return pictures


def run_model(args, output):
    """All arms of one model."""
    loaded = getattr(models, args.model)()
    if loaded is None:
        raise SystemExit(f"{args.model}: not found in {models.SHARED_MODELS}")
    run = Run(*loaded, args.steps, args.images, args.seed, args.prev_iterations)
    session = Session(args, output, run, make_judge(args, run) if args.frechet else None)
    for arm in select(MAIN + ABLATION, args.arms):
        if session.is_known(arm):
            print(f"{arm.name}: known")
        else:
            session.measure(arm)
    pictures = draw(session)
    write_tables(args, output, session, pictures)
    print("\n".join(f"drawn: {path}" for path in pictures.values()))
    print(f"written: {session.save()}")
    if session.failed:
        raise SystemExit(f"failed: {', '.join(session.failed)}")


def make_judge(args, run):
    """What compares image sets; None, with a line that says why, where its files are not at hand."""
    extract = frechet.load_extractor()
    if extract is None or not frechet.DATA.exists():
        print(
            f"Frechet distances: not available: needs {models.SHARED_MODELS}/features and {frechet.DATA}"
        )
        return None
    reference = frechet.load_reference(args.cache, extract)
    return frechet.Judge(args.cache, args.model, run, args.images_fd, extract, reference)


def write_tables(args, output, session, pictures):
    """Tables and pictures of one model into the document, main rows of all models into the README."""
    rows = session.rows

    def shown(*names):
        paths = [
            pictures[name].relative_to(output.document.parent) for name in names if name in pictures
        ]
        return "\n\n".join(f"![{path.stem}]({path})" for path in paths)

    caption = (
        f"{args.model} (trained), DDIM eta 0, {args.steps} steps, {args.images} images, same noise. "
        f"{output.caption()}"
    )
    table = tables.main_table(MAIN, rows)
    output.table(f"{args.model}-arms", f"{caption}\n\n{table}\n\n{shown('samples', 'psnr')}")
    facts = f"{tables.ordering(rows)} {tables.selection(rows)}"
    table = tables.ablation_table(ABLATION, rows)
    output.table(f"{args.model}-temporal", f"{table}\n\n{facts}\n\n{shown('temporal', 'tau')}")
    if args.model == "fashion32":
        output.table("fashion32-frechet", tables.frechet_table(rows, session.scale))
    results = {model: output.read(f"quality-{model}") for model in IMAGES}
    readme = f"{tables.readme_table(README_ARMS, results)}\n\n({output.caption()})"
    tables.replace_between(output.readme, "main", readme)


def main(argv=None):
    """Measure what the command line asks for."""
    args = parse_arguments(argv)
    output = Output(args.out, machine.facts())
    if args.sizes:
        rows = quality_cost.sizes(lambda: models.random_weights("ddpm-cifar10"))
        output.table("sizes", tables.size_table(rows))
        output.write("quality-sizes", {"model": "ddpm-cifar10", "rows": rows})
    elif args.cost:
        rows = quality_cost.cost(args.model)
        output.table("cost", f"{args.model}. {output.caption()}\n\n{tables.cost_table(rows)}")
        output.write("quality-cost", {"model": args.model, "rows": rows})
    else:
        run_model(args, output)


if __name__ == "__main__":
    main()
