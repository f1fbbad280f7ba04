"""From float modules to quantized ones, as a plan says.

Lowering changes the structure of a model and nothing else: it works on modules without weights too
(torch's "meta" device), which is how a saved model is built again. Integers and tables come after.
"""

import torch
from diffusers.models import attention as float_attention
from diffusers.models import downsampling, resnet, upsampling
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import (
    Transformer2DModel as FloatTransformer2DModel,
)
from diffusers.models.unets import unet_2d_blocks as unet_blocks
from torch import nn

from tfq import attention, backends, blocks, models, temporal
from tfq.adapters import base_modules, is_untouched
from tfq.features import FloatTIB
from tfq.nn import Conv2d, Linear, ShortcutConv2d
from tfq.quantizer import QPARAMS_WIDTH

# UNet blocks that hand a row on to their children.
_ROW_BLOCKS = {
    getattr(unet_blocks, name): getattr(blocks, name)
    for name in (
        "DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
}  # fmt: skip
# Where torch keeps the hooks of a module.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
# Blocks whose own forward already hands ``temb`` on to every child.
_ROW_PASSING = (unet_blocks.UNetMidBlock2D, unet_blocks.UNetMidBlock2DCrossAttn)


class Undo:
    """Records changes to modules so that a failed conversion can be taken back."""

    def __init__(self):
        self._actions = []

    def set_child(self, parent, name, value):
        """``parent.name = value`` for a child module (or None)."""
        if name in parent._modules:
            old = parent._modules[name]
            self._actions.append(lambda: parent._modules.__setitem__(name, old))
        else:
            self._actions.append(lambda: parent._modules.pop(name))
        parent._modules[name] = value

    def set_class(self, module, cls):
        """Change a module's class."""
        old, attributes = module.__class__, dict(module.__dict__)
        self._actions.append(
            lambda: (module.__dict__.update(attributes), setattr(module, "__class__", old))
        )
        module.__class__ = cls

    def set_attribute(self, module, name, value):
        """``module.name = value`` for a plain attribute."""
        missing = name not in module.__dict__
        old = module.__dict__.get(name)
        self._actions.append(
            lambda: (
                module.__dict__.pop(name, None)
                if missing
                else module.__dict__.__setitem__(name, old)
            )
        )
        object.__setattr__(module, name, value)

    def set_parameter(self, module, name, value):
        """Replace a parameter by another tensor."""
        old = module._parameters[name]
        self.add(lambda: module._parameters.__setitem__(name, old))
        module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def add(self, action):
        """Run `action()` on rollback."""
        self._actions.append(action)

    def rollback(self):
        """Take everything back, last change first."""
        while self._actions:
            self._actions.pop()()


class Lowering:
    """Replaces the planned layers and fuses the blocks around them.

    Parameters
    ----------
    unet : a model of :data:`tfq.models.CLASSES`
    config : TfqConfig
    plans : list of LayerPlan
    undo : Undo
        Records every change; the caller rolls it back on an error.

    Attributes
    ----------
    layers : dict
        Name -> quantized layer.
    quantizers : list of InputQuantizer
        Inputs with a reserved range.
    """

    def __init__(self, unet, config, plans, undo):
        self.unet = unet
        self.config = config
        self.undo = undo
        self.layout = temporal.RowLayout()
        self.plans = {plan.name: plan for plan in plans if plan.converted}
        self.layers = {}
        self.quantizers = []
        self.partition = temporal.temporal_blocks(unet)
        self.needs_embedding = bool(self.partition["conditions"])

    def run(self):
        """Lower the whole model."""
        modules = base_modules(self.unet)
        unaware = [
            block
            for block in models.blocks_of(self.unet)
            if type(block) not in _ROW_BLOCKS and type(block) not in _ROW_PASSING
        ]
        opaque = {id(module) for block in unaware for module in block.modules()}
        aware = {name: module for name, module in modules.items() if id(module) not in opaque}
        fused = {name: m for name, m in aware.items() if self._is_fusable_resnet(name, m)}
        stripped = unaware + [
            module
            for name, module in aware.items()
            if isinstance(module, (resnet.ResnetBlock2D, resnet.ResnetBlockCondNorm2D))
            and name not in fused
        ]
        self.needs_embedding |= bool(stripped)

        self._replace_layers(modules)
        for name, block in fused.items():
            self.undo.set_class(block, blocks.ResnetBlock2D)
            self._float_affine(block.norm1, block.norm2)
            self._reserve_range(self.layers[f"{name}.conv1"])
            self._reserve_range(self.layers[f"{name}.conv2"])
        for name, module in modules.items():
            if name in aware:
                self._fuse_sampler(name, module)
                if type(module) in _ROW_BLOCKS:
                    self.undo.set_class(module, _ROW_BLOCKS[type(module)])
            self._fuse_attention(name, module, name in aware)
            self._fuse_transformer(name, module)
        self._install_rows(fused, stripped)
        self._hook(self.unet.conv_in.register_forward_pre_hook, _channels_last_input)
        if hasattr(self.unet, "conv_out"):
            self._hook(self.unet.conv_out.register_forward_hook, _contiguous_output)
        return self

    def _hook(self, register, hook):
        self.undo.add(register(hook).remove)

    def _has(self, *names):
        return all(name in self.plans for name in names)

    def _reserve_range(self, layer):
        layer.input.slot = self.layout.allocate_range(QPARAMS_WIDTH)
        self.quantizers.append(layer.input)

    def _float_affine(self, *norms):
        """Kernels read norm weights as float32, whatever the model's dtype."""
        for norm in norms:
            for name in ("weight", "bias"):
                value = None if norm is None else norm._parameters.get(name)
                if value is not None and value.dtype is not torch.float32:
                    self.undo.set_parameter(norm, name, value.detach().float())

    def _replace_layers(self, modules):
        replacements = {}
        for name, plan in self.plans.items():
            layer = modules[name]
            backend = backends.for_activations(plan.activations, self.config.backend)
            options = (name, backend, plan.weight_bits)
            if plan.sources:
                new = ShortcutConv2d(layer, plan.sources, *options)
            else:
                new = (Conv2d if isinstance(layer, nn.Conv2d) else Linear)(layer, *options)
            for hooks in _HOOKS:  # the same dicts: handles that the user has still remove them
                setattr(new, hooks, getattr(layer, hooks))
            self.layers[name] = replacements[id(layer)] = new
        for module in self.unet.modules():
            for child_name, child in module._modules.items():
                if id(child) in replacements:
                    self.undo.set_child(module, child_name, replacements[id(child)])

    def _is_fusable_resnet(self, name, block):
        if type(block) is not resnet.ResnetBlock2D:
            return False
        return (
            self._has(f"{name}.conv1", f"{name}.conv2")
            and isinstance(block.nonlinearity, nn.SiLU)
            and _is_affine_group_norm(block.norm1)
            and _is_affine_group_norm(block.norm2)
            and block.upsample is None
            and block.downsample is None
            and block.time_embedding_norm in ("default", "scale_shift")
        )

    def _allocate_features(self, fused):
        """Give the feature of each block its place in a row: a list of (name, slot, block)."""
        features = []
        for name, block in fused.items():
            if block.time_emb_proj is None:
                continue
            foldable = type(block.time_emb_proj) is nn.Linear and is_untouched(block.time_emb_proj)
            if not foldable or self.config.temporal == "float" or self.partition["conditions"]:
                self.needs_embedding = True
                continue
            slot = self.layout.allocate_feature(block.time_emb_proj.out_features)
            self.undo.set_attribute(block, "feature_slot", slot)
            features.append((name, slot, block))
        return features

    def _fuse_sampler(self, name, module):
        if type(module) is downsampling.Downsample2D and module.use_conv and module.norm is None:
            child, cls = "conv", blocks.Downsample2D
        elif (
            type(module) is upsampling.Upsample2D
            and module.use_conv
            and not module.use_conv_transpose
            and module.norm is None
            and module.interpolate
        ):
            child, cls = "conv" if module.name == "conv" else "Conv2d_0", blocks.Upsample2D
        else:
            return
        if self._has(f"{name}.{child}"):
            self.undo.set_class(module, cls)
            self._reserve_range(self.layers[f"{name}.{child}"])

    def _fuse_attention(self, name, attn, sees_rows):
        if type(attn) is not Attention:
            return
        special = ("spatial_norm", "norm_q", "norm_k", "add_k_proj")
        if any(getattr(attn, child, None) is not None for child in special):
            return
        if attn.norm_cross or not self._has(
            *(f"{name}.{c}" for c in ("to_q", "to_k", "to_v", "to_out.0"))
        ):
            return
        if attn.group_norm is not None:
            self._float_affine(attn.group_norm)
            query, key, value = (self.layers[f"{name}.{c}"] for c in ("to_q", "to_k", "to_v"))
            query.input.per_token = False
            key.input = value.input = query.input  # one normalised input for all three
            if sees_rows:
                self._reserve_range(query)
        self.undo.set_class(attn, attention.Attention)
        head_size = attn.inner_dim // attn.heads
        products = attention.dot_products(self.config, self.unet.dtype, head_size)
        for attribute, value in products.items():
            self.undo.set_attribute(attn, attribute, value)

    def _fuse_transformer(self, name, module):
        if type(module) is float_attention.BasicTransformerBlock:
            if (
                module.norm_type == "layer_norm"
                and module.pos_embed is None
                and getattr(module, "fuser", None) is None
                and attention.is_standard_feed_forward(module.ff)
                and self._has(f"{name}.ff.net.0.proj", f"{name}.ff.net.2")
            ):
                self._float_affine(module.norm1, module.norm2, module.norm3)
                self.undo.set_class(module, attention.BasicTransformerBlock)
        elif type(module) is FloatTransformer2DModel:
            if module.is_input_continuous and self._has(f"{name}.proj_in", f"{name}.proj_out"):
                self._float_affine(module.norm)
                self.layers[f"{name}.proj_in"].input.per_token = False
                self.layers[f"{name}.proj_out"].input.per_token = True
                self.undo.set_class(module, attention.Transformer2DModel)

    def _install_rows(self, fused, stripped):
        """Put the table in the place of the time embedding and route its rows."""
        unet, undo = self.unet, self.undo
        features = self._allocate_features(fused)
        width = self.layout.width
        tib = FloatTIB(
            unet.time_proj, unet.time_embedding, [block for _, _, block in features],
            getattr(unet, "time_embed_act", None),
        )  # fmt: skip
        embedding_width = unet.time_embedding.linear_2.out_features if self.needs_embedding else 0
        places = {
            f"{name}.time_emb_proj": f"projections.{i}" for i, (name, _, _) in enumerate(features)
        }
        embedding = temporal.TemporalEmbedding(
            tib, self.layout, [(name, slot, block.fold_feature) for name, slot, block in features],
            self.partition, embedding_width, {"time_embedding": "embedding", **places},
        )  # fmt: skip
        for block in fused.values():
            undo.set_attribute(block, "row_width", width)
            if block.feature_slot is not None:
                undo.set_child(block, "time_emb_proj", None)
        for name in ("class_embedding", "add_embedding"):
            condition = getattr(unet, name, None)
            if isinstance(condition, nn.Module):
                self._pad_condition(condition, name == "class_embedding", width)
        if isinstance(getattr(unet, "time_embed_act", None), nn.Module):
            undo.set_child(
                unet, "time_embed_act", temporal.RowActivation(unet.time_embed_act, width)
            )
        undo.set_child(unet, "time_embedding", embedding)
        undo.set_child(unet, "time_proj", temporal.TimestepKey())
        for module in stripped:
            hook = module.register_forward_pre_hook(
                temporal.StripRow(width, unet.dtype), with_kwargs=True
            )
            undo.add(hook.remove)

    def _pad_condition(self, condition, is_class, width):
        """Make the output of a module that joins the time embedding as wide as a row."""
        config = self.unet.config
        if is_class and config.get("class_embed_type") == "timestep":
            self.undo.set_child(condition, "time_proj", self.unet.time_proj)
        if is_class and config.get("class_embeddings_concat"):
            width = 0
        self._hook(condition.register_forward_pre_hook, temporal.ConditionInputs())
        self._hook(condition.register_forward_hook, temporal.PadToRow(width))


def as_it_is(feature):
    """What a row stores of a feature that nothing is folded into."""
    return feature


def _channels_last_input(conv, args):
    """Forward pre-hook of the first convolution, which torch sums otherwise in another layout."""
    return (args[0].contiguous(memory_format=torch.channels_last), *args[1:])


def _contiguous_output(conv, args, output):
    """Forward hook of the last convolution: the layout that a float model's callers know.

    A scheduler would hand channels_last back, for which a compiled model is compiled again.
    """
    return output.contiguous()


def _is_affine_group_norm(norm):
    return type(norm) is nn.GroupNorm and norm.affine
