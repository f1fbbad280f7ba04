"""The models that can be converted, and where they differ in what the rest of the package asks of them."""

import inspect

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.normalization import AdaLayerNormSingle, AdaLayerNormZero

TRANSFORMERS = (DiTTransformer2DModel, PixArtTransformer2DModel)
CLASSES = (UNet2DModel, UNet2DConditionModel, ControlNetModel, *TRANSFORMERS)
CLASS_NAMES = ", ".join(cls.__name__ for cls in CLASSES)

# Layers at the ends of a model, which stay float.
BOUNDARY = {
    "conv_in": "first convolution: kept float",
    "controlnet_cond_embedding.conv_in": "first convolution: kept float",
    "pos_embed.proj": "first convolution: kept float",
    "conv_out": "last convolution: kept float",
    "proj_out": "last layer: kept float",
    "proj_out_2": "last layer: kept float",
}
# What a call names its noisy images.
_IMAGES = ("sample", "hidden_states")


def component_of(pipeline):
    """What a pipeline calls the model that is converted: "unet" or "transformer"; None if it has neither."""
    names = ("unet", "transformer")
    return next((name for name in names if getattr(pipeline, name, None) is not None), None)


def described(value):
    """What came in the place of a model, for errors: its class; of a pipeline also what to pass."""
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, DiffusionPipeline):
        part = component_of(value)
        return f"{name}; pass its {part}" if part else name
    return name


def blocks_of(model):
    """The blocks of a UNet or ControlNet in the order in which they run."""
    mid_block = [] if model.mid_block is None else [model.mid_block]
    return [*model.down_blocks, *mid_block, *getattr(model, "up_blocks", ())]


def adaln_norms(model):
    """Name -> adaptive norm of a transformer: what turns timesteps into scales, shifts and gates."""
    if not isinstance(model, TRANSFORMERS):
        return {}
    kinds = (AdaLayerNormZero, AdaLayerNormSingle)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def temporal_modules(model):
    """Names of the modules of a transformer whose place a row takes."""
    return [
        name if isinstance(norm, AdaLayerNormSingle) else f"{name}.emb"
        for name, norm in adaln_norms(model).items()
    ]


def residual_outputs(model):
    """Names of the 1x1 convolutions that read a ControlNet's residual stream and make its outputs."""
    if not isinstance(model, ControlNetModel):
        return []
    return [
        *(f"controlnet_down_blocks.{i}" for i in range(len(model.controlnet_down_blocks))),
        "controlnet_mid_block",
    ]


def arguments_of(model):
    """Names of the arguments of a call, in order, and those without which it cannot run."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if isinstance(model, PixArtTransformer2DModel):
        required.append("encoder_hidden_states")
    return [p.name for p in parameters], required


def call_of(names, args, kwargs):
    """The arguments of a call as a hook gets them, all by name; `names` from :func:`arguments_of`."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def conditions_of(model):
    """Names of the arguments that nothing but a pipeline can make up."""
    return [name for name in arguments_of(model)[1] if name not in (*_IMAGES, "timestep")]


def image_argument(model):
    """What a call of the model names its noisy images."""
    return next(name for name in arguments_of(model)[0] if name in _IMAGES)


def images_of(call):
    """The noisy images among the arguments of a call; None if there are none."""
    return next((call[name] for name in _IMAGES if name in call), None)


def out_channels(model):
    """Channels of the output; a DiT's configuration leaves them out where they are the input's."""
    return model.config.out_channels or model.config.in_channels


def output_of(returned):
    """What a call with ``return_dict=False`` returned as one tensor, ``(batch, ...)``.

    A ControlNet returns a list of images and one more, of different sizes: they are flattened and
    joined.
    """
    if isinstance(returned[0], torch.Tensor):
        return returned[0]
    images = [*returned[0], *returned[1:]]
    return torch.cat([image.flatten(1) for image in images], dim=1)
