"""Type and message of every error a caller of tfq.ops can meet."""

import pytest
import torch
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    packed_weight,
    random_images,
    random_qparams,
    weight_operands_s4,
)

from tfq import ops
from tfq._ext import _C
from tfq.ops import _weights

GEMM, CONV = (6, 5, 64), (2, 8, 4, 4, 5, 3, 1, 1, 1)
NORM = (2, 12, 0, 3, 3, 4)
BUILDERS = {
    "gemm_s8": lambda: gemm_operands(*GEMM),
    "conv2d_s8": lambda: conv_operands(CONV),
    "quantize": lambda: {"x": torch.randn(4, 6)},
    "group_norm_silu_quantize": lambda: group_norm_operands(NORM),
    "layer_norm_quantize": lambda: {
        "x": torch.randn(4, 6),
        "weight": torch.ones(6),
        "bias": torch.ones(6),
    },
    "geglu_quantize": lambda: {"x": torch.randn(4, 6)},
    "temporal_gather": lambda: {"table": torch.randn(4, 6), "rows": torch.tensor([0])},
    "pack_weight": lambda: {"weight": torch.zeros(4, 6, dtype=torch.int8)},
    "attention_s8": lambda: attention_operands(2, 3, 4, 5, 2),
    "dequantize_weight": lambda: packed_weight((4, 6)),
    "pack_weight_s4": lambda: {
        "q": torch.zeros(4, 6, dtype=torch.uint8),
        "zero_point": torch.zeros(4, dtype=torch.uint8),
    },
}

# A quantised table of two features for temporal_gather.
TABLE = {
    "table": torch.zeros(4, 6, dtype=torch.uint8),
    "qparams": torch.ones(4, 2, 2),
    "offsets": torch.tensor([0, 2, 6]),
}

# (operation, arguments that differ from a correct call, error, part of the message)
CASES = [
    ("gemm_s8", {"x": [1, 2]}, TypeError, "gemm_s8: x must be a tensor, got list"),
    ("gemm_s8", {"x": torch.zeros(6, 64)}, TypeError, "gemm_s8: x must be uint8, got float32"),
    ("gemm_s8", {"x": torch.zeros(64, 6, dtype=torch.uint8).T}, ValueError,
     "gemm_s8: x must be contiguous in"),
    ("gemm_s8", {"weight": torch.zeros(5, 64, dtype=torch.int8)}, ValueError,
     "weight must have 4 dimensions"),
    ("gemm_s8", {"weight": torch.zeros(2, 16, 16, 4, dtype=torch.int8)}, ValueError,
     r"packed weight for n=5, k=64 must be contiguous \(1, 16, 16, 4\), got \(2, 16, 16, 4\)"),
    ("gemm_s8", {"weight": torch.zeros(1, 16, 16, 4)}, TypeError,
     "weight must be int8 or uint8, got float32"),
    ("gemm_s8", {"weight": torch.zeros(1, 16, 16, 2, dtype=torch.uint8)}, ValueError,
     r"gemm_s8: a uint8 weight \(4-bit, from pack_weight_s4\) needs weight_zero_point, got None"),
    ("gemm_s8", {"weight": torch.zeros(1, 16, 16, 4, dtype=torch.uint8)}, ValueError,
     r"packed weight for n=5, k=64 must be contiguous \(1, 16, 16, 2\), got \(1, 16, 16, 4\)"),
    ("gemm_s8", {"weight_zero_point": torch.zeros(5, dtype=torch.uint8)}, ValueError,
     r"weight_zero_point is for a 4-bit weight \(uint8, from pack_weight_s4\), got an int8 weight"),
    ("gemm_s8", weight_operands_s4((5, 64)) | {"weight_zero_point": torch.zeros(5)}, TypeError,
     "weight_zero_point must be uint8, got float32"),
    ("gemm_s8",
     weight_operands_s4((5, 64)) | {"weight_zero_point": torch.zeros(4, dtype=torch.uint8)},
     ValueError, r"weight_zero_point must be contiguous \(5,\), got \(4,\)"),
    ("conv2d_s8", {"weight_zero_point": torch.zeros(5, dtype=torch.uint8)}, ValueError,
     "conv2d_s8: weight_zero_point is for a 4-bit weight"),
    ("gemm_s8", {"qparams": random_qparams(4)}, ValueError,
     r"gemm_s8: qparams must be \(groups, 3\) with groups dividing 6 rows, got shape \(4, 3\)"),
    ("gemm_s8", {"qparams": torch.zeros(0, 3)}, ValueError, r"qparams must be \(groups, 3\)"),
    ("gemm_s8", {"qparams": torch.zeros(2, 4)}, ValueError, r"qparams must be \(groups, 3\)"),
    ("gemm_s8", {"qparams": torch.zeros(3, 2).T}, ValueError, r"with strides \(1, 2\)"),
    ("gemm_s8", {"qparams": random_qparams(1).double()}, TypeError,
     "qparams must be float32, got float64"),
    ("gemm_s8", {"weight_scale": torch.ones(5).half()}, TypeError,
     "weight_scale must be float32, got float16"),
    ("gemm_s8", {"weight_scale": torch.ones(10)[::2]}, ValueError,
     "weight_scale must be contiguous"),
    ("gemm_s8", {"weight_sum": torch.zeros(5)}, TypeError, "weight_sum must be int32, got float32"),
    ("gemm_s8", {"weight_sum": torch.zeros(6, dtype=torch.int32)}, ValueError,
     r"weight_sum must be contiguous \(5,\), got \(6,\)"),
    ("gemm_s8", {"bias": torch.ones(4)}, ValueError, r"bias must be contiguous \(5,\), got \(4,\)"),
    ("gemm_s8", {"temporal": torch.ones(4, 5)}, ValueError,
     r"temporal must be \(samples, 5\) with samples dividing 6 rows, got \(4, 5\)"),
    ("gemm_s8", {"temporal": torch.ones(2, 6)}, ValueError, r"temporal must be \(samples, 5\)"),
    ("gemm_s8", {"temporal": torch.ones(5)}, ValueError, "temporal must have 2 dimensions"),
    ("gemm_s8", {"residual": torch.ones(6, 4)}, ValueError,
     r"residual must have the output's shape \(6, 5\), got \(6, 4\)"),
    ("gemm_s8", {"residual": torch.ones(5, 6).T}, ValueError,
     "residual must be contiguous in memory"),
    ("gemm_s8", {"residual": torch.ones(6, 5).half()}, TypeError,
     "residual must be float32 or bfloat16"),
    ("gemm_s8", {"out_dtype": torch.float16}, TypeError,
     "out_dtype must be torch.float32, torch.bfloat16 or torch.uint8, got torch.float16 on 'cpu'; 'cuda'"),
    ("gemm_s8", {"temporal_rows": torch.tensor([0])}, ValueError, "temporal_rows needs temporal, got None"),
    ("gemm_s8", {"temporal": torch.ones(3, 5), "temporal_rows": torch.tensor([0, 3])}, ValueError,
     r"gemm_s8: temporal_rows must be in \[0, 3\), got temporal_rows\[1\] = 3"),
    ("gemm_s8", {"temporal": torch.ones(3, 5), "temporal_rows": torch.tensor([-1])}, ValueError,
     r"gemm_s8: temporal_rows must be in \[0, 3\), got temporal_rows\[0\] = -1"),
    ("gemm_s8", {"temporal": torch.ones(3, 5), "temporal_rows": torch.zeros(4).long()}, ValueError,
     r"temporal_rows must be \(samples,\) with samples dividing 6 rows, got \(4,\)"),
    ("gemm_s8", {"temporal": torch.ones(3, 5), "temporal_rows": torch.zeros(2)}, TypeError,
     "temporal_rows must be int64, got float32"),
    ("gemm_s8", {"activation": "relu"}, ValueError,
     "activation must be None, 'silu' or 'geglu', got 'relu'"),
    ("gemm_s8", {"activation": "geglu"}, NotImplementedError,
     "gemm_s8: activation='geglu' has a kernel on 'cuda' only, got x on 'cpu'; geglu_quantize"),
    ("gemm_s8", {"return_quantized": True}, ValueError, "return_quantized=True needs out_qparams"),
    ("gemm_s8", {"return_quantized": True, "out_dtype": torch.uint8}, ValueError,
     "return_quantized=True is a second output beside a float one, got out_dtype=torch.uint8"),
    ("conv2d_s8", {"x2": random_images(2, 8, 4, 4)}, NotImplementedError,
     "conv2d_s8: x2 has a kernel on 'cuda' only, got x on 'cpu'; concatenate the sources"),
    ("conv2d_s8", {"temporal": torch.ones(3, 5), "temporal_rows": torch.tensor([0, 7])}, ValueError,
     r"conv2d_s8: temporal_rows must be in \[0, 3\), got temporal_rows\[1\] = 7"),
    ("gemm_s8", {"out_dtype": torch.uint8}, ValueError, "out_dtype=torch.uint8 needs out_qparams"),
    ("gemm_s8", {"out_dtype": torch.uint8, "out_qparams": random_qparams(2)}, ValueError,
     r"out_qparams must have as many groups as qparams \(1\), got 2"),
    ("gemm_s8", {"bias": torch.ones(5, requires_grad=True)}, ValueError,
     "bias requires grad, but tfq is inference-only; detach it or call under torch.no_grad"),
    ("gemm_s8", {"bias": torch.ones(5, device="meta")}, NotImplementedError,
     "bias is on 'meta', but this build of tfq has native kernels for 'cpu'"),
    ("conv2d_s8", {"x": torch.zeros(2, 8, 4, 4, dtype=torch.uint8)}, ValueError,
     r"conv2d_s8: x must be torch.channels_last in memory, got shape \(2, 8, 4, 4\)"),
    ("conv2d_s8", {"x": torch.zeros(2, 8, dtype=torch.uint8)}, ValueError,
     "x must have 4 dimensions"),
    ("conv2d_s8", {"x": torch.zeros(2, 8, 4, 4)}, TypeError,
     "conv2d_s8: x must be uint8, got float32"),
    ("conv2d_s8", {"kernel_size": 1}, ValueError, "packed weight for n=5, k=8 must be contiguous"),
    ("conv2d_s8", {"kernel_size": 7, "padding": 1}, ValueError,
     r"conv2d_s8: a kernel of \(7, 7\) does not fit an input of 4x4 with padding \(1, 1, 1, 1\)"),
    ("conv2d_s8", {"padding": -1}, ValueError, "padding must not be negative"),
    ("conv2d_s8", {"stride": (1, 0)}, ValueError,
     r"kernel_size and stride must be positive, got \(3, 3\) and \(1, 0\)"),
    ("conv2d_s8", {"kernel_size": 0}, ValueError, "kernel_size and stride must be positive"),
    ("conv2d_s8", {"padding": (1, 1, 1)}, ValueError,
     r"padding must be an int, \(vertical, horizontal\) or"),
    ("conv2d_s8", {"upsample": 3}, ValueError, "upsample must be 1 or 2, got 3"),
    ("conv2d_s8", {"qparams": random_qparams(4)}, ValueError,
     r"qparams must be \(1, 3\) or \(2, 3\), got \(4, 3\)"),
    ("conv2d_s8", {"residual": torch.ones(2, 5, 4, 4)}, ValueError,
     "residual must be torch.channels_last"),
    ("conv2d_s8", {"temporal": torch.ones(3, 5)}, ValueError, "samples dividing 32 rows"),
    ("conv2d_s8", {"out_dtype": torch.int8}, TypeError, "conv2d_s8: out_dtype must be"),
    ("quantize", {"x": torch.zeros(4, 6).half()}, TypeError,
     "quantize: x must be float32 or bfloat16, got float16"),
    ("quantize", {"x": torch.zeros(6, 4).T}, ValueError,
     "quantize: x must be contiguous in memory"),
    ("quantize", {"x": torch.zeros(1, 2, 3, 4)}, ValueError,
     "quantize: x must be torch.channels_last"),
    ("quantize", {"groups": 5}, ValueError,
     r"quantize: 5 groups do not divide x of shape \(4, 6\)"),
    ("quantize", {"groups": 0}, ValueError, "quantize: 0 groups do not divide x"),
    ("quantize", {"qparams": random_qparams(5)}, ValueError, "5 groups do not divide"),
    ("quantize", {"qparams": torch.zeros(2, 2)}, ValueError,
     r"quantize: qparams must be \(groups, 3\)"),
    ("quantize", {"x": torch.zeros(4, 6, requires_grad=True)}, ValueError,
     "quantize: x requires grad"),
    ("group_norm_silu_quantize", {"x": torch.zeros(2, 12)}, ValueError,
     "x must have 3 or 4 dimensions"),
    ("group_norm_silu_quantize", {"x": torch.zeros(2, 12, 3, 3)}, ValueError,
     "x must be torch.channels_last"),
    ("group_norm_silu_quantize", {"num_groups": 5}, ValueError,
     "12 channels do not divide into 5 groups"),
    ("group_norm_silu_quantize", {"num_groups": 0}, ValueError,
     "12 channels do not divide into 0 groups"),
    ("group_norm_silu_quantize", {"weight": torch.ones(11)}, ValueError,
     r"weight must be \(12,\) or \(2, 12\), got \(11,\) with strides \(1,\)"),
    ("group_norm_silu_quantize", {"weight": torch.ones(24)[::2]}, ValueError,
     r"weight must be \(12,\) or \(2, 12\), got \(12,\) with strides \(2,\)"),
    ("group_norm_silu_quantize", {"bias": torch.ones(2, 12)}, ValueError,
     "weight and bias must have the same shape and strides"),
    ("group_norm_silu_quantize", {"weight": torch.ones(12).double()}, TypeError,
     "weight must be float32"),
    ("group_norm_silu_quantize", {"x2": torch.zeros(2, 4, 3, 3).bfloat16()}, TypeError,
     "x2 must be float32"),
    ("group_norm_silu_quantize", {"x2": torch.zeros(2, 4, 9)}, ValueError,
     "x2 must have 4 dimensions"),
    ("group_norm_silu_quantize", {"x2": torch.zeros(2, 3, 4, 4).permute(0, 3, 1, 2)}, ValueError,
     r"x2 \(2, 4, 3, 4\) does not match x \(2, 12, 3, 3\)"),
    ("group_norm_silu_quantize", {"qparams": random_qparams(3)}, ValueError,
     r"qparams must be \(2, 3\) or \(1, 3\), got \(3, 3\)"),
    ("layer_norm_quantize", {"x": torch.zeros(6, 4).T}, ValueError,
     "layer_norm_quantize: x must be contiguous"),
    ("layer_norm_quantize", {"weight": torch.ones(5)}, ValueError,
     r"weight must be contiguous \(6,\)"),
    ("layer_norm_quantize", {"bias": torch.ones(6).bfloat16()}, TypeError,
     "bias must be float32, got bfloat16"),
    ("layer_norm_quantize", {"qparams": random_qparams(3)}, ValueError, "groups dividing 4 rows"),
    ("geglu_quantize", {"x": torch.zeros(4, 5)}, ValueError,
     r"the last dimension must be even, got shape \(4, 5\)"),
    ("geglu_quantize", {"x": torch.zeros(4, 6).double()}, TypeError,
     "x must be float32 or bfloat16, got float64"),
    ("temporal_gather", {"rows": torch.tensor([0], dtype=torch.int32)}, TypeError,
     "rows must be int64"),
    ("temporal_gather", {"table": torch.zeros(4)}, ValueError, "table must have 2 dimensions"),
    ("temporal_gather", {"table": torch.zeros(4, 6).T}, ValueError, "table must be contiguous"),
    ("temporal_gather", {"rows": torch.tensor([4])}, ValueError,
     r"rows must be in \[0, 4\), got rows\[0\] = 4"),
    ("temporal_gather", {"table": torch.zeros(4, 6, dtype=torch.uint8)}, TypeError,
     "temporal_gather: qparams must be a tensor, got NoneType"),
    ("temporal_gather", {"offsets": torch.tensor([0, 6])}, ValueError,
     "offsets belongs to a uint8 table, got a float32 table"),
    ("temporal_gather", {"qparams": torch.ones(4, 1, 2)}, ValueError,
     "qparams belongs to a uint8 table, got a float32 table"),
    ("temporal_gather", TABLE | {"qparams": torch.ones(4, 1, 2)}, ValueError,
     r"qparams must be \(table_rows, n, 2\) and offsets \(n \+ 1,\) with 4 table rows, got "
     r"\(4, 1, 2\) and \(3,\)"),
    ("temporal_gather", TABLE | {"offsets": torch.tensor([0, 2, 6]).int()}, TypeError,
     "offsets must be int64, got int32"),
    ("temporal_gather", TABLE | {"offsets": torch.tensor([1, 2, 6])}, ValueError,
     "offsets must begin with 0, got 1"),
    ("temporal_gather", TABLE | {"offsets": torch.tensor([0, 7, 6])}, ValueError,
     r"offsets must not fall, got offsets\[2\] = 6 after 7"),
    ("temporal_gather", TABLE | {"offsets": torch.tensor([0, 2, 5])}, ValueError,
     "offsets must end with the table's width 6, got 5"),
    ("temporal_gather", TABLE | {"qparams": torch.ones(2, 2, 4).permute(2, 1, 0)}, ValueError,
     "qparams must be contiguous"),
    ("attention_s8", {"query": torch.zeros(2, 4, 6).half()}, TypeError,
     "attention_s8: query must be float32 or bfloat16, got float16"),
    ("attention_s8", {"key": torch.zeros(2, 5, 6).bfloat16()}, TypeError,
     "attention_s8: key must be float32, got bfloat16"),
    ("attention_s8", {"query": torch.zeros(4, 6)}, ValueError, "query must have 3 dimensions"),
    ("attention_s8", {"query": torch.zeros(2, 6, 4).transpose(1, 2)}, ValueError,
     "attention_s8: query must be contiguous in memory"),
    ("attention_s8", {"value": torch.zeros(2, 5, 8)}, ValueError,
     r"value must be \(2, kv_tokens, 6\) with kv_tokens >= 1 for a query of \(2, 4, 6\), got "
     r"\(2, 5, 8\)"),
    ("attention_s8", {"key": torch.zeros(2, 0, 6), "value": torch.zeros(2, 0, 6)}, ValueError,
     r"key must be \(2, kv_tokens, 6\) with kv_tokens >= 1"),
    ("attention_s8", {"value": torch.zeros(2, 4, 6)}, ValueError,
     r"key and value must have the same shape, got \(2, 5, 6\) and \(2, 4, 6\)"),
    ("attention_s8", {"heads": 4}, ValueError, "6 channels do not divide into 4 heads"),
    ("attention_s8", {"heads": 0}, ValueError, "6 channels do not divide into 0 heads"),
    ("attention_s8", {"scale": 0.0}, ValueError, "scale must be positive and finite in float32, got 0.0"),
    ("attention_s8", {"scale": float("inf")}, ValueError, "scale must be positive and finite"),
    ("attention_s8", {"out_dtype": torch.uint8}, TypeError,
     "attention_s8: out_dtype must be torch.float32 or torch.bfloat16, got torch.uint8"),
    ("dequantize_weight", {"dtype": torch.float16}, TypeError,
     "dequantize_weight: dtype must be torch.float32 or torch.bfloat16, got torch.float16"),
    ("dequantize_weight", {"shape": (4, 2, 3)}, ValueError,
     r"shape must have 2 or 4 entries, got \(4, 2, 3\)"),
    ("dequantize_weight", {"shape": (4, 65)}, ValueError,
     r"packed weight for n=4, k=65 must be contiguous \(1, 32, 16, 4\), got \(1, 16, 16, 4\)"),
    ("dequantize_weight", {"scale": torch.ones(5)}, ValueError,
     r"scale must be contiguous \(4,\), got \(5,\)"),
    ("dequantize_weight", {"packed": torch.zeros(1, 16, 16, 4)}, TypeError,
     "packed must be int8 or uint8, got float32"),
    ("dequantize_weight", {"zero_point": torch.zeros(4, dtype=torch.uint8)}, ValueError,
     r"zero_point is for a 4-bit packed \(uint8, from pack_weight_s4\), got an int8 packed"),
    ("dequantize_weight", packed_weight((4, 6), four_bits=True) | {"zero_point": None}, ValueError,
     r"a uint8 packed \(4-bit, from pack_weight_s4\) needs zero_point, got None"),
    ("pack_weight", {"weight": torch.zeros(4, 6)}, TypeError,
     "pack_weight: weight must be int8, got float32"),
    ("pack_weight", {"weight": torch.zeros(4, dtype=torch.int8)}, ValueError,
     "weight must be 2-D or 4-D"),
    ("pack_weight", {"weight": torch.zeros(0, 6, dtype=torch.int8)}, ValueError,
     r"pack_weight: weight must not be empty, got \(0, 6\)"),
    ("pack_weight", {"weight": torch.full((2, 2), -128, dtype=torch.int8)}, ValueError,
     r"pack_weight: weight must be in \[-127, 127\], got -128"),
    ("pack_weight_s4", {"q": torch.zeros(4, 6, dtype=torch.int8)}, TypeError,
     "pack_weight_s4: q must be uint8, got int8"),
    ("pack_weight_s4", {"q": torch.full((4, 6), 16, dtype=torch.uint8)}, ValueError,
     r"pack_weight_s4: q must be in \[0, 15\], got 16"),
    ("pack_weight_s4", {"zero_point": torch.full((4,), 99, dtype=torch.uint8)}, ValueError,
     r"pack_weight_s4: zero_point must be in \[0, 15\], got 99"),
    ("pack_weight_s4", {"zero_point": torch.zeros(6, dtype=torch.uint8)}, ValueError,
     r"zero_point must be contiguous \(4,\), got \(6,\)"),
    ("pack_weight_s4", {"q": torch.zeros(4, dtype=torch.uint8)}, ValueError,
     "q must be 2-D or 4-D"),
]  # fmt: skip


@pytest.mark.parametrize(
    "operation, change, error, message", CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_message(operation, change, error, message):
    correct = BUILDERS[operation]()
    getattr(ops, operation)(**correct)
    with pytest.raises(error, match=message):
        getattr(ops, operation)(**(correct | change))


@pytest.mark.parametrize("name", ["qparams", "weight_scale", "weight", "weight_sum"])
@pytest.mark.parametrize("operation", ["gemm_s8", "conv2d_s8"])
def test_required_tensors_are_named(operation, name):
    with pytest.raises(TypeError, match=f"{operation}: {name} must be a tensor, got NoneType"):
        getattr(ops, operation)(**(BUILDERS[operation]() | {name: None}))


def images_in_token_order():
    return torch.randn(2, 8, 3, 4).to(memory_format=torch.channels_last)


def test_operations_on_the_last_dimension_want_it_contiguous():
    """A 4-D channels_last tensor is dense, but its last dimension is not what lies together."""
    for call in (
        lambda: ops.layer_norm_quantize(images_in_token_order(), None, None),
        lambda: ops.geglu_quantize(images_in_token_order()),
        lambda: ops.gemm_s8(**(gemm_operands(48, 5, 4) | {"x": images_in_token_order().byte()})),
    ):
        with pytest.raises(ValueError, match="x must be contiguous in memory"):
            call()


def test_four_dimensional_rows_take_a_residual():
    operands = gemm_operands(24, 5, 64)
    operands["residual"] = torch.randn(24, 5)
    flat = ops.gemm_s8(**operands)
    operands["x"] = operands["x"].view(2, 3, 4, 64)
    operands["residual"] = operands["residual"].view(2, 3, 4, 5)
    assert torch.equal(ops.gemm_s8(**operands), flat.view(2, 3, 4, 5))


def test_sums_must_fit_int32():
    deepest = 2**31 // (255 * 127) - 1
    operands = gemm_operands(1, 1, deepest + 1)
    with pytest.raises(
        ValueError, match=f"gemm_s8: k must be at most {deepest}, got {deepest + 1}"
    ):
        ops.gemm_s8(**operands)


def test_requires_grad_is_allowed_without_grad():
    with torch.no_grad():
        ops.quantize(torch.zeros(4, 6, requires_grad=True))


def test_unknown_level():
    before = _C.isa()
    with pytest.raises(ValueError, match="must be scalar, avx2, avx512vnni or amx, got 'sse'"):
        _C.set_max_isa("sse")
    assert _C.isa() == before


def test_native_arguments_are_checked_again():
    """What could corrupt memory is refused below Python, too."""
    with pytest.raises(ValueError, match="sizes must not be negative, got -1"):
        _C.gemm_s8(0, -1, 1, 1, 0, 0, (0,) * 17)
    with pytest.raises(ValueError, match="epilogue must have 17 entries, got 2"):
        _C.gemm_s8(0, 1, 1, 1, 0, 0, (0, 0))
    with pytest.raises(ValueError, match="geometry must have 14 entries, got 1"):
        _C.conv2d_s8(0, (1,), 0, 0, (0,) * 17)
    with pytest.raises(ValueError, match="a required tensor has no memory"):
        _C.pack_weight(0, 1, 1, 0, 0)


WRONG_WEIGHTS = {
    "weight": (torch.zeros(2, 16, 16, 4, dtype=torch.int8), "packed weight for n=5"),
    "weight_scale": (torch.ones(10)[::2], "weight_scale must be contiguous"),
    "weight_sum": (torch.ones(6, dtype=torch.int32), "weight_sum must be contiguous"),
    "bias": (torch.ones(4), "bias must be contiguous"),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_change_are_checked_again(name):
    """Another tensor, and other memory in the tensor that was checked before."""
    operands = gemm_operands(*GEMM)
    wrong, message = WRONG_WEIGHTS[name]
    expected = ops.gemm_s8(**operands)
    with pytest.raises(ValueError, match=message):
        ops.gemm_s8(**(operands | {name: wrong}))
    assert torch.equal(ops.gemm_s8(**operands), expected)
    operands[name].data = wrong
    with pytest.raises(ValueError, match=message):
        ops.gemm_s8(**operands)


def test_weights_that_come_to_require_grad():
    operands = gemm_operands(*GEMM)
    ops.gemm_s8(**operands)
    operands["bias"].requires_grad_()
    with pytest.raises(ValueError, match="bias requires grad"):
        ops.gemm_s8(**operands)


def test_checked_weights_are_forgotten_with_the_weight():
    operands = gemm_operands(*GEMM)
    ops.gemm_s8(**operands)
    key = id(operands["weight"])
    assert key in _weights._checked
    del operands
    assert key not in _weights._checked
