"""What the benchmarks of a card are held to: bench/targets.py."""

import json
import pathlib
import sys
import types

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
sys.path.append(str(BENCH))

import gpu  # noqa: E402
import gpu_unet  # noqa: E402
import targets  # noqa: E402


def judged(arch=90, **rows):
    """The rows after :func:`targets.judge`, and its summary."""
    results = types.SimpleNamespace(rows=rows, document={"machine": {"arch": arch}})
    targets.judge(results)
    return rows, targets.summary(results)


def product(kind, shape, us, tops, **others):
    return {"kind": kind, "shape": shape, "us": {"tfq": us, **others}, "tops": {"tfq": tops}}


@pytest.mark.parametrize(
    "shape, tops, of_int_mm, of_fp8",
    [
        ((512, 320, 320), 0.8 * 31, 1.0, 0.85),
        ((1024, 640, 2560), 0.8 * 378, 1.1, 0.9),
        ((2048, 1280, 1280), 0.8 * 821, 1.25, 0.9),
        ((4096, 1280, 1280), 0.8 * 1074, 1.35, 0.92),
        ((32768, 1920, 640), 0.8 * 1290, 1.15, 0.92),
    ],
)
def test_bounds_of_a_gemm(shape, tops, of_int_mm, of_fp8):
    others = {"_int_mm": 10 * of_int_mm, "_scaled_mm fp8": 10 * of_fp8}
    rows, _ = judged(
        reached=product("gemm", shape, 10.0, tops, **others),
        slower=product("gemm", shape, 10.1, 0.99 * tops, **others),
    )
    whats = ["TOPS", "times _int_mm", "times _scaled_mm fp8"]
    assert [one["what"] for one in rows["reached"]["must"]] == whats
    assert [one["at_least"] for one in rows["reached"]["must"]] == [tops, of_int_mm, of_fp8]
    assert targets.verdict(rows["reached"]) == "pass"
    assert not any(one["met"] for one in rows["slower"]["must"])
    assert targets.verdict(rows["slower"]).count(" of ") == 3


def test_another_card_is_held_to_torch_alone():
    rows, _ = judged(
        80,
        long=product("gemm", (2048, 320, 320), 10.0, 1.0, _int_mm=7.9),
        short=product("gemm", (1024, 320, 320), 10.0, 1.0, _int_mm=1.0),
        conv=product("conv", (2, 320, 128, 320), 10.0, 1.0, **{"cuDNN bf16": 1.0}),
    )
    assert targets.verdict(rows["long"]) == "FAIL: times _int_mm 0.79 of 0.8"
    assert targets.verdict(rows["short"]) == targets.verdict(rows["conv"]) == ""


def test_bounds_of_a_convolution():
    rows, line = judged(
        both=product("conv", [2, 320, 128, 320], 10.0, 960, **{"cuDNN bf16": 16.0}),
        slow=product("conv", [2, 1280, 8, 1280], 10.0, 319, **{"cuDNN bf16": 16.0}),
        alone=product("conv", [1, 32, 6, 32], 10.0, 1),
    )
    assert targets.verdict(rows["both"]) == "pass"
    assert targets.verdict(rows["slow"]) == "FAIL: TOPS 319 of 320"
    assert targets.verdict(rows["alone"]) == "" and line == "1 of 2 rows reach what they must"


def test_copies_of_a_convolution_beside_those_of_a_gemm():
    def row(us):
        return {"kind": "im2col", "shape": [1, 1, 1], "us": {"conv2d_s8": us, "gemm_s8": 8.5}}

    rows, _ = judged(fast=row(10.0), slow=row(10.2))
    assert targets.verdict(rows["fast"]) == "pass"
    assert targets.verdict(rows["slow"]) == "FAIL: times gemm_s8 0.833 of 0.85"


def test_bandwidth_is_that_of_the_copy_of_this_run():
    def row(rate):
        return {"kind": "bandwidth", "gb_per_s": {"tfq": rate}}

    copy = {"kind": "ceiling", "gb_per_s": {"torch": 4000.0}}
    rows, _ = judged(**{"ceiling copy": copy, "a": row(3000.0), "b": row(2960.0)})
    assert targets.verdict(rows["a"]) == "pass" and rows["ceiling copy"]["must"] == []
    assert targets.verdict(rows["b"]) == "FAIL: of a copy's bandwidth 0.74 of 0.75"
    assert judged(a=row(1.0))[0]["a"]["must"] == []


def test_torch_chooses_its_fastest_attention():
    def row(**backends):
        return {"kind": "attention", "us": {"tfq": 1.0, "torch bf16": 10.0, **backends}}

    rows, _ = judged(
        chosen=row(cuDNN=9.6, flash=15.0), other=row(cuDNN=14.0, flash=9.0), none=row()
    )
    assert targets.verdict(rows["chosen"]) == "pass" and rows["none"]["must"] == []
    assert targets.verdict(rows["other"]).startswith(
        "FAIL: fastest backend over torch's choice 0.9"
    )


def test_a_product_of_160_columns_at_full_rate():
    def row(tops):
        return {
            "kind": "ceiling",
            "tops": {"n=160 x2 SS random": tops, "n=256 x2 SS random": 1000.0},
        }

    rows, _ = judged(full=row(960.0), half=row(500.0))
    assert targets.verdict(rows["full"]) == "pass"
    assert targets.verdict(rows["half"]) == "FAIL: n=160 over n=256 0.5 of 0.95"


def test_bounds_of_a_unet():
    def row(model, ratio, layouts):
        size = {"tfq": 10, "bf16": 100}
        return {
            "kind": "unet", "model": model, "compile_over_tfq": ratio, "bytes": size,
            "device_layouts_bytes": layouts,
        }  # fmt: skip

    rows, _ = judged(
        good=row("sdxl:2", 1.4, 45), slow=row("sdxl:1", 1.29, 40), large=row("sd15:8", 1.4, 46)
    )
    assert targets.verdict(rows["good"]) == "pass"
    assert targets.verdict(rows["slow"]) == "FAIL: times torch.compile 1.29 of 1.3"
    assert targets.verdict(rows["large"]) == "FAIL: bytes of bf16's 0.56 of 0.55"
    (_, size), (elsewhere,) = (
        rows["good"]["must"],
        judged(89, a=row("sdxl:2", 1, 1))[0]["a"]["must"],
    )
    assert size["at_most"] == elsewhere["at_most"] == 0.55


def test_what_is_measured_has_bounds():
    assert {f"{name}:{batch}" for name, batch in gpu_unet.ROWS} == set(targets.UNETS)
    assert set(gpu.ROWS) == set(targets.ROWS)
    assert set(gpu.KINDS) < set(targets.KINDS)


def test_verdicts_are_printed_and_written(tmp_path, capsys):
    gpu.main(
        ["--dry-run", "--folder", str(tmp_path), "--seconds", "0.0005", "--only", "ceiling,im2col"]
    )
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "kernels-cuda.json").read_text())["rows"]
    (row,) = (row for row in rows.values() if row["kind"] == "im2col")
    (bound,) = row["must"]
    assert bound["reached"] == row["us"]["gemm_s8"] / row["us"]["conv2d_s8"]
    assert f"{int(bound['met'])} of 1 rows reach what they must" in printed
