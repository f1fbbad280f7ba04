"""What kind of work a kernel of a UNet is, by its name: tfq's, torch's, cuBLAS's, cuDNN's and inductor's."""

import re

CLASSES = ("gemm", "conv", "norm", "quantise", "attention", "other")
# The first that is found in a name, ignoring case.
_PATTERNS = (
    ("attention", r"attention|sdpa|flash|fmha|quantize_(tokens|value)|softmax"),
    # What inductor made of a chain of operations is named after all of them, products too.
    ("norm", r"^triton_(poi|per|red)_.*norm"),
    ("other", r"^triton_(poi|per|red)_"),
    ("conv", r"conv(?!ert)|fprop|winograd|nchwtonhwc|nhwctonchw"),
    ("norm", r"norm|row_quantize<\(tfq::cuda::RowOperation\)1"),
    ("gemm", r"gemm|nvjet|cutlass|splitkreduce|(::|_)(add|b|baddb)?mm"),
    ("quantise", r"quantize|image_range|image_enlarge|clear_ranges"),
)
_MADE_BY_NORM = re.compile(r"clear_ranges|image_range|image_quantize")


def class_of(name):
    """One of CLASSES."""
    found = (kind for kind, pattern in _PATTERNS if re.search(pattern, name, re.IGNORECASE))
    return next(found, "other")


def totals(kernels):
    """Class -> microseconds of ``(name, microseconds)`` in the order of their launches.

    Images are quantised by the same kernels after a group norm, whose second half that is, and alone.
    """
    sums, in_norm = dict.fromkeys(CLASSES, 0.0), False
    for name, us in kernels:
        continues = in_norm and _MADE_BY_NORM.search(name) is not None
        sums["norm" if continues else class_of(name)] += us
        in_norm = "group_norm_coefficients" in name or (continues and "image_quantize" not in name)
    return sums
