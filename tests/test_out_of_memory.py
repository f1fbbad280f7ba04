"""Memory that runs out in a kernel is a MemoryError, on whatever thread it does."""

import subprocess
import sys

import pytest

# The output takes 32 MB, and each thread's scratch memory for four rows of floats 64 MB.
PROGRAM = """
import resource, sys, torch
from tfq import ops

torch.set_num_threads(int(sys.argv[1]))
ops.layer_norm_quantize(torch.randn(4096, 64), None, None)  # starts the threads
x = torch.randn(8, 4_000_000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 80_000_000,) * 2)
try:
    ops.layer_norm_quantize(x, None, None)
except MemoryError:
    print("MemoryError")
q, _ = ops.layer_norm_quantize(x[:, :64].contiguous(), None, None)
print(q.shape[0])
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_is_an_error_of_the_call(threads):
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["MemoryError", "8"]
