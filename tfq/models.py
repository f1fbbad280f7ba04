"""The models that can be converted, and where they differ in what the rest of the package asks of them."""

import inspect

import torch
from diffusers import ControlNetModel, UNet2DConditionModel, UNet2DModel

CLASSES = (UNet2DModel, UNet2DConditionModel, ControlNetModel)
CLASS_NAMES = " or ".join(cls.__name__ for cls in CLASSES)

# Layers at the ends of a model, which stay float.
BOUNDARY = {
    "conv_in": "first convolution: kept float",
    "controlnet_cond_embedding.conv_in": "first convolution: kept float",
    "conv_out": "last convolution: kept float",
}


def blocks_of(model):
    """The blocks of a UNet or ControlNet in the order in which they run."""
    mid_block = [] if model.mid_block is None else [model.mid_block]
    return [*model.down_blocks, *mid_block, *getattr(model, "up_blocks", ())]


def residual_outputs(model):
    """Names of the 1x1 convolutions that read a ControlNet's residual stream and make its outputs."""
    if not isinstance(model, ControlNetModel):
        return []
    return [
        *(f"controlnet_down_blocks.{i}" for i in range(len(model.controlnet_down_blocks))),
        "controlnet_mid_block",
    ]


def arguments_of(model):
    """Names of the arguments of a call, in order, and those that have no default."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    return [p.name for p in parameters], required


def output_of(returned):
    """What a call with ``return_dict=False`` returned as one tensor, ``(batch, ...)``.

    A ControlNet returns a list of images and one more, of different sizes: they are flattened and
    joined.
    """
    if isinstance(returned[0], torch.Tensor):
        return returned[0]
    images = [*returned[0], *returned[1:]]
    return torch.cat([image.flatten(1) for image in images], dim=1)
