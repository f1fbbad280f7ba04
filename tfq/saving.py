"""Converted models as files: what ``config.json`` says of them, and the model built again from it.

diffusers writes and reads the files (:mod:`tfq.diffusers_quantizer`). The format is described in
docs/saving.md; whoever changes it raises :data:`FORMAT_VERSION`.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import typing
import uuid

import torch
from torch import nn

from tfq import models
from tfq._ext import _C
from tfq._version import __version__
from tfq.adaln_lowering import lower
from tfq.adapters import base_modules
from tfq.config import QuantMethod, TfqConfig
from tfq.features import FeatureCache, QuantizedTIB, SelectedFeatures
from tfq.lowering import Undo
from tfq.output_correction import empty_correction
from tfq.plan import LayerPlan
from tfq.plan_state import encode_plans, plan_difference
from tfq.temporal_modes import TABLE_MODES

FORMAT_VERSION = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_KEYS = ("packed_layout_version", "config", "layers", "rows", "dtype", "temporal")
_ERROR_KEYS = ("mean_error", "max_error", "chosen_tib_share")
# The files of a saved model, as diffusers names them: shards, variants, and the index of the shards.
_FILES = re.compile(
    r"config\.json|README\.md|\.gitattributes"
    r"|diffusion_pytorch_model(\..+)?(-\d{5}-of-\d{5})?\.safetensors"
    r"|diffusion_pytorch_model\.safetensors\.index(\..+)?\.json"
)
# As diffusers' save_pretrained.
_MAX_SHARD_SIZE = "10GB"


@dataclasses.dataclass
class SavedErrors:
    """Of the temporal errors what a file keeps: all but the maps."""

    mean_error: float
    max_error: float
    chosen_tib_share: float | None

    def summary(self):
        """As :meth:`tfq.temporal_modes.TemporalErrors.summary`, maps None."""
        return {**dataclasses.asdict(self), "maps": None}


@dataclasses.dataclass
class Conversion:
    """What :func:`tfq.report`, and whoever builds the model again, need to know of a conversion.

    diffusers has it as ``model.config.quantization_config``; its :meth:`to_dict` is in ``config.json``.

    Parameters
    ----------
    config : TfqConfig
    plans : list of LayerPlan
    temporal : TemporalErrors or SavedErrors
    timesteps : list of float
        Those of the rows, ascending; empty: the model has no table.
    dtype : torch.dtype
        Of the model: float32 or bfloat16.
    corrected : list of float
        Timesteps of the output correction, ascending; empty: there is none.
    """

    quant_method: typing.ClassVar = QuantMethod.TFQ

    config: TfqConfig
    plans: list
    temporal: object
    timesteps: list
    dtype: torch.dtype
    corrected: list = dataclasses.field(default_factory=list)

    def to_dict(self):
        """Plain dict, JSON-serializable."""
        errors = self.temporal.summary()
        return {
            "quant_method": self.quant_method.value,
            "format_version": FORMAT_VERSION,
            "packed_layout_version": _C.packed_layout_version,
            "config": self.config.to_dict(),
            "layers": [plan.to_dict() for plan in self.plans],
            "rows": {"timesteps": list(self.timesteps)},
            "output_correction": {"timesteps": list(self.corrected)},
            "dtype": str(self.dtype).removeprefix("torch."),
            "temporal": {key: errors[key] for key in _ERROR_KEYS},
        }

    @classmethod
    def from_dict(cls, values):
        """Inverse of :meth:`to_dict`, without the maps of the errors.

        Raises
        ------
        ValueError
            For another version of the format or of the packed weights, and for a missing or
            impossible value.
        """
        _check_version("format", values.get("format_version"), range(1, FORMAT_VERSION + 1))
        lacking = [key for key in _KEYS if key not in values]
        if lacking:
            raise ValueError(
                f"quantization_config: format version {values['format_version']} needs the keys "
                f"{', '.join(_KEYS)}; lacking: {', '.join(lacking)}"
            )
        _check_version(
            "packed layout", values["packed_layout_version"], (_C.packed_layout_version,)
        )
        if values["dtype"] not in DTYPES:
            raise ValueError(
                f"quantization_config: dtype must be one of {', '.join(DTYPES)}, got "
                f"{values['dtype']!r}"
            )
        try:
            plans = [LayerPlan.from_dict(plan) for plan in values["layers"]]
            timesteps = [float(timestep) for timestep in values["rows"]["timesteps"]]
            corrected = values.get("output_correction", {"timesteps": []})  # since version 2
            corrected = [float(timestep) for timestep in corrected["timesteps"]]
            errors = SavedErrors(**{key: values["temporal"][key] for key in _ERROR_KEYS})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"quantization_config: layers, rows, output_correction or temporal are not as tfq "
                f"writes them: {error}"
            ) from error
        config = TfqConfig.from_dict(values["config"])
        return cls(config, plans, errors, timesteps, DTYPES[values["dtype"]], corrected)


def _check_version(name, version, readable):
    if version not in readable:
        raise ValueError(
            f"quantization_config: the model was saved in {name} version {version!r}, and tfq "
            f"{__version__} reads version {' or '.join(map(str, readable))}; install the version of tfq "
            f"that wrote it, or a newer one"
        )


def build_skeleton(model, conversion):
    """Turn a float UNet without weights into a converted one without weights, in place.

    Parameters
    ----------
    model : UNet2DModel or UNet2DConditionModel
        As its configuration makes it, on the "meta" device.
    conversion : Conversion

    Raises
    ------
    ValueError
        If `conversion` is of another model.
    """
    modules = base_modules(model)
    for plan in conversion.plans:
        module = modules.get(plan.name)
        found = type(module).__name__
        if found != plan.type:
            raise ValueError(
                f"quantization_config: layers has {plan.name!r} as {plan.type}, but in the "
                f"{type(model).__name__} of this config.json it is {found}"
            )
        if plan.sources and not _has_sources(module, plan.sources):
            raise ValueError(
                f"quantization_config: layers has sources {plan.sources} of {plan.name!r}, which must be "
                f"positive and add up to the input channels of a 1x1 Conv2d; it is {module}"
            )
    lowered = lower(model, conversion.config, conversion.plans, Undo())
    for plan in conversion.plans:
        if plan.converted:
            layer = lowered.layers[plan.name]
            layer.input.ranges = plan.ranges
            if plan.ranges != "dynamic" and (layer.input.slot is None or not conversion.timesteps):
                raise ValueError(
                    f"quantization_config: layers has ranges {plan.ranges!r} of {plan.name!r}, but the "
                    f"table has no place for its input"
                )
            if plan.adds_bias:
                bias = torch.empty(layer.weight_shape[0], device="meta")
                layer.bias = nn.Parameter(bias, requires_grad=False)
    embedding, rows = model.time_embedding, len(conversion.timesteps)
    embedding.plan = encode_plans(conversion.plans).to("meta")
    width = embedding.table.shape[1]
    embedding.set_rows(torch.empty(rows, device="meta"), torch.empty(rows, width, device="meta"))
    if embedding.slots and conversion.config.temporal in TABLE_MODES:
        embedding.use_source(_empty_source(embedding, conversion.config, rows))
    if rows:
        embedding.finish(conversion.config.drop_tib)
    if conversion.corrected:
        model.output_correction = empty_correction(model, len(conversion.corrected))


def _has_sources(module, sources):
    return (
        getattr(module, "kernel_size", None) == (1, 1)
        and all(type(channels) is int and channels > 0 for channels in sources)
        and sum(sources) == module.in_channels
    )


def _empty_source(embedding, config, rows):
    """The source of the temporal features, without values; as conversion makes it."""
    cache = FeatureCache(embedding.feature_widths, rows, config.backend)
    if config.temporal == "cache":
        return cache
    block = QuantizedTIB(
        embedding.tib, config.weight_bits, rows, config.fsc_output_tap, config.backend
    )
    return block if config.temporal == "tib" else SelectedFeatures(block, cache, rows)


def check_save(model, conversion):
    """Raise ValueError if the weights that were loaded are of another save than the configuration.

    Weights of a format version before 3 have no plan: they get the configuration's.
    """
    embedding, plan = model.time_embedding, encode_plans(conversion.plans)
    if embedding.plan.is_meta:
        embedding.plan = plan.to(embedding.values.device)
    if difference := plan_difference(weights=embedding.plan, configuration=plan):
        raise ValueError(
            f"from_pretrained: config.json and the weights have different plans: {difference}"
        )
    timesteps = embedding.values.tolist()
    if timesteps != conversion.timesteps:
        raise ValueError(
            f"from_pretrained: config.json and the weights are of two different saves: rows for "
            f"timesteps {conversion.timesteps} and {timesteps}"
        )


def save(unet, folder, *, max_shard_size=_MAX_SHARD_SIZE, variant=None):
    """Save a converted UNet with a model card, whole or not at all.

    As ``unet.save_pretrained(folder)``, but everything is written to a new folder beside, which then
    takes the place of `folder`: an interrupted save leaves `folder` as it was. ``from_pretrained``
    of the model's class loads it where tfq is imported.

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
        Converted by :func:`tfq.convert`.
    folder : path
        Replaced if it holds nothing but a saved model.
    max_shard_size : int or str
        Of one file of weights, in bytes or as in "10GB".
    variant : str, optional
        Goes into the names of the weight files: ``diffusion_pytorch_model.<variant>.safetensors``.

    Raises
    ------
    TypeError
        If `unet` was not converted.
    ValueError
        If `folder` is a file, or holds anything else than a saved model.

    Examples
    --------
    >>> import tempfile, tfq
    >>> from diffusers import UNet2DModel
    >>> unet = tfq.convert(UNet2DModel(sample_size=8, block_out_channels=(32, 32),
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tfq.save(unet, folder)
    ...     unet = UNet2DModel.from_pretrained(folder)
    """
    conversion = getattr(unet, "_tfq_conversion", None)
    if conversion is None:
        raise TypeError(
            f"save: needs a model converted by tfq.convert, got a {models.described(unet)}"
        )
    folder = pathlib.Path(folder).resolve()
    _check_replaceable(folder)
    with replaced_folder(folder) as partial:
        unet.save_pretrained(partial, max_shard_size=max_shard_size, variant=variant)
        (partial / "README.md").write_text(_model_card(unet, conversion), encoding="utf-8")


@contextlib.contextmanager
def replaced_folder(folder):
    """Give an empty folder beside `folder` that takes its place if the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    partial = folder.with_name(f".{folder.name}.{unique}.partial")
    try:
        partial.mkdir()
        yield partial
        _replace_folder(folder, partial, folder.with_name(f".{folder.name}.{unique}.old"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def beside_model(folder):
    """Names in a folder that are not files of a saved model, sorted."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if not (path.is_file() and _FILES.fullmatch(path.name))
    )


def _check_replaceable(folder):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"save: folder must be a folder, got the file {str(folder)!r}")
    if others := beside_model(folder):
        raise ValueError(
            f"save: folder {str(folder)!r} would be replaced, but holds more than a saved model: "
            f"{', '.join(others[:5])}"
        )


def _replace_folder(folder, new, old):
    """Put the folder `new` in the place of `folder`, which is moved to `old` meanwhile."""
    if not folder.exists():
        os.rename(new, folder)
        return
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)


def _origin(unet):
    """What the card's header says of the float model, if it came from the Hub and not from a folder."""
    name = str(unet.config.get("_name_or_path") or "")  # a path where it was loaded from one
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or pathlib.Path(name).exists():
        return ""
    return f"base_model: {name}\nbase_model_relation: quantized\n"


def _model_card(unet, conversion):
    # Here, because reports are not needed to load a model.
    from tfq.reporting import report

    config, values, cls = conversion.config, report(unet).to_dict(), type(unet).__name__
    bits = {"int8": "8-bit", "int4": "4-bit"}[config.weights]
    activations = "8-bit" if config.activations == "int8" else "float"
    rows = f"{len(conversion.timesteps)} timesteps" if conversion.timesteps else "no table"
    return f"""---
library_name: diffusers
{_origin(unet)}tags:
- tfq
- quantized
---

# {cls} in {config.weights.upper()}

A diffusers `{cls}` converted by tfq {__version__}: {bits} weights, \
{activations} activations.

| | |
|---|---|
| weights and tables | {values["weight_bytes"] / 1e6:.1f} MB |
| multiply-adds on integer kernels | {100 * values["native_mac_share"]:.1f} % |
| temporal features | {config.temporal}, {rows}, mean relative error \
{values["temporal"]["mean_error"]:.2g} |
| dtype of inputs and outputs | {str(conversion.dtype).removeprefix("torch.")} |
| format version | {FORMAT_VERSION} |

```python
import tfq  # lets diffusers load it
from diffusers import {cls}

unet = {cls}.from_pretrained("path/to/this/folder")
```
"""
