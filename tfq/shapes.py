"""Shapes of a UNet's layers, found by running it on fake tensors: no memory, no arithmetic."""

import torch
from diffusers import ControlNetModel
from diffusers.models.embeddings import (
    IPAdapterPlusImageProjection,
    MultiIPAdapterImageProjection,
)
from diffusers.models.unets import unet_2d_blocks as unet_blocks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tfq.adapters import base_modules

_DEFAULT_SIZE = 32
_TEXT_LENGTH = 77
_UP_BLOCKS = (unet_blocks.UpBlock2D, unet_blocks.AttnUpBlock2D, unet_blocks.CrossAttnUpBlock2D)


def example_inputs(unet, batch=1, generator=None):
    """Keyword arguments of one call: noise, timestep 1 and whatever conditions the config asks for.

    Raises ValueError for a condition whose shape the config does not tell.
    """
    config, dtype = unet.config, unet.dtype
    size = config.get("sample_size") or _DEFAULT_SIZE
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    noise = torch.randn(batch, config.in_channels, height, width, generator=generator)
    inputs = {"sample": noise.to(dtype), "timestep": 1}
    class_type = getattr(config, "class_embed_type", None)
    if class_type in ("projection", "simple_projection"):
        inputs["class_labels"] = torch.zeros(
            batch, config.projection_class_embeddings_input_dim, dtype=dtype
        )
    elif class_type == "identity":
        inputs["class_labels"] = torch.zeros(
            batch, unet.time_embedding.linear_2.out_features, dtype=dtype
        )
    elif getattr(unet, "class_embedding", None) is not None:
        classes = getattr(config, "num_class_embeds", None) or 1
        inputs["class_labels"] = torch.randint(classes, (batch,), generator=generator)
    if "cross_attention_dim" in config:
        dim = getattr(config, "encoder_hid_dim", None) or config.cross_attention_dim
        dim = dim[0] if isinstance(dim, (tuple, list)) else dim
        inputs["encoder_hidden_states"] = torch.zeros(batch, _TEXT_LENGTH, dim, dtype=dtype)
        addition = getattr(config, "addition_embed_type", None)
        if addition == "text_time":
            pooled = (
                config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            )
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.zeros(batch, pooled, dtype=dtype),
                "time_ids": torch.zeros(batch, 6, dtype=dtype),
            }
        elif addition not in (None, "text"):
            raise ValueError(f"example_inputs: no example for addition_embed_type={addition!r}")
        if isinstance(getattr(unet, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
            inputs.setdefault("added_cond_kwargs", {})["image_embeds"] = [
                _image_embedding(layer, batch, dtype)
                for layer in unet.encoder_hid_proj.image_projection_layers
            ]
    if isinstance(unet, ControlNetModel):
        # Each block of the embedding but the first halves the control image.
        scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        shape = (batch, config.conditioning_channels, scale * height, scale * width)
        inputs["controlnet_cond"] = torch.rand(shape, generator=generator).to(dtype)
    return inputs


def _image_embedding(projection, batch, dtype):
    """What an IP-Adapter's projection reads: one image; a sequence of embeddings in "plus" adapters."""
    width = next(m for m in projection.modules() if isinstance(m, nn.Linear)).in_features
    sequence = (1,) if isinstance(projection, IPAdapterPlusImageProjection) else ()
    return torch.zeros(batch, 1, *sequence, width, dtype=dtype)


def trace_shapes(unet):
    """Multiply-adds of each layer for one image, and the sources of each skip concatenation.

    Returns
    -------
    macs : dict
        Module name of each Conv2d and Linear -> multiply-adds of one call with one image.
    skip_sources : dict
        Module name of each ResBlock of an up block -> channels ``(hidden, skip)`` it concatenates.
    """
    macs, skip_sources, handles = {}, {}, []

    def count(name, layer):
        def hook(module, args, output):
            taps = layer.weight.numel() // layer.weight.shape[0]
            macs[name] = macs.get(name, 0) + output.numel() * taps

        return layer.register_forward_hook(hook)

    def record(name, block):
        def hook(module, args, kwargs):
            skips = (
                kwargs["res_hidden_states_tuple"]
                if "res_hidden_states_tuple" in kwargs
                else args[1]
            )
            for index, resnet in enumerate(block.resnets):
                skip = skips[-1 - index].shape[1]
                skip_sources[f"{name}.resnets.{index}"] = (resnet.in_channels - skip, skip)

        return block.register_forward_pre_hook(hook, with_kwargs=True)

    for name, module in base_modules(unet).items():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(count(name, module))
        elif isinstance(module, _UP_BLOCKS):
            handles.append(record(name, module))
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), torch.device(unet.device), fake:
            unet(**example_inputs(unet))
    finally:
        for handle in handles:
            handle.remove()
    return macs, skip_sources
