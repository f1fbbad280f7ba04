"""UNet blocks on INT8 kernels: diffusers' own classes with another ``forward``.

A block becomes one of these by changing its class; children, names, configuration and hooks stay. What
differs: ``temb`` is a row (see :mod:`tfq.temporal`), handed on to every child that can use it; norm,
SiLU and quantisation are one kernel; a skip connection is read in place instead of concatenated; bias,
temporal feature and residual are added in the convolution's epilogue.
"""

import torch
from diffusers.models import resnet, upsampling
from diffusers.models.downsampling import Downsample2D as FloatDownsample2D
from diffusers.models.unets import unet_2d_blocks as unet_blocks
from diffusers.utils.torch_utils import apply_freeu
from torch.nn import functional as F

from tfq.adapters import is_untouched
from tfq.attention import Attention
from tfq.nn import Conv2d, ShortcutConv2d, fold_modulation
from tfq.ops import _checks
from tfq.ops.resnet import resnet_block

_ASYMMETRIC_PADDING = (0, 1, 0, 1)


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


class ResnetBlock2D(resnet.ResnetBlock2D):
    """Norm1+SiLU, conv1 (+ temporal feature), norm2+SiLU, conv2 (+ shortcut), all INT8.

    ``feature_slot`` is the offset of the block's feature in a row; None: the block projects the time
    embedding at the end of the row itself, in float.
    """

    feature_slot = None
    row_width = 0

    def fold_feature(self, feature):
        """What the row stores for a feature ``(batch, width)``.

        Added after conv1: the feature itself. Scale and shift of norm2: the affine map they and the
        norm's own weight and bias amount to.
        """
        if self.time_embedding_norm != "scale_shift":
            return feature
        return torch.cat(fold_modulation(self.norm2, *feature.float().chunk(2, dim=1)), dim=1)

    def _feature(self, row):
        if self.feature_slot is not None:
            width = self.out_channels * (2 if self.time_embedding_norm == "scale_shift" else 1)
            return row[:, self.feature_slot : self.feature_slot + width]
        if self.time_emb_proj is None:
            return None
        embedding = row[:, self.row_width :].to(self.time_emb_proj.weight.dtype)
        if not self.skip_time_act:
            embedding = self.nonlinearity(embedding)
        return self.fold_feature(self.time_emb_proj(embedding)).float()

    def _shortcut(self, x, skip):
        if isinstance(self.conv_shortcut, ShortcutConv2d) and is_untouched(self.conv_shortcut):
            return self.conv_shortcut(x, skip)
        joined = x if skip is None else torch.cat([x, skip], dim=1)
        return joined if self.conv_shortcut is None else _channels_last(self.conv_shortcut(joined))

    def _is_one_call(self, x, skip):
        """Whether the native kernels may run one after another without returning to Python."""
        modules = self._modules
        layers = [modules["conv1"], modules["conv2"]]
        shortcut = modules.get("conv_shortcut")
        if shortcut is not None:
            if not isinstance(shortcut, ShortcutConv2d) or not is_untouched(shortcut):
                return False
            if shortcut.sources != ((x.shape[1],) if skip is None else (x.shape[1], skip.shape[1])):
                return False
            layers.append(shortcut)
        elif skip is not None:
            return False
        if not x.is_cpu or _checks.has_cuda_kernels(x) or _checks.is_traced(x):
            return False
        for layer in layers:
            if layer.backend != "native" or layer.input.recorder is not None:
                return False
        return True

    def _one_call(self, x, row, skip, temporal, affine):
        def norm(name, layer, affine=None):
            module = modules[name]
            if affine is None:
                affine = module._parameters["weight"], module._parameters["bias"]
            return *affine, module.num_groups, module.eps, layer.input.qparams(row)

        modules = self._modules
        conv1, conv2, shortcut = modules["conv1"], modules["conv2"], modules.get("conv_shortcut")
        return resnet_block(
            x, norm("norm1", conv1), conv1.operands(), norm("norm2", conv2, affine),
            conv2.operands(), x2=skip, temporal=temporal,
            shortcuts=() if shortcut is None else shortcut.source_operands(),
        )  # fmt: skip

    def _calls(self, x, row, skip, temporal, affine):
        q = self.conv1.input.group_norm(self.norm1, x, row, x2=skip)
        hidden = self.conv1.product(*q, temporal=temporal, out_dtype=x.dtype)
        q = self.conv2.input.group_norm(self.norm2, hidden, row, affine=affine)
        residual = self._shortcut(x, skip)
        return self.conv2.product(*q, residual=residual, out_dtype=x.dtype)

    def is_fused(self):
        """Whether the kernels run as one unit."""
        modules = self._modules
        conv1, conv2 = modules["conv1"], modules["conv2"]
        return (
            isinstance(conv1, Conv2d)
            and isinstance(conv2, Conv2d)
            and is_untouched(
                modules["norm1"], conv1, modules["norm2"], conv2, modules["nonlinearity"],
                modules["dropout"],
            )
        )  # fmt: skip

    def _unfused(self, x, feature, skip):
        """Child by child, as diffusers; each input has the range of its image."""
        joined = x if skip is None else torch.cat([x, skip], dim=1)
        hidden = self.conv1(self.nonlinearity(self.norm1(joined)))
        if self.time_embedding_norm == "scale_shift":
            weight, shift = (part[:, :, None, None] for part in feature.chunk(2, dim=1))
            own_weight, own_bias = (p[None, :, None, None] for p in self.norm2.parameters())
            # A channel of weight 0 is a constant, whatever its scale.
            scale = torch.where(own_weight == 0, 1.0, weight / own_weight)
            hidden = self.norm2(hidden) * scale + (shift - own_bias * scale)
            hidden = hidden.to(x.dtype)
        else:
            if feature is not None:
                hidden = hidden + feature[:, :, None, None].to(hidden.dtype)
            hidden = self.norm2(hidden)
        return self.conv2(self.dropout(self.nonlinearity(hidden))) + self._shortcut(x, skip)

    def forward(self, input_tensor, temb=None, skip=None):
        """Images ``(batch, c, h, w)``, a row per image, and optionally the skip half of the input."""
        x = _channels_last(input_tensor)
        skip = None if skip is None else _channels_last(skip)
        feature = self._feature(temb)
        out = (
            self._fused(x, temb, feature, skip)
            if self.is_fused()
            else self._unfused(x, feature, skip)
        )
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor

    def _fused(self, x, row, feature, skip):
        affine, temporal = None, feature
        if self.time_embedding_norm == "scale_shift":
            affine, temporal = feature.chunk(2, dim=1), None
        run = self._one_call if self._is_one_call(x, skip) else self._calls
        return run(x, row, skip, temporal, affine)


class Downsample2D(FloatDownsample2D):
    """Strided INT8 convolution; the asymmetric padding of ``padding=0`` is the kernel's own."""

    def is_fused(self):
        """Whether the kernel pads by itself."""
        return isinstance(self.conv, Conv2d) and is_untouched(self.conv)

    def forward(self, hidden_states, temb=None):
        """Images and optionally a row per image."""
        if not self.is_fused():
            return super().forward(hidden_states)
        x = _channels_last(hidden_states)
        q = self.conv.input.quantize(x, temb)
        padding = _ASYMMETRIC_PADDING if self.padding == 0 else None
        return self.conv.product(*q, padding=padding, out_dtype=x.dtype)


class Upsample2D(upsampling.Upsample2D):
    """Nearest-neighbour doubling read by the INT8 convolution, never made."""

    def _convolution(self):
        return self.conv if self.name == "conv" else self.Conv2d_0

    def is_fused(self):
        """Whether the kernel doubles by itself."""
        return isinstance(self._convolution(), Conv2d) and is_untouched(self._convolution())

    def forward(self, hidden_states, output_size=None, temb=None):
        """Images, an output size that overrides doubling, and optionally a row per image."""
        if not self.is_fused():
            return super().forward(hidden_states, output_size)
        conv = self._convolution()
        x = _channels_last(hidden_states)
        upsample = 2
        if output_size is not None and tuple(output_size) != (2 * x.shape[2], 2 * x.shape[3]):
            x, upsample = F.interpolate(x, size=output_size, mode="nearest"), 1
        q = conv.input.quantize(x, temb)
        return conv.product(*q, upsample=upsample, out_dtype=x.dtype)


def _attend(attention, hidden_states, temb, **kwargs):
    """Call an attention; hand on the row if it is ours."""
    if isinstance(attention, Attention):
        return attention(hidden_states, temb=temb, **kwargs)
    return attention(hidden_states, **kwargs)


def _sample(sampler, hidden_states, temb, *args):
    """Call a down- or upsampler; hand on the row if it is ours or a ResBlock."""
    if isinstance(sampler, (Downsample2D, Upsample2D, resnet.ResnetBlock2D)):
        return sampler(hidden_states, *args, temb=temb)
    return sampler(hidden_states, *args)


def _attend_to(
    encoder_hidden_states, cross_attention_kwargs, attention_mask, encoder_attention_mask
):
    """How the Transformer2DModels of a block are called, for :func:`_down` and :func:`_up`."""
    kwargs = {
        "encoder_hidden_states": encoder_hidden_states,
        "cross_attention_kwargs": cross_attention_kwargs,
        "attention_mask": attention_mask,
        "encoder_attention_mask": encoder_attention_mask,
    }
    return lambda transformer, x: transformer(x, **kwargs, return_dict=False)[0]


def _down(block, hidden_states, temb, attend=None, additional_residuals=None):
    """Resnets (each followed by `attend(attention, hidden)`), then the downsamplers."""
    outputs = ()
    for index, layer in enumerate(block.resnets):
        hidden_states = layer(hidden_states, temb)
        if attend is not None:
            hidden_states = attend(block.attentions[index], hidden_states)
        if additional_residuals is not None and index == len(block.resnets) - 1:
            hidden_states = hidden_states + additional_residuals
        outputs += (hidden_states,)
    if block.downsamplers is not None:
        for sampler in block.downsamplers:
            hidden_states = _sample(sampler, hidden_states, temb)
        outputs += (hidden_states,)
    return hidden_states, outputs


def _up(block, hidden_states, skips, temb, attend=None, upsample_size=None):
    """Resnets, each reading the next skip from the end, then the upsamplers."""
    freeu = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    for index, layer in enumerate(block.resnets):
        skip, skips = skips[-1], skips[:-1]
        if all(freeu.values()):
            hidden_states, skip = apply_freeu(block.resolution_idx, hidden_states, skip, **freeu)
        if isinstance(layer, ResnetBlock2D):
            hidden_states = layer(hidden_states, temb, skip=skip)
        else:
            hidden_states = layer(torch.cat([hidden_states, skip], dim=1), temb)
        if attend is not None:
            hidden_states = attend(block.attentions[index], hidden_states)
    if block.upsamplers is not None:
        size = () if upsample_size is None else (upsample_size,)
        for sampler in block.upsamplers:
            hidden_states = _sample(sampler, hidden_states, temb, *size)
    return hidden_states


class DownBlock2D(unet_blocks.DownBlock2D):
    """ResBlocks and a downsampler."""

    def forward(self, hidden_states, temb=None, *args, **kwargs):
        """As diffusers' DownBlock2D, with a row for ``temb``."""
        return _down(self, hidden_states, temb)


class AttnDownBlock2D(unet_blocks.AttnDownBlock2D):
    """ResBlocks, each followed by self-attention, and a downsampler."""

    def forward(self, hidden_states, temb=None, upsample_size=None, cross_attention_kwargs=None):
        """As diffusers' AttnDownBlock2D, with a row for ``temb``."""
        kwargs = cross_attention_kwargs or {}
        return _down(self, hidden_states, temb, lambda attn, x: _attend(attn, x, temb, **kwargs))


class CrossAttnDownBlock2D(unet_blocks.CrossAttnDownBlock2D):
    """ResBlocks, each followed by a transformer, and a downsampler."""

    def forward(
        self, hidden_states, temb=None, encoder_hidden_states=None, attention_mask=None,
        cross_attention_kwargs=None, encoder_attention_mask=None, additional_residuals=None,
    ):  # fmt: skip
        """As diffusers' CrossAttnDownBlock2D, with a row for ``temb``."""
        attend = _attend_to(
            encoder_hidden_states, cross_attention_kwargs, attention_mask, encoder_attention_mask
        )
        return _down(self, hidden_states, temb, attend, additional_residuals)


class UpBlock2D(unet_blocks.UpBlock2D):
    """ResBlocks over skips and an upsampler."""

    def forward(
        self, hidden_states, res_hidden_states_tuple, temb=None, upsample_size=None, *args, **kwargs
    ):
        """As diffusers' UpBlock2D, with a row for ``temb``."""
        return _up(self, hidden_states, res_hidden_states_tuple, temb, upsample_size=upsample_size)


class AttnUpBlock2D(unet_blocks.AttnUpBlock2D):
    """ResBlocks over skips, each followed by self-attention, and an upsampler."""

    def forward(
        self, hidden_states, res_hidden_states_tuple, temb=None, upsample_size=None, *args, **kwargs
    ):
        """As diffusers' AttnUpBlock2D, with a row for ``temb``."""
        return _up(
            self,
            hidden_states,
            res_hidden_states_tuple,
            temb,
            lambda attn, x: _attend(attn, x, temb),
        )


class CrossAttnUpBlock2D(unet_blocks.CrossAttnUpBlock2D):
    """ResBlocks over skips, each followed by a transformer, and an upsampler."""

    def forward(
        self, hidden_states, res_hidden_states_tuple, temb=None, encoder_hidden_states=None,
        cross_attention_kwargs=None, upsample_size=None, attention_mask=None,
        encoder_attention_mask=None,
    ):  # fmt: skip
        """As diffusers' CrossAttnUpBlock2D, with a row for ``temb``."""
        attend = _attend_to(
            encoder_hidden_states, cross_attention_kwargs, attention_mask, encoder_attention_mask
        )
        return _up(self, hidden_states, res_hidden_states_tuple, temb, attend, upsample_size)
