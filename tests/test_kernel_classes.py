"""Time of a UNet's kernels by class: bench/kernel_classes.py."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "bench"))

import kernel_classes  # noqa: E402

# Of tfq's kernels, by what csrc/cuda calls them.
TFQ = {
    "attention_s8_sm80": "attention",
    "quantize_tokens": "attention",
    "quantize_value": "attention",
    "conv2d_s8_sm80": "conv",
    "conv2d_s8_sm90": "conv",
    "gemm_s8_sm80": "gemm",
    "gemm_s8_sm90": "gemm",
    "group_norm_statistics": "norm",
    "group_norm_coefficients": "norm",
    "clear_ranges": "quantise",
    "image_range": "quantise",
    "image_quantize": "quantise",
    "image_enlarge": "quantise",
    "row_quantize": "quantise",
    "dequantize_weight_runs": "quantise",
    "temporal_gather_rows": "other",
    "temporal_gather_dequantize_rows": "quantise",
}


def test_kernels_of_tfq():
    found = set()
    for path in (ROOT / "csrc" / "cuda").glob("*.cuh"):
        declared = re.sub(r"TFQ_LAUNCH_BOUNDS\([^;]*?\)\s+(?=\w+\(TFQ_GRID)", "", path.read_text())
        found |= set(re.findall(r"TFQ_KERNEL\s+(\w+)\(", declared))
    assert found == TFQ.keys()
    for name, kind in TFQ.items():
        assert kernel_classes.class_of(f"void tfq::cuda::{name}<3>(tfq::cuda::Args)") == kind, name


def test_operations_on_rows():
    header = (ROOT / "csrc" / "cuda" / "row_quantize.cuh").read_text()
    names = re.search(r"enum class RowOperation \{ ([^}]+) \}", header)[1].split(", ")
    classes = {
        name: kernel_classes.class_of(
            f"void tfq::cuda::row_quantize<(tfq::cuda::RowOperation){i}, 8>(tfq::cuda::RowLaunch)"
        )
        for i, name in enumerate(names)
    }
    assert classes == {"kNone": "quantise", "kLayerNorm": "norm", "kGeglu": "quantise"}


@pytest.mark.parametrize(
    "name, kind",
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_nhwckrsc_nhwc_tilesize128x128", "conv"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "conv"),
        ("triton_tem_fused_convolution_3", "conv"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "gemm"),
        ("triton_tem_fused_addmm_12", "gemm"),
        ("triton_red_fused_native_group_norm_silu_4", "norm"),
        ("triton_poi_fused_add_convolution_mm_5", "other"),
        ("triton_per_fused_convolution_native_layer_norm_7", "norm"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::BFloat16>", "other"),
        ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>", "norm"),
        ("void at::native::elementwise_kernel<convert>", "other"),
        ("Memcpy DtoD (Device -> Device)", "other"),
    ],
)
def test_kernels_of_others(name, kind):
    assert kernel_classes.class_of(name) == kind


def test_what_quantises_after_a_group_norm_is_its_second_half():
    kernels = [
        ("group_norm_statistics", 1.0), ("group_norm_coefficients", 2.0), ("clear_ranges", 4.0),
        ("image_range", 8.0), ("image_quantize", 16.0), ("image_quantize", 32.0), ("gemm_s8_sm90", 64.0),
        ("group_norm_coefficients", 128.0), ("gemm_s8_sm90", 256.0), ("image_quantize", 512.0),
    ]  # fmt: skip
    sums = kernel_classes.totals(kernels)
    assert sums == {
        "gemm": 320.0, "conv": 0.0, "norm": 159.0, "quantise": 544.0, "attention": 0.0, "other": 0.0,
    }  # fmt: skip
