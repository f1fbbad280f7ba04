"""The configuration of a conversion."""

import dataclasses
import enum
import functools
import json
import typing

_CHOICES = {
    "weights": ("int8", "int4", "float"),
    "activations": ("int8", "float"),
    "activation_ranges": ("auto", "timestep", "static", "dynamic"),
    "range_estimator": ("minmax", "ema", "percentile", "mse"),
    "temporal": ("fold", "cache", "tib", "select", "float"),
    "reconstruction": ("none", "temporal", "block"),
    "precision": ("auto", "uniform"),
    "attention": ("auto", "float", "int8"),
    "backend": ("native", "reference"),
}

_COUNTS = (("calibration_samples", 1), ("reconstruction_steps", 0))
_FLAGS = ("fsc_output_tap", "split_skip", "drop_tib")


class QuantMethod(str, enum.Enum):
    """The name diffusers knows the method by; its own enum cannot be extended."""

    TFQ = "tfq"


def _naming_known_keys(cls):
    """Class decorator: an unknown keyword raises ValueError with what there is."""
    init = cls.__init__
    known = {field.name for field in dataclasses.fields(cls)}

    @functools.wraps(init)
    def checked(self, *args, **values):
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"TfqConfig: unknown key {', '.join(map(repr, unknown))}; known keys: "
                f"{', '.join(sorted(known))}"
            )
        init(self, *args, **values)

    cls.__init__ = checked
    return cls


@_naming_known_keys
@dataclasses.dataclass(frozen=True)
class TfqConfig:
    """How a UNet is converted. Unknown keys, values and illegal combinations raise ValueError.

    Parameters
    ----------
    weights : {"int8", "int4", "float"}
        Stored weights, one scale per output channel: int8, symmetric; or int4, asymmetric, two per byte.
        "float" is reserved: it would leave nothing to convert.
    activations : {"int8", "float"}
        uint8 with zero-point; or the model's dtype (weight-only: integers are expanded as they are used).
    activation_ranges : {"auto", "timestep", "static", "dynamic"}
        "timestep": one range per layer and timestep; "static": one per layer; "dynamic": from each
        image (each token in linears) at run time; "auto": "timestep" with calibration, else "dynamic".
    range_estimator : {"minmax", "ema", "percentile", "mse"}
        Of static ranges: the extremes; their moving average over images (momentum 0.95); the 99.99 %
        of the values in the middle; or the range of least squared error.
    temporal : {"fold", "cache", "tib", "select", "float"}
        Where the temporal features come from at run time. "fold": a float table, read by the kernels'
        epilogue; "cache": a table in 8 bits; "tib": the time embedding and its projections on integers,
        ranges by timestep; "select": per timestep and block whichever of these two is closer to float;
        "float": the float block, at every call.
    fsc_output_tap : bool
        Quantize the features that ``temporal="tib"`` or "select" computes, too (the figure of the
        journal; the released code does not).
    reconstruction : {"none", "temporal", "block"}
        Rounding of the weights by what it does to outputs: "temporal": of the temporal block over all
        timesteps; "block": of all other blocks, and of the temporal block where it stays.
    precision : {"auto", "uniform"}
        "auto": layers whose estimated effect on the output exceeds `error_budget` get a finer
        treatment, listed in the report. Needs calibration; without it, "uniform".
    error_budget : float
        Largest relative error of the model's output that one layer may cause.
    split_skip : bool
        Quantize the two halves of a skip concatenation with a range of their own in shortcuts.
    attention : {"auto", "float", "int8"}
        Dot products of attention: "float" runs them in the model's own dtype, "int8" on integers,
        softmax included, "auto" in bfloat16 where the CPU has AMX, in the model's own dtype on CUDA,
        else on integers. With a mask it is always "float", and on CUDA unless heads have a multiple of
        8 channels, at most 256.
    backend : {"native", "reference"}
        "reference" runs the same integers in plain torch.
    modules_to_not_convert : tuple of str
        Names of modules (or parents) whose layers stay float.
    calibration_samples : int
        Images per calibration trajectory.
    reconstruction_steps : int or None
        Gradient steps per block; 0: the closed form alone; None: what each reconstruction recommends.
    seed : int
        Of the calibration noise and class labels.
    drop_tib : bool
        Remove the float time embedding once rows exist: an unknown timestep then raises.
    """

    quant_method: typing.ClassVar = QuantMethod.TFQ

    weights: str = "int8"
    activations: str = "int8"
    activation_ranges: str = "auto"
    range_estimator: str = "minmax"
    temporal: str = "fold"
    fsc_output_tap: bool = False
    reconstruction: str = "none"
    precision: str = "auto"
    error_budget: float = 0.01
    split_skip: bool = True
    attention: str = "auto"
    backend: str = "native"
    modules_to_not_convert: tuple[str, ...] = ()
    calibration_samples: int = 8
    reconstruction_steps: int | None = None
    seed: int = 0
    drop_tib: bool = False

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"TfqConfig: {name} must be one of {', '.join(choices)}, got {value!r}"
                )
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"TfqConfig: {name} must be a bool, got {getattr(self, name)!r}")
        for name, least in _COUNTS:
            value = getattr(self, name)
            if value is None and name == "reconstruction_steps":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"TfqConfig: {name} must be an int of at least {least}, got {value!r}"
                )
        seed = self.seed
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**62) <= seed < 2**62:
            raise ValueError(f"TfqConfig: seed must be an int of at most 62 bits, got {seed!r}")
        budget = self.error_budget
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not budget >= 0:
            raise ValueError(
                f"TfqConfig: error_budget must be a number of at least 0, got {budget!r}"
            )
        names = self.modules_to_not_convert
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"TfqConfig: modules_to_not_convert must be a sequence of module names, got {names!r}"
            )
        object.__setattr__(self, "modules_to_not_convert", tuple(self.modules_to_not_convert))
        self._check_combinations()

    def _check_combinations(self):
        if self.drop_tib and self.temporal not in ("fold", "cache"):
            raise ValueError(
                f"TfqConfig: drop_tib=True needs temporal='fold' or 'cache', got temporal={self.temporal!r}"
            )
        quantized = self.temporal in ("tib", "select")
        if self.reconstruction == "temporal" and not quantized:
            raise ValueError(
                f"TfqConfig: reconstruction='temporal' needs temporal='tib' or 'select', got "
                f"temporal={self.temporal!r}, which has no rounded weights"
            )
        if self.fsc_output_tap and not quantized:
            raise ValueError(
                f"TfqConfig: fsc_output_tap=True needs temporal='tib' or 'select', got "
                f"temporal={self.temporal!r}"
            )
        if self.weights == "float":
            raise NotImplementedError(
                "TfqConfig: weights='float' leaves nothing to convert; use modules_to_not_convert to keep "
                "some layers float"
            )
        if self.activations == "float" and self.activation_ranges not in ("auto", "dynamic"):
            raise ValueError(
                f"TfqConfig: activation_ranges={self.activation_ranges!r} needs activations='int8', got "
                f"activations='float'"
            )

    @property
    def weight_bits(self):
        """8 or 4; 8 where `weights` is "float"."""
        return 4 if self.weights == "int4" else 8

    def to_dict(self):
        """Plain dict, JSON-serialisable."""
        values = dataclasses.asdict(self)
        values["modules_to_not_convert"] = list(self.modules_to_not_convert)
        return values

    def to_json_string(self):
        """The dict as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def update(self, **values):
        """As diffusers' configurations: return what is no field; a field raises, as they are frozen."""
        fields = sorted(set(values) & {field.name for field in dataclasses.fields(self)})
        if fields:
            raise ValueError(
                f"TfqConfig: is frozen, cannot update {', '.join(fields)}; use dataclasses.replace"
            )
        return values

    @classmethod
    def from_dict(cls, values):
        """Inverse of :meth:`to_dict`; unknown keys raise ValueError.

        diffusers adds ``quant_method: "tfq"``.
        """
        values = dict(values)
        method = values.pop("quant_method", QuantMethod.TFQ)
        if method != QuantMethod.TFQ:
            raise ValueError(f"TfqConfig: quant_method must be 'tfq', got {method!r}")
        return cls(**values)
