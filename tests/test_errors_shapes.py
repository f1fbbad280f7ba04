"""Shapes and counts at the edge of what the operations take: refused by name, never passed to a kernel."""

import pytest
from operands import group_norm_operands, random_qparams

from tfq import ops
from tfq._ext import _C


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
