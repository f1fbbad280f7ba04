"""The Temporal Information Block: finding it, and folding it into a table of rows.

Every module that depends on the timestep alone (the sinusoid, the time MLP, the SiLU and Linear of each
ResBlock) forms one block with n outputs, the *temporal features* (Huang et al., "Temporal Feature
Matters", TPAMI 2025, section 4). A sampler uses a finite set of timesteps, so the features form a
finite table. A row of it travels through the UNet in place of ``temb``:

    temb = [ timestep | qparams of layer 1 | ... | feature of ResBlock 1 | ... | time embedding ]

The time embedding is kept only where something reads it. Nothing is looked up twice or remembered
between calls: each row is a function of the timestep that reached ``time_proj``.
"""

import itertools

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import nn

from tfq import backends, capture, models
from tfq.adapters import base_layer
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
    if isinstance(unet, models.TRANSFORMERS):
        return _adaln_blocks(unet)
    if not isinstance(getattr(unet, "time_embedding", None), TimestepEmbedding):
        raise TypeError(
            f"temporal_blocks: needs a diffusers UNet with a TimestepEmbedding, got {type(unet).__name__}"
        )
    blocks = []
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
            projections = [("time_emb_proj", base_layer(module.time_emb_proj))]
        elif isinstance(module, ResnetBlockCondNorm2D):
            projections = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
        else:
            continue
        for child, projection in projections:
            blocks.append(
                {"name": f"{name}.{child}", "block": name, "width": projection.out_features}
            )
    return {
        "embedding": ["time_proj", "time_embedding"],
        "blocks": blocks,
        "conditions": conditions(unet),
        "width": sum(block["width"] for block in blocks),
    }


def _adaln_blocks(model):
    norms = models.adaln_norms(model)
    projections = {f"{name}.linear": (name, norm.linear) for name, norm in norms.items()}
    if hasattr(model, "proj_out_1"):
        projections["proj_out_1"] = ("proj_out_1", model.proj_out_1)
    blocks = [
        {"name": name, "block": block, "width": base_layer(layer).out_features}
        for name, (block, layer) in projections.items()
    ]
    parts = ("time_proj", "timestep_embedder")
    return {
        "embedding": [f"{name}.emb.{part}" for name in norms for part in parts],
        "blocks": blocks,
        "conditions": sorted(
            {
                child
                for norm in norms.values()
                for child, module in norm.emb.named_children()
                if child not in parts and next(module.parameters(), None) is not None
            }
        ),
        "width": sum(block["width"] for block in blocks),
    }


def encode_timesteps(timesteps):
    """``(batch,)`` timesteps as ``(batch, 4)`` bytes of their float32 value, one float each.

    ``UNet.forward`` casts what ``time_proj`` returns to the model's dtype; bfloat16 would turn 999 into
    1000, but holds every byte exactly.
    """
    # A copy has the stride 1 that a view of bytes needs; one timestep, expanded, has stride 0.
    values = timesteps.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
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
    """Allocates the slots of a row: the timestep, then ranges, then features."""

    def __init__(self):
        self.width = VALUE_SLOT + 1
        self.ranges_end = self.width

    def allocate_range(self, width):
        """Offset of a layer's quantization parameters; all ranges come before the first feature."""
        slot = self.width
        self.width = self.ranges_end = slot + width
        return slot

    def allocate_feature(self, width):
        """Offset of a temporal feature."""
        slot = self.width
        self.width += width
        return slot


class TemporalEmbedding(nn.Module):
    """Stands for ``time_embedding``: turns a timestep into its row.

    The ranges of a row come from ``table``; the features from the table too ("fold"), or from
    ``source`` (:mod:`tfq.features`); the time embedding behind them from the float block ``tib``. A
    model without a table (nothing to calibrate with) computes each row in float.

    Parameters
    ----------
    tib : FloatTIB
    layout : RowLayout
    features : list of (str, int, callable)
        For each block whose feature is in the row its name, slot, and the function of the feature that
        the row stores.
    partition : dict
        What :func:`temporal_blocks` returned for the float model.
    embedding_width : int
        Values of the time embedding at the end of a row; 0: nothing reads it.
    places : dict
        Name in the float model -> name in `tib` of each module that has moved there.
    """

    def __init__(self, tib, layout, features, partition, embedding_width, places):
        super().__init__()
        self.partition = partition
        self.width = layout.width
        self.ranges_end = layout.ranges_end
        self.embedding_width = embedding_width
        self.slots = [(name, slot) for name, slot, _ in features]
        self.folds = [fold for _, _, fold in features]
        self.places = places
        self.tib = tib
        self.source = None
        self.register_buffer("values", torch.empty(0))
        self.register_buffer("table", torch.empty(0, self.width + embedding_width))
        self.register_buffer("plan", None)  # see tfq.plan_state
        self._rows = None

    @property
    def feature_widths(self):
        """Values of each feature."""
        ends = [slot for _, slot in self.slots[1:]] + [self.width]
        return [end - slot for (_, slot), end in zip(self.slots, ends, strict=True)]

    def compute_rows(self, values, condition=None):
        """Rows ``(batch, width)`` of float32 timesteps, features in float, without ranges."""
        features, embedded = self.tib.features(values, condition)
        folded = [fold(f) for fold, f in zip(self.folds, features, strict=True)]
        ranges = torch.zeros(values.shape[0], self.ranges_end, device=values.device)
        ranges[:, VALUE_SLOT] = values
        tail = [embedded] if self.embedding_width else []
        return torch.cat([ranges, *folded, *tail], dim=1)

    def set_rows(self, values, table):
        """Install the table: float32 ``(rows,)`` timesteps, ascending, and ``(rows, width)``."""
        self.values, self.table, self._rows = values, table, None

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self._rows = None  # of the timesteps before

    def use_source(self, source):
        """Take the features from `source` from now on; the table keeps the rest."""
        self.source = source
        parts = (self.table[:, : self.ranges_end], self.table[:, self.width :])
        self.table = torch.cat(parts, dim=1)
        if source.replaces_float:
            self.tib = None

    def finish(self, drop_tib):
        """Rows exist: keep the float block as float16 for a timestep never seen, or drop it."""
        if self.tib is not None:
            self.tib = None if drop_tib else self.tib.half()

    def forward(self, key, condition=None):
        """``(batch, 4)`` timestep bytes to ``(batch, width)`` rows, float32."""
        if not torch.compiler.is_dynamo_compiling() and capture.is_active():
            return self._captured(key, condition)
        if is_traced(key):
            return self._traced(decode_timesteps(key), condition)
        values = decode_timesteps(key)
        if len(self.values) == 0:
            return _one_by_one(self.compute_rows, values, condition)
        self._check_condition(condition)
        index, known = self._look_up(values)
        if self.source is None and condition is None and all(known):
            return backends.get("native").temporal_gather(self.table, index)
        if not all(known):
            self._require_tib(values, known)
        known = torch.tensor(known, device=values.device)
        if condition is not None:
            return _one_by_one(self._assemble, values, index, known, condition)
        unique, inverse = values.unique(return_inverse=True)
        first = torch.stack([(inverse == i).nonzero()[0, 0] for i in range(len(unique))])
        return _one_by_one(self._assemble, unique, index[first], known[first], None)[inverse]

    def _look_up(self, values):
        """Row of the nearest timestep of the table, and whether it is the timestep itself."""
        rows = self.rows_of(values)
        known = [row >= 0 for row in rows]
        if all(known):
            return torch.tensor(rows, device=values.device), known
        return (values[:, None] - self.values[None, :]).abs().argmin(1), known

    def _check_condition(self, condition):
        if condition is not None and self.tib is None:
            raise ValueError(
                "a condition joins the time embedding, and its float block was dropped (drop_tib=True)"
            )

    def _require_tib(self, values, known):
        if self.tib is None and (self.source is None or not self.source.replaces_float):
            unknown = sorted({v for v, k in zip(values.tolist(), known, strict=True) if not k})
            raise ValueError(
                f"timestep {unknown} has no row and the float time embedding was "
                f"dropped (drop_tib=True); rows exist for {self.values.tolist()}"
            )

    def _assemble(self, values, index, known, condition=None):
        """Rows from the table and the source; a timestep without one through the float block."""
        rows = backends.get("native").temporal_gather(self.table, index)
        if self.source is not None:
            ranges, tail = rows.split((self.ranges_end, self.embedding_width), dim=1)
            features, embedded = self.source.features(values, index, known)
            folded = [fold(f) for fold, f in zip(self.folds, features, strict=True)]
            if self.embedding_width and embedded is not None:
                tail = embedded
            rows = torch.cat([ranges, *folded, tail], dim=1)
            if self.source.replaces_float:
                rows[:, VALUE_SLOT] = values
                return rows
        on_device = is_traced(values) or capture.is_active()
        if self.tib is None or (condition is None and not on_device and bool(known.all())):
            return rows
        # Ranges of the nearest calibrated timestep; features of the timestep itself.
        computed = self.compute_rows(values, condition)
        ranges = slice(VALUE_SLOT + 1, self.ranges_end)
        computed[:, ranges] = rows[:, ranges]
        return computed if condition is not None else torch.where(known[:, None], rows, computed)

    def is_table(self):
        """Whether a known timestep's row is a row of the table and nothing else."""
        return self.source is None and len(self.values) > 0

    def rows_of(self, values):
        """Row of each float32 timestep, a list; -1 where there is none."""
        if self._rows is None:
            self._rows = {value: row for row, value in enumerate(self.values.tolist())}
        return [self._rows.get(value, -1) for value in values.tolist()]

    def _captured(self, key, condition):
        index = capture.index()
        if index is None:
            values = decode_timesteps(key)
            # On a CPU the bits are those of an eager call; a GPU would launch kernels for each image.
            if values.is_cpu:
                return _one_by_one(self._traced, values, condition)
            return self._traced(values, condition)
        return backends.get("native").temporal_gather(self.table, index)

    def _traced(self, values, condition):
        """Rows for a compiler or a CUDA graph: one graph for all timesteps, none of them read on the host."""
        if len(self.values) == 0:
            return self.compute_rows(values, condition)
        self._check_condition(condition)
        distance = (values[:, None] - self.values[None, :]).abs()
        index = distance.argmin(1)
        known = (distance == 0).any(1)
        if self.tib is None and (self.source is None or not self.source.replaces_float):
            torch._assert_async(
                known.all(),
                "timestep without a row, and the float time embedding was dropped (drop_tib=True)",
            )
        return self._assemble(values, index, known, condition)


def _one_by_one(function, *columns):
    # torch's float products differ in the last bits from one batch size to another.
    parts = [itertools.repeat(None) if c is None else c.split(1) for c in columns]
    return torch.cat([function(*arguments) for arguments in zip(*parts, strict=False)])


class ConditionInputs:
    """Forward pre-hook of a module whose output joins the time embedding: its own dtype, real timesteps.

    A module that embeds timesteps has the float ``time_proj`` as a child of that name.
    """

    def __call__(self, module, args):
        """The arguments as the float model's."""
        if "time_proj" in module._modules:
            args = (module.time_proj(decode_timesteps(args[0])), *args[1:])
        parameter = next(module.parameters(), None)
        if parameter is not None:
            args = tuple(x.to(parameter.dtype) if x.is_floating_point() else x for x in args)
        return args


class PadToRow:
    """Forward hook of a module whose output is added to the time embedding: puts zeros before it."""

    def __init__(self, width):
        self.width = width

    def __call__(self, module, args, output):
        """Output of the module behind `width` zeros."""
        return nn.functional.pad(output, (self.width, 0))


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
