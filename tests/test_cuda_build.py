"""What nvcc makes of the kernels, without a card: registers, spills, and the instructions in use.

Needs nvcc, from the pinned packages of the extra ``cuda-build`` or from PATH, and nvdisasm for the
instructions; a test without its tool is skipped and says so. Not a measurement of speed.
"""

import collections
import concurrent.futures
import os
import pathlib
import re
import subprocess

import pytest
from machine_code import (
    FLAGS,
    KERNELS,
    ROOT,
    compile_cubin,
    compile_one,
    instructions,
    tool,
    total,
)

from tfq._ext import _C

SOURCES = (
    "gemm_s8_sm80",
    "conv2d_s8_sm80",
    "image_quantize",
    "image_enlarge",
    "row_quantize",
    "dequantize_weight",
    "temporal_gather",
    "attention_operands",
    "attention_s8_sm80",
)
# SASS for each, 90a as such; PTX for what comes later.
ARCHS = ("80", "86", "89", "90a", "120")
# Of the tiles of csrc/cuda/tile.h, in its order. 65536 registers: a tile of 128 threads at 255 has two
# blocks on a multiprocessor, one of 256 threads at 200 too.
TILE_REGISTERS = {"0": 255, "1": 200, "2": 255, "3": 215, "4": 128}
BANDWIDTH_REGISTERS = 96
# By the channels of a head. Blocks of 256 threads, two on a multiprocessor up to 80 channels, then one.
ATTENTION_REGISTERS = {32: 128, 48: 128, 64: 128, 80: 128, 128: 255, 160: 255, 256: 255}
# Instructions a sum may cost in the epilogue, by the paths of tests/gpu/epilogue_probe.cu: store; residual;
# residual, SiLU and quantisation; store and quantisation; GEGLU. With tanh.approx SiLU would cost 3
# instructions less, and its error of 2^-11 the 0.1 % of values that may be a step off.
EPILOGUE_INSTRUCTIONS = {"0": 5, "1": 8, "2": 18, "3": 10, "4": 18}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the machine code, and the facts of each (source, arch)."""
    tool("nvcc")
    folder = tmp_path_factory.mktemp("cubin")
    jobs = [(source, arch) for source in SOURCES for arch in ARCHS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: compile_one(folder, *job), jobs)
        return folder, dict(zip(jobs, results, strict=True))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES)
def test_registers(built, source, arch):
    for registers, spilled, kernel in built[1][source, arch]:
        assert spilled == 0, f"{kernel} spills {spilled} bytes"
        product = re.search(r"_s8_sm80ILi(\d)E", kernel)
        budget = TILE_REGISTERS[product.group(1)] if product else BANDWIDTH_REGISTERS
        if source == "attention_s8_sm80":
            budget = ATTENTION_REGISTERS[head_channels(kernel)]
        assert registers <= budget, f"{kernel} uses {registers} registers"


def head_channels(kernel):
    return int(re.search(r"attention_s8_sm80ILi(\d+)E", kernel).group(1))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES[:2])
def test_products_use_tensor_cores_and_wide_copies(built, source, arch):
    found = instructions(built[0] / f"{source}.{arch}.cubin")
    assert len(found) == (10 if source.startswith("gemm") else 5)
    for name, counts in found.items():
        tile = _C.cuda_tiles()[int(re.search(r"_s8_sm80ILi(\d)E", name).group(1))]
        block_m, block_n, _, warps_m, warps_n = map(int, re.findall(r"\d+", tile))
        threads = 32 * warps_m * warps_n
        # One k-block: depth 64 is two instructions of 16 x 8 x 32.
        per_block = 2 * block_m * block_n // (16 * 8) // (threads // 32)
        multiplies = total(counts, "IMMA.16832.U8.S8")
        assert multiplies >= per_block and multiplies % per_block == 0, (name, multiplies)
        assert total(counts, "LDSM.16.M88.4") > 0, name
        copies = total(counts, "LDGSTS")
        assert copies > 0 and copies == total(counts, "LDGSTS.E.BYPASS.128"), (name, counts)
        assert total(counts, "LDL") == total(counts, "STL") == 0, f"{name} uses local memory"
        assert total(counts, "STG.E.128") > 0 and total(counts, "LDG.E.128") > 0, name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES[2:])
def test_launches_before_are_waited_for_once(built, source, arch):
    """From sm_90 on; a card before it has no such launches, nor the instruction."""
    kernels = instructions(built[0] / f"{source}.{arch}.cubin")
    for name, counts in kernels.items():
        waits = int(arch.rstrip("a")) >= 90
        assert total(counts, "ACQBULK") == total(counts, "PREEXIT") == waits, (name, counts)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES[2:4])
def test_bandwidth_kernels_read_vectors(built, source, arch):
    for name, counts in instructions(built[0] / f"{source}.{arch}.cubin").items():
        assert total(counts, "LDL") == total(counts, "STL") == 0, f"{name} uses local memory"
        if "clear_ranges" in name or "coefficients" in name:
            continue
        assert total(counts, "LDG.E.128") > 0, name
        if "image_quantize" in name or "row_quantize" in name:
            assert total(counts, "STG.E.64") > 0, name


@pytest.mark.parametrize("arch", ARCHS)
def test_attention_keeps_to_tensor_cores_and_the_float_pipe(built, arch):
    found = instructions(built[0] / f"attention_s8_sm80.{arch}.cubin")
    assert sorted(map(head_channels, found)) == sorted(ATTENTION_REGISTERS)
    for name, counts in found.items():
        channels = head_channels(name)
        # For 32 tokens: their logits in either pass, of which the first may be unrolled twice; the value,
        # and ones for the sum of the weights.
        logits, first = 4 * -(-channels // 32), total(counts, "IMMA.16832.S8.S8")
        second = total(counts, "IMMA.16832.U8.S8")
        assert first in (2 * logits, 3 * logits) and second == channels // 8 + 1, (name, counts)
        assert total(counts, "IMMA") == first + second, (name, counts)
        assert total(counts, "LDSM.16.M88.4") == first // 2 + channels // 16, (name, counts)
        copies = total(counts, "LDGSTS")
        assert copies > 0 and copies == total(counts, "LDGSTS.E.BYPASS.128"), (name, counts)
        assert total(counts, "LDL") == total(counts, "STL") == 0, f"{name} uses local memory"
        # Integers become floats, exponentials and bytes without a conversion: those here are of the output,
        # and of a division that finds its place.
        assert total(counts, "F2I") <= 1 and total(counts, "MUFU.EX2") == 0, (name, counts)
        assert total(counts, "I2F") <= channels // 2 + 4, (name, counts)
        assert total(counts, "STG.E.64") > 0 and total(counts, "STG.E.128") > 0, (name, counts)


@pytest.mark.parametrize("arch", ARCHS)
def test_operands_of_attention_are_read_as_vectors(built, arch):
    cubin = built[0] / f"attention_operands.{arch}.cubin"
    for name, counts in instructions(cubin).items():
        assert total(counts, "LDL") == total(counts, "STL") == 0, f"{name} uses local memory"
        assert total(counts, "LDG.E.128") > 0, (name, counts)
        if "quantize_tokens" in name:
            assert total(counts, "STG.E.64") == 2, (name, counts)  # the integers, and two facts


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_are_written_as_vectors(built, arch):
    cubin = built[0] / f"dequantize_weight.{arch}.cubin"
    (counts,) = instructions(cubin).values()
    assert total(counts, "STG.E.128") >= 2, counts
    assert total(counts, "LDL") == total(counts, "STL") == 0, counts


@pytest.mark.parametrize("arch", ARCHS)
def test_arithmetic_of_the_epilogue_is_lean(tmp_path, arch):
    cubin = tmp_path / "epilogue.cubin"
    compile_cubin(ROOT / "tests" / "gpu" / "epilogue_probe.cu", arch, cubin)
    sizes = collections.defaultdict(dict)
    for name, counts in instructions(cubin).items():
        path, runs = re.search(r"PathE(\d)ELi(\d)E", name).groups()
        sizes[path][int(runs)] = counts.total() - counts["NOP"]
    assert sizes.keys() == EPILOGUE_INSTRUCTIONS.keys()
    for path, by_runs in sizes.items():
        (few, least), (many, most) = sorted(by_runs.items())
        per_output = (most - least) / (8 * (many - few))
        assert 1 < per_output <= EPILOGUE_INSTRUCTIONS[path], (path, per_output)


def test_a_failed_launch_names_kernel_configuration_and_reason(tmp_path):
    nvcc, program = tool("nvcc"), tmp_path / "failed_launch"
    libraries = pathlib.Path(nvcc).parent.parent / "lib"  # of the package; a toolkit finds its own
    command = [nvcc, *FLAGS, '-DTFQ_CUDA_ARCHS="80"', f"-L{libraries}", "-o", program]
    sources = [ROOT / "tests" / "gpu" / "failed_launch.cpp", KERNELS / "device.cpp"]
    subprocess.run([*command, *sources], check=True)
    text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert text == (
        "a_kernel: launch failed: cudaErrorInvalidConfiguration: invalid configuration argument "
        "(grid 3 x 1 x 2, 128 threads, 49152 bytes of shared memory, clusters of 1)\n"
    )


def test_kernels_are_waited_for_where_that_is_asked(tmp_path):
    nvcc, program = tool("nvcc"), tmp_path / "debug_sync"
    command = [nvcc, *FLAGS, "-cudart", "none", '-DTFQ_CUDA_ARCHS="80"', "-o", program]
    sources = [ROOT / "tests" / "gpu" / "debug_sync.cpp", KERNELS / "device.cpp"]
    subprocess.run([*command, *sources], check=True)
    failed = (
        "a_kernel: run failed: cudaErrorName: its text (grid 3 x 1 x 2, 128 threads, 49152 bytes of "
        "shared memory, clusters of 1)\n1 waits\n"
    )
    for value, captured, status, expected in (
        ("1", "0", "700", failed),
        ("1", "0", "0", "1 waits\n"),
        ("1", "1", "700", "0 waits\n"),  # a wait would break the capture
        ("0", "0", "700", "0 waits\n"),
        ("", "0", "700", "0 waits\n"),
    ):
        environment = {**os.environ, "TFQ_DEBUG_SYNC": value}
        done = subprocess.run(
            [program, captured, status], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stdout) == (0, expected), (value, captured, status)


@pytest.mark.parametrize("source", SOURCES)
def test_ptx_for_later_cards(tmp_path, source):
    ptx = tmp_path / "kernel.ptx"
    command = [tool("nvcc"), *FLAGS, "-arch=compute_80", "-ptx", "-o", ptx]
    subprocess.run([*command, KERNELS / f"{source}.cu"], check=True)
    text = ptx.read_text()
    assert ".target sm_80" in text
    if source in (*SOURCES[:2], "attention_s8_sm80"):
        assert "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in text


def named_archs(path):
    return re.search(r'TFQ_CUDA_ARCHS( =)? "([^"]+)"', (ROOT / path).read_text())[2].split(";")


def test_a_release_has_machine_code_for_every_architecture():
    named = named_archs(".ci/cibuildwheel-cuda.toml")
    assert tuple(arch.removesuffix("-real") for arch in named) == ARCHS


@pytest.mark.parametrize("path", ("cmake/TfqCuda.cmake", ".ci/cibuildwheel-cuda.toml"))
def test_builds_for_hopper_and_for_later_cards(path):
    named = named_archs(path)
    assert any(arch in ("90a", "90a-real") for arch in named)
    assert any(
        arch.isdigit() or arch.endswith("-virtual") for arch in named
    )  # PTX, which is portable
