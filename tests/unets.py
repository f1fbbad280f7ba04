"""Tiny UNets with random weights, one of every block type of diffusers, and inputs for them."""

import copy

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from tfq.shapes import example_inputs

TEXT_LENGTH = 7
# What the names below stand for: down blocks, up blocks.
DOWN_UP = (("DownBlock2D",) * 2, ("UpBlock2D",) * 2)
ATTENTION = (("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D"))
ALL_ATTENTION = (("AttnDownBlock2D",) * 2, ("AttnUpBlock2D",) * 2)
RESNET_SAMPLERS = (
    ("ResnetDownsampleBlock2D", "DownBlock2D"),
    ("UpBlock2D", "ResnetUpsampleBlock2D"),
)
SKIPS = (("SkipDownBlock2D", "AttnSkipDownBlock2D"), ("AttnSkipUpBlock2D", "SkipUpBlock2D"))
CROSS = (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D"))
SIMPLE_CROSS = (
    ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
)
K_BLOCKS = (
    ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
    ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
)
SIMPLE_MID = {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}
SCALE_SHIFT = {"resnet_time_scale_shift": "scale_shift"}
RESNET_TYPES = {"downsample_type": "resnet", "upsample_type": "resnet"}

UNCONDITIONAL = {
    "plain": (DOWN_UP, {}),
    "attention": (ATTENTION, {}),
    "padding_0": (DOWN_UP, {"downsample_padding": 0}),
    "resnet_type": (DOWN_UP, RESNET_TYPES),
    "attention_resnet_type": (ALL_ATTENTION, RESNET_TYPES),
    "resnet_samplers": (RESNET_SAMPLERS, {}),
    "skips": (SKIPS, {}),
    "skips_wide": (SKIPS, {"block_out_channels": (64, 128)}),
    "skips_scale_shift": (SKIPS, SCALE_SHIFT),
    "no_mid": (DOWN_UP, {"mid_block_type": None}),
    "no_mid_attention": (DOWN_UP, {"add_attention": False}),
    "scaled_mid": (DOWN_UP, {"mid_block_scale_factor": 1.4142, "norm_num_groups": 16}),
    "scale_shift": (DOWN_UP, SCALE_SHIFT),
    "gelu": (DOWN_UP, {"act_fn": "gelu"}),
    "centered": (DOWN_UP, {"center_input_sample": True}),
    "classes": (DOWN_UP, {"num_class_embeds": 5}),
    "timestep_classes": (DOWN_UP, {"class_embed_type": "timestep"}),
    "identity_classes": (DOWN_UP, {"class_embed_type": "identity"}),
    "fourier": (DOWN_UP, {"time_embedding_type": "fourier"}),
    "learned": (DOWN_UP, {"time_embedding_type": "learned", "num_train_timesteps": 1000}),
}
PROJECTED = {"projection_class_embeddings_input_dim": 20}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}
CONDITIONAL = {
    "cross": (CROSS, {}),
    "cross_linear": (CROSS, {"use_linear_projection": True}),
    "cross_one_head": (CROSS, {"attention_head_dim": 1}),
    "cross_only": (CROSS, {"only_cross_attention": True}),
    "cross_two_layers": (CROSS, {"transformer_layers_per_block": 2}),
    "cross_upcast": (CROSS, {"upcast_attention": True}),
    "cross_gated": (CROSS, {"attention_type": "gated"}),
    "cross_padding_0": (CROSS, {"downsample_padding": 0, "norm_num_groups": 16}),
    "cross_output_scale": (CROSS, {"resnet_out_scale_factor": 1.3}),
    "cross_kernel_1": (CROSS, {"conv_in_kernel": 1, "conv_out_kernel": 1}),
    "cross_projected_text": (CROSS, {"encoder_hid_dim": 40, "encoder_hid_dim_type": "text_proj"}),
    "cross_plain_mid": (CROSS, {"mid_block_type": "UNetMidBlock2D"}),
    "cross_scale_shift": (CROSS, SCALE_SHIFT),
    "cross_fourier": (CROSS, {"time_embedding_type": "fourier"}),
    "cross_time_act": (CROSS, {"time_embedding_act_fn": "silu"}),
    "cross_post_act": (CROSS, {"timestep_post_act": "silu"}),
    "cross_time_cond": (CROSS, {"time_cond_proj_dim": 12}),
    "cross_classes": (CROSS, {"num_class_embeds": 5}),
    "cross_classes_joined": (CROSS, {"num_class_embeds": 5, "class_embeddings_concat": True}),
    "cross_timestep_classes": (CROSS, {"class_embed_type": "timestep"}),
    "cross_identity_classes": (CROSS, {"class_embed_type": "identity"}),
    "cross_projection": (CROSS, {"class_embed_type": "projection", **PROJECTED}),
    "cross_simple_projection": (CROSS, {"class_embed_type": "simple_projection", **PROJECTED}),
    "cross_text": (CROSS, {"addition_embed_type": "text", "cross_attention_dim": 64}),
    "cross_text_time": (CROSS, TEXT_TIME),
    "simple_cross": (SIMPLE_CROSS, SIMPLE_MID),
    "simple_cross_only": (SIMPLE_CROSS, {**SIMPLE_MID, "only_cross_attention": True}),
    "simple_cross_scale_shift": (
        SIMPLE_CROSS,
        {
            **SIMPLE_MID,
            **SCALE_SHIFT,
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 1.2,
        },
    ),
    "simple_cross_norm": (
        SIMPLE_CROSS,
        {
            **SIMPLE_MID,
            "cross_attention_norm": "group_norm",
            "encoder_hid_dim": 24,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
        },
    ),
    "k_blocks": (
        K_BLOCKS,
        {
            **SCALE_SHIFT,
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 2,
            "mid_block_type": None,
            "norm_num_groups": None,
            "time_embedding_dim": 64,
            "time_cond_proj_dim": 12,
            "timestep_post_act": "gelu",
            "act_fn": "gelu",
            "conv_in_kernel": 1,
            "conv_out_kernel": 1,
        },
    ),
}
NAMES = [*UNCONDITIONAL, *CONDITIONAL]
# One of each kind, where every architecture would take too long.
FEW = ["attention", "skips", "scale_shift", "classes", "cross", "simple_cross", "k_blocks"]


def build(name, dtype=torch.float32, **overrides):
    """The float UNet `name`, always with the same weights."""
    (down, up), settings = {**UNCONDITIONAL, **CONDITIONAL}[name]
    config = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": down,
        "up_block_types": up,
    }
    cls, config["attention_head_dim"] = UNet2DModel, 16
    if name in CONDITIONAL:
        cls, config["attention_head_dim"], config["cross_attention_dim"] = (
            UNet2DConditionModel,
            4,
            24,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = cls(**{**config, **settings, **overrides})
        for module in unet.modules():
            if (
                isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
                and module.bias is not None
            ):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.3)
    return unet.to(dtype).eval()


def inputs(unet, timesteps=(7, 421), seed=1):
    """Keyword arguments of a call with one image per timestep, and random conditions."""
    generator = torch.Generator().manual_seed(seed)
    kwargs = example_inputs(unet, len(timesteps), generator)
    kwargs["timestep"] = torch.tensor(timesteps)

    def randomize(tensor, length=None):
        shape = list(tensor.shape)
        if length is not None:
            shape[1] = length
        return torch.randn(shape, generator=generator).to(tensor.dtype)

    if "encoder_hidden_states" in kwargs:
        text = kwargs["encoder_hidden_states"]
        kwargs["encoder_hidden_states"] = randomize(text, TEXT_LENGTH)
    if "added_cond_kwargs" in kwargs:
        added = kwargs["added_cond_kwargs"]
        kwargs["added_cond_kwargs"] = {key: randomize(value) for key, value in added.items()}
    labels = kwargs.get("class_labels")
    if labels is not None and labels.is_floating_point():
        kwargs["class_labels"] = randomize(labels)
    if unet.config.get("time_cond_proj_dim"):
        width = unet.config.time_cond_proj_dim
        kwargs["timestep_cond"] = randomize(torch.empty(len(timesteps), width, dtype=unet.dtype))
    return kwargs


def image(kwargs, index):
    """The arguments of one image of a batch."""

    def pick(value):
        if isinstance(value, dict):
            return {key: pick(item) for key, item in value.items()}
        return value[index : index + 1] if isinstance(value, torch.Tensor) else value

    return pick(kwargs)


def run(unet, kwargs):
    """Output of a call; lists among the arguments are not consumed."""
    kwargs = {key: list(v) if isinstance(v, list) else v for key, v in kwargs.items()}
    with torch.no_grad():
        return unet(**kwargs).sample


def clone(unet):
    return copy.deepcopy(unet)
