"""The shim and the kernels under the address and undefined-behaviour sanitizers, random shapes."""

import os

import pytest
import simt_native

SECONDS = int(os.environ.get("TFQ_FUZZ_SECONDS", "20"))
LOAD_BEYOND_ROWS = 6  # enum Fault of csrc/cuda/simt.h


@pytest.fixture(scope="module")
def programs():
    return simt_native.build(sanitize=True)


def test_shim(programs):
    oracle = simt_native.SOURCE / "oracle" / "fragments.tsv"
    assert "0 failures" in simt_native.run(programs, "test_shim", oracle)
    assert "0 failures" in simt_native.run(programs, "test_shim_sm90")


def test_random_shapes(programs, seed):
    output = simt_native.run(programs, "fuzz_kernels", SECONDS, seed)
    assert "0 failures" in output


def test_load_beyond_the_rows_is_seen(programs, seed):
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        simt_native.run(programs, "fuzz_kernels", SECONDS, seed, LOAD_BEYOND_ROWS)
