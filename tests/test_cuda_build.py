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
    ROOT,
    cheapest_path,
    compile_cubin,
    instructions,
    kernels,
    opcodes_of,
    tool,
    total,
)

from tfq._ext import _C

KERNELS = ROOT / "csrc" / "cuda"
WARPGROUP = 128
SM90 = ("gemm_s8_sm90", "conv2d_s8_sm90")
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
# What __launch_bounds__ leaves: 65536 registers for three warpgroups, or for two.
SM90_REGISTERS = {3: 168, 2: 255}
# Instructions a sum may cost in the epilogue, by the paths of tests/gpu/epilogue_probe.cu: store; residual;
# residual, SiLU and quantisation; store and quantisation; GEGLU. With tanh.approx SiLU would cost 3
# instructions less, and its error of 2^-11 the 0.1 % of values that may be a step off.
EPILOGUE_INSTRUCTIONS = {"0": 5, "1": 8, "2": 18, "3": 10, "4": 18}
# The same in Hopper's kernels as they are. A run of sums begins with their conversions; by its other
# opcodes one knows the way it takes: packed bfloat16, residual, quantisation, SiLU; and, between two runs,
# what a row loads that misses three taps: the facts of its channels, and two vectors a tap.
SUM, RUN = "I2FP.F32.S32", 8
PLAIN = {"F2FP.BF16": 0, "HADD2.F32": 0, "F2I.NTZ": 0, "MUFU.EX2": 0}
BORDER = {"LDG.E.128": 6 + 3 * 2}
# Path -> what is in a run, what before it, and by source the bounds: of tiles with less than 128 sums a
# thread, which have the costs of tile and channels among fewer, of the others, and of ping-pong, which asks
# for every run what the others know of a tile of bfloat16 alone.
HOPPER_EPILOGUE = {
    "store": (
        PLAIN | {"F2FP.BF16": 4},
        {},
        {"gemm_s8_sm90": (12, 9, 12), "conv2d_s8_sm90": (15, 11, 13)},
    ),
    "residual": (
        PLAIN | {"F2FP.BF16": 4, "FADD": 8},
        {},
        {"gemm_s8_sm90": (14, 11, 14), "conv2d_s8_sm90": (17, 13, 15)},
    ),
    "residual_silu_quantize": (
        PLAIN | {"HADD2.F32": 8, "F2I.NTZ": 8, "MUFU.EX2": 8},
        {},
        {"gemm_s8_sm90": (29, 25, 25), "conv2d_s8_sm90": (31, 26, 26)},
    ),
    "dual": (
        PLAIN | {"F2FP.BF16": 4, "F2I.NTZ": 8},
        {},
        {"gemm_s8_sm90": (21, 17, 18), "conv2d_s8_sm90": (23, 18, 18)},
    ),
    "geglu": ({"F2FP.BF16": 2, "F2I.NTZ": 0}, {}, {"gemm_s8_sm90": (52, 45, 51)}),
    "geglu_quantize": ({"F2FP.BF16": 0, "F2I.NTZ": 4}, {}, {"gemm_s8_sm90": (59, 53, 53)}),
    "border": (PLAIN | {"F2FP.BF16": 4}, BORDER, {"conv2d_s8_sm90": (34, 31, 31)}),
}


def compile_one(folder, source, arch):
    """(registers, spilled bytes, kernel) of each kernel; leaves the machine code in `folder`."""
    messages = compile_cubin(KERNELS / f"{source}.cu", arch, folder / f"{source}.{arch}.cubin")
    facts, name, spilled = [], None, 0
    for line in messages.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name, spilled = match.group(1), 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match.group(1)) + int(match.group(2))
        elif match := re.search(r"Used (\d+) registers", line):
            facts.append((int(match.group(1)), spilled, name))
    assert facts, f"{source} for sm_{arch}: no kernel in\n{messages}"
    return facts


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


def sm90_tile(kernel):
    """(block_m, block_n, warpgroups that multiply, those of a tile, blocks of a cluster)."""
    tile = _C.cuda_tiles()[int(re.search(r"_s8_sm90ILi(\d+)E", kernel).group(1))]
    block_m, block_n, schedule, cluster = re.match(
        r"(\d+)x(\d+)x128_(pp|wg1|wg2)(?:_c(\d))?$", tile
    ).groups()
    groups = {"wg1": (1, 1), "wg2": (2, 2), "pp": (2, 1)}[schedule]
    return int(block_m), int(block_n), *groups, int(cluster or 1)


SM90_TILES = sum("x128_" in tile for tile in _C.cuda_tiles())
# GEGLU has a kernel of its own, and so have units of 64 and of 128 channels.
SM90_KERNELS = {"gemm_s8_sm90": 2 * SM90_TILES, "conv2d_s8_sm90": 2 * SM90_TILES}


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """Source of Hopper's kernels -> their machine code, and its facts."""
    folder, found = tmp_path_factory.mktemp("hopper"), {}
    for source in SM90:
        facts = compile_one(folder, source, "90a")
        found[source] = kernels(folder / f"{source}.90a.cubin"), facts
    return found


@pytest.mark.parametrize("source", SM90)
def test_hopper_registers(hopper, source):
    facts = hopper[source][1]
    assert len(facts) == SM90_KERNELS[source]
    for registers, spilled, kernel in facts:
        assert spilled == 0, f"{kernel} spills {spilled} bytes"
        # Exactly: what warpgroups claim of a pool that was given less would never be free.
        warpgroups = sm90_tile(kernel)[2] + 1
        assert registers <= SM90_REGISTERS[warpgroups], (kernel, registers)
        assert warpgroups < 3 or registers == SM90_REGISTERS[3], (kernel, registers)


@pytest.mark.parametrize("source", SM90)
def test_hopper_multiplies_with_wgmma_and_copies_with_tma(hopper, source):
    assert len(hopper[source][0]) == SM90_KERNELS[source]
    copies = ["UTMALDG.2D"] if source.startswith("gemm") else ["UTMALDG.2D", "UTMALDG.4D.IM2COL"]
    for name, kernel in hopper[source][0].items():
        counts = opcodes_of(kernel)
        block_m, block_n, warpgroups, of_tile, cluster = sm90_tile(name)
        # One k-block: depth 128 is four instructions of 64 x N x 32. The loop may be unrolled.
        per_block = 4 * block_m // 64 // of_tile
        multiplies = total(counts, f"IGMMA.64x{block_n}x32.U8.S8")
        batches = total(counts, "WARPGROUP.ARRIVE")
        assert multiplies == total(counts, "IGMMA") == per_block * batches > 0, (name, counts)
        # A wait for each batch, and one for the last: not one for each instruction.
        assert total(counts, "WARPGROUP.DEPBAR") == batches + 1, (name, counts)
        assert all(total(counts, copy) > 0 for copy in copies), (name, counts)
        assert (total(counts, "UTMALDG.2D.MULTICAST") > 0) == (cluster > 1), (name, counts)
        # At the begin; and no fence of the device but those of split-K.
        assert total(counts, "UCGABAR_ARV") == (cluster > 1), (name, counts)
        assert total(counts, "MEMBAR.ALL.GPU") == 0, (name, counts)
        # Both kinds of warpgroups wait for the launches before; one lets the next begin.
        assert total(counts, "ACQBULK") == 2 and total(counts, "PREEXIT") == 1, (name, counts)
        assert total(counts, "LDGSTS") == 0, name
        assert total(counts, "IMMA") == 0, name
        assert (total(counts, "USETMAXREG") == 2) == (warpgroups == 2), name
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


@pytest.mark.parametrize(
    "source, path",
    [(source, path) for path, (_, _, bounds) in HOPPER_EPILOGUE.items() for source in bounds],
)
def test_hopper_epilogue_is_lean(hopper, source, path):
    """What an output costs in the kernel itself, on the cheapest way that does what `path` says: all after
    the last product, with facts of rows and channels, addresses, and what decides which way is taken."""
    wanted, before, bounds = HOPPER_EPILOGUE[path]
    for name, kernel in hopper[source][0].items():
        if ("Lb1E" in name) != (path.startswith("geglu")):
            continue
        block_m, block_n, warpgroups, of_tile, _ = sm90_tile(name)
        sums = block_m * block_n // (WARPGROUP * of_tile)
        opcodes = [instruction.opcode for instruction in kernel[0]]
        in_turns = warpgroups > of_tile
        assert total(collections.Counter(opcodes), SUM) == sums * (1 if in_turns else 2), name
        begin = len(opcodes) - opcodes[::-1].index("WARPGROUP.DEPBAR.LE")
        cost = cheapest_path(kernel, begin, "WARPGROUP", (SUM, RUN), wanted, before)
        outputs = sums // 2 if path.startswith("geglu") else sums
        most = bounds[source][2 if in_turns else sums >= 128]
        assert cost and cost / outputs <= most, (name, cost / outputs)


@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("source", SM90)
def test_hopper_kernels_are_empty_for_other_cards(tmp_path, source, arch):
    compile_one(tmp_path, source, arch)
    counts = instructions(tmp_path / f"{source}.{arch}.cubin")
    assert counts
    assert all(counter.total() - counter["NOP"] < 10 for counter in counts.values())


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


def test_ceiling_of_wgmma_is_nothing_but_products(tmp_path):
    cubin = tmp_path / "ceiling.cubin"
    messages = compile_cubin(ROOT / "bench" / "wgmma_ceiling.cu", "90a", cubin)
    # Five widths, one and two warpgroups, the first operand from shared memory and from registers.
    assert messages.count("0 bytes spill stores, 0 bytes spill loads") == 20, messages
    found = instructions(cubin)
    assert len(found) == 20
    for name, counts in found.items():
        assert total(counts, "IGMMA") % 4 == 0 and total(counts, "IGMMA") > 0, name
        assert total(counts, "LDG") == total(counts, "LDL") == 0, name


def test_serialised_products_are_refused(tmp_path):
    """ptxas calls this information, and -Werror=all-warnings lets it pass."""
    source = ROOT / "tests" / "gpu" / "serialised_products.cu"
    with pytest.raises(AssertionError, match=r"\(C75\d\d\)"):
        compile_cubin(source, "90a", tmp_path / "products.cubin")


@pytest.mark.parametrize(
    "source, right", [("serialised_products", False), ("epilogue_probe", True)]
)
def test_the_build_refuses_serialised_products(tmp_path, source, right):
    launcher = ["cmake", "-P", ROOT / "cmake" / "CompileCuda.cmake", "--", tool("nvcc")]
    command = [*launcher, *FLAGS, "-arch=sm_90a", "-Werror=all-warnings", "-cubin"]
    path = ROOT / "tests" / "gpu" / f"{source}.cu"
    done = subprocess.run(
        [*command, path, "-o", tmp_path / "cubin"], capture_output=True, text=True
    )
    assert (done.returncode == 0) == right, done.stderr
    assert ("(C7514)" in done.stderr) != right, done.stderr


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
