"""A model's kernels as a CUDA graph: one launch for all of them."""

import contextlib

import torch

from tfq.ops import _cuda

_WARM_UPS = 2


class CudaCapture:
    """Makes CUDA graphs, on a stream of its own."""

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device)
        self.last = torch.cuda.Event()  # end of the last call
        self.workspaces = {}

    def __reduce__(self):
        return CudaCapture, (self.stream.device,)

    def new_pool(self):
        """Memory for graphs that replay one after the other."""
        return torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def in_order(self):
        """Around a call, which begins on the GPU when the call before has ended, on whatever stream."""
        stream = torch.cuda.current_stream(self.stream.device)
        stream.wait_event(self.last)
        yield
        self.last.record(stream)

    def warm_up(self, run):
        """Run what will be captured, which then finds everything made that is made on first use."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream), _cuda.own_workspaces(self.workspaces):
            for _ in range(_WARM_UPS):
                run()
        self.stream.synchronize()

    def __call__(self, run, pool):
        """(function that runs it again on the current stream, what it returned)."""
        graph = torch.cuda.CUDAGraph()
        # What other threads allocate meanwhile is no part of it.
        capture = torch.cuda.graph(
            graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"
        )
        with capture, _cuda.own_workspaces(self.workspaces):
            result = run()
        return graph.replay, result
