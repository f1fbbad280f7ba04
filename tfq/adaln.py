"""Transformers whose norms read the timestep (DiT, PixArt): their temporal features and their blocks.

An adaptive LayerNorm (AdaLN) turns the time embedding into a scale, a shift and a gate for each part of
a block. A row (see :mod:`tfq.temporal`) takes the place of the model's argument ``timestep``. Where
the features depend on the timestep alone (PixArt without size conditions), it holds them all; where a
class or a size joins the time embedding, it holds the embedding, and the rest is computed as in the
float model:

    row = [ timestep | features of adaln_single | its embedding ]
    row = [ timestep | time embedding of block 1 | time embedding of block 2 | ... ]
"""

import typing

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import BasicTransformerBlock as FloatBasicTransformerBlock
from torch import nn
from torch.nn import functional as F

from tfq import models
from tfq.adapters import is_untouched
from tfq.attention import Attention, gated_sum
from tfq.features import FloatTIB, linear
from tfq.nn import Linear, fold_modulation
from tfq.temporal import encode_timesteps


class AdaLNFeatures(nn.Module):
    """The part of a transformer that depends on the timestep alone, in float.

    Parameters
    ----------
    norms : list of AdaLayerNormZero or AdaLayerNormSingle
    is_conditioned : bool
        Something joins the time embedding: it is the feature itself. Else there is one norm, and what
        it makes of its embedding comes before it.
    """

    def __init__(self, norms, is_conditioned):
        super().__init__()
        self.embeddings = nn.ModuleList(
            FloatTIB(norm.emb.time_proj, norm.emb.timestep_embedder, []) for norm in norms
        )
        self.projection = None if is_conditioned else norms[0].linear

    def half(self):
        """Store the linear layers as float16; they are computed in float32."""
        for embedding in self.embeddings:
            embedding.half()
        if self.projection is not None:
            self.projection.half()
        return self

    def features(self, values, condition=None):
        """Features at float32 timesteps ``(batch,)``, a list of ``(batch, width)`` float32; and None."""
        embedded = [embedding.embed(values) for embedding in self.embeddings]
        if self.projection is None:
            return embedded, None
        return [linear(self.projection, F.silu(embedded[0])), embedded[0]], None


class FloatAdaLN:
    """The same features, as the float model computes them."""

    def __init__(self, model):
        # The modules themselves: those that have their places later read rows.
        self.norms = {
            name: (norm.emb.time_proj, norm.emb.timestep_embedder, norm.linear)
            for name, norm in models.adaln_norms(model).items()
        }
        self.dtype = model.dtype

    def probes(self, timesteps):
        """Timesteps at which to measure the error where no table says: all of these."""
        return timesteps

    def features(self, timestep, names):
        """Features of the norms' parts `names` at one timestep."""
        timestep, features = torch.tensor([timestep]), []
        for name in names:
            norm, _, part = name.rpartition(".")
            time_proj, embedder, projection = self.norms[norm]
            x = embedder(time_proj(timestep).to(self.dtype))
            features.append((projection(F.silu(x)) if part == "linear" else x).float())
        return features


class RowSlice(nn.Module):
    """Stands for a sinusoid: reads the time embedding from a row."""

    def __init__(self, slot, width):
        super().__init__()
        self.slot, self.width = slot, width

    def forward(self, row):
        """``(batch, row width)`` to ``(batch, width)``."""
        return row[:, self.slot : self.slot + self.width]


class RowModulation(nn.Module):
    """Stands for PixArt's ``adaln_single`` without size conditions: reads its results from a row."""

    def __init__(self, features, embedding):
        super().__init__()
        self.features, self.embedding = features, embedding

    def forward(self, row, added_cond_kwargs=None, batch_size=None, hidden_dtype=None):
        """Features ``(batch, 6 * width)`` and time embedding ``(batch, width)``."""
        return self.features(row).to(hidden_dtype), self.embedding(row).to(hidden_dtype)


class TimestepToRow:
    """Forward pre-hook of a transformer: puts the row in the place of the timestep."""

    def __init__(self, model):
        self.names, _ = models.arguments_of(model)
        self.images = models.image_argument(model)

    def __call__(self, model, args, kwargs):
        """The arguments, all by name."""
        inputs = models.call_of(self.names, args, kwargs)
        images, timestep = inputs.get(self.images), inputs.get("timestep")
        if not isinstance(images, torch.Tensor) or timestep is None:
            return None  # forward itself says what is missing
        timesteps = torch.as_tensor(timestep, device=images.device).reshape(-1)
        row = model.time_embedding(encode_timesteps(timesteps.expand(images.shape[0])))
        return (), {**inputs, "timestep": row}


class ModulatedNorm(typing.NamedTuple):
    """A LayerNorm followed by a scale and a shift of each image, for :class:`InputQuantizer`."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, norm, scale, shift):
        """Of ``norm(x) * (1 + scale) + shift``, both ``(batch, channels)``."""
        return cls(*fold_modulation(norm, scale.float(), shift.float()), norm.eps)


class AdaLNTransformerBlock(FloatBasicTransformerBlock):
    """Attention and feed-forward behind adaptive norms: norm, scale, shift and quantisation are one kernel.

    The gates and the GELU are torch's. A block whose children carry hooks or adapters runs as in
    diffusers on the quantized layers.
    """

    def is_fused(self):
        """Whether the kernels run as one unit."""
        gelu, dropout, project_out = self.ff.net
        attentions = [attn for attn in (self.attn1, self.attn2) if attn is not None]
        children = [self.norm1, self.ff, gelu, gelu.proj, dropout, project_out, *attentions]
        children += [
            norm for norm in (self.norm2, getattr(self, "norm3", None)) if norm is not None
        ]
        return (
            isinstance(gelu.proj, Linear)
            and isinstance(project_out, Linear)
            and is_untouched(*children, *self.norm1.children())
            and all(isinstance(attn, Attention) and attn.is_fused() for attn in attentions)
        )

    def _modulation(self, row, class_labels, dtype):
        """Shift, scale and gate of the attention and of the feed-forward, ``(batch, channels)`` each."""
        if self.norm_type == "ada_norm_single":
            features = self.scale_shift_table[None] + row.unflatten(1, (6, -1))
            return features.unbind(1)
        conditioning = self.norm1.emb(row, class_labels, hidden_dtype=dtype)
        return self.norm1.linear(self.norm1.silu(conditioning)).chunk(6, dim=1)

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, timestep=None, cross_attention_kwargs=None, class_labels=None,
        added_cond_kwargs=None,
    ):  # fmt: skip
        """As diffusers' BasicTransformerBlock; `timestep` is a row, or what ``adaln_single`` made of it."""
        if cross_attention_kwargs or self._chunk_size is not None or not self.is_fused():
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        is_single = self.norm_type == "ada_norm_single"
        dtype = hidden_states.dtype
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self._modulation(
            timestep, class_labels, dtype
        )
        hidden_states = self.attn1(
            hidden_states,
            attention_mask=attention_mask,
            layer_norm=ModulatedNorm.of(self.norm1 if is_single else self.norm1.norm, scale, shift),
            gate=gate,
        )
        if self.attn2 is not None:
            hidden_states = hidden_states + self.attn2(
                hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        project_in, project_out = self.ff.net[0].proj, self.ff.net[2]
        norm = ModulatedNorm.of(self.norm2 if is_single else self.norm3, ff_scale, ff_shift)
        wide = project_in.product(
            *project_in.input.layer_norm(norm, hidden_states), out_dtype=dtype
        )
        out = project_out.product(
            *project_out.input.quantize(self.ff.net[0].gelu(wide)), out_dtype=dtype
        )
        return gated_sum(hidden_states, ff_gate, out)


def is_fusable(block):
    """Whether an :class:`AdaLNTransformerBlock` can stand for a BasicTransformerBlock."""
    if len(block.ff.net) != 3 or type(block.ff.net[0]) is not GELU or block.pos_embed is not None:
        return False
    if getattr(block, "fuser", None) is not None or block.only_cross_attention:
        return False
    if block.norm_type == "ada_norm_zero":
        return block.attn2 is None
    return block.norm_type == "ada_norm_single"
