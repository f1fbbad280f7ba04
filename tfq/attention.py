"""Attention and transformer blocks on INT8 kernels."""

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock as FloatBasicTransformerBlock
from diffusers.models.attention_processor import Attention as FloatAttention
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_2d import (
    Transformer2DModel as FloatTransformer2DModel,
)
from torch.nn import functional as F

from tfq import backends
from tfq.adapters import is_untouched
from tfq.nn import Conv2d, Linear, image_tokens, token_image
from tfq.ops import _checks, _cuda
from tfq.text_cache import key_value

# What a fused attention computes; with any other processor it runs unfused.
PLAIN_PROCESSORS = (AttnProcessor2_0, AttnProcessor, FusedAttnProcessor2_0)


class Attention(FloatAttention):
    """INT8 projections; softmax(QK)V in float or on integers.

    The input is normalised (GroupNorm of the attention, or the LayerNorm of the transformer block
    around it) and quantised in one kernel, once for the projections that share it; the output
    projection adds the residual in its epilogue. With a processor of another kind, or children that
    carry hooks or adapters, the processor runs as in diffusers on the quantized layers.

    ``compute_dtype`` is the dtype of queries, keys and values, None that of the hidden states;
    ``integer_backend`` the backend of the dot products on integers, None: they are float. A masked
    attention always is, and one on CUDA's kernels but for ``integers_on_cuda``.
    """

    compute_dtype = None
    integer_backend = None
    integers_on_cuda = False

    def _layers(self):
        """to_q, to_k, to_v and the two of to_out."""
        modules = self._modules
        out = modules["to_out"]._modules
        return modules["to_q"], modules["to_k"], modules["to_v"], out["0"], out["1"]

    def is_fused(self):
        """Whether the kernels run as one unit."""
        *projections, dropout = self._layers()
        if type(self.processor) not in PLAIN_PROCESSORS:
            return False
        for layer in projections:
            if not isinstance(layer, Linear):
                return False
        norm = self._modules.get("group_norm")
        return is_untouched(*projections, dropout) and (norm is None or is_untouched(norm))

    def fuse_projections(self, fuse=True):
        """As diffusers' method; the projections share one quantized input as they are."""
        self.fused_projections = fuse

    def forward(
        self, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None,
        layer_norm=None, gate=None, **cross_attention_kwargs,
    ):  # fmt: skip
        """As diffusers' Attention; `temb` is a row.

        With `layer_norm`, `hidden_states` is the residual stream: it is normalised here, and added to
        the output, times `gate` ``(batch, channels)`` if there is one. Only a fused attention takes
        them.
        """
        if cross_attention_kwargs or layer_norm is None and not self.is_fused():
            return self._unfused(
                hidden_states, encoder_hidden_states, attention_mask, cross_attention_kwargs
            )
        to_q, _, _, to_out, _ = self._layers()
        is_image = hidden_states.dim() == 4
        tokens = image_tokens(hidden_states) if is_image else hidden_states.contiguous()
        q_input = self._quantize_input(tokens, temb, layer_norm)
        input_dtype = tokens.dtype
        dtype = self.compute_dtype or input_dtype
        query = to_q.product(*q_input, out_dtype=dtype)
        if encoder_hidden_states is None:
            key, value = self._key_value(q_input, dtype)
        else:
            key, value = key_value(
                (self, dtype),
                encoder_hidden_states,
                lambda: self._text_key_value(encoder_hidden_states, input_dtype, dtype),
            )
        if attention_mask is not None:
            batch, length = key.shape[:2]
            attention_mask = self.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, self.heads, -1, attention_mask.shape[-1])
        mixed = self._attend(query, key, value, attention_mask)

        adds_residual = self.residual_connection or (layer_norm is not None and gate is None)
        out = to_out.product(
            *to_out.input.quantize(mixed),
            residual=tokens if adds_residual else None,
            out_dtype=tokens.dtype,
        )
        if gate is not None:
            out = gated_sum(tokens, gate, out)
        if is_image:
            out = token_image(out, hidden_states.shape[2:])
        return out if self.rescale_output_factor == 1 else out / self.rescale_output_factor

    def _key_value(self, source, dtype):
        _, to_k, to_v, _, _ = self._layers()
        return to_k.product(*source, out_dtype=dtype), to_v.product(*source, out_dtype=dtype)

    def _text_key_value(self, text, input_dtype, dtype):
        source = self.to_k.input.quantize(text.to(input_dtype).contiguous())
        return self._key_value(source, dtype)

    def _unfused(self, hidden_states, encoder_hidden_states, attention_mask, kwargs):
        if type(self.processor) is FusedAttnProcessor2_0:  # reads layers that nobody made
            return AttnProcessor2_0()(self, hidden_states, encoder_hidden_states, attention_mask)
        return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)

    def _on_integers(self, query):
        if self.integer_backend == "native" and _checks.has_cuda_kernels(query):
            return self.integers_on_cuda
        return self.integer_backend is not None

    def _attend(self, query, key, value, attention_mask):
        """``softmax(QK)V`` of ``(batch, tokens, heads * width)``, of the same shape as `query`."""
        if attention_mask is None and self._on_integers(query):
            return backends.get(self.integer_backend).attention_s8(query, key, value, self.heads)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return mixed.transpose(1, 2).flatten(2).contiguous()

    def _quantize_input(self, tokens, row, layer_norm):
        modules = self._modules
        quantizer, group_norm = modules["to_q"].input, modules.get("group_norm")
        if layer_norm is not None:
            return quantizer.layer_norm(layer_norm, tokens)
        if group_norm is not None:
            return quantizer.group_norm(group_norm, tokens, row, silu=False)
        return quantizer.quantize(tokens)


class BasicTransformerBlock(FloatBasicTransformerBlock):
    """Self-attention, cross-attention and feed-forward with fused norms, GEGLU and residuals."""

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, timestep=None, cross_attention_kwargs=None, class_labels=None,
        added_cond_kwargs=None,
    ):  # fmt: skip
        """As diffusers' BasicTransformerBlock; each part is fused unless its children were touched."""
        if cross_attention_kwargs or self._chunk_size is not None:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        context = encoder_hidden_states if self.only_cross_attention else None
        hidden_states = self._attend(self.norm1, self.attn1, hidden_states, context, attention_mask)
        if self.attn2 is not None:
            hidden_states = self._attend(
                self.norm2, self.attn2, hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        if not self._fuses_feed_forward():
            return self.ff(self.norm3(hidden_states)) + hidden_states
        return self._feed_forward(hidden_states)

    def _feed_forward(self, tokens):
        geglu, _, project_out = self.ff.net._modules.values()
        project_in = geglu.proj
        source = project_in.input.layer_norm(self.norm3, tokens)
        if _has_geglu_epilogue(project_in, tokens):
            gated = project_in.product(*source, activation="geglu", out_dtype=tokens.dtype)
            source = project_out.input.quantize(gated)
        else:
            wide = project_in.product(*source, out_dtype=tokens.dtype)
            source = project_out.input.geglu(wide)
        return project_out.product(*source, residual=tokens, out_dtype=tokens.dtype)

    @staticmethod
    def _fuses(norm, attention):
        return (
            isinstance(attention, Attention)
            and is_untouched(norm, attention)
            and attention.is_fused()
        )

    def _attend(self, norm, attention, hidden_states, context, mask):
        arguments = {"encoder_hidden_states": context, "attention_mask": mask}
        if self._fuses(norm, attention):
            return attention(hidden_states, **arguments, layer_norm=norm)
        return attention(norm(hidden_states), **arguments) + hidden_states

    def _fuses_feed_forward(self):
        geglu, dropout, project_out = self.ff.net._modules.values()
        return (
            isinstance(geglu.proj, Linear)
            and isinstance(project_out, Linear)
            and is_untouched(self.norm3, self.ff, geglu, geglu.proj, dropout, project_out)
        )

    def is_fused(self):
        """Whether every part runs as one unit."""
        second = self.attn2 is None or self._fuses(self.norm2, self.attn2)
        return self._fuses(self.norm1, self.attn1) and second and self._fuses_feed_forward()


class Transformer2DModel(FloatTransformer2DModel):
    """GroupNorm and projection in, transformer blocks, projection out with the residual."""

    def _fuses_input(self):
        return isinstance(self.proj_in, (Linear, Conv2d)) and is_untouched(self.norm, self.proj_in)

    def _fuses_output(self):
        return isinstance(self.proj_out, (Linear, Conv2d)) and is_untouched(self.proj_out)

    def is_fused(self):
        """Whether both projections run with what is around them."""
        return self._fuses_input() and self._fuses_output()

    def _operate_on_continuous_inputs(self, hidden_states):
        if not self._fuses_input():
            return super()._operate_on_continuous_inputs(hidden_states)
        q, qparams = self.proj_in.input.group_norm(
            self.norm, image_tokens(hidden_states), silu=False
        )
        tokens = self.proj_in.token_product(q, qparams, out_dtype=hidden_states.dtype)
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self, hidden_states, residual, batch_size, height, width, inner_dim
    ):
        if not self._fuses_output():
            return super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
        q, qparams = self.proj_out.input.quantize(hidden_states.contiguous())
        out = self.proj_out.token_product(
            q, qparams, residual=image_tokens(residual), out_dtype=residual.dtype
        )
        return token_image(out, (height, width))


def gated_sum(tokens, gate, update):
    """``tokens + gate * update`` with a gate ``(batch, channels)``, in the dtype of the tokens."""
    return torch.addcmul(tokens, gate[:, None].to(tokens.dtype), update)


def _has_geglu_epilogue(layer, x):
    """Whether a product of the layer can fold its own output: of CUDA's, in runs of 16 channels."""
    return (
        layer.backend == "native" and _checks.has_cuda_kernels(x) and layer.out_features % 16 == 0
    )


def is_standard_feed_forward(ff):
    """Whether a FeedForward is Linear, GEGLU, dropout, Linear."""
    return len(ff.net) == 3 and type(ff.net[0]) is GEGLU


def dot_products(config, dtype, head_size):
    """Attributes of an :class:`Attention` with heads of `head_size` channels in a model of `dtype`.

    "auto" is integers, but bfloat16 where the CPU multiplies tiles of it (AMX), and float where the
    activations are, and on CUDA: that integers are faster there was not measured.
    """
    if config.attention == "int8":
        on_cuda = _cuda.has_attention(head_size)
        return {"integer_backend": config.backend, "integers_on_cuda": on_cuda}
    if config.attention == "float" or config.backend == "reference":
        return {}
    has_amx = torch.cpu._is_amx_tile_supported()
    if has_amx and "AVX512" in torch.backends.cpu.get_cpu_capability():
        return {"compute_dtype": torch.bfloat16} if dtype is torch.float32 else {}
    return {"integer_backend": config.backend} if config.activations == "int8" else {}
