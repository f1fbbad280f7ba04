"""Finished layers of a reconstruction, on disk."""

import hashlib
import json
import os
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tfq._version import __version__
from tfq.weights import QuantizedWeight


class Checkpoint:
    """A folder with one safetensors file for each finished layer.

    Parameters
    ----------
    folder : path
        Made if it does not exist.
    settings : dict
        JSON values that the result depends on.
    *tensors : dict
        Nested dicts of tensors that the result depends on.

    Raises
    ------
    ValueError
        When a file is loaded that was written with other settings or tensors, or by another version of
        tfq.
    """

    def __init__(self, folder, settings, *tensors):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another release may round otherwise.
        run = {"tfq": __version__, **settings}
        digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode())
        for values in tensors:
            _update(digest, values)
        self._metadata = {"run": digest.hexdigest()}

    def _path(self, name):
        return self.folder / f"{name}.safetensors"

    def save(self, name, weights, bias):
        """Write a layer's QuantizedWeights (a list) and bias; the file appears whole or not at all."""
        tensors = {"bias": bias}
        for index, weight in enumerate(weights):
            tensors |= {f"{index}.q": weight.q, f"{index}.scale": weight.scale}
            if weight.zero_point is not None:
                tensors[f"{index}.zero_point"] = weight.zero_point
        partial = self.folder / f"{name}.partial"
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, self._metadata)
        os.replace(partial, self._path(name))

    def load(self, name, device):
        """``(weights, bias)`` as given to :meth:`save`, or None."""
        path = self._path(name)
        if not path.exists():
            return None
        with safe_open(path, "pt", device=str(device)) as file:
            if file.metadata() != self._metadata:
                raise ValueError(
                    f"reconstruct_blocks: checkpoint {path} is of another run (other weights, calls, "
                    f"settings or version of tfq); remove the folder or name another"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        bias = tensors.pop("bias")
        sources = sorted({int(key.split(".")[0]) for key in tensors})
        weights = [
            QuantizedWeight(
                tensors[f"{i}.q"], tensors[f"{i}.scale"], tensors.get(f"{i}.zero_point")
            )
            for i in sources
        ]
        return weights, bias


def _update(digest, value):
    if isinstance(value, dict):
        for key in sorted(value):
            digest.update(key.encode())
            _update(digest, value[key])
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    else:
        digest.update(repr(value).encode())
