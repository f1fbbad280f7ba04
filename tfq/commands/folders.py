"""Folders of diffusers models as the commands take them: a UNet's or transformer's, or a pipeline's."""

import dataclasses
import json
import pathlib

import diffusers
import torch

from tfq.models import CLASS_NAMES, CLASSES
from tfq.saving import DTYPES

# Where a pipeline's folder has the model that is converted.
_PARTS = ("unet", "transformer")


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """Where a model's parts are.

    Attributes
    ----------
    root, unet : pathlib.Path
        `unet` is `root`, or its subfolder in a pipeline.
    config : dict
        Of the UNet.
    scheduler : pathlib.Path or None
        Folder with ``scheduler_config.json``.
    """

    root: pathlib.Path
    unet: pathlib.Path
    config: dict
    scheduler: pathlib.Path | None

    @classmethod
    def open(cls, path, scheduler=None):
        """Find the parts below `path`; `scheduler` is a folder that takes precedence.

        Raises
        ------
        ValueError
            If there is no UNet that tfq can run, or no scheduler in a folder given for it.
        """
        root = pathlib.Path(path)
        if not root.is_dir():
            raise ValueError(
                f"{str(path)!r} is not a folder; download a model first, for example with `hf download`"
            )
        unet = root
        if (root / "model_index.json").is_file():
            parts = [root / part for part in _PARTS if (root / part).is_dir()]
            unet = parts[0] if parts else root / _PARTS[0]
        if not (unet / "config.json").is_file():
            raise ValueError(
                f"{str(unet)!r} has no config.json: not the folder of a diffusers UNet or "
                f"transformer, nor of a pipeline with one"
            )
        config = json.loads((unet / "config.json").read_text())
        if config.get("_class_name") not in {cls.__name__ for cls in CLASSES}:
            raise ValueError(
                f"{str(unet)!r} holds a {config.get('_class_name')}; tfq converts {CLASS_NAMES}"
            )
        candidates = [root / "scheduler", unet] if scheduler is None else [pathlib.Path(scheduler)]
        found = [folder for folder in candidates if (folder / "scheduler_config.json").is_file()]
        if scheduler is not None and not found:
            raise ValueError(f"--scheduler {scheduler!r} has no scheduler_config.json")
        return cls(root, unet, config, found[0] if found else None)

    @property
    def is_pipeline(self):
        """Whether there is more than the UNet."""
        return self.unet != self.root

    @property
    def is_converted(self):
        """Whether tfq wrote the UNet."""
        return self.config.get("quantization_config", {}).get("quant_method") == "tfq"

    def load_unet(self, dtype=torch.float32):
        """The UNet in evaluation mode; a converted one keeps its own dtype."""
        model_class = getattr(diffusers, self.config["_class_name"])
        if self.is_converted:
            dtype = DTYPES.get(self.config["quantization_config"].get("dtype"), dtype)
        unet = model_class.from_pretrained(self.unet, dtype=dtype, local_files_only=True)
        return unet.eval()

    def load_pipeline(self, dtype):
        """The whole pipeline; ValueError if the folder is a UNet's."""
        if not self.is_pipeline:
            raise ValueError(
                f"--prompts needs the folder of a whole pipeline (model_index.json), got {str(self.root)!r}"
            )
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            self.root, dtype=dtype, local_files_only=True
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load_scheduler(self):
        """The scheduler; None if there is none."""
        if self.scheduler is None:
            return None
        config = json.loads((self.scheduler / "scheduler_config.json").read_text())
        scheduler_class = getattr(diffusers, config.get("_class_name", ""), None)
        if scheduler_class is None:
            raise ValueError(
                f"{str(self.scheduler)!r} holds a {config.get('_class_name')}, which diffusers "
                f"{diffusers.__version__} does not have"
            )
        return scheduler_class.from_pretrained(self.scheduler, local_files_only=True)


def parse_dtype(name):
    """The torch dtype of "float32" or "bfloat16"."""
    if name not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def set_threads(threads):
    """Limit torch and tfq to some CPU threads; None leaves torch's choice."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
