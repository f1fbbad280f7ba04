"""Which layers may be quantized how: the effect of each on the model's output, estimated together.

Quantizing layer l adds an error d to its output y; to first order the model's output changes by J d,
J the Jacobian of the output by y. For a random vector v of signs the mean of ``(v^T J d)^2`` is
``|J d|^2``, and ``v^T J`` is the gradient of ``v^T output`` by y. So one forward and backward pass of
the float model estimates all layers at once, and the average over a few images at different timesteps
and their own v is enough to rank them: no call of the model per layer. (Random projections as in
Hutchinson's trace estimator.)

The same pass sees the mean of each layer's error, by output channel. It is the same at every call, so the
bias can take it back: bias correction as in Nagel et al. (ICCV 2019, section 4.2), from data.
"""

import contextlib
import dataclasses

import torch

from tfq.adapters import base_modules
from tfq.calibrate import spread_images
from tfq.models import images_of, output_of
from tfq.simulation import ACTIVATIONS, SimulatedLayer, apply_layer
from tfq.weights import round_to_grid, weight_grid

# Images (each at its own timestep) the estimate is averaged over.
SAMPLES = 12
# Times the error of the finest treatment; of two bytes the first decides.
AS_GOOD = 1.1
_CHECKPOINTING_ATTRIBUTES = ("gradient_checkpointing", "_gradient_checkpointing_func")


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A way to run a layer, from coarse to fine."""

    weight_bits: int
    activations: str

    def __str__(self):
        return f"{self.weight_bits}-bit weights, {self.activations} activations"


def treatments(config):
    """From what the configuration asks for to the finest."""
    ladder = [
        Treatment(4, "int8"), Treatment(4, "float"), Treatment(8, "int8"), Treatment(8, "int16"),
        Treatment(8, "float"),
    ]  # fmt: skip
    asked = Treatment(config.weight_bits, config.activations)
    if config.activations == "float":
        return [t for t in ladder[ladder.index(asked) :] if t.activations == "float"]
    return [t for t in ladder[ladder.index(asked) :] if t != Treatment(4, "float")]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What each of :func:`treatments` would do to one layer.

    Parameters
    ----------
    errors : list of float
        Relative error of the model's output.
    shifts : Tensor
        float32 ``(treatments, channels)``: mean error of the layer's output.
    """

    errors: list
    shifts: torch.Tensor


class _Probe:
    """Forward hook of one layer: projects the error of each treatment on the gradient of its output."""

    def __init__(self, layer, plan, ladder):
        self.layer = layer
        self.ladder = ladder
        self.simulated = SimulatedLayer(layer, plan.name, "int8", plan.sources)
        self.kinds = {treatment.activations for treatment in ladder}
        # Grids are searched once; rounded weights exist only while they are used.
        self.grids = {
            bits: [weight_grid(part, bits) for part in self._parts()]
            for bits in {treatment.weight_bits for treatment in ladder}
        }
        self.squares = torch.zeros(len(ladder), dtype=torch.float64)
        self.shifts = torch.zeros(len(ladder), len(layer.weight))
        self._calls = 0
        self._projected = None

    def _parts(self):
        return self.layer.weight.detach().split(self.simulated.sources, dim=1)

    def _rounded(self, bits):
        rounded = [
            round_to_grid(part, *grid).dequantize()
            for part, grid in zip(self._parts(), self.grids[bits], strict=True)
        ]
        return torch.cat(rounded, dim=1)

    def start(self, images):
        """Begin a call with so many images; a layer that is called several times adds up."""
        self._projected = torch.zeros(len(self.ladder), images)

    def stop(self, norms):
        """End a call, the output of whose images has the given squared norms."""
        self.squares += (self._projected.double().square() / norms).sum(1)

    def _add_shifts(self, errors):
        self._calls += 1
        channel_dim = 1 if self.simulated.is_conv else -1
        for mean, error in zip(self.shifts, errors, strict=True):
            shift = error.movedim(channel_dim, -1).flatten(0, -2).mean(0).cpu()
            mean += (shift - mean) / self._calls

    def estimate(self, images):
        """Of all calls, which had so many images."""
        return Estimate((self.squares / images).sqrt().tolist(), self.shifts)

    def __call__(self, layer, args, output):
        """Compute the errors once gradients flow (the first pass of a checkpointed block has none)."""
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        with torch.no_grad():
            x = args[0].detach().float()
            sources = {kind: self.simulated.quantize_input(x, kind) for kind in self.kinds}
            exact = apply_layer(layer, x, layer.weight.float())
            weights = {bits: self._rounded(bits) for bits in self.grids}
            errors = []
            for treatment in self.ladder:
                source, weight = sources[treatment.activations], weights[treatment.weight_bits]
                errors.append(apply_layer(layer, source, weight) - exact)
            self._add_shifts(errors)

        def project(gradient):
            # Images do not mix, so each has a projection of its own.
            images = self._projected.shape[1]
            for i, error in enumerate(errors):
                products = (gradient.float() * error).reshape(images, -1)
                self._projected[i] += products.sum(1).cpu()

        output.register_hook(project)


def estimate_errors(unet, plans, calls, config, progress=None):
    """What each treatment of each layer does, if that layer alone were quantized.

    Parameters
    ----------
    unet : a model of :data:`tfq.models.CLASSES`
        Float, without gradients of its parameters.
    plans : list of LayerPlan
    calls : list of dict
        Recorded arguments of the model.
    config : TfqConfig
    progress : callable, optional
        ``progress(done, total, label)``.

    Returns
    -------
    dict
        Layer name -> :class:`Estimate`.
    """
    ladder = treatments(config)
    modules = base_modules(unet)
    probes = {}
    for plan in plans:
        if plan.converted:
            layer = modules[plan.name]
            probes[plan.name] = _Probe(layer, plan, ladder)
    handles = [probe.layer.register_forward_hook(probe) for probe in probes.values()]
    generator = torch.Generator().manual_seed(config.seed)
    samples = spread_images(calls, SAMPLES)
    batches = [images_of(call).shape[0] for call in samples]
    samples *= -(-SAMPLES // sum(batches))  # few images are projected several times
    try:
        with _checkpointing(unet):
            for done, call in enumerate(samples):
                for probe in probes.values():
                    probe.start(images_of(call).shape[0])
                with torch.enable_grad():
                    call = {**_with_gradients(call), "return_dict": False}
                    output = output_of(unet(**call)).float()
                    signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
                    (output * signs.to(output.device)).sum().backward()
                norms = output.detach().double().square().flatten(1).sum(1).cpu()
                for probe in probes.values():
                    probe.stop(torch.where(norms == 0, 1, norms))
                if progress is not None:
                    progress(done + 1, len(samples), "sensitivity")
    finally:
        for handle in handles:
            handle.remove()
    images = sum(images_of(call).shape[0] for call in samples)
    return {name: probe.estimate(images) for name, probe in probes.items()}


@contextlib.contextmanager
def _checkpointing(unet):
    """Gradient checkpointing for a while; diffusers' own switches leave attributes behind."""
    if unet.is_gradient_checkpointing:
        yield
        return
    kept = [(module, dict(module.__dict__)) for module in unet.modules()]
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module, attributes in kept:
            for name in _CHECKPOINTING_ATTRIBUTES:
                module.__dict__.pop(name, None)
                if name in attributes:
                    module.__dict__[name] = attributes[name]


def _with_gradients(value):
    """Arguments of a call as leaves, so that gradients reach layers that read nothing but a condition."""
    if isinstance(value, dict):
        return {k: _with_gradients(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_with_gradients(v) for v in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_(True)
    return value


def refine_plans(plans, estimates, config):
    """Give each layer the coarsest treatment within the budget; note both in its plan.

    Where there is none, the coarsest that is about as good as the finest. Layers that share a quantized
    input (queries, keys and values of an attention) share the type of their activations.
    """
    ladder = treatments(config)
    for plan in plans:
        if not plan.converted:
            continue
        errors = estimates[plan.name].errors
        enough = max(config.error_budget, AS_GOOD * errors[-1])
        within = [i for i, error in enumerate(errors) if error <= enough]
        chosen = within[0] if within else len(ladder) - 1
        plan.weight_bits, plan.activations = ladder[chosen].weight_bits, ladder[chosen].activations
        plan.output_error = errors[chosen]
        if chosen:
            plan.reason = (
                f"over error_budget={config.error_budget:g} with {ladder[0]} "
                f"(estimated {errors[0]:.3g}): {ladder[chosen]}"
            )
    _share_activations(plans)


def bias_shifts(plans, estimates, config):
    """Layer name -> mean error of its output, float32 ``(channels,)``, as it was finally planned.

    Without those whose estimate is not finite.
    """
    ladder = treatments(config)
    shifts = {}
    for plan in plans:
        treatment = Treatment(plan.weight_bits, plan.activations)
        if plan.converted and treatment in ladder:
            shift = estimates[plan.name].shifts[ladder.index(treatment)]
            if shift.isfinite().all():
                shifts[plan.name] = shift
    return shifts


def _share_activations(plans):
    groups = {}
    for plan in plans:
        parent, _, child = plan.name.rpartition(".")
        if plan.converted and child in ("to_q", "to_k", "to_v"):
            groups.setdefault(parent, []).append(plan)
    for group in groups.values():
        finest = max(group, key=lambda plan: ACTIVATIONS.index(plan.activations))
        for plan in group:
            if plan.activations != finest.activations:
                plan.activations = finest.activations
                plan.reason = plan.reason or f"shares its input with {finest.name}"
