"""Identical bits on every level, thread count, batch split, alignment and call."""

import concurrent.futures
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import available_levels
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    layer_norm_operands,
    random_images,
    random_qparams,
    weight_operands_s4,
)
from tolerance import assert_same_bits

from tfq import ops
from tfq._ext import _C

FOUR_BITS = " of 4 bits"
IMAGE_CASES = {
    "conv2d_s8 of 4 bits": [(4, 40, 9, 8, 70, 3, 1, 1, 1)],
    "conv2d_s8": [
        (4, 40, 9, 8, 70, 3, 1, 1, 1),
        (3, 64, 16, 16, 96, 3, 2, 1, 1),
        (4, 32, 6, 6, 48, 1, 1, 0, 1),
    ],
    "group_norm_silu_quantize": [
        (4, 96, 32, 16, 16, 32),
        (3, 37, 20, 5, 9, 3),
        (5, 320, 0, 16, 16, 32),
    ],
    "quantize": [(4, 33, 9, 7), (3, 320, 32, 32)],
}
ATTENTION_CASES = {
    "attention_s8": [(3, 2, 70, 77, 40), (2, 1, 300, 1030, 20), (4, 3, 5, 9, 65)],
}
ROW_CASES = {
    "gemm_s8 of 4 bits": [(154, 77, 130), (1024, 320, 320), (33, 1000, 64)],
    "gemm_s8": [(154, 77, 130), (1024, 320, 320), (33, 1000, 64)],
    "layer_norm_quantize": [(200, 768), (1024, 320), (7, 4099)],
    "geglu_quantize": [(200, 640), (33, 2560), (5, 4099)],
}
CASES = [
    (name, shape)
    for cases in (IMAGE_CASES, ROW_CASES, ATTENTION_CASES)
    for name, shapes in cases.items()
    for shape in shapes
]


def build(name, shape):
    """Keyword arguments of the operation `name`, different in every image and row."""
    if name.endswith(FOUR_BITS):
        operands = build(name.removesuffix(FOUR_BITS), shape)
        depth = shape[2:] if name.startswith("gemm_s8") else (shape[1], shape[5], shape[5])
        return operands | weight_operands_s4((operands["weight_scale"].shape[0], *depth))
    if name == "conv2d_s8":
        operands = conv_operands(shape)
        y = ops.conv2d_s8(**operands)
        operands["residual"] = random_images(*y.shape, torch.float32)
        operands["temporal"] = torch.randn(y.shape[:2])
        return operands
    if name == "gemm_s8":
        m, n, _ = shape
        operands = gemm_operands(*shape, groups=m)
        return operands | {"residual": torch.randn(m, n), "temporal": torch.randn(m, n)}
    if name == "group_norm_silu_quantize":
        return group_norm_operands(shape, per_sample=True)
    if name == "attention_s8":
        return attention_operands(*shape)
    if name == "quantize":
        return {"x": random_images(*shape, torch.float32)}
    if name == "layer_norm_quantize":
        return layer_norm_operands(*shape)
    return {"x": torch.randn(shape[0], 2 * shape[1]) * 2}


def call(name, operands):
    result = getattr(ops, name.removesuffix(FOUR_BITS))(**operands)
    return result if isinstance(result, tuple) else (result,)


def assert_all_same(actual, expected, context):
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b, context)


@pytest.fixture
def level():
    before = _C.isa()
    yield _C.set_max_isa
    _C.set_max_isa(before)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_levels(level, name, shape):
    operands = build(name, shape)
    level("scalar")
    expected = call(name, operands)
    for isa in available_levels():
        level(isa)
        assert_all_same(call(name, operands), expected, isa)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "name, shape", [("conv2d_s8", IMAGE_CASES["conv2d_s8"][0]), ("gemm_s8", (154, 77, 130))]
)
def test_levels_with_other_outputs(level, name, shape, dtype):
    operands = build(name, shape) | {"out_dtype": dtype}
    operands["out_qparams"] = random_qparams(operands["qparams"].shape[0])
    level("scalar")
    expected = call(name, operands)
    for isa in available_levels():
        level(isa)
        assert_all_same(call(name, operands), expected, isa)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_thread_counts(isa, threads, name, shape):
    operands = build(name, shape)
    threads(1)
    expected = call(name, operands)
    for count in (2, 3, 5):
        threads(count)
        assert _C.num_threads() == count, "torch's thread count must reach the kernels"
        assert_all_same(call(name, operands), expected, f"{count} threads")


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_batch_splits(isa, name, shape):
    operands = build(name, shape)
    whole = call(name, operands)
    batch = whole[0].shape[0]
    per_sample = ("x", "x2", "qparams", "residual", "temporal", "query", "key", "value")
    if name == "group_norm_silu_quantize":
        per_sample += ("weight", "bias")
    for start, stop in ((0, 1), (1, batch), (batch // 2, batch // 2 + 1)):
        part = {
            key: value[start:stop] if key in per_sample and value is not None else value
            for key, value in operands.items()
        }
        assert_all_same(call(name, part), [w[start:stop] for w in whole], f"rows {start}:{stop}")


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_repeated_calls(isa, name, shape):
    operands = build(name, shape)
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in operands.items()}
    first = call(name, operands)
    for _ in range(3):
        assert_all_same(call(name, operands), first, "second call")
    for key, value in operands.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, copies[key]), f"{key} was changed"


def test_concurrent_callers(isa):
    """The GIL is released and scratch memory is per thread: callers do not disturb each other."""
    jobs = [(name, build(name, shape)) for name, shape in CASES]
    expected = [call(*job) for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda job: call(*job), jobs * 3))
    for i, result in enumerate(results):
        assert_all_same(result, expected[i % len(jobs)], jobs[i % len(jobs)][0])


# Inputs that end where readable memory ends: a kernel that reads past them dies.
AT_THE_END_OF_MEMORY = """
    import ctypes, mmap, sys
    sys.path.append({tests!r})
    import torch
    import test_consistency as t
    from tfq._ext import _C

    PAGE, libc, kept = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True), []

    def moved(tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.numel() == 0:
            return tensor
        size = tensor.numel() * tensor.itemsize
        pages = -(-size // PAGE)
        area = mmap.mmap(-1, (pages + 1) * PAGE)
        kept.append(area)
        buffer = torch.frombuffer(area, dtype=torch.uint8)
        last = ctypes.c_void_p(buffer.data_ptr() + pages * PAGE)
        assert libc.mprotect(last, PAGE, 0) == 0
        elements = buffer[pages * PAGE - size : pages * PAGE].view(tensor.dtype)
        start = elements.storage_offset()
        return elements.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)

    torch.set_num_threads(1)
    torch.manual_seed({seed})
    sizes = range(1, 98, 3)
    cases = [("gemm_s8", (1 + s % 9, s, 1 + s * 7 % 97)) for s in sizes]
    cases += [("gemm_s8", (s, 16, 64)) for s in sizes]
    cases += [("gemm_s8 of 4 bits", (1 + s % 9, s, 1 + s * 7 % 97)) for s in sizes]
    cases += [("conv2d_s8", (1, s, 3, 2, 5, 3, 1, 1, 1)) for s in sizes]
    cases += [("conv2d_s8", (1, 64, 3, s, 5, 1, 1, 0, 1)) for s in sizes]
    cases += [("attention_s8", (2, 2, s % 9 + 1, s, s * 7 % 97 + 1)) for s in sizes]
    cases += [("quantize", (2, s, 1, 3)) for s in sizes]
    cases += [("group_norm_silu_quantize", (2, s, s % 4, 1, 3, 1)) for s in sizes]
    cases += [(n, (2, s)) for n in ("layer_norm_quantize", "geglu_quantize") for s in sizes]
    for name, shape in cases:
        operands = t.build(name, shape)
        expected = t.call(name, operands)
        operands = {{key: moved(value) for key, value in operands.items()}}
        for level in t.available_levels():
            _C.set_max_isa(level)
            print(name, shape, level, flush=True)
            t.assert_all_same(t.call(name, operands), expected, level)
        operands = None
        kept.clear()
    print("all read")
"""


def test_nothing_is_read_past_the_inputs(seed):
    script = textwrap.dedent(AT_THE_END_OF_MEMORY).format(
        tests=os.path.dirname(__file__), seed=seed
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"after {lines[-1:]}: exit {done.returncode}\n{done.stderr[-2000:]}"
    )
    assert lines[-1] == "all read"
