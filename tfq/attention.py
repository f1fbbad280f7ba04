"""Attention and transformer blocks on INT8 kernels."""

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock as FloatBasicTransformerBlock
from diffusers.models.attention_processor import Attention as FloatAttention
from diffusers.models.transformers.transformer_2d import (
    Transformer2DModel as FloatTransformer2DModel,
)
from torch.nn import functional as F

from tfq import backends
from tfq.nn import image_tokens, token_image


class AttnProcessor:
    """INT8 projections; softmax(QK)V in float or on integers.

    The input is normalised (GroupNorm of the attention, or the LayerNorm of the transformer block
    around it) and quantised in one kernel, once for the projections that share it; the output
    projection adds the residual in its epilogue.

    Parameters
    ----------
    compute_dtype : torch.dtype or None
        Of queries, keys and values; None: the dtype of the hidden states.
    integer_backend : {"native", "reference"} or None
        The backend of the dot products on integers; None: they are float. A masked attention always is,
        and so is one on CUDA, where the native backend has no kernel for it.
    """

    def __init__(self, compute_dtype=None, integer_backend=None):
        self.compute_dtype = compute_dtype
        self.integer_backend = integer_backend

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None,
        layer_norm=None,
    ):  # fmt: skip
        """As diffusers' AttnProcessor2_0; `temb` is a row.

        With `layer_norm`, `hidden_states` is the residual stream: it is normalised here, and added to
        the output.
        """
        is_image = hidden_states.dim() == 4
        tokens = image_tokens(hidden_states) if is_image else hidden_states.contiguous()
        q_input = self._quantize_input(attn, tokens, temb, layer_norm)
        if encoder_hidden_states is None:
            kv_input = q_input
        else:
            kv_input = attn.to_k.input.quantize(encoder_hidden_states.to(tokens.dtype).contiguous())

        batch, length = kv_input[0].shape[:2]
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        dtype = self.compute_dtype or tokens.dtype
        query, key, value = (
            layer.product(*source, out_dtype=dtype)
            for layer, source in (
                (attn.to_q, q_input),
                (attn.to_k, kv_input),
                (attn.to_v, kv_input),
            )
        )
        mixed = self._attend(query, key, value, attn.heads, attention_mask)

        adds_residual = attn.residual_connection or layer_norm is not None
        out = attn.to_out[0].product(
            *attn.to_out[0].input.quantize(mixed),
            residual=tokens if adds_residual else None,
            out_dtype=tokens.dtype,
        )
        if is_image:
            out = token_image(out, hidden_states.shape[2:])
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor

    def _attend(self, query, key, value, heads, attention_mask):
        """``softmax(QK)V`` of ``(batch, tokens, heads * width)``, of the same shape as `query`."""
        on_integers = self.integer_backend == "reference" or (self.integer_backend and query.is_cpu)
        if on_integers and attention_mask is None:
            return backends.get(self.integer_backend).attention_s8(query, key, value, heads)
        query, key, value = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return mixed.transpose(1, 2).flatten(2).contiguous()

    @staticmethod
    def _quantize_input(attn, tokens, row, layer_norm):
        quantizer = attn.to_q.input
        if layer_norm is not None:
            return quantizer.layer_norm(layer_norm, tokens)
        if attn.group_norm is not None:
            return quantizer.group_norm(attn.group_norm, tokens, row, silu=False)
        return quantizer.quantize(tokens)


class Attention(FloatAttention):
    """diffusers' Attention, which asks its processor for the names of its arguments at every call."""

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        """As diffusers' Attention; `temb` and `layer_norm` go to :class:`AttnProcessor`."""
        if isinstance(self.processor, AttnProcessor) and kwargs.keys() <= {"temb", "layer_norm"}:
            return self.processor(
                self, hidden_states, encoder_hidden_states, attention_mask, **kwargs
            )
        return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)


class BasicTransformerBlock(FloatBasicTransformerBlock):
    """Self-attention, cross-attention and feed-forward with fused norms, GEGLU and residuals."""

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, timestep=None, cross_attention_kwargs=None, class_labels=None,
        added_cond_kwargs=None,
    ):  # fmt: skip
        """As diffusers' BasicTransformerBlock; without the fused processors, exactly that."""
        if cross_attention_kwargs or not self._is_fusable():
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        hidden_states = self.attn1(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None,
            attention_mask=attention_mask,
            layer_norm=self.norm1,
        )
        if self.attn2 is not None:
            hidden_states = self.attn2(
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                layer_norm=self.norm2,
            )
        project_in, project_out = self.ff.net[0].proj, self.ff.net[2]
        wide = project_in.product(
            *project_in.input.layer_norm(self.norm3, hidden_states), out_dtype=hidden_states.dtype
        )
        return project_out.product(
            *project_out.input.geglu(wide), residual=hidden_states, out_dtype=hidden_states.dtype
        )

    def _is_fusable(self):
        attentions = [a for a in (self.attn1, self.attn2) if a is not None]
        return (
            all(isinstance(a.processor, AttnProcessor) for a in attentions)
            and self._chunk_size is None
        )


class Transformer2DModel(FloatTransformer2DModel):
    """GroupNorm and projection in, transformer blocks, projection out with the residual."""

    def _operate_on_continuous_inputs(self, hidden_states):
        q, qparams = self.proj_in.input.group_norm(
            self.norm, image_tokens(hidden_states), silu=False
        )
        tokens = self.proj_in.token_product(q, qparams, out_dtype=hidden_states.dtype)
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self, hidden_states, residual, batch_size, height, width, inner_dim
    ):
        q, qparams = self.proj_out.input.quantize(hidden_states.contiguous())
        out = self.proj_out.token_product(
            q, qparams, residual=image_tokens(residual), out_dtype=residual.dtype
        )
        return token_image(out, (height, width))


def is_standard_feed_forward(ff):
    """Whether a FeedForward is Linear, GEGLU, dropout, Linear."""
    return len(ff.net) == 3 and type(ff.net[0]) is GEGLU


def dot_products(config, dtype):
    """(compute_dtype, integer_backend) of :class:`AttnProcessor` for a model of `dtype`.

    "auto" is bfloat16 where the CPU multiplies it natively, else integers.
    """
    if config.attention == "int8":
        return None, config.backend
    if config.attention == "float" or config.backend == "reference":
        return None, None
    # oneDNN calls bfloat16 supported where it only emulates it, at a fraction of float32's speed.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if has_bf16 and "AVX512" in torch.backends.cpu.get_cpu_capability():
        return torch.bfloat16 if dtype is torch.float32 else None, None
    return None, config.backend if config.activations == "int8" else None
