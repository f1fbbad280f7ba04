"""The card that bench/gpu.py, sweep.py and gpu_unet.py measure on, and the files they can go on with.

In a dry run it is the CPU, with shapes of a few rows: the scripts run from end to end, so that they are
known to work before there is a card. What they then print and write says so and measures nothing.
"""

import contextlib
import ctypes
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import tfq
from tfq._ext import _C
from tfq.ops import _dispatch

BENCH = pathlib.Path(__file__).resolve().parent
RESULTS = BENCH / "results"
DRY_RUN = "dry run on the CPU: measures nothing"
ROTATED_BYTES = 256 << 20  # operands rotate through more than twice the L2 cache
MAX_COPIES = 16
ROUNDS = 9
_NVML_CLOCK_SM = 1
_SMI = "driver_version,clocks.sm,clocks.max.sm,power.draw,temperature.gpu"

sys.path.append(str(BENCH.parent / "tests"))  # operands


def begin(name, parser, arguments, limit):
    """What the three scripts begin with: options of the command line, the card, results of `name`."""
    parser.add_argument("--limit", type=float, default=limit, help="seconds in all")
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    parser.add_argument("--folder", type=pathlib.Path, help="of the results")
    options = parser.parse_args(arguments)
    card = Card(options.dry_run)
    return options, card, Results(name, card, options)


class Card:
    """Times calls on the current CUDA device; exits if there is none and the run is not dry."""

    def __init__(self, dry_run=False):
        self.dry_run = dry_run
        if not dry_run and not torch.cuda.is_available():
            sys.exit("torch sees no CUDA device; nothing is measured (--dry-run tries the script)")
        self.device = torch.device("cpu") if dry_run else torch.device("cuda", 0)
        self._nvml = None if dry_run else _nvml_device()

    def facts(self):
        """What a result must say of the card, ready for JSON."""
        facts = {"tfq": tfq.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
        if self.dry_run:
            return {"card": DRY_RUN, "arch": 90, "multiprocessors": 132, **facts}
        return _dispatch.card_of(self.device) | facts

    def state(self):
        """Clocks, power and time now, from nvidia-smi."""
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
        if self.dry_run:
            return {"date": date}
        command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
        smi = subprocess.run(command, capture_output=True, text=True)
        return {
            "date": date,
            **dict(zip(_SMI.split(","), smi.stdout.strip().split(", "), strict=False)),
        }

    def megahertz(self):
        """Clock of the multiprocessors now, 0 where the driver's library does not say."""
        clock = ctypes.c_uint()
        if self._nvml is not None:
            library, device = self._nvml
            library.nvmlDeviceGetClockInfo(device, _NVML_CLOCK_SM, ctypes.byref(clock))
        return clock.value

    def place(self, operands):
        """The tensors of a dict on the card."""
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in operands.items()
        }

    def copies_of(self, call_bytes):
        """How many copies of an operand make the L2 cache forget the first."""
        return 2 if self.dry_run else max(2, min(MAX_COPIES, ROTATED_BYTES // max(call_bytes, 1)))

    @contextlib.contextmanager
    def launches_in_turn(self):
        """What is launched or captured inside begins when what is before it has ended."""
        if self.dry_run:  # a build without CUDA has no launches
            yield
            return
        _C.cuda_set_overlapping_launches(False)
        try:
            yield
        finally:
            _C.cuda_set_overlapping_launches(True)

    def synchronize(self):
        """Wait for the card."""
        if not self.dry_run:
            torch.cuda.synchronize()

    def interleaved(self, alternatives, seconds, clocks=None):
        """Median microseconds of each: name -> function of a copy's index. Alternatives take turns.

        A batch of calls is one CUDA graph, so that the time Python takes for a launch is not in it. The dict
        `clocks` gets the median MHz right after each.
        """
        pool = None if self.dry_run else torch.cuda.graph_pool_handle()
        batches = {
            name: self._batch(call, seconds / ROUNDS, pool) for name, call in alternatives.items()
        }
        times = {name: [] for name in alternatives}
        megahertz = {name: [] for name in alternatives}
        for _ in range(ROUNDS):
            for name, (run, calls) in batches.items():
                times[name].append(self.time(run) / calls)
                megahertz[name].append(self.megahertz())
        if clocks is not None:
            clocks |= {name: statistics.median(values) for name, values in megahertz.items()}
        return {name: statistics.median(values) for name, values in times.items()}

    def _batch(self, call, budget, pool):
        """(function that makes several calls, how many)."""
        for i in range(2):
            call(i)
        alone = max(self.time(lambda: call(0)), 1.0) * 1e-6
        calls = max(2, min(200, int(budget / alone)))

        def run():
            for i in range(calls):
                call(i)

        if self.dry_run:
            return run, calls
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        graph.replay()
        return graph.replay, calls

    def time(self, run):
        """Microseconds of one run."""
        if self.dry_run:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e6
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def attempt(self, function):
        """`function`, or None where this torch or card cannot run it."""
        try:
            function(0)
            self.synchronize()
        except (RuntimeError, AttributeError, ValueError) as error:
            print(f"not available: {str(error).splitlines()[0][:120]}")
            return None
        return function

    def kernel_names(self, call):
        """Names of the kernels a call launches."""
        if self.dry_run:
            return []
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call(0)
            torch.cuda.synchronize()
        return sorted({event.key[:120] for event in profile.key_averages()})


def _nvml_device():
    """(the driver's management library, torch's card there, or else its first), None without either."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, uuid = ctypes.c_void_p(), f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    status = library.nvmlInit_v2() or (
        library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device))
        and library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    )
    return None if status else (library, device)


def folder_of(facts):
    """Where the results of a card are, by its name."""
    return RESULTS / facts["card"].lower().replace(" ", "-")


class Results:
    """Rows of a JSON file by name, written one by one: a run that is cut short is continued by the next.

    Rows of another card or another version of tfq or torch are not continued.

    Parameters
    ----------
    name : str
        Of the file, without suffix.
    card : Card
    options : argparse.Namespace
        With what :func:`begin` adds.
    """

    def __init__(self, name, card, options):
        facts = card.facts()
        folder = options.folder
        if folder is None:
            folder = pathlib.Path(tempfile.mkdtemp()) if card.dry_run else folder_of(facts)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        self.card = card
        self.end = time.monotonic() + options.limit
        self.left_out, self.failed = [], {}
        self.document = {"machine": facts, "before": card.state(), "rows": {}}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            if earlier.get("machine") == facts:
                self.document["rows"] = earlier["rows"]

    @property
    def rows(self):
        """name -> row."""
        return self.document["rows"]

    def add(self, name, make):
        """Measure the row `name` by ``make()``, unless it is there or the time is over."""
        if name in self.rows:
            return
        if time.monotonic() > self.end:
            self.left_out.append(name)
            return
        try:
            self.rows[name] = make()
        except RuntimeError as error:  # of CUDA, memory among them
            self.failed[name] = str(error).splitlines()[0]
            print(f"failed: {name}: {self.failed[name]}")
        self.save()

    def save(self):
        """Write the file."""
        self.document |= {
            "after": self.card.state(),
            "left_out": self.left_out,
            "failed": self.failed,
        }
        self.path.write_text(json.dumps(self.document, indent=1) + "\n")

    def finish(self):
        """Write the file, and say where it is and what is missing."""
        self.save()
        print(f"{self.document['machine']['card']}: {self.path}")
        if self.left_out:
            print(f"time over, left out {len(self.left_out)} rows: run again to go on")


if __name__ == "__main__":  # for gpu.sh
    print(folder_of(Card().facts()), _dispatch.PATH, sep="\n")
