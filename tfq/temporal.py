"""The Temporal Information Block: finding it, and folding it into a table of rows.

Every module that depends on the timestep alone (the sinusoid, the time MLP, the SiLU and Linear of each
ResBlock) forms one block with n outputs, the *temporal features* (Huang et al., "Temporal Feature
Matters", TPAMI 2025, section 4). A sampler uses a finite set of timesteps, so the features form a
finite table. A row of it travels through the UNet in place of ``temb``:

    temb = [ timestep | feature of ResBlock 1 | ... | qparams of layer 1 | ... | time embedding ]

The time embedding is kept only where something reads it. Nothing is looked up twice or remembered
between calls: each row is a function of the timestep that reached ``time_proj``.
"""

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import nn

from tfq import backends
from tfq.ops._checks import is_traced

VALUE_SLOT = 0
_KEY_BYTES = 4


def conditions(unet):
    """Names of the modules that add something else than the timestep to the time embedding."""
    names = [
        name
        for name in ("class_embedding", "add_embedding")
        if isinstance(getattr(unet, name, None), nn.Module)
    ]
    embedding = getattr(unet, "time_embedding", None)
    if getattr(embedding, "cond_proj", None) is not None:
        names.append("time_embedding.cond_proj")
    return names


def temporal_blocks(unet):
    """The Temporal Information Block of a float UNet.

    Membership follows module types and the data flow of diffusers' UNets, never names: the modules
    bound to the model's timestep input, and the projection inside each block of type ResnetBlock2D
    (or the adaptive norms of ResnetBlockCondNorm2D).

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
        Float, or converted by :func:`tfq.convert` (then the partition found at conversion).

    Returns
    -------
    dict
        ``embedding``: module names from timestep to embedding; ``blocks``: list of ``{name, block,
        width}`` for each projection, width = values per timestep; ``conditions``: modules whose
        output joins the embedding (empty if the features depend on the timestep alone); ``width``:
        values per timestep in all.
    """
    if isinstance(getattr(unet, "time_embedding", None), TemporalEmbedding):
        return unet.time_embedding.partition
    if not isinstance(getattr(unet, "time_embedding", None), TimestepEmbedding):
        raise TypeError(
            f"temporal_blocks: needs a diffusers UNet with a TimestepEmbedding, got {type(unet).__name__}"
        )
    blocks = []
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
            projections = [("time_emb_proj", module.time_emb_proj)]
        elif isinstance(module, ResnetBlockCondNorm2D):
            projections = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
        else:
            continue
        for child, projection in projections:
            blocks.append({"name": f"{name}.{child}", "block": name, "width": projection.out_features})
    return {
        "embedding": ["time_proj", "time_embedding"],
        "blocks": blocks,
        "conditions": conditions(unet),
        "width": sum(block["width"] for block in blocks),
    }


def encode_timesteps(timesteps):
    """``(batch,)`` timesteps as ``(batch, 4)`` bytes of their float32 value, one float each.

    ``UNet.forward`` casts what ``time_proj`` returns to the model's dtype; bfloat16 would turn 999 into
    1000, but holds every byte exactly.
    """
    values = timesteps.to(torch.float32).contiguous()
    return values.view(torch.uint8).view(-1, _KEY_BYTES).to(torch.float32)


def decode_timesteps(key):
    """Inverse of :func:`encode_timesteps`, float32 ``(batch,)``."""
    return key.to(torch.uint8).contiguous().view(torch.float32).view(-1)


class TimestepKey(nn.Module):
    """Stands for ``time_proj``: passes the exact timestep on to :class:`TemporalEmbedding`."""

    def forward(self, timesteps):
        """``(batch,)`` to ``(batch, 4)``, see :func:`encode_timesteps`."""
        return encode_timesteps(timesteps)


class RowLayout:
    """Allocates the slots of a row: the timestep, then features, then ranges."""

    def __init__(self):
        self.width = self.features_end = VALUE_SLOT + 1

    def allocate_feature(self, width):
        """Offset of a temporal feature; all features come before the first range."""
        slot = self.features_end
        self.width = self.features_end = slot + width
        return slot

    def allocate_range(self, width):
        """Offset of a layer's quantisation parameters."""
        slot = self.width
        self.width += width
        return slot


class TemporalEmbedding(nn.Module):
    """Stands for ``time_embedding``: a timestep's row of the table, or one computed for it.

    Parameters
    ----------
    time_proj, embedding : nn.Module
        The float sinusoid and MLP of the model.
    layout : RowLayout
    features : list of (str, int, ResnetBlock2D)
        For each folded block its name, slot and the module (whose ``time_emb_proj``, activation and
        ``fold_feature`` define the feature).
    partition : dict
        What :func:`temporal_blocks` returned for the float model.
    keep_embedding : bool
        Append the time embedding to the row, for modules that read it.
    embed_act : nn.Module, optional
        What the model applies to the time embedding before any block reads it.
    """

    def __init__(
        self, time_proj, embedding, layout, features, partition, keep_embedding, embed_act=None
    ):
        super().__init__()
        self.partition = partition
        self.width = layout.width
        self.features_end = layout.features_end
        self.embedding_width = embedding.linear_2.out_features if keep_embedding else 0
        self.slots = [(name, slot) for name, slot, _ in features]
        self.folds = [block.fold_feature for _, _, block in features]
        self.time_proj = time_proj
        self.embedding = embedding
        self.embed_act = embed_act
        self.activations = nn.ModuleList(
            nn.Identity() if block.skip_time_act else block.nonlinearity for _, _, block in features
        )
        self.projections = nn.ModuleList(block.time_emb_proj for _, _, block in features)
        self.register_buffer("values", torch.empty(0))
        self.register_buffer("table", torch.empty(0, self.width + self.embedding_width))
        self._rows = {}
        self.dropped = False

    def embed(self, values, condition=None):
        """Time embedding ``(batch, embedding)`` of float32 timesteps, in float."""
        learned = isinstance(self.time_proj, nn.Embedding)
        x = self.time_proj(values.long() if learned else values)
        if condition is not None:
            x = x.float() + _linear(self.embedding.cond_proj, condition)
        x = _linear(self.embedding.linear_1, x)
        if self.embedding.act is not None:
            x = self.embedding.act(x)
        x = _linear(self.embedding.linear_2, x)
        return x if self.embedding.post_act is None else self.embedding.post_act(x)

    def features(self, values, condition=None):
        """Temporal features of float32 timesteps ``(batch,)``: list of ``(batch, width)``, in float."""
        embedded = self.embed(values, condition)
        active = embedded if self.embed_act is None else self.embed_act(embedded)
        return [
            _linear(projection, activation(active))
            for activation, projection in zip(self.activations, self.projections, strict=True)
        ], embedded

    def compute_rows(self, values, condition=None):
        """Rows ``(batch, width)`` of the table for float32 timesteps, without ranges."""
        rows = torch.zeros(values.shape[0], self.width + self.embedding_width)
        rows[:, VALUE_SLOT] = values
        features, embedded = self.features(values, condition)
        for (_, slot), fold, feature in zip(self.slots, self.folds, features, strict=True):
            folded = fold(feature)
            rows[:, slot : slot + folded.shape[1]] = folded
        if self.embedding_width:
            rows[:, self.width :] = embedded
        return rows

    def set_rows(self, values, table):
        """Install the table: float32 ``(rows,)`` timesteps, ascending, and ``(rows, width)``."""
        self.values, self.table = values, table
        self._rows = {value: index for index, value in enumerate(values.tolist())}

    def finish(self, drop_tib):
        """Rows exist: keep the float block as float16 for a timestep never seen, or drop it."""
        self.dropped = drop_tib
        if drop_tib:
            self.time_proj = self.embedding = None
            self.activations = self.projections = nn.ModuleList()
        else:
            self.embedding.half()
            self.projections.half()

    def forward(self, key, condition=None):
        """``(batch, 4)`` timestep bytes to ``(batch, width)`` rows, float32."""
        values = decode_timesteps(key)
        if is_traced(key):
            return self._selected(values, condition)
        found = [self._rows.get(value, -1) for value in values.tolist()]
        if condition is None and min(found) >= 0:
            return backends.get("native").temporal_gather(self.table, torch.tensor(found))
        if self.dropped:
            unknown = sorted({v for v, row in zip(values.tolist(), found, strict=True) if row < 0})
            raise ValueError(
                f"timestep {unknown or values.tolist()} has no row and the float time embedding was "
                f"dropped (drop_tib=True); rows exist for {self.values.tolist()}"
            )
        return self._computed(values, found, condition)

    def _computed(self, values, found, condition):
        # One row at a time: torch's products differ in the last bits from one batch size to another.
        if condition is None:
            unique, index = values.unique(return_inverse=True)
            rows = torch.cat([self.compute_rows(value) for value in unique.split(1)])[index]
        else:
            pairs = zip(values.split(1), condition.split(1), strict=True)
            rows = torch.cat([self.compute_rows(*pair) for pair in pairs])
        if len(self.values) == 0:
            return rows
        rows = self._with_nearest_ranges(rows, values)
        if condition is None:
            for index, row in enumerate(found):
                if row >= 0:
                    rows[index] = self.table[row]
        return rows

    def _with_nearest_ranges(self, rows, values):
        # Ranges of the nearest calibrated timestep; features of the timestep itself.
        nearest = (values[:, None] - self.values[None, :]).abs().argmin(1)
        ranges = slice(self.features_end, self.width)
        rows[:, ranges] = self.table[nearest, ranges]
        return rows

    def _selected(self, values, condition):
        """Rows for a compiler: one graph for all timesteps, none of them read on the host."""
        if self.dropped and condition is not None:
            raise ValueError(
                "a condition joins the time embedding, and its float block was dropped (drop_tib=True)"
            )
        if len(self.values) == 0:
            return self.compute_rows(values, condition)
        matches = values[:, None] == self.values[None, :]
        known, index = matches.any(1), matches.long().argmax(1)
        if self.dropped:
            torch._assert_async(
                known.all(),
                "timestep without a row, and the float time embedding was dropped (drop_tib=True)",
            )
            return backends.get("native").temporal_gather(self.table, index)
        rows = self._with_nearest_ranges(self.compute_rows(values, condition), values)
        if condition is not None:
            return rows
        return torch.where(known[:, None], self.table[index], rows)


def _linear(layer, x):
    # The kept block is stored in float16 once rows exist, and computed in float32.
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(x.float(), layer.weight.float(), bias)


class RowCondition(nn.Module):
    """Stands for a module whose output is added to the time embedding: pads it to a whole row."""

    def __init__(self, module, width, time_proj=None):
        super().__init__()
        self.module = module
        self.width = width
        self.time_proj = time_proj

    def forward(self, *inputs):
        """Output of the module behind `width` zeros."""
        if self.time_proj is not None:
            inputs = (self.time_proj(decode_timesteps(inputs[0])), *inputs[1:])
        parameter = next(self.module.parameters(), None)
        if parameter is not None:
            inputs = [x.to(parameter.dtype) if x.is_floating_point() else x for x in inputs]
        out = self.module(*inputs)
        return nn.functional.pad(out, (self.width, 0))


class RowActivation(nn.Module):
    """Stands for ``time_embed_act``: acts on the time embedding at the end of a row."""

    def __init__(self, module, width):
        super().__init__()
        self.module = module
        self.width = width

    def forward(self, row):
        """Activation of ``row[:, width:]``; the rest unchanged."""
        return torch.cat([row[:, : self.width], self.module(row[:, self.width :])], dim=1)


class StripRow:
    """Forward pre-hook of a module that knows nothing of rows: hands it the plain time embedding."""

    def __init__(self, width, dtype):
        self.width = width
        self.dtype = dtype

    def __call__(self, module, args, kwargs):
        """Replace the argument ``temb`` (by keyword, or the second one)."""
        if isinstance(kwargs.get("temb"), torch.Tensor):
            kwargs = {**kwargs, "temb": self._strip(kwargs["temb"])}
        else:
            args = tuple(
                self._strip(a) if isinstance(a, torch.Tensor) and a.dim() == 2 else a for a in args
            )
        return args, kwargs

    def _strip(self, row):
        return row[:, self.width :].to(self.dtype)
