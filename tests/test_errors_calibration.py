"""Calibrations whose values are not finite: no range can be learned from them, and nothing has changed."""

import pytest
import torch
from test_errors_convert import prepared, refused
from unets import inputs

import tfq
from tfq import TfqConfig


@pytest.mark.parametrize("precision", ["auto", "uniform"])
@pytest.mark.parametrize(
    "argument, name", [("sample", "images"), ("encoder_hidden_states", "text")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(precision, argument, name, value):
    """Uniform: the converted model makes the calls, and integers hide such a value; auto: the float one."""
    unet = prepared("cross")
    good, bad = inputs(unet, (7, 7)), inputs(unet, (421, 421))
    bad[argument].flatten()[5] = value
    words = f"calibration must be finite, but has NaN or infinite values in the {name}", "421"
    with refused(unet, ValueError, *words):
        tfq.convert(unet, TfqConfig(precision=precision), calibration=[good, bad])


@pytest.mark.parametrize("precision", ["auto", "uniform"])
def test_an_output_that_is_not_finite(precision):
    """Positional arguments, and a tuple as the output."""
    unet = prepared("plain")
    unet.conv_out.bias.data[0] = 3e38
    unet.conv_out.weight.data[0] = 3e38

    def calibration(model):
        model(torch.ones(1, 3, 16, 16), 9, return_dict=False)

    with refused(unet, ValueError, "in the output at timestep 9"):
        tfq.convert(unet, TfqConfig(precision=precision), calibration=calibration)
