"""The plan of a transformer with adaptive norms carried out, see :mod:`tfq.lowering`."""

from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from tfq import adaln, models, temporal
from tfq.adapters import base_modules
from tfq.lowering import Lowering, as_it_is


class TransformerLowering(Lowering):
    """:class:`tfq.lowering.Lowering` of a DiT or PixArt transformer.

    All inputs are tokens and quantized per token, so no range is in a row.
    """

    def run(self):
        """Lower the whole model."""
        modules = base_modules(self.unet)
        self._replace_layers(modules)
        for name, module in modules.items():
            self._fuse_attention(name, module, False)
            if type(module) is BasicTransformerBlock and adaln.is_fusable(module):
                if self._has(f"{name}.ff.net.0.proj", f"{name}.ff.net.2"):
                    self.undo.set_class(module, adaln.AdaLNTransformerBlock)
        self._install_rows()
        return self

    def _install_rows(self):
        norms, is_conditioned = models.adaln_norms(self.unet), self.needs_embedding
        tib = adaln.AdaLNFeatures(list(norms.values()), is_conditioned)
        features, places = [], {}

        def reserve(name, layer):
            slot = self.layout.allocate_feature(layer.out_features)
            features.append((name, slot, as_it_is))
            return adaln.RowSlice(slot, layer.out_features)

        for index, (name, norm) in enumerate(norms.items()):
            embedder = norm.emb.timestep_embedder
            places[f"{name}.emb.timestep_embedder"] = f"embeddings.{index}.embedding"
            if is_conditioned:
                part = reserve(f"{name}.emb", embedder.linear_2)
                self.undo.set_child(norm.emb, "time_proj", part)
                self.undo.set_child(norm.emb, "timestep_embedder", nn.Identity())
            else:
                places[f"{name}.linear"] = "projection"
                parts = (
                    reserve(f"{name}.linear", norm.linear),
                    reserve(f"{name}.emb", embedder.linear_2),
                )
                self.undo.set_child(self.unet, name, adaln.RowModulation(*parts))
        embedding = temporal.TemporalEmbedding(
            tib, self.layout, features, self.partition, 0, places
        )
        self.undo.set_child(self.unet, "time_embedding", embedding)
        hook = adaln.TimestepToRow(self.unet)
        self.undo.add(self.unet.register_forward_pre_hook(hook, with_kwargs=True).remove)


def lower(model, config, plans, undo):
    """The :class:`Lowering` of a model, carried out."""
    kind = TransformerLowering if isinstance(model, models.TRANSFORMERS) else Lowering
    return kind(model, config, plans, undo).run()
