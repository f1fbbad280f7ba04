"""The arms of the quality harness: how each is made, and one row of measurements for it."""

import contextlib
import copy
import dataclasses
import functools
import math
import time

import models
import prev_arm
import temporal_arms
from quality_metrics import feature_errors, summarize_errors

import tfq
from tfq import comparison

INT4 = dict(weights="int4", precision="uniform")
# Base of the arms whose features are simulated: what is written over its own.
_FOLD_W4A8 = INT4 | dict(temporal="fold")
_TIAR_FSC = INT4 | dict(temporal="tib", reconstruction="temporal")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a table.

    Parameters
    ----------
    name : str
    options : dict
        Of :class:`tfq.TfqConfig`.
    calibrated : bool
        Converted with a scheduler, which calibrates on the model's own trajectory.
    simulated : {"", "prev", "freeze", "tiar"}
        Features of a baseline, simulated in float and written over those of `options`.
    note : str
        What a reader of the table must know.
    """

    name: str
    options: dict
    calibrated: bool = True
    simulated: str = ""
    note: str = ""


MAIN = (
    Arm("W8A8 dynamic", dict(activation_ranges="dynamic"), calibrated=False),
    Arm("W8A8 (default)", dict(), note="static ranges per timestep"),
    Arm("W8A8 + reconstruction", dict(reconstruction="block")),
    Arm("W8A8 uniform", dict(precision="uniform"), note="no sensitivity-guided precision"),
    Arm("W8A8 static", dict(activation_ranges="static"), note="one range for all timesteps"),
    Arm("W8A8, INT8 attention", dict(attention="int8")),
    Arm("W8 weight-only", dict(activations="float"), calibrated=False),
    Arm("W4A8 round-to-nearest", INT4),
    Arm("W4A8 + reconstruction", INT4 | dict(reconstruction="block"), note="same layers as above"),
    Arm(
        "W4A8 + reconstruction, auto", dict(weights="int4", reconstruction="block"),
        note="sensitivity-guided precision",
    ),
    Arm("W4 weight-only", INT4 | dict(activations="float"), calibrated=False),
    Arm("W4 weight-only + reconstruction", INT4 | dict(activations="float", reconstruction="block")),
)  # fmt: skip

ABLATION = (
    Arm(
        "Prev", _FOLD_W4A8, simulated="prev",
        note="projections rounded with their ResBlock; one range per input",
    ),
    Arm("Freeze", _FOLD_W4A8, simulated="freeze", note="round-to-nearest; one range per input"),
    Arm("TIAR", _FOLD_W4A8, simulated="tiar", note="weights of TIAR+FSC; one range per input"),
    Arm("FSC", INT4 | dict(temporal="tib"), note="round-to-nearest; ranges per timestep"),
    Arm("TIAR+FSC", _TIAR_FSC),
    Arm("TIAR+FSC, output tap", _TIAR_FSC | dict(fsc_output_tap=True), note="features in 8 bits"),
    Arm("CM", INT4 | dict(temporal="cache"), note="features in 8 bits"),
    Arm("DAS", _TIAR_FSC | dict(temporal="select")),
    Arm("DAS, output tap", _TIAR_FSC | dict(temporal="select", fsc_output_tap=True)),
    Arm("fold", _FOLD_W4A8, note="the package's default"),
)  # fmt: skip


class Run:
    """A float model, what it makes of the noise, and how the arms are compared with it.

    Parameters
    ----------
    unet, scheduler
        Float; not changed.
    steps, images, seed : int
        DDIM, eta 0. Calibration and reconstruction use other noise.
    prev_iterations : int
        Optimizer steps for each ResBlock of the arm "Prev".
    """

    def __init__(self, unet, scheduler, steps, images, seed, prev_iterations):
        self.unet, self.scheduler = unet.requires_grad_(False), scheduler
        self.steps, self.images, self.seed = steps, images, seed
        self.prev_iterations = prev_iterations
        self.reference = self.trajectory(unet)
        self.timesteps = scheduler.timesteps.float().tolist()
        self.path = temporal_arms.TemporalPath(unet)
        self.features = self.path.features(self.timesteps)

    def trajectory(self, unet):
        """Images after each step."""
        return list(models.trajectory(unet, self.scheduler, self.steps, self.images, self.seed))

    def convert(self, arm):
        """A converted copy of the float model, and the seconds it took."""
        converted = copy.deepcopy(self.unet)
        source = dict(scheduler=self.scheduler, num_inference_steps=self.steps)
        start = time.perf_counter()
        tfq.convert(converted, tfq.TfqConfig(**arm.options), **(source if arm.calibrated else {}))
        return converted, time.perf_counter() - start

    def simulated_features(self, arm):
        """Features of a simulated baseline; None for an arm that is not one."""
        if not arm.simulated:
            return None
        if arm.simulated == "prev":
            weights = prev_arm.prev_weights(
                self.unet, self.scheduler, self.steps, self.seed + 1, self.prev_iterations
            )
        elif arm.simulated == "tiar":
            converted, _ = self.convert(Arm("TIAR+FSC", _TIAR_FSC))
            weights = temporal_arms.converted_weights(converted)
        else:
            weights = self.path.rounded_weights()
        return self.path.static_features(self.timesteps, weights)

    def measure(self, arm):
        """Measurements of one arm.

        Returns
        -------
        row : dict
            JSON-serializable; only ``not_available`` (the reason) where this version cannot make it.
        images : Tensor or None
            Samples, in [-1, 1].
        converted : UNet2DModel or None
        """
        try:
            converted, seconds = self.convert(arm)
            features = self.simulated_features(arm)
            if features is None:
                features = temporal_arms.converted_features(converted, self.timesteps)
        except NotImplementedError as error:
            return {"not_available": str(error) or "not implemented"}, None, None

        shown = contextlib.nullcontext()
        if arm.simulated:
            shown = temporal_arms.overwritten_rows(converted, self.timesteps, features)
        with shown:
            trajectory = self.trajectory(converted)
        report = tfq.report(converted).to_dict()
        row = self._compare(trajectory, self.reference) | {
            "temporal": self._temporal(features, arm in ABLATION),
            "native_mac_share": report["native_mac_share"],
            "weight_bytes": report["weight_bytes"],
            "float_layers": sum(
                layer["path"] == "torch" and layer["macs"] > 0 for layer in report["layers"]
            ),
            "convert_seconds": seconds,
        }
        if arm in ABLATION:
            row["temporal"]["chosen_tib_share"] = report["temporal"]["chosen_tib_share"]
            row["features_alone"] = self._compare(
                self._features_alone(features), self._own_features_alone
            )
        return row, trajectory[-1].clamp(-1, 1), converted

    @functools.cached_property
    def _own_features_alone(self):
        # Not the plain float trajectory: features computed for a batch differ in the last bits.
        return self._features_alone(self.features)

    def _features_alone(self, features):
        """Trajectory of the float model with its temporal features replaced."""
        with temporal_arms.overwritten_projections(self.unet, self.timesteps, features):
            return self.trajectory(self.unet)

    @staticmethod
    def _compare(trajectory, reference):
        """PSNR of the images, and of what each step makes of the noise."""
        per_step = [_decibels(x, r) for x, r in zip(trajectory, reference, strict=True)]
        images, expected = trajectory[-1].clamp(-1, 1), reference[-1].clamp(-1, 1)
        return {"psnr": _decibels(images, expected), "psnr_per_step": per_step}

    def _temporal(self, features, in_full):
        errors = feature_errors(features, self.features)
        full = {name: values.tolist() for name, values in errors.items()} if in_full else {}
        return summarize_errors(errors) | full


def _decibels(x, reference):
    """PSNR, None where both are equal (JSON has no infinity)."""
    psnr = comparison.psnr(x, reference)
    return psnr if math.isfinite(psnr) else None
