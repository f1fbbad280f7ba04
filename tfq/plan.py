"""What becomes of each layer: one :class:`LayerPlan` for every Conv2d and Linear of a float UNet.

The plan is data, not modules: conversion decides it, lowering carries it out on a model with or
without weights, a saved model carries it in its configuration, and the report prints it.
"""

import dataclasses

from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tfq import models, temporal
from tfq.adapters import base_modules
from tfq.geometry import unsupported_conv
from tfq.simulation import ACTIVATIONS
from tfq.weights import BITS

_EMBEDDINGS = (
    "time_embedding",
    "class_embedding",
    "add_embedding",
    "encoder_hid_proj",
    "time_proj",
)


_CHOICES = {
    "weight_bits": BITS,
    "activations": ACTIVATIONS,
    "ranges": ("dynamic", "timestep", "static"),
}


@dataclasses.dataclass
class LayerPlan:
    """One Conv2d or Linear of the float model and what becomes of it.

    Parameters
    ----------
    name, type : str
        Module name and class name in the float model.
    reason : str
        Why the layer stays float, or why it is treated more finely than the configuration asks for;
        empty otherwise.
    macs : int
        Multiply-adds of one call with one image.
    converted : bool
        Whether the layer runs on integers.
    weight_bits : {8, 4}
        Of a converted layer.
    activations : {"int8", "int16", "float"}
        Of a converted layer; "int16": two bytes; "float": the weights alone are integers.
    ranges : {"dynamic", "timestep", "static"}
        Where the range of the input comes from. Decided by the calibration.
    sources : tuple of int
        Channels of each part of an input that is quantized part by part; empty: in one.
    adds_bias : bool
        Whether the layer has a bias that the float layer has not: what the reconstruction left over.
    weight_error : float or None
        Relative L2 error of the integer weights.
    output_error : float or None
        Estimated relative L2 error of the model's output that quantizing this layer alone causes.
    """

    name: str
    type: str
    reason: str = ""
    macs: int = 0
    converted: bool = True
    weight_bits: int = 8
    activations: str = "int8"
    ranges: str = "dynamic"
    sources: tuple = ()
    adds_bias: bool = False
    weight_error: float | None = None
    output_error: float | None = None

    def keep_float(self, reason):
        """Leave the layer as it is, for `reason`."""
        self.converted, self.reason = False, reason

    def to_dict(self):
        """Plain dict without the fields that have their default value."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = dataclasses.asdict(self)
        values["sources"] = list(self.sources)
        return {
            k: v for k, v in values.items() if v != defaults[k] and not (k == "sources" and not v)
        }

    @classmethod
    def from_dict(cls, values):
        """Inverse of :meth:`to_dict`; raises ValueError for a value that no layer has."""
        values = dict(values)
        values["sources"] = tuple(values.get("sources", ()))
        plan = cls(**values)
        impossible = [
            f"{name} of {plan.name} is {getattr(plan, name)!r}"
            for name, choices in _CHOICES.items()
            if getattr(plan, name) not in choices
        ]
        if impossible:
            raise ValueError(", ".join(impossible))
        return plan


def plan_layers(unet, config, macs, skip_sources):
    """Decide for every Conv2d and Linear of a float UNet what the configuration alone can decide.

    Parameters
    ----------
    unet : a model of :data:`tfq.models.CLASSES`
    config : TfqConfig
    macs, skip_sources : dict
        From :func:`tfq.shapes.trace_shapes`.

    Returns
    -------
    list of LayerPlan
    """
    known = base_modules(unet)
    for name in config.modules_to_not_convert:
        if name not in known:
            raise ValueError(
                f"convert: modules_to_not_convert has {name!r}, which is no module of the model"
            )
    partition = temporal.temporal_blocks(unet)
    temporal_names = {block["name"] for block in partition["blocks"]}
    temporal_reason = "temporal block: float"
    if partition["conditions"]:
        temporal_reason += f", as {', '.join(partition['conditions'])} joins it"
    adaln_embeddings = tuple(f"{norm}.emb." for norm in models.adaln_norms(unet))
    shortcuts = _shortcuts(known) | dict.fromkeys(models.residual_outputs(unet))
    plans = []
    for name, module in known.items():
        if not isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            continue
        plan = LayerPlan(
            name, type(module).__name__, macs=macs.get(name, 0), weight_bits=config.weight_bits,
            activations=config.activations,
        )  # fmt: skip
        if name in temporal_names:
            plan.keep_float(temporal_reason)
        elif reason := _kept_float(unet, name, module, config, adaln_embeddings):
            plan.keep_float(reason)
        plans.append(plan)
        if plan.converted and name in shortcuts:
            split = skip_sources.get(shortcuts[name]) if config.split_skip else None
            plan.sources = tuple(split or (module.in_channels,))
    return plans


def _shortcuts(modules):
    """Name of each 1x1 shortcut convolution of a ResBlock -> name of the block."""
    return {
        f"{name}.conv_shortcut": name
        for name, block in modules.items()
        if isinstance(block, ResnetBlock2D)
        and getattr(modules.get(f"{name}.conv_shortcut"), "kernel_size", None) == (1, 1)
    }


def _kept_float(unet, name, module, config, adaln_embeddings):
    """Why a layer outside of the temporal block stays float, or an empty string."""
    if name in models.BOUNDARY:
        return models.BOUNDARY[name]
    parent = name.split(".")[0]
    is_embedding = parent in _EMBEDDINGS and isinstance(getattr(unet, parent, None), nn.Module)
    if is_embedding or name.startswith(adaln_embeddings):
        return "time or condition embedding: kept float"
    if any(name == n or name.startswith(n + ".") for n in config.modules_to_not_convert):
        return "in modules_to_not_convert"
    if config.weights == "float":
        return "weights='float'"
    if isinstance(module, nn.Linear):
        return "" if type(module) is nn.Linear else f"no kernel for type {type(module).__name__}"
    unsupported = unsupported_conv(module)
    return f"no kernel for {unsupported}" if unsupported else ""
