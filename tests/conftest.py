"""Seed, instruction-set levels, guard zones and the CUDA kernels' host build, shared by all tests."""

import os
import sys

import pytest
import torch

sys.path.append(os.path.dirname(__file__))  # shapes, operands and tolerance: tests are no package

LEVELS = ("scalar", "avx2", "avx512vnni", "amx")
OPS_MODULES = ("_checks", "activations", "attention", "products", "resnet", "weights")
SEED = int(os.environ.get("TFQ_SEED", "0"))
GUARD = 67  # elements before and after an output: odd, so that outputs are not aligned either
SENTINEL = 0xA5


# The processes of ``pytest -n`` share the cores, and those that tests start have as many threads: the
# order of torch's float sums depends on it.
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if PROCESSES > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", available_levels(), indirect=True)


def available_levels():
    from tfq._ext import _C

    return LEVELS[: LEVELS.index(_C.detected_isa()) + 1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections.append(("seed", f"TFQ_SEED={SEED}"))
    return report


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same generator state, alone or in the whole run."""
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture
def isa(request):
    """One instruction-set level at a time: each this CPU has."""
    from tfq._ext import _C

    before = _C.isa()
    _C.set_max_isa(request.param)
    yield request.param
    _C.set_max_isa(before)


@pytest.fixture
def threads():
    """``threads(n)`` sets torch's thread count; what the test has set ends with it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def simt():
    """The CUDA kernels on the CPU, scheduled as at the start when the module's tests have ended."""
    import simt_native

    simt = simt_native.Simt(simt_native.build())
    yield simt
    simt.schedule()


@pytest.fixture
def hopper(simt):
    """`simt` is a Hopper, scheduled as at the start, before and after the test."""
    import simt_native

    simt.schedule()
    simt.native.set_device(*simt_native.HOPPER)
    yield
    simt.native.set_device(*simt_native.DEVICE)
    simt.schedule()


class GuardedTorch:
    """``torch`` as the operations see it, with outputs inside sentinel-filled buffers."""

    def __init__(self):
        self.allocations = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, *, dtype, device=None, memory_format=torch.contiguous_format):
        shape = torch.Size([shape] if isinstance(shape, int) else shape)
        buffer = torch.full(
            ((shape.numel() + 2 * GUARD) * dtype.itemsize,), SENTINEL, dtype=torch.uint8
        )
        elements = buffer.view(dtype)[GUARD : GUARD + shape.numel()]
        self.allocations.append((buffer, GUARD * dtype.itemsize))
        if memory_format is torch.channels_last:
            batch, channels, height, width = shape
            return elements.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return elements.view(shape)

    def empty_like(self, tensor, *, dtype):
        dense = tensor.is_contiguous()
        layout = torch.contiguous_format if dense else torch.channels_last
        return self.empty(tensor.shape, dtype=dtype, memory_format=layout)

    def check(self):
        for buffer, guard_bytes in self.allocations:
            zones = torch.cat([buffer[:guard_bytes], buffer[-guard_bytes:]])
            assert bool((zones == SENTINEL).all()), "a kernel wrote outside its output"


@pytest.fixture
def guarded(monkeypatch):
    """Outputs of ``tfq.ops`` lie unaligned between guard zones, which must be intact in the end."""
    import importlib

    allocator = GuardedTorch()
    for name in OPS_MODULES:
        monkeypatch.setattr(importlib.import_module(f"tfq.ops.{name}"), "torch", allocator)
    yield allocator
    allocator.check()
    assert allocator.allocations, "the test used no guarded output"
