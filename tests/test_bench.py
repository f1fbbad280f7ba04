"""The benchmarks' own code, each with one small shape."""

import doctest
import json
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
sys.path.append(str(BENCH))

import card  # noqa: E402
import convolutions  # noqa: E402
import gpu  # noqa: E402
import gpu_unet  # noqa: E402
import harness  # noqa: E402
import kernels_vs_onednn  # noqa: E402
import machine  # noqa: E402
import models  # noqa: E402
import overhead  # noqa: E402
import sweep  # noqa: E402
import unet_shapes  # noqa: E402

from tfq import timing  # noqa: E402
from tfq._ext import _C  # noqa: E402
from tfq.ops import _dispatch  # noqa: E402


def test_alternatives_take_turns():
    calls = []
    timings = timing.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3
    )
    assert "".join(calls) == "ab" + "aabb" * 3
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]


def test_statistics():
    fast, slow = timing.Timing((1.0, 2.0, 3.0)), timing.Timing((2.0, 4.0, 6.0))
    assert (fast.median, fast.best, fast.iqr) == (2.0, 1.0, 1.0)
    assert fast.to_dict() == {"median_ms": 2e3, "best_ms": 1e3, "iqr_ms": 1e3, "calls": 3}
    ratio = timing.paired_ratio(slow, fast)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert str(ratio) == "2.00 [2.00, 2.00]"
    with pytest.raises(ValueError):
        timing.paired_ratio(slow, timing.Timing((1.0,)))


def test_timing_example():
    assert doctest.testmod(timing).failed == 0


def test_table(capsys):
    harness.print_table(["shape", "ms"], [["a", "1.25"], ["long name", "10.5"]])
    assert capsys.readouterr().out == "shape        ms\na          1.25\nlong name  10.5\n"


@pytest.mark.parametrize(
    "cpu, level, expected",
    [
        ("Intel(R) Xeon(R) Processor", "amx", "xeon-amx-4c"),
        ("AMD EPYC 9B14", "avx512vnni", "epyc-vnni-4c"),
        ("13th Gen Intel(R) Core(TM) i7-1370P", "avx2", "core-avx2-4c"),
        ("unknown", "scalar", "cpu-scalar-4c"),
    ],
)
def test_machine_names(cpu, level, expected):
    assert machine.slug({"cpu": cpu, "isa": level, "cores": 4}) == expected


def test_results_say_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "BENCH", tmp_path)
    facts = machine.facts()
    path = machine.write_results("kernels", facts, [{"shape": "x"}])
    assert path == tmp_path / "results" / machine.slug(facts) / "kernels.json"
    written = json.loads(path.read_text())
    assert written["results"] == [{"shape": "x"}]
    assert {"cpu", "isa", "threads", "versions", "load", "load_after"} <= written["machine"].keys()


@pytest.mark.parametrize(
    "shape",
    [
        unet_shapes.Conv(32, 48, 8),
        unet_shapes.Conv(32, 16, 8, stride=2),
        unet_shapes.Linear(24, 40, 64),
    ],
    ids=str,
)
def test_kernels_against_onednn(shape):
    try:
        row = kernels_vs_onednn.compare(shape, batch=2, seconds=0.01)
    except (AttributeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no oneDNN INT8 operators: {error}")
    assert row["relative_difference"] <= kernels_vs_onednn.TOLERANCE
    assert len(kernels_vs_onednn.table_row(row)) == 9
    assert kernels_vs_onednn.totals([row], 2)["tfq_best_ms"] == row["tfq"]["best_ms"]


def test_sweep_takes_what_the_model_puts_near_the_best():
    tile, splits, text = _C.cuda_choose_product(
        "gemm_s8", 512, 640, 2560, 4 << 20, (90, 132, 232448, 233472, True), []
    )
    found = sweep.candidates(text, within=1e9)
    assert found[0][:2] == (tile, splits)
    assert [cycles for *_, cycles in found] == sorted(cycles for *_, cycles in found)
    assert len(found) == sum("declined" not in line for line in text.splitlines())
    assert {name for name, *_ in found} == set(_C.cuda_tiles())
    assert sweep.candidates(text, within=1.5) == [c for c in found if c[2] <= 1.5 * found[0][2]]


def test_sweep_compares_schedules(capsys):
    times = {
        "64x64x64_w2x2 k/1": 9.0,
        "128x160x128_wg2 k/1": 4.0,
        "256x160x128_wg2 k/2": 6.0,
        "128x160x128_wg2_c2 k/1": 3.2,
        "128x160x128_pp k/1": 5.0,
        "128x128x128_pp_c2 k/1": 2.0,
    }
    best = sweep.best_of_schedules(times)
    assert best == {
        "mma.sync": 9.0, "cooperative": 4.0, "cooperative, cluster": 3.2, "ping-pong": 5.0,
        "ping-pong, cluster": 2.0,
    }  # fmt: skip
    sweep.print_schedules(
        [{"schedules": best}, {"schedules": {"cooperative": 1.0, "ping-pong": 0.2}}]
    )
    lines = {line[:20].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["cooperative, cluster"][2:4] == ["1", "1.250x"]
    assert lines["ping-pong"][1:] == ["2", "2.000x", "0.800x", "to", "5.000x"]


def dry(folder, *arguments):
    return ["--dry-run", "--folder", str(folder), "--seconds", "0.0005", *arguments]


def test_sweep_runs_dry_and_is_continued(tmp_path, capsys):
    arguments = dry(tmp_path, "--within", "3")
    sweep.main([*arguments, "--limit", "0"])
    assert "left out 3 rows: run again to go on" in capsys.readouterr().out
    sweep.main(arguments)
    assert card.DRY_RUN in capsys.readouterr().out
    before = json.loads((tmp_path / "sweep.json").read_text())
    assert len(before["rows"]) == 3 and before["left_out"] == []
    assert all(not row["wrong"] and len(row["us"]) > 1 for row in before["rows"].values())
    sweep.main(arguments)  # nothing is measured again
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"] == before["rows"]

    (measured,) = _dispatch.load(tmp_path / "dispatch.json")
    assert measured["card"] == card.DRY_RUN
    entries = _dispatch.entries([measured])
    for row, entry in zip(before["rows"].values(), entries, strict=True):
        tile, splits, text = _C.cuda_choose_product(
            row["operation"], *row["shape"], 4 << 20, sweep._DRY_DEVICE, entries
        )
        assert f"{tile} k/{splits}" == row["best"] and text.endswith("us (table)\n")
        assert entry[:2] == (90, 132)


def test_sweep_installs_a_card_in_the_place_of_its_like(tmp_path):
    path = tmp_path / "dispatch.json"
    path.write_text('{"format": 1, "cards": []}')
    product = {
        "operation": "gemm_s8",
        "m": 1,
        "n": 8,
        "k": 16,
        "tile": "64x64x64_w2x2",
        "splits": 1,
    }
    for name, multiprocessors, us in (("a", 132, 2.0), ("b", 114, 3.0), ("a again", 132, 1.0)):
        products = [{**product, "us": us, "float_us": 4.0}]
        sweep.install(
            {"card": name, "arch": 90, "multiprocessors": multiprocessors, "products": products},
            path,
        )
    cards = _dispatch.load(path)
    assert [c["card"] for c in cards] == ["b", "a again"]
    assert [entry[-1] for entry in _dispatch.entries(cards)] == [3.0, 1.0]


def test_kernel_benchmark_runs_dry(tmp_path, capsys):
    gpu.main(dry(tmp_path))
    assert card.DRY_RUN in capsys.readouterr().out
    rows = json.loads((tmp_path / "kernels-cuda.json").read_text())["rows"]
    assert {row["kind"] for row in rows.values()} == set(gpu.KINDS)
    assert all(us > 0 for row in rows.values() for us in row["us"].values())


def test_a_row_that_fails_costs_no_other(tmp_path, capsys):
    options = types.SimpleNamespace(folder=tmp_path, limit=60.0)
    results = card.Results("some", card.Card(dry_run=True), options)

    def fail():
        raise RuntimeError("out of memory")

    results.add("bad", fail)
    results.add("good", lambda: {"us": {}})
    results.finish()
    assert "failed: bad: out of memory" in capsys.readouterr().out
    document = json.loads((tmp_path / "some.json").read_text())
    assert document["rows"] == {"good": {"us": {}}} and document["failed"] == {
        "bad": "out of memory"
    }


def test_clocks_are_read_after_each_call():
    readings = iter([1900, 1700] * card.ROUNDS)

    def read(device, kind, out):
        assert (device, kind) == ("card", 1)  # NVML_CLOCK_SM
        out._obj.value = next(readings)

    fake = card.Card(dry_run=True)
    assert fake.megahertz() == 0
    fake._nvml = types.SimpleNamespace(nvmlDeviceGetClockInfo=read), "card"
    clocks = {}
    times = fake.interleaved({"a": lambda i: None, "b": lambda i: None}, 0.001, clocks)
    assert times.keys() == clocks.keys() and clocks == {"a": 1900, "b": 1700}


def test_ceiling_of_wgmma_is_a_row(capsys):
    lines = [
        {"n": n, "warpgroups": w, "source": source, "values": values, "ms": 2.0, "tops": 1000.0 + n,
         "cycles": n / w, "mhz": 1700.0}
        for n in (128, 160) for w in (1, 2) for source in ("RS", "SS") for values in ("random", "zeros")
    ]  # fmt: skip
    row = gpu.wgmma_row("\n".join(map(json.dumps, lines)))
    assert list(row["us"])[0] == "n=160 x2 SS random" and len(row["us"]) == 16
    assert row["tops"]["n=128 x1 RS zeros"] == 1128.0 and row["us"]["n=128 x1 RS zeros"] == 2000.0
    gpu.print_wgmma(row | {"must": []})
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["n=160", "x2", "SS", "random", "1160", "80.0", "100", "%", "1700"]
    assert printed[3].split()[:2] == ["n=160", "x2"] and "50 %" in printed[5]


def test_unet_benchmark_runs_dry(tmp_path, capsys):
    gpu_unet.main(dry(tmp_path, "--only", "cross_text_time:1"))
    assert card.DRY_RUN in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "unet-cuda.json").read_text())["rows"].values()
    assert (
        row["ms"].keys()
        == row["kernels"].keys()
        == {
            "tfq",
            "tfq, launches in turn",
            "tfq, int8 attention",
            "torch.compile bf16",
        }
    )
    assert row["class_us"].keys() == row["ms"].keys()
    for arm, sums in row["class_us"].items():
        assert sum(sums.values()) == pytest.approx(sum(us for *_, us in row["kernels"][arm]))
        assert sums["gemm"] > 0
    kernels = row["attention_kernels"]["torch.compile bf16"]
    assert any("scaled_dot_product" in kernel for kernel in kernels)
    assert row["db_to_compile"]["tfq"] > 20 and row["in_float"] == []
    assert row["bytes"]["tfq"] < row["bytes"]["bf16"]


def test_unet_benchmark_of_two_arms(tmp_path, capsys):
    gpu_unet.main(dry(tmp_path, "--only", "attention:2", "--pair"))
    (row,) = json.loads((tmp_path / "unet-cuda.json").read_text())["rows"].values()
    assert row["ms"].keys() == {"tfq", "torch.compile bf16"} and row["compile_over_tfq"] > 0


def test_models_of_a_card_are_the_published_ones():
    assert {name for name, _ in gpu_unet.ROWS} <= set(models.CONFIGURATIONS)
    cls, configuration = models.CONFIGURATIONS["sdxl"]
    with card.torch.device("meta"):
        unet = cls(**configuration)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684  # of the published UNet


def test_parts_of_the_script_for_a_card():
    script = BENCH / "gpu.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script, "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "no part 'nonsense'" in done.stdout


PYTHON_OF_A_CARD = """#!/usr/bin/env bash
echo "$PYTHONSAFEPATH python $*" >>"$LOG"
case $1 in *card.py) printf '%s\\n%s\\n' "$FOLDER" "$TABLE" ;; esac
"""
# After its options comes the program.
NCU = """#!/usr/bin/env bash
echo "ncu $*" >>"$LOG"
for word in "$@"; do [ "$last" = --log-file ] && echo "sm__pipe_tensor 50 %" >"$word"; last=$word; done
"""


def test_parts_on_a_card(tmp_path):
    """Which programs run, for how long; the table of choices comes into the checkout."""
    checkout, programs, log = tmp_path / "checkout", tmp_path / "bin", tmp_path / "log"
    for folder in (checkout / "bench", checkout / "tfq" / "ops", programs):
        folder.mkdir(parents=True)
    (checkout / "bench" / "gpu.sh").write_text((BENCH / "gpu.sh").read_text())
    for name, text in (("python", PYTHON_OF_A_CARD), ("ncu", NCU)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "table").write_text("measured")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(log), "TFQ_PART_SECONDS": "100",
        "FOLDER": str(tmp_path / "results"), "TABLE": str(tmp_path / "table"),
        "TFQ_UNETS": "--pair --only sd15:8",
    }  # fmt: skip
    script = checkout / "bench" / "gpu.sh"
    parts = ("test", "bench", "sweep", "unets", "ncu")
    done = subprocess.run(["bash", script, *parts], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line for line in log.read_text().splitlines() if "card.py" not in line]
    assert ran[:4] == [
        "1 python -m pytest -q tests/gpu",
        " python bench/gpu.py --limit 90",
        " python bench/sweep.py --install --limit 90",
        " python bench/gpu_unet.py --limit 90 --pair --only sd15:8",
    ]
    assert (checkout / "tfq" / "ops" / "dispatch.json").read_text() == "measured"
    reports = ran[4:]
    for report, kind in zip(reports, ("gemm", "conv", "attention", "bandwidth"), strict=True):
        assert f"--only {kind} " in report and "--section ComputeWorkloadAnalysis" in report
        assert "sm__pipe_tensor" in (tmp_path / "results" / f"ncu-{kind}.txt").read_text()
        # A row of that kind.
        match = report.split("--match ")[1].split(" --seconds")[0]
        rows = getattr(gpu.Bench(card.Card(dry_run=True), 0, gpu._FULL), kind)()
        assert sum(match in name for name, _ in rows) == 1, report


def test_results_of_another_card_are_not_continued(tmp_path):
    gpu.main(dry(tmp_path, "--only", "ceiling"))
    path = tmp_path / "kernels-cuda.json"
    document = json.loads(path.read_text())
    document["machine"]["card"] = "another"
    document["rows"] = {"ceiling copy": {}}
    path.write_text(json.dumps(document))
    gpu.main(dry(tmp_path, "--only", "ceiling"))
    assert json.loads(path.read_text())["rows"]["ceiling copy"]["us"]


def test_benchmarks_of_a_card_need_one():
    if card.torch.cuda.is_available():
        pytest.skip("there is a card")
    for script in (gpu, gpu_unet, sweep):
        with pytest.raises(SystemExit, match="torch sees no CUDA device; nothing is measured"):
            script.main([])


def test_convolutions():
    conv = unet_shapes.Conv(64, 16, 8)
    rows = [
        convolutions.measure(kind, conv, 2, time.perf_counter, 0, 100)
        for kind in ("direct", "chosen")
    ]
    assert [row["shape"] for row in rows] == ["conv3x3 48->16@8", "conv3x3 64->16@8"]
    for row, channels in zip(rows, (48, 64), strict=True):
        rate = 2 * 2 * 64 * 16 * channels * 9 / row["ms"] / 1e6
        assert row["gop_per_s"] == pytest.approx(rate)
        assert row["share"] == pytest.approx(rate / 100)
    assert len(convolutions.CASES) == 14


def test_overhead(monkeypatch):
    monkeypatch.setattr(overhead, "REPETITIONS", 1)
    quantize = _C.quantize
    rows = {(kind, count): seconds for kind, count, seconds in overhead.measure()}
    kinds = {kind for kind, _ in rows}
    assert {kind.__name__ for kind in overhead.KINDS} < kinds
    assert ("ResnetBlock2D", 1) in rows and ("Linear", 2) in rows
    assert all(seconds > 0 for seconds in rows.values())
    assert _C.quantize is quantize
