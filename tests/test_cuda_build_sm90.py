"""What nvcc makes of Hopper's kernels, without a card; see test_cuda_build.py."""

import collections
import re
import subprocess

import pytest
from machine_code import (
    FLAGS,
    ROOT,
    cheapest_path,
    compile_cubin,
    compile_one,
    instructions,
    kernels,
    opcodes_of,
    tool,
    total,
)

from tfq._ext import _C

WARPGROUP = 128
SM90 = ("gemm_s8_sm90", "conv2d_s8_sm90")
# What __launch_bounds__ leaves: 65536 registers for three warpgroups, or for two.
SM90_REGISTERS = {3: 168, 2: 255}
# Instructions a sum may cost in the epilogue, in the kernels as they are. A run of sums begins with their
# conversions; by its other opcodes one knows the way it takes: packed bfloat16, residual, quantisation,
# SiLU; and, between two runs, what a row loads that misses three taps: the facts of its channels, and two
# vectors a tap.
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
