"""Counts and values at the edge of what the kernels take: right, or refused by name."""

import pytest
import torch
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    random_qparams,
    weight_operands_s4,
)
from tolerance import assert_same_bits
from torch._subclasses import FakeTensorMode

from tfq import nn, ops, reference
from tfq._ext import _C
from tfq.ops import _checks


@pytest.mark.parametrize("given", [0, 2, 3])
def test_ranges_of_images_are_one_or_each_image_s(given):
    """Of a count that divides the batch too: the kernel reads a row for every image."""
    operands = group_norm_operands((6, 12, 0, 3, 3, 4))
    wanted = rf"qparams must be \(6, 3\) or \(1, 3\), got \({given}, 3\) with strides \(3, 1\)"
    with pytest.raises(ValueError, match=f"group_norm_silu_quantize: {wanted}"):
        ops.group_norm_silu_quantize(**operands, qparams=random_qparams(given))


def test_ranges_of_images_are_counted_again_below_python():
    table = random_qparams(2)
    shape, rest = (4, 1, 8, 0, 1), (1e-5, True, 0, 0, 0)
    with pytest.raises(ValueError, match="a table for 4 images must have as many rows or 1, got 2"):
        _C.group_norm_silu_quantize(0, 0, 0, shape, *rest, (table.data_ptr(), 3, 2), 0, 0)
    norm = (0, 0, 0, 1, 1e-5, (table.data_ptr(), 3, 2))
    with pytest.raises(ValueError, match="resnet_block: a table for 4 images"):
        _C.resnet_block(
            0, 0, 0, (4, 1, 1, 8, 0, 8), norm, (0,) * 5, (0, 0, 0), norm, (0,) * 5, (), 0
        )


def no_rows():
    """(operation, operands without an image or a token)."""
    gemm = gemm_operands(0, 5, 64) | {"qparams": torch.empty(0, 3)}
    conv = conv_operands((0, 64, 4, 4, 5, 3, 1, 1, 1)) | {"qparams": torch.empty(0, 3)}
    empty = torch.empty(0, 8)
    return [
        ("gemm_s8", gemm),
        ("gemm_s8", gemm | {"temporal": torch.empty(0, 5), "qparams": random_qparams(3)}),
        ("conv2d_s8", conv),
        ("quantize", {"x": empty}),
        ("quantize", {"x": empty, "qparams": torch.empty(0, 3)}),
        ("layer_norm_quantize", {"x": empty, "weight": None, "bias": None}),
        ("geglu_quantize", {"x": empty}),
        ("group_norm_silu_quantize", group_norm_operands((0, 12, 0, 3, 3, 4))),
        ("attention_s8", attention_operands(0, 3, 4, 5, 2)),
    ]


@pytest.mark.filterwarnings("ignore:var_mean")  # the reference's, of no values
@pytest.mark.parametrize("operation, operands", no_rows())
def test_no_rows(operation, operands, isa):
    """What an operation makes of nothing, the next one takes."""
    results = getattr(ops, operation)(**operands)
    expected = getattr(reference, operation)(**operands)
    if isinstance(results, torch.Tensor):
        results, expected = [results], [expected]
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape[0] == 0
        assert_same_bits(result, wanted)


@pytest.mark.parametrize("rows", [0, 4])
def test_products_of_no_depth_are_refused(rows):
    """A sum of nothing would be the bias, and no layer is one: its memory was never written."""
    operands = gemm_operands(rows, 5, 64) | {"x": torch.empty(rows, 0, dtype=torch.uint8)}
    operands["weight"] = torch.empty(1, 0, 16, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="gemm_s8: k must be positive, got 0"):
        ops.gemm_s8(**operands)


@pytest.mark.parametrize(
    "operation", ["quantize", "layer_norm_quantize", "geglu_quantize", "gemm_s8"]
)
def test_scalars(operation):
    operands = {"x": torch.tensor(1.0)}
    if operation == "layer_norm_quantize":
        operands |= {"weight": None, "bias": None}
    if operation == "gemm_s8":
        operands = gemm_operands(4, 5, 64) | {"x": torch.tensor(1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=rf"{operation}: x must have at least 1 dim.*shape \(\)"):
        getattr(ops, operation)(**operands)


def test_zero_points_are_those_of_4_bits():
    """A greater one overflows the AVX2 kernel's 16-bit sums, and no other's."""
    operands = gemm_operands(4, 16, 64) | weight_operands_s4((16, 64))
    operands["weight_zero_point"] = torch.full((16,), 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"weight_zero_point must be in \[0, 15\], got 200"):
        ops.gemm_s8(**operands)


@pytest.mark.parametrize(
    "bits, part, value, accepted", [(8, "packed", -128, -127), (4, "zero_point", 16, 15)]
)
def test_loaded_weights_are_of_their_bits(bits, part, value, accepted):
    layer = nn.Linear.from_float(torch.nn.Linear(64, 16), "to_q", bits=bits)
    state = layer.state_dict()
    values = state[f"weight_{part}"] = state[f"weight_{part}"].clone()
    values.view(-1)[7] = accepted
    layer.load_state_dict(state)
    values.view(-1)[7] = value
    with pytest.raises(
        ValueError, match=rf"load_state_dict: to_q.weight_{part} must be in .*{value}"
    ):
        layer.load_state_dict(state)


def test_zero_points_are_where_the_weights_are(monkeypatch):
    """Of a build with CUDA: below Python there are addresses alone."""
    monkeypatch.setattr(_checks, "HAS_CUDA", True)
    with FakeTensorMode():
        zero_point = torch.zeros(4, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match="zero_point must be on the device of q, 'cpu', got 'cuda"):
        ops.pack_weight_s4(torch.zeros(4, 6, dtype=torch.uint8), zero_point)


def test_native_inputs_are_floats():
    """uint8 is a type of outputs: a kernel would read two bytes for each."""
    nothing, uint8 = (0, 0), _checks.DTYPE_CODES[torch.uint8]
    calls = {
        "quantize": (0, uint8, 1, 1, nothing, 0, 0),
        "layer_norm_quantize": (0, uint8, 1, 1, 1e-5, 0, 0, nothing, 1, 0, 0),
        "geglu_quantize": (0, uint8, 1, 1, nothing, 1, 0, 0),
        "group_norm_silu_quantize":
            (0, 0, uint8, (1, 1, 1, 0, 1), 1e-5, True, 0, 0, 0, (0, 0, 0), 0, 0),
        "attention_s8": (0, 0, 0, uint8, (1, 1, 1, 1, 1), 1.0, 0, 0),
        "resnet_block":
            (0, 0, uint8, (1, 1, 1, 1, 0, 1), (0,) * 6, (0,) * 5, (0, 0, 0), (0,) * 6, (0,) * 5, (), 0),
    }  # fmt: skip
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match=f"{name}: dtype code must be that of a float, got 2"):
            getattr(_C, name)(*arguments)
    epilogue = (nothing, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, uint8, 0, 0, 0, 0, nothing)
    with pytest.raises(ValueError, match="epilogue: dtype code must be that of a float, got 2"):
        _C.gemm_s8(0, 1, 1, 1, 0, 0, epilogue)
