"""The CPU kernels of every level under the address and undefined-behaviour sanitizers, random shapes."""

import os

import cmake_programs
import pytest

SECONDS = int(os.environ.get("TFQ_FUZZ_SECONDS", "15"))


@pytest.fixture(scope="module")
def programs():
    folder = cmake_programs.build(
        cmake_programs.ROOT,
        "cpu-sanitize",
        TFQ_SANITIZE="ON",
        TFQ_CUDA="OFF",
        TFQ_WERROR="ON",
        CMAKE_BUILD_TYPE="None",
        CMAKE_CXX_FLAGS="-O1 -g1",  # to compile in less time
    )
    return folder / "tests" / "cpu"


def test_random_shapes(programs, seed):
    assert "0 failures" in cmake_programs.run(programs, "fuzz_kernels", SECONDS, seed)


def test_reads_beyond_an_operand_are_seen(programs, seed):
    """Operands that lack an element: by the zones of the heap, or the page that follows them."""
    with pytest.raises(AssertionError, match="AddressSanitizer: (heap-buffer-overflow|SEGV)"):
        cmake_programs.run(programs, "fuzz_kernels", SECONDS, seed, 1)
