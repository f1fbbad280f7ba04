"""``tfq bench``: a model's time on this machine, before and after conversion."""

import copy
import dataclasses

import torch

import tfq
from tfq.commands.configuration import read_config
from tfq.commands.folders import ModelFolder, set_threads
from tfq.environment import described
from tfq.models import TRANSFORMERS, image_argument
from tfq.shapes import example_inputs
from tfq.tables import align
from tfq.timing import interleave, paired_ratio

_GRAPH = "tfq, graph"  # tfq.graph; a transformer has none


@dataclasses.dataclass(frozen=True)
class Speed:
    """Timings of one model's arms on one machine."""

    machine: dict
    batch: int
    timings: dict
    native_mac_share: float

    def to_dict(self):
        """JSON-serializable."""
        arms = {name: timing.to_dict() for name, timing in self.timings.items()}
        for name, ratio in self._ratios().items():
            arms[name]["time_over_tfq"] = dataclasses.asdict(ratio)
        return {
            "machine": self.machine, "batch": self.batch, "arms": arms,
            "native_mac_share": self.native_mac_share,
        }  # fmt: skip

    def _ratios(self):
        ours = self.timings["tfq"]
        return {name: paired_ratio(timing, ours) for name, timing in self.timings.items()}

    def __str__(self):
        ratios = self._ratios()
        rows = [
            (
                name, f"{1e3 * timing.median:.1f}", f"{1e3 * timing.best:.1f}",
                str(len(timing.seconds)), str(ratios[name]) if name != "tfq" else "",
            )
            for name, timing in self.timings.items()
        ]  # fmt: skip
        return "\n".join(
            [
                f"batch {self.batch}, {described(self.machine)}, "
                f"{100 * self.native_mac_share:.1f} % native",
                align([("", "median ms", "best ms", "calls", "time / tfq [95 %]"), *rows]),
            ]
        )


def run(model, batch, seconds, config, threads, **options):
    """Time the model in `model`; `options` are fields of TfqConfig.

    Returns
    -------
    Speed
    """
    settings = read_config(config, options)
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    if not seconds > 0:
        raise ValueError(f"--seconds must be more than 0, got {seconds}")
    source = ModelFolder.open(model)
    set_threads(threads)
    unet = source.load_unet()
    models = {"tfq": unet}
    if not source.is_converted:
        models = {
            "float32": unet.to(memory_format=torch.channels_last),
            "bfloat16": source.load_unet(torch.bfloat16),
            "tfq": _converted(copy.deepcopy(unet), batch, settings),
        }
    if not isinstance(unet, TRANSFORMERS):
        models[_GRAPH] = tfq.graph(copy.deepcopy(models["tfq"]))
    calls = {name: _caller(arm, batch) for name, arm in models.items()}
    share = tfq.report(models["tfq"]).to_dict()["native_mac_share"]
    return Speed(tfq.info(), batch, interleave(calls, seconds=seconds), share)


def _converted(unet, batch, settings):
    # One call as calibration: ranges are then static, as after `tfq convert`; their values cost nothing.
    call = example_inputs(unet, batch, torch.Generator().manual_seed(settings.seed))
    return tfq.convert(unet, settings, calibration=[call])


def _caller(unet, batch):
    inputs = example_inputs(unet, batch, torch.Generator().manual_seed(0))
    name = image_argument(unet)
    inputs[name] = inputs[name].contiguous(memory_format=torch.channels_last)
    rows = getattr(getattr(unet, "time_embedding", None), "values", ())
    if len(rows):  # a step of sampling, not the float block of a timestep without a row
        inputs["timestep"] = rows[:1].expand(batch)

    @torch.no_grad()
    def call():
        unet(**inputs)

    return call
