"""OpenVINO as an arm of bench/unet.py: the same UNet, static shapes, the faster precision hint, optionally
INT8.

INT8 is NNCF's post-training quantisation with its defaults and the benchmark's own inputs: what a user
gets from the documented path.
"""

import atexit
import logging
import pathlib
import shutil
import tempfile

import openvino
import torch
from openvino.frontend.pytorch import patch_model
from torch.utils import _pytree as pytree

from tfq.timing import timed

CALIBRATION_CALLS = 8
# Above this many parameters one call calibrates and nothing corrects the biases, which needs models of
# parts of the model beside it: time does not depend on either.
LARGE = 1_000_000_000
# bfloat16 is slower than float32 where the CPU only emulates it.
HINTS = ("bf16", "f32")
TIMED_CALLS = 3


class _PlainUNet(torch.nn.Module):
    """Positional tensors in, tensor out, as a tracer wants it."""

    def __init__(self, unet, spec):
        super().__init__()
        self.unet = unet
        self.spec = spec

    def forward(self, *tensors):
        return self.unet(**pytree.tree_unflatten(tensors, self.spec)).sample


def compile_unet(load, inputs, int8):
    """(call, hint): the UNet compiled for `inputs`, with the hint whose calls are faster.

    The call takes no arguments and returns a tensor.

    Parameters
    ----------
    load : callable
        Makes the UNet2DModel or UNet2DConditionModel: float32, or with bfloat16 weights to save memory,
        which the converter stores in 16 bits and computes with in float32.
    inputs : dict
        Keyword arguments of a call; the shapes become static.
    int8 : bool
        Quantise with NNCF.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    tensors = [torch.tensor(v) if isinstance(v, int) else v for v in leaves]
    arrays = [t.numpy() for t in tensors]
    model, large = _convert(load, tensors, spec)
    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        generator = torch.Generator().manual_seed(1)
        samples = [
            [torch.randn(arrays[0].shape, generator=generator).numpy(), *arrays[1:]]
            for _ in range(1 if large else CALIBRATION_CALLS)
        ]
        settings = nncf.AdvancedQuantizationParameters(disable_bias_correction=large)
        model = nncf.quantize(model, nncf.Dataset(samples), advanced_parameters=settings)
    calls = {hint: _compiled(model, arrays, hint) for hint in HINTS}
    best = {hint: min(timed(call) for _ in range(TIMED_CALLS)) for hint, call in calls.items()}
    hint = min(best, key=best.get)
    return calls[hint], hint


def _convert(load, tensors, spec):
    """(model of OpenVINO, whether it is large); a large one is read from a file, without torch's weights."""
    wrapper = _PlainUNet(load(), spec).eval()
    if wrapper.unet.dtype is not torch.float32:
        # As optimum-intel traces models of 16 bits.
        getattr(patch_model, "__make_16bit_traceable")(wrapper)
    with torch.no_grad():
        model = openvino.convert_model(
            wrapper, example_input=tuple(tensors), input=[list(t.shape) for t in tensors]
        )
    if sum(p.numel() for p in wrapper.parameters()) <= LARGE:
        return model, False
    path = pathlib.Path(tempfile.mkdtemp()) / "unet.xml"
    atexit.register(shutil.rmtree, path.parent)
    openvino.save_model(model, path)
    return openvino.Core().read_model(path), True


def _compiled(model, arrays, hint):
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def call():
        return torch.from_numpy(request.infer(arrays)[0])

    return call
