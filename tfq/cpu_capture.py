"""A model's calls on the CPU, recorded to be run again without its Python: what a CUDA graph is to a GPU.

Native calls are kept with their addresses (``_C.Program``), torch's operators with their tensors, below
the dispatcher, where no Python of a module is left. What they allocate comes from a :class:`Pool`, so that
every address stays the recording's own, and memory is used again as soon as it was while recording.
"""

import bisect
import contextlib
import functools
import weakref

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tfq._ext import _C
from tfq.ops import _recording

_aten = torch.ops.aten
# Operators that return memory with nothing in it: there is nothing to run again.
_UNINITIALIZED = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default,
    _aten.new_empty.default, _aten.new_empty_strided.default,
}  # fmt: skip
# Of these, a value on the host depends on shapes alone.
_OF_SHAPES = {_aten._fused_sdp_choice.default}
_GRANULE = 4096  # bytes


class Pool:
    """Memory that one recording owns: a block is free again when the last tensor in it is gone."""

    def __init__(self):
        self._free = []  # (bytes, number), ascending
        self._blocks = []  # uint8 tensors, which are never freed
        self._block_at = {}  # address -> block

    def empty(self, like):
        """An uninitialized tensor with dtype, sizes and strides of `like`, a meta tensor."""
        size = max(like.untyped_storage().nbytes(), 1)
        number = self._take(-(-size // _GRANULE) * _GRANULE)
        window = self._blocks[number].numpy()[:]  # lives as long as the tensor's storage
        weakref.finalize(window, self._give_back, number).atexit = False
        memory = torch.frombuffer(window, dtype=like.dtype)
        return memory.as_strided(like.shape, like.stride())

    def unowned(self, tensor):
        """`tensor`, or if it lies in the pool the same values without a claim on their block."""
        block = self._block_at.get(tensor.untyped_storage().data_ptr())
        if block is None:
            return tensor
        alias = torch.empty(0, dtype=tensor.dtype)
        return alias.set_(
            block.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )

    def _take(self, size):
        position = bisect.bisect_left(self._free, (size, -1))
        # A block twice as large is better kept for its own kind.
        if position < len(self._free) and self._free[position][0] <= 2 * size:
            return self._free.pop(position)[1]
        block = torch.empty(size, dtype=torch.uint8)
        self._blocks.append(block)
        self._block_at[block.data_ptr()] = block
        return len(self._blocks) - 1

    def _give_back(self, number):
        bisect.insort(self._free, (self._blocks[number].numel(), number))


class _NativeRecorder:
    """The functions of ``_C`` that run and add themselves to a recording."""

    def __init__(self, recording):
        self._recording = recording

    def __getattr__(self, name):
        function = getattr(_C, name)

        def call(*arguments):
            function(*arguments)
            getattr(self._recording.program(), name)(*arguments)

        return call


class _Recording(TorchDispatchMode):
    """Runs torch's operators and keeps those that compute, as functions without arguments."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.steps = pool, []
        self._program = None  # the last step, while that is one

    def program(self):
        """The native program at the end of the steps."""
        if self._program is None:
            self._program = _C.Program()
            self.steps.append(self._program.run)
        return self._program

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _UNINITIALIZED:
            return self.pool.empty(function(*args, **{**kwargs, "device": "meta"}))
        result = function(*args, **kwargs)
        if function in _OF_SHAPES:
            return result
        outputs = pytree.tree_leaves(result)
        host = next((x for x in outputs if x is not None and not torch.is_tensor(x)), None)
        if host is not None:
            raise NotImplementedError(
                f"graph: a value goes to the host while the model is recorded, {host!r} of {function}; only "
                f"what does not depend on a call's values can be run again"
            )
        if function._schema.is_mutable:
            self._keep(function, args, kwargs, ())
            return result
        storages = {
            x.untyped_storage().data_ptr()
            for x in pytree.tree_leaves((args, kwargs))
            if torch.is_tensor(x)
        }
        if any(x is not None and x.untyped_storage().data_ptr() in storages for x in outputs):
            return result  # a view: the same memory at every run
        kept = pytree.tree_map_only(torch.Tensor, self._copy, result)
        self._keep(function, args, kwargs, pytree.tree_leaves(kept))
        return kept

    def _copy(self, tensor):
        return self.pool.empty(torch.empty_like(tensor, device="meta")).copy_(tensor)

    def _keep(self, function, args, kwargs, outputs):
        args, kwargs, outputs = pytree.tree_map_only(
            torch.Tensor, self.pool.unowned, (args, kwargs, outputs)
        )
        self.steps.append(functools.partial(_run_again, function, args, kwargs, outputs))
        self._program = None


def _run_again(function, args, kwargs, outputs):
    result = function(*args, **kwargs)
    for output, new in zip(outputs, pytree.tree_leaves(result) if outputs else (), strict=True):
        if output is not None:
            output.copy_(new)


class CpuCapture:
    """Makes recordings, as :class:`tfq.cuda_capture.CudaCapture` makes CUDA graphs."""

    def new_pool(self):
        """Memory for recordings that run one after the other."""
        return Pool()

    def in_order(self):
        """Around a call."""
        return contextlib.nullcontext()

    def warm_up(self, run):
        """Run what will be recorded, which then finds everything made that is made on first use."""
        run()

    def __call__(self, run, pool):
        """(function that runs it again, what it returned)."""
        recording = _Recording(pool)
        with recording, _recording.through(_NativeRecorder(recording)):
            result = run()
        return Replay(recording.steps, pool), result


class Replay:
    """Runs the steps of a recording again; keeps the memory whose addresses they have."""

    def __init__(self, steps, pool):
        self.steps, self.pool = steps, pool

    @torch.no_grad()
    def __call__(self):
        """Once more."""
        for step in self.steps:
            step()
