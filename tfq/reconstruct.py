"""Integer weights for a UNet, chosen on its own trajectory, layer after layer.

All calls run as one batch that holds every image twice: first as the float network computes it, then
as the quantized one does. One forward pass then visits the layers in order, and each is rounded when
it is reached: its inputs are those of the network quantized so far, its targets the outputs of the
float network. The pass is the model's own forward, whatever its blocks are.
"""

import typing

import torch
from torch import nn

from tfq import temporal
from tfq.adapters import base_modules
from tfq.checkpoint import Checkpoint
from tfq.models import images_of
from tfq.rounding import InputMoments, round_weight
from tfq.simulation import ACTIVATIONS, SimulatedLayer, replaced_forward
from tfq.weights import BITS

# Inputs that a layer's moments are taken of: so many, or as many as an input is long. With 4096 the
# error of the embedded model's output on other noise is 11 % larger.
_LEAST_TOKENS = 16384
_TOKEN_CHUNK = 4096


class Reconstruction(typing.NamedTuple):
    """What :func:`reconstruct_blocks` returns.

    Parameters
    ----------
    weights : dict
        Layer name -> QuantizedWeight, or a list of them, one a source, for a layer in `sources`.
    biases : dict
        Layer name -> float32 ``(n,)``: the bias to use with these weights in place of the layer's own.
    """

    weights: dict
    biases: dict


@torch.no_grad()
def reconstruct_blocks(
    unet,
    bits,
    calls,
    *,
    activations="int8",
    seed=0,
    frozen=frozenset(),
    sources=None,
    progress=None,
    checkpoint=None,
):
    """Round the weights of a float UNet so that its outputs stay what they are.

    Parameters
    ----------
    unet : a model of :data:`tfq.models.CLASSES`
        Float, in evaluation mode; unchanged afterwards.
    bits : dict
        Layer name -> 8 or 4; other layers stay float. The temporal block (``time_embedding``, every
        ``time_emb_proj``) and the layers in `frozen` stay float even if they are in it.
    calls : list of dict
        Keyword arguments of ``unet.forward`` along float trajectories; batches may differ in size, not
        in shape. All run together: memory grows with twice the sum of their images.
    activations : {"int8", "int16", "float"} or dict
        What the inputs of the layers will be: of all, or by layer name.
    seed : int
        Of the choice of inputs; the result is a function of it and of the arguments above.
    frozen : set of str, optional
        Layers never to be rounded.
    sources : dict, optional
        Layer name -> channels of each source of its input, for layers that keep sources apart.
    progress : callable, optional
        ``progress(done, total, label)`` after each layer.
    checkpoint : path, optional
        Folder for the finished layers. A run that finds it continues there, with the same result.

    Returns
    -------
    Reconstruction
        Pair of dicts ``(weights, biases)``.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        The message names the argument or layer, what was required and what came.
    KeyboardInterrupt
        With a message that says how to continue, if there is a checkpoint.
    """
    modules = base_modules(unet)
    bits = _rounded_layers(unet, modules, bits, frozen)
    _check_arguments(unet, modules, bits, activations, sources)
    joined, images = join_calls(calls)
    if not isinstance(activations, dict):
        activations = dict.fromkeys(bits, activations)
    layers = {
        name: SimulatedLayer(modules[name], name, activations[name], (sources or {}).get(name))
        for name in bits
    }
    store = None
    if checkpoint is not None:
        settings = {"bits": bits, "activations": activations, "seed": seed, "sources": sources}
        store = Checkpoint(checkpoint, settings, unet.state_dict(), joined)
    run = _Run(layers, bits, images, seed, progress, store)
    device = next(unet.parameters()).device
    twice = _map_tensors(lambda tensor: torch.cat([tensor, tensor]).to(device), joined)
    try:
        with replaced_forward(modules, {name: run.forward_of(name) for name in layers}):
            unet(**twice)
    except KeyboardInterrupt:
        if store is None:
            raise
        raise KeyboardInterrupt(
            f"reconstruct_blocks: interrupted after {len(run.done)} of {len(layers)} layers; run again "
            f"with checkpoint={str(checkpoint)!r} to continue"
        ) from None
    missing = [name for name in layers if name not in run.done]
    if missing:
        raise ValueError(f"reconstruct_blocks: no call reaches {', '.join(missing)}")
    kept_apart = sources or {}
    return Reconstruction(
        {name: w if name in kept_apart else w[0] for name, (w, _) in run.done.items()},
        {name: bias for name, (_, bias) in run.done.items()},
    )


class _Run:
    """The layers of one pass, each rounded at its first call."""

    def __init__(self, layers, bits, images, seed, progress, store):
        self.layers, self.bits, self.images, self.seed = layers, bits, images, seed
        self.progress, self.store = progress, store
        self.done = {}  # layer name -> (list of QuantizedWeight, bias)

    def forward_of(self, name):
        """The forward of a layer while the pass lasts."""
        layer = self.layers[name]
        float_forward = layer.layer.forward

        def forward(x, *args, **kwargs):
            y = float_forward(x[: self.images], *args, **kwargs)
            x = layer.quantize_input(x[self.images :])
            if name not in self.done:
                self._finish(layer, self._stored(layer) or self._round(layer, x, y))
            return torch.cat([y, layer.product(x).to(y.dtype)])

        return forward

    def _stored(self, layer):
        return (
            None if self.store is None else self.store.load(layer.name, layer.layer.weight.device)
        )

    def _round(self, layer, x, y):
        weight = layer.layer.weight.float().flatten(1)
        try:
            grid, levels, bias = round_weight(
                weight, self._moments(layer, x, y), self.bits[layer.name], layer.group_columns
            )
        except ValueError as error:
            raise ValueError(f"reconstruct_blocks: {layer.name}: {error}") from error
        result = grid.integers(levels, layer.layer.weight.shape), bias
        if self.store is not None:
            self.store.save(layer.name, *result)
        return result

    def _moments(self, layer, x, y):
        inputs = layer.layer.weight[0].numel()
        # One generator a layer, so that a run that continues draws the same inputs.
        order = list(self.layers).index(layer.name)
        generator = torch.Generator().manual_seed(self.seed + order)
        moments = InputMoments(inputs, y.shape[1 if layer.is_conv else -1], x.device)
        x, y = layer.tokens(x, y, max(_LEAST_TOKENS, inputs), generator)
        for pair in zip(x.split(_TOKEN_CHUNK), y.float().split(_TOKEN_CHUNK), strict=True):
            moments.add(*pair)
        return moments

    def _finish(self, layer, result):
        layer.install(*result)
        self.done[layer.name] = result
        if self.progress is not None:
            self.progress(len(self.done), len(self.layers), layer.name)


def _rounded_layers(unet, modules, bits, frozen):
    """`bits` without what stays float."""
    unknown = sorted((set(bits) | set(frozen)) - set(modules))
    if unknown:
        raise ValueError(
            f"reconstruct_blocks: {', '.join(map(repr, unknown))} in bits or frozen is no layer of the "
            f"{type(unet).__name__}"
        )
    kept = {block["name"] for block in temporal.temporal_blocks(unet)["blocks"]} | set(frozen)
    return {
        name: value
        for name, value in bits.items()
        if name not in kept and name.split(".")[0] not in ("time_proj", "time_embedding")
    }


def _check_arguments(unet, modules, bits, activations, sources):
    if unet.training:
        raise ValueError("reconstruct_blocks: unet must be in evaluation mode: call unet.eval()")
    for value in activations.values() if isinstance(activations, dict) else (activations,):
        if value not in ACTIVATIONS:
            raise ValueError(
                f'reconstruct_blocks: activations must be "int8", "int16" or "float", got {value!r}'
            )
    for name, value in bits.items():
        if value not in BITS:
            raise ValueError(f"reconstruct_blocks: bits of {name} must be 8 or 4, got {value!r}")
        if not isinstance(modules[name], (nn.Conv2d, nn.Linear)):
            raise TypeError(
                f"reconstruct_blocks: {name} must be a Conv2d or Linear, got "
                f"{type(modules[name]).__name__}"
            )
    unknown = sorted(set(sources or {}) - set(modules))
    if unknown:
        raise ValueError(
            f"reconstruct_blocks: sources has {', '.join(map(repr, unknown))}, no layer of the model"
        )


def join_calls(calls):
    """One call for all: forward arguments with the batches behind one another.

    Parameters
    ----------
    calls : list of dict
        Tensors are joined along their first dimension, a scalar timestep is repeated for its images,
        anything else must be the same in all calls.

    Returns
    -------
    joined : dict
    images : int
    """
    if not calls:
        raise ValueError("reconstruct_blocks: calls must have at least one call, got none")
    for call in calls:
        if not isinstance(call, dict) or not isinstance(images_of(call), torch.Tensor):
            raise TypeError(
                f"reconstruct_blocks: calls must be dicts of forward arguments with a tensor sample, "
                f"got {type(call).__name__}"
            )
    batches = [len(images_of(call)) for call in calls]
    expanded = [
        {**call, "timestep": torch.as_tensor(call["timestep"]).reshape(-1).expand(batch)}
        for call, batch in zip(calls, batches, strict=True)
    ]
    return _join("calls", expanded), sum(batches)


def _join(label, values):
    first = values[0]
    if isinstance(first, dict):
        if any(set(value) != set(first) for value in values):
            raise ValueError(f"reconstruct_blocks: all {label} must have the same arguments")
        return {key: _join(key, [value[key] for value in values]) for key in first}
    if isinstance(first, torch.Tensor):
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"reconstruct_blocks: {label} must have one shape in all calls, got {sorted(shapes)}"
            )
        return torch.cat(values)
    if any(value != first for value in values):
        raise ValueError(f"reconstruct_blocks: {label} must be the same in all calls")
    return first


def _map_tensors(function, value):
    if isinstance(value, dict):
        return {key: _map_tensors(function, item) for key, item in value.items()}
    return function(value) if isinstance(value, torch.Tensor) else value
