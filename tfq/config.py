"""The configuration of a conversion."""

import dataclasses
import json

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

# What this version implements of the values above; the others are named in the error.
_IMPLEMENTED = {
    "weights": ("int8",),
    "activations": ("int8",),
    "range_estimator": ("minmax",),
    "temporal": ("fold", "float"),
    "reconstruction": ("none",),
    "precision": ("uniform",),
    "attention": ("auto", "float"),
}


@dataclasses.dataclass(frozen=True)
class TfqConfig:
    """How a UNet is converted. Unknown keys, values and illegal combinations raise ValueError.

    Parameters
    ----------
    weights : {"int8"}
        Stored weights: int8, symmetric, one scale per output channel.
    activations : {"int8"}
        uint8 with zero-point.
    activation_ranges : {"auto", "timestep", "static", "dynamic"}
        "timestep": one range per layer and timestep; "static": one per layer; "dynamic": from each
        image (each token in linears) at run time; "auto": "timestep" with calibration, else "dynamic".
    range_estimator : {"minmax"}
    temporal : {"fold", "float"}
        "fold": the temporal features become rows of a table read by the kernels' epilogue; "float":
        the time embedding and its projections run in float at every call.
    fsc_output_tap : bool
        Reserved for ``temporal="tib"``.
    reconstruction : {"none"}
    precision : {"uniform"}
    error_budget : float
        Reserved for ``precision="auto"``.
    split_skip : bool
        Quantise the two halves of a skip concatenation with a range of their own in shortcuts.
    attention : {"auto", "float"}
        Dot products of attention: "auto" runs them in bfloat16 where the CPU has it, "float" in the
        model's own dtype.
    backend : {"native", "reference"}
        "reference" runs the same integers in plain torch.
    modules_to_not_convert : tuple of str
        Names of modules (or parents) whose layers stay float.
    calibration_samples : int
        Images per calibration trajectory.
    reconstruction_steps : int
        Reserved for ``reconstruction``.
    seed : int
        Of the calibration noise and class labels.
    drop_tib : bool
        Remove the float time embedding once rows exist: an unknown timestep then raises.
    """

    weights: str = "int8"
    activations: str = "int8"
    activation_ranges: str = "auto"
    range_estimator: str = "minmax"
    temporal: str = "fold"
    fsc_output_tap: bool = False
    reconstruction: str = "none"
    precision: str = "uniform"
    error_budget: float = 0.0
    split_skip: bool = True
    attention: str = "auto"
    backend: str = "native"
    modules_to_not_convert: tuple[str, ...] = ()
    calibration_samples: int = 8
    reconstruction_steps: int = 0
    seed: int = 0
    drop_tib: bool = False

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"TfqConfig: {name} must be one of {', '.join(choices)}, got {value!r}")
            implemented = _IMPLEMENTED.get(name, choices)
            if value not in implemented:
                raise NotImplementedError(
                    f"TfqConfig: {name}={value!r} is not implemented in this version; "
                    f"implemented: {', '.join(implemented)}"
                )
        for name in ("fsc_output_tap", "split_skip", "drop_tib"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"TfqConfig: {name} must be a bool, got {getattr(self, name)!r}")
        for name, least in (("calibration_samples", 1), ("reconstruction_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"TfqConfig: {name} must be an int of at least {least}, got {value!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"TfqConfig: seed must be an int, got {self.seed!r}")
        budget = self.error_budget
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not budget >= 0:
            raise ValueError(f"TfqConfig: error_budget must be a number of at least 0, got {budget!r}")
        names = self.modules_to_not_convert
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"TfqConfig: modules_to_not_convert must be a sequence of module names, got {names!r}"
            )
        object.__setattr__(self, "modules_to_not_convert", tuple(self.modules_to_not_convert))
        if self.drop_tib and self.temporal == "float":
            raise ValueError("TfqConfig: drop_tib=True needs temporal='fold', got temporal='float'")

    def to_dict(self):
        """Plain dict, JSON-serialisable."""
        values = dataclasses.asdict(self)
        values["modules_to_not_convert"] = list(self.modules_to_not_convert)
        return values

    def to_json_string(self):
        """The dict as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, values):
        """Inverse of :meth:`to_dict`; unknown keys raise ValueError."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"TfqConfig: unknown key {', '.join(map(repr, unknown))}; known keys: "
                f"{', '.join(sorted(known))}"
            )
        return cls(**values)
