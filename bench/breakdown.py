"""Where the time of a call goes: every native operation and every torch operator, with its work."""

import contextlib
import dataclasses
import statistics
import typing

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tfq._ext import _C

# Bytes of an element by the code of its dtype (csrc/common/api.h).
_ELEMENT_BYTES = {0: 4, 1: 2, 2: 1}


class Work(typing.NamedTuple):
    """What a call is, and what it must do at least.

    ``operations`` are multiplications and additions; ``bytes`` those of its operands and its result,
    each counted once.
    """

    family: str
    label: str
    operations: int
    bytes: int


def _epilogue_bytes(epilogue, outputs):
    residual, residual_dtype, _, _, out_dtype, _, _ = epilogue[-7:]
    return outputs * (
        _ELEMENT_BYTES[out_dtype] + (_ELEMENT_BYTES[residual_dtype] if residual else 0)
    )


def _gemm(x, m, n, k, weight, zero_point, epilogue):
    moved = m * k + n * k // (2 if zero_point else 1) + _epilogue_bytes(epilogue, m * n)
    return Work("gemm_s8", f"{m}x{k}->{n}", 2 * m * n * k, moved)


def _conv(x, geometry, weight, zero_point, epilogue):
    batch, in_h, in_w, channels, out_h, out_w, n, kernel_h, kernel_w, stride = geometry[:10]
    k, outputs = kernel_h * kernel_w * channels, batch * out_h * out_w * n
    moved = batch * in_h * in_w * channels + n * k // (2 if zero_point else 1)
    marks = f"/{stride}" * (stride > 1) + " up" * (geometry[13] > 1)
    label = f"{kernel_h}x{kernel_w}{marks} {channels}->{n}@{batch}x{out_h}x{out_w}"
    return Work("conv2d_s8", label, 2 * outputs * k, moved + _epilogue_bytes(epilogue, outputs))


def _quantize(x, dtype, groups, group_size, *rest):
    elements = groups * group_size
    return Work("quantize", f"{groups}x{group_size}", 0, elements * (_ELEMENT_BYTES[dtype] + 1))


def _group_norm(x, x2, dtype, shape, *rest):
    batch, pixels, channels, channels2, _ = shape
    elements = batch * pixels * (channels + channels2)
    sources = f"{channels}+{channels2}" if channels2 else f"{channels}"
    label = f"{sources}@{batch}x{pixels}"
    return Work("group_norm_silu_quantize", label, 0, elements * (_ELEMENT_BYTES[dtype] + 1))


def _layer_norm(x, dtype, rows, channels, *rest):
    moved = rows * channels * (_ELEMENT_BYTES[dtype] + 1)
    return Work("layer_norm_quantize", f"{rows}x{channels}", 0, moved)


def _geglu(x, dtype, rows, channels, *rest):
    moved = rows * channels * (2 * _ELEMENT_BYTES[dtype] + 1)
    return Work("geglu_quantize", f"{rows}x{channels}", 0, moved)


def _attention(query, key, value, dtype, shape, scale, out, out_dtype):
    batch, tokens, kv_tokens, heads, head_size = shape
    queries, keys = batch * tokens * heads * head_size, batch * kv_tokens * heads * head_size
    moved = queries * (_ELEMENT_BYTES[dtype] + _ELEMENT_BYTES[out_dtype])
    moved += 2 * keys * _ELEMENT_BYTES[dtype]
    label = f"{batch}x{heads} {tokens}x{kv_tokens}x{head_size}"
    return Work("attention_s8", label, 4 * queries * kv_tokens, moved)


def _resnet_block(x, x2, dtype, shape, norm1, conv1, temporal, norm2, conv2, shortcuts, out):
    batch, height, width, channels, channels2, n = shape
    rows, total = batch * height * width, channels + channels2
    weights = [(conv1, 9 * total), (conv2, 9 * n)]
    weights += [(part, k) for part, k in zip(shortcuts, (channels, channels2), strict=False)]
    moved = rows * (total + n) * _ELEMENT_BYTES[dtype]
    moved += sum(n * k // (2 if part[1] else 1) for part, k in weights)
    sources = f"{channels}+{channels2}" if channels2 else f"{channels}"
    operations = 2 * rows * n * sum(k for _, k in weights)
    return Work("resnet_block", f"{sources}->{n}@{batch}x{height}x{width}", operations, moved)


def _gather(table, table_rows, width, *rest):
    return Work("temporal_gather", f"{width}", 0, 4 * width)


_NATIVE = {
    "gemm_s8": _gemm, "conv2d_s8": _conv, "quantize": _quantize,
    "group_norm_silu_quantize": _group_norm, "layer_norm_quantize": _layer_norm,
    "geglu_quantize": _geglu, "attention_s8": _attention,
    "resnet_block": _resnet_block, "temporal_gather": _gather,
}  # fmt: skip


@contextlib.contextmanager
def _native_calls(clock, calls):
    """Append (Work, seconds) of each native operation to `calls`."""
    originals = {name: getattr(_C, name) for name in _NATIVE}

    def timed(name):
        original, describe = originals[name], _NATIVE[name]

        def call(*args):
            start = clock()
            original(*args)
            seconds = clock() - start
            calls.append((describe(*args), seconds))

        return call

    for name in _NATIVE:
        setattr(_C, name, timed(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(_C, name, original)


class _TorchCalls(TorchDispatchMode):
    """Appends (Work, seconds) of each torch operator to `calls`."""

    def __init__(self, clock, calls):
        super().__init__()
        self.clock, self.calls = clock, calls

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = self.clock()
        result = operator(*args, **kwargs)
        seconds = self.clock() - start
        tensors = [t for t in (*args, *kwargs.values(), result) if isinstance(t, torch.Tensor)]
        count = flop_registry.get(operator.overloadpacket)
        operations = count(*args, **kwargs, out_val=result) if count else 0
        shapes = " ".join("x".join(map(str, t.shape)) for t in tensors[:-1] if t.dim())
        moved = sum(t.numel() * t.element_size() for t in tensors)
        name = f"torch {operator.overloadpacket.__name__}"
        self.calls.append((Work(name, shapes if operations else "", operations, moved), seconds))
        return result


@dataclasses.dataclass
class Row:
    """All calls of one operation with one shape within a call of the model."""

    work: Work
    calls: int
    seconds: float  # of all of them, the median over the repetitions

    def rates(self, operations_per_second, bytes_per_second):
        """(operations a second, bytes a second, share of what the machine allows)."""
        operations, moved = self.calls * self.work.operations, self.calls * self.work.bytes
        least = max(operations / operations_per_second, moved / bytes_per_second)
        return operations / self.seconds, moved / self.seconds, least / self.seconds


def _rows(repetitions):
    """Rows of repetitions of the same calls, the slowest first."""
    totals = []
    for calls in repetitions:
        sums = {}
        for work, seconds in calls:
            count, total = sums.get(work, (0, 0.0))
            sums[work] = (count + 1, total + seconds)
        totals.append(sums)
    rows = [
        Row(work, count, statistics.median(sums[work][1] for sums in totals))
        for work, (count, _) in totals[0].items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)


def break_down(call, clock, repetitions):
    """Time `call` and all operations in it.

    The whole call, its native operations and its torch operators are timed in calls of their own, so
    that no recording is within what another one times.

    Parameters
    ----------
    call : callable
        Without arguments; makes the same operations every time.
    clock : callable
        Seconds.
    repetitions : int
        Of each of the three.

    Returns
    -------
    total : float
        Seconds of a call, the median.
    native, torch_rows : list of Row
    """
    call()
    totals, native, others = [], [], []
    for _ in range(repetitions):
        start = clock()
        call()
        totals.append(clock() - start)
        native.append([])
        with _native_calls(clock, native[-1]):
            call()
        others.append([])
        with _TorchCalls(clock, others[-1]):
            call()
    return statistics.median(totals), _rows(native), _rows(others)
