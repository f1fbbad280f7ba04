"""The shim and the kernels under the address and undefined-behaviour sanitizers, random shapes."""

import os

import cmake_programs
import pytest
import simt_native

SECONDS = int(os.environ.get("TFQ_FUZZ_SECONDS", "20"))
# Enum Fault of csrc/cuda/simt.h.
LOAD_BEYOND_ROWS = 6
ROW_UNCHECKED = 13


@pytest.fixture(scope="module")
def programs():
    return simt_native.build(sanitize=True)


def test_shim(programs):
    oracle = simt_native.SOURCE / "oracle" / "fragments.tsv"
    assert "0 failures" in cmake_programs.run(programs, "test_shim", oracle)
    assert "0 failures" in cmake_programs.run(programs, "test_shim_sm90")
    for program in ("test_shim_cluster", "test_shim_overlap"):
        assert "0 failures" in cmake_programs.run(programs, program)


def test_random_shapes(programs, seed):
    output = cmake_programs.run(programs, "fuzz_kernels", SECONDS, seed)
    assert "0 failures" in output


@pytest.mark.parametrize("fault", [LOAD_BEYOND_ROWS, ROW_UNCHECKED])
def test_reads_beyond_an_operand_are_seen(programs, seed, fault):
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        cmake_programs.run(programs, "fuzz_kernels", SECONDS, seed, fault)
