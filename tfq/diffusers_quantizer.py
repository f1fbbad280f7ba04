"""tfq as a quantization method of diffusers: how converted models are written and read.

Everything that relies on diffusers' loader is in here. Importing tfq registers the method, so that
``from_pretrained`` knows ``quant_method: "tfq"``.
"""

import abc
import functools

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from tfq import checks
from tfq._ext import _C
from tfq.config import QuantMethod, TfqConfig
from tfq.nn import QuantizedLayer
from tfq.nonfinite import carry_nonfinite
from tfq.output_correction import correct_output
from tfq.plan_state import PLAN, encode_plans, guard_state
from tfq.saving import (
    DTYPES,
    FORMAT_VERSION,
    Conversion,
    build_skeleton,
    check_save,
)


class QuantizationConfig(abc.ABC):
    """What diffusers may be given as a configuration: a TfqConfig, or a Conversion that was saved."""

    @classmethod
    def from_dict(cls, values):
        """The one that a dict with ``quant_method: "tfq"`` describes."""
        return (Conversion if "format_version" in values else TfqConfig).from_dict(values)

    @abc.abstractmethod
    def to_dict(self):
        """Plain dict, JSON-serializable."""


QuantizationConfig.register(TfqConfig)
QuantizationConfig.register(Conversion)


class TfqQuantizer(DiffusersQuantizer):
    """Loads saved conversions (``pre_quantized``), and float checkpoints into dynamic INT8."""

    def __init__(self, quantization_config, **kwargs):
        super().__init__(quantization_config, **kwargs)
        expected = Conversion if self.pre_quantized else TfqConfig
        if isinstance(quantization_config, expected):
            return
        if self.pre_quantized:
            raise ValueError(
                "from_pretrained: quantization_config of config.json has no format_version, so tfq did "
                "not save these weights; to convert a float checkpoint, pass "
                "quantization_config=TfqConfig(...) and leave config.json without it"
            )
        raise TypeError(
            f"from_pretrained: the checkpoint is float, so quantization_config must be a TfqConfig, got "
            f"{type(quantization_config).__name__}"
        )

    is_serializable = True
    is_trainable = False
    is_compileable = True

    def validate_environment(self, torch_dtype=None, **kwargs):
        """Raise TypeError for a dtype that no kernel computes in."""
        if torch_dtype is not None and torch_dtype not in DTYPES.values():
            raise TypeError(
                f"from_pretrained: dtype must be {' or '.join(map(str, DTYPES.values()))}, got "
                f"{torch_dtype}"
            )

    def update_torch_dtype(self, torch_dtype):
        """That of the saved model if none is asked for."""
        if torch_dtype is None and self.pre_quantized:
            return self.quantization_config.dtype
        return torch_dtype

    def _process_model_before_weight_loading(self, model, **kwargs):
        if self.pre_quantized:
            build_skeleton(model, self.quantization_config)
            return
        try:
            checks.resolve_ranges(model, self.quantization_config, None, None)
        except ValueError as error:
            raise ValueError(
                f"from_pretrained converts without calibration, but {error}; load the float model and "
                f"call tfq.convert"
            ) from error

    def update_missing_keys(self, model, missing_keys, prefix):
        """Raise ValueError if tensors are missing, but for names of a tensor that has another one."""
        tensors = model.state_dict(keep_vars=True)
        missing = set(missing_keys) - {PLAN}  # since version 3
        present = {id(tensor) for name, tensor in tensors.items() if name not in missing}
        lacking = sorted(name for name in missing if id(tensors[name]) not in present)
        if lacking:
            raise ValueError(
                f"from_pretrained: the weight files lack {len(lacking)} of {len(tensors)} tensors that "
                f"config.json asks for, e.g. {lacking[0]}"
            )
        return []

    def check_if_quantized_param(self, model, param_value, param_name, state_dict, **kwargs):
        """Every tensor of a saved conversion is read here, so that none is cast."""
        return self.pre_quantized

    def check_quantized_param_shape(self, param_name, current_param, loaded_param):
        """Raise ValueError, called for shapes that differ."""
        raise ValueError(
            f"from_pretrained: {param_name} must be {tuple(current_param.shape)} by config.json, got "
            f"{tuple(loaded_param.shape)} in the weight file"
        )

    def create_quantized_param(
        self, model, param_value, param_name, target_device, state_dict, *args, **kwargs
    ):
        """Copy a tensor of the file into the model, in the dtype the skeleton has it."""
        value = state_dict[param_name]  # `param_value` was cast already
        path, _, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        is_parameter = name in module._parameters
        expected = (module._parameters if is_parameter else module._buffers)[name]
        # A model may be loaded in another dtype: the layers that stayed float are then cast.
        may_cast = is_parameter and {value.dtype, expected.dtype} <= set(DTYPES.values())
        if value.dtype is not expected.dtype and not may_cast:
            raise ValueError(
                f"from_pretrained: {param_name} must be {expected.dtype}, got {value.dtype} in the "
                f"weight file"
            )
        copy = _own(value, device=target_device, dtype=expected.dtype)
        if is_parameter:
            module._parameters[name] = nn.Parameter(copy, requires_grad=False)
        else:
            module._buffers[name] = copy

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            # conversion imports this module.
            from tfq.conversion import convert

            convert(model, self.quantization_config)
            for parameter in model.parameters():
                parameter.data = _own(parameter)
            self.quantization_config, self.pre_quantized = model._tfq_conversion, True
            return
        for layer in model.modules():
            if isinstance(layer, QuantizedLayer):
                layer.check_levels("from_pretrained")
        conversion = self.quantization_config
        check_save(model, conversion)
        guard_state(model)
        conversion.dtype = model.dtype
        model.eval().requires_grad_(False)
        model.register_forward_pre_hook(checks.CheckInputs(model), with_kwargs=True)
        carry_nonfinite(model)
        if conversion.corrected:
            correct_output(model)
        model._tfq_conversion = conversion
        for name, method in own_methods(model).items():
            setattr(model, name, method)

    def get_state_dict_and_metadata(self, state_dict, safe_serialization=False):
        """Each tensor once, and the versions for the header of the file."""
        if not safe_serialization:
            raise ValueError(
                "save_pretrained: a converted model is saved as safetensors only, got "
                "safe_serialization=False"
            )
        if any("base_layer." in name for name in state_dict):
            raise ValueError(
                "save_pretrained: the model has a LoRA adapter, which has a file of its own: "
                "save_lora_adapter(...) and unload_lora(), then save the model"
            )
        unique, seen = {}, set()
        for name, tensor in state_dict.items():
            place = (tensor.data_ptr(), tensor.shape) if tensor.numel() else name
            if place not in seen:
                seen.add(place)
                unique[name] = tensor
        versions = {
            "tfq_format_version": str(FORMAT_VERSION),
            "tfq_packed_layout_version": str(_C.packed_layout_version),
        }
        return unique, versions

    def _dequantize(self, model):
        raise NotImplementedError(
            "dequantize: a converted model has no float weights; load the float checkpoint"
        )


def _own(tensor, **options):
    """Copy of a tensor read from a file.

    Files are mapped: they may be overwritten while the model lives, and tensors in them are not
    aligned, which changes the last bits of torch's float products.
    """
    return torch.empty_like(tensor, **options).copy_(tensor)


def _to(model, *args, **kwargs):
    """``model.to``, where a cast to the dtype that the model has already is none.

    diffusers refuses every cast of a quantized model but one to the dtype of a tensor, and loads
    IP-Adapters with one. A memory format is left out: packed weights have their own, and images are
    channels_last anyway.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
    like = kwargs.pop("tensor", args[0] if args else None)
    if isinstance(like, torch.Tensor):
        args = (like.device, like.dtype, *args[1:])
    if kwargs.get("dtype") is model.dtype:
        kwargs = {name: value for name, value in kwargs.items() if name != "dtype"}
    args = tuple(value for value in args if value is not model.dtype)
    casts = [x for x in (*args, kwargs.get("dtype")) if isinstance(x, torch.dtype)]
    if casts:
        _refuse_cast(model, "to")
    projection = getattr(model, "encoder_hid_proj", None)
    if isinstance(projection, MultiIPAdapterImageProjection):
        projection.to(model.dtype)
    return type(model).to(model, *args, **kwargs) if args or kwargs else model


def _refuse_cast(model, method, *args, **kwargs):
    raise ValueError(
        f"{method}: a converted model stays in {model.dtype}; cast the float model, or the pipeline "
        f"before its model is converted: load it with dtype="
    )


def _refuse_layerwise_casting(*args, **kwargs):
    raise ValueError(
        "enable_layerwise_casting: the layers of a converted model hold integers already, and what is "
        "float in it needs its precision; leave it out"
    )


_CASTS = ("bfloat16", "half", "float", "double", "type")


def own_methods(model):
    """Name -> what a converted model has in the place of a method that would damage it."""
    return {
        "to": functools.partial(_to, model),
        **{name: functools.partial(_refuse_cast, model, name) for name in _CASTS},
        "enable_layerwise_casting": _refuse_layerwise_casting,
    }


def mark_converted(model, conversion, undo):
    """Let diffusers and :func:`tfq.report` know of a conversion.

    Parameters
    ----------
    model : UNet2DModel or UNet2DConditionModel
    conversion : Conversion
    undo : Undo
    """
    values = {
        "_tfq_conversion": conversion,
        "hf_quantizer": TfqQuantizer(conversion, pre_quantized=True),
        "is_quantized": True,
        "quantization_method": QuantMethod.TFQ,
        **own_methods(model),
    }
    for name, value in values.items():
        undo.set_attribute(model, name, value)
    config = model.config
    model.time_embedding.plan = encode_plans(conversion.plans)
    for handle in guard_state(model):
        undo.add(handle.remove)
    undo.set_attribute(model, "_internal_dict", config)
    model.register_to_config(quantization_config=conversion)
    for name in config:  # IP-Adapters set attributes of the configuration and not its items
        setattr(model.config, name, getattr(config, name, config[name]))


AUTO_QUANTIZATION_CONFIG_MAPPING[QuantMethod.TFQ.value] = QuantizationConfig
AUTO_QUANTIZER_MAPPING[QuantMethod.TFQ.value] = TfqQuantizer
