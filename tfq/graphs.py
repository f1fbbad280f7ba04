"""A converted UNet captured as graphs: one for all timesteps, and one for what depends on the text alone."""

import inspect
import threading

import torch
from torch.utils import _pytree as pytree

from tfq import capture, models, text_cache
from tfq.adapters import Structure
from tfq.cpu_capture import CpuCapture
from tfq.cuda_capture import CudaCapture
from tfq.fallback import prefer_float
from tfq.ops import _cuda, _dispatch
from tfq.ops._checks import HAS_CUDA, HOW_TO_GET_CUDA
from tfq.temporal import TemporalEmbedding

_TEXT = "encoder_hidden_states"


class Captured:
    """The graphs for one signature, and the memory that they read and write.

    Parameters
    ----------
    forward : method
        Of the UNet's class, bound; called with keyword arguments.
    leaves, spec : list, TreeSpec
        The arguments but the timestep, flattened; tensors of the device.
    timestep : Tensor
        ``(batch,)`` on the device: what the graph looks up, unless there is an `index`.
    index : Tensor or None
        int64 ``(batch,)`` on the device: the rows.
    make : CpuCapture or CudaCapture
    """

    def __init__(self, forward, leaves, spec, timestep, index, make):
        self.leaves = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
        self.timestep, self.index = timestep.clone(), index
        text = pytree.tree_unflatten(self.leaves, spec).get(_TEXT)
        self.position = next((i for i, x in enumerate(self.leaves) if x is text), None)
        if text is None:
            self.position = None
        self.seen = None  # the text that is in the graph's memory, and its version
        # What hangs on the text alone is the graph's too: its tensors are kept.
        self.cache = text_cache.TextCache()

        def run():
            arguments = pytree.tree_unflatten(self.leaves, spec)  # anew: a forward may empty lists
            with text_cache.use(self.cache), capture.rows(index):
                return forward(timestep=self.timestep, **arguments)

        def run_text():
            self.cache.compute_again()

        # A pool of its own: no replay of another signature writes where this one's text is kept.
        pool = make.new_pool()
        make.warm_up(run)
        # The kernels read these addresses even if the model is given other weights. (Not before now: the
        # first call on a card changes the layout of its weights.)
        model = forward.__self__
        tensors = (*model.parameters(), *model.buffers())
        self.weights = [x.detach() for x in tensors]
        self.weights += [y for x in tensors for y in _cuda.derived(x)]
        self.cache.keep(text)
        self.replay_text = None
        if self.cache.texts:
            self.replay_text, _ = make(run_text, pool)
        self.replay, self.output = make(run, pool)

    def __call__(self, leaves, timestep, rows):
        """The output of a call, memory of its own."""
        for position, (static, leaf) in enumerate(zip(self.leaves, leaves, strict=True)):
            if isinstance(leaf, torch.Tensor) and position != self.position:
                static.copy_(leaf)
        if self.position is not None:
            self._read_text(leaves[self.position])
        if self.index is None:
            self.timestep.copy_(timestep)
        else:
            _write(self.timestep, timestep.tolist())
            _write(self.index, rows)
        self.replay()
        return pytree.tree_map_only(torch.Tensor, torch.clone, self.output)

    def _read_text(self, text):
        version = None if text.is_inference() else text._version
        seen, self.seen = self.seen, (text, version)
        if version is not None and seen is not None and seen[0] is text and seen[1] == version:
            return
        self.leaves[self.position].copy_(text)
        if self.replay_text is not None:
            self.replay_text()


def _write(tensor, values):
    """Values of the host into a vector of the device, which nobody waits for."""
    if len(set(values)) == 1:
        tensor.fill_(values[0])
    else:
        tensor.copy_(torch.tensor(values), non_blocking=True)


class GraphedForward:
    """Stands for ``unet.forward``: captures on the first call of a signature, replays on the others."""

    def __init__(self, unet, make, slower=None, card=""):
        self.unet, self.make = unet, make
        self.slower, self.card = slower, card  # of tfq.fallback.prefer_float; None: no layer moves
        self.signature = inspect.signature(type(unet).forward)
        self.captured = {}
        self.structure = None  # of the model when it was captured
        self.running = threading.Lock()  # the memory of a graph is one call's

    def __getstate__(self):
        # Of a copy nothing is captured yet: graphs are bound to the memory of this model.
        return self.unet, self.make, self.slower, self.card

    def __setstate__(self, state):
        self.__init__(*state)

    # A compiler would take the forward of the class for this one, and wait for its own lock.
    @torch.compiler.disable(reason="what tfq.graph has captured is not compiled")
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        """As the UNet's own ``forward``."""
        arguments = dict(self.signature.bind(self.unet, *args, **kwargs).arguments)
        del arguments["self"]
        forward = type(self.unet).forward.__get__(self.unet)
        timestep, return_dict = arguments.pop("timestep"), arguments.pop("return_dict", True)
        values = self._timesteps(timestep, arguments["sample"])
        rows = self._rows(values, arguments)
        if rows is not None and min(rows) < 0:  # computed in float: not what was captured
            return forward(timestep=timestep, return_dict=return_dict, **arguments)
        leaves, spec = pytree.tree_flatten(arguments)
        key = (spec, values.dtype, rows is None, *map(_facts, leaves))
        with self.running, self.make.in_order():
            if self.captured and self.structure.has_changed():
                self.captured.clear()
            if key not in self.captured:
                device = arguments["sample"].device
                index = None if rows is None else torch.tensor(rows, device=device)
                if self.slower is not None:
                    self._choose_float(lambda: forward(timestep=values, **arguments), index)
                self.captured[key] = Captured(
                    forward, leaves, spec, values.to(device), index, self.make
                )
                self.structure = Structure(self.unet)
            output = self.captured[key](leaves, values, rows)
        return output if return_dict else output.to_tuple()

    def _choose_float(self, call, index):
        with capture.rows(index):
            prefer_float(self.unet, call, self.slower, self.card)

    def _timesteps(self, timestep, sample):
        """``(batch,)`` where it is, of the dtype that the UNet would give it."""
        if not isinstance(timestep, torch.Tensor):
            whole = isinstance(timestep, int) or _TEXT not in self.signature.parameters
            timestep = torch.tensor(timestep, dtype=torch.int64 if whole else torch.float64)
        return timestep.expand(sample.shape[0])

    def _rows(self, timesteps, arguments):
        """Rows of timesteps on the host, -1 where there is none; None: the device looks them up."""
        embedding = self.unet.time_embedding
        on_host = timesteps.is_cpu and arguments.get("timestep_cond") is None
        return embedding.rows_of(timesteps.float()) if on_host and embedding.is_table() else None


def _facts(leaf):
    """What a graph is bound to of an argument."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.stride()
    return leaf


def graph(unet):
    """Run a converted UNet or ControlNet without its Python from now on, in place: the same bits, sooner.

    The first call of each signature (shapes, dtypes and what is no tensor) runs the model and captures
    it: on a GPU as a CUDA graph, on a CPU as a list of the kernels and of torch's operators with their
    memory. Later ones copy their inputs into that memory and replay it, whatever the timestep: its
    row is read by index in the device's memory. A timestep on the host (a number or a CPU tensor) that has
    a row costs nothing else, and one that has none runs without a graph; one on the GPU is looked up there,
    beside the float block that computes unknown ones, unless ``drop_tib=True`` removed that. Key and
    value of the text are a second graph, replayed only when the text is another tensor than before.
    On a GPU where it was measured that a layer's product is no faster on integers (``bench/sweep.py``), the
    layer is captured in float, and :func:`tfq.report` lists it with the times; nothing waits for the GPU.
    Calls of several threads, and of several streams, wait for each other; hooks inside of the UNet do not
    run in a replay, and ``torch.compile`` leaves it as it is. Adapters that come, go or are set otherwise,
    processors and FreeU are noticed, and the next call captures anew. On a CPU values written into the
    weights are seen. After any other change to the model (``to()``; on a GPU also ``load_state_dict``, for
    what the kernels read is made of the weights) call this again; ``del unet.forward`` ends it.

    Parameters
    ----------
    unet : UNet2DModel, UNet2DConditionModel or ControlNetModel
        Converted by :func:`tfq.convert`.

    Returns
    -------
    UNet2DModel, UNet2DConditionModel or ControlNetModel
        `unet` itself, with the same signature and the same outputs.

    Raises
    ------
    TypeError
        If it is not converted.
    NotImplementedError
        If this build has no kernels for its device; at a call, if the model reads values on the host.
    """
    is_transformer = isinstance(unet, models.TRANSFORMERS)
    if is_transformer or not isinstance(getattr(unet, "time_embedding", None), TemporalEmbedding):
        raise TypeError(
            f"graph: needs a UNet or a ControlNet converted by tfq.convert, got a {models.described(unet)}"
            f"{'; transformers have no graphs yet' if is_transformer else ''}"
        )
    device = unet.device
    if device.type == "cpu":
        unet.forward = GraphedForward(unet, CpuCapture())
        return unet
    if not HAS_CUDA:
        raise NotImplementedError(
            f"graph: the model is on '{device}', but this build of tfq has native kernels for 'cpu' only; "
            f"{HOW_TO_GET_CUDA}"
        )
    card = _dispatch.card_of(device)
    slower = _dispatch.slower_than_float(_dispatch.load(), card)
    unet.forward = GraphedForward(unet, CudaCapture(device), slower, card["card"])
    return unet
