"""How a dense product is cut into tasks for the CPU's threads, over the layers of real UNets."""

import heapq
import itertools
import math
import sys
from pathlib import Path

import pytest

from tfq._ext import _C

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from unet_shapes import DDPM_LINEARS, SD15_LINEARS, SDXL_LINEARS  # noqa: E402

# (rows, columns) of a block of products, bytes of L2.
MACHINES = {"AVX2": ((6, 16), 512 << 10), "VNNI": ((6, 64), 1 << 20), "AMX": ((32, 32), 2 << 20)}
# Those of text are too small to be cut evenly.
LINEARS = {
    str(linear): linear
    for linear in SDXL_LINEARS + SD15_LINEARS + DDPM_LINEARS
    if linear.tokens > 77
}


def sizes(whole, part):
    """Sizes of the parts of a whole, all but the last of which are equal."""
    return [min(part, whole - first) for first in range(0, whole, part)]


def busiest(tasks, threads):
    """Work of the busiest thread where each takes the next task when it has done its own."""
    loads = [0] * threads
    for task in tasks:
        heapq.heapreplace(loads, loads[0] + task)
    return max(loads)


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", LINEARS)
def test_threads_have_equal_work(name, machine, threads):
    tokens, n, k = LINEARS[name][:3]
    block, l2_bytes = MACHINES[machine]
    rows, columns = _C.cpu_gemm_schedule(tokens, n, k, block, threads, l2_bytes)
    # Work in blocks: a block of fewer rows or columns takes no less of the kernel's time.
    tasks = [
        math.ceil(r / block[0]) * math.ceil(c / block[1])
        for r, c in itertools.product(sizes(tokens, rows), sizes(n, columns))
    ]
    assert busiest(tasks, threads) <= 1.13 * sum(tasks) / threads


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_tasks_are_whole_blocks(threads):
    block, l2_bytes = MACHINES["VNNI"]
    for m, n, k in [(1, 1, 1), (5, 70, 64), (100, 1000, 3000), (100000, 64, 64), (7, 8192, 23040)]:
        rows, columns = _C.cpu_gemm_schedule(m, n, k, block, threads, l2_bytes)
        assert rows == m or (0 < rows < m and rows % block[0] == 0)
        assert columns == n or (0 < columns < n and columns % block[1] == 0)
