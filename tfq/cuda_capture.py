"""A model's kernels as a CUDA graph: one launch for all of them."""

import torch

_WARM_UPS = 2


class CudaCapture:
    """Makes CUDA graphs, on a stream of its own."""

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device)

    def __deepcopy__(self, memo):
        return CudaCapture(self.stream.device)

    def new_pool(self):
        """Memory for graphs that replay one after the other."""
        return torch.cuda.graph_pool_handle()

    def warm_up(self, run):
        """Run what will be captured, which then finds everything made that is made on first use."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            for _ in range(_WARM_UPS):
                run()
        self.stream.synchronize()

    def __call__(self, run, pool):
        """(function that runs it again on the current stream, what it returned)."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            result = run()
        return graph.replay, result
