"""Shapes that the native and the reference operations share: convolutions, packed weights."""

from torch import nn

# See csrc/cpu/gemm_s8/packed_layout.h.
PANEL_COLUMNS = 16
QUAD = 4
BLOCK_K = 64


def packed_shape(n, k, bits):
    """Shape of packed weights ``(n, k)`` of 8 or 4 bits."""
    quads = -(-k // BLOCK_K) * (BLOCK_K // QUAD)
    return (-(-n // PANEL_COLUMNS), quads, PANEL_COLUMNS, QUAD * bits // 8)


def pair(value):
    """``(height, width)`` of an int or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def normalize_padding(kernel_size, stride, padding):
    """Kernel and stride as pairs and padding as ``(top, bottom, left, right)``."""
    if isinstance(padding, int):
        padding = (padding,) * 4
    elif len(padding) == 2:
        padding = (padding[0], padding[0], padding[1], padding[1])
    elif len(padding) != 4:
        raise ValueError(
            f"padding must be an int, (vertical, horizontal) or (top, bottom, left, right), got {padding}"
        )
    if min(padding) < 0:
        raise ValueError(f"padding must not be negative, got {tuple(padding)}")
    kernel_size, stride = pair(kernel_size), pair(stride)
    if min(*kernel_size, *stride) < 1:
        raise ValueError(f"kernel_size and stride must be positive, got {kernel_size} and {stride}")
    return kernel_size, stride, tuple(padding)


def conv_output_size(size, kernel_size, stride, padding):
    """Output ``(height, width)`` of a convolution; raises if the kernel does not fit."""
    (height, width), (top, bottom, left, right) = size, padding
    out_h = (height + top + bottom - kernel_size[0]) // stride[0] + 1
    out_w = (width + left + right - kernel_size[1]) // stride[1] + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"conv2d_s8: a kernel of {tuple(kernel_size)} does not fit an input of {height}x{width} "
            f"with padding {tuple(padding)}"
        )
    return out_h, out_w


def unsupported_conv(layer):
    """Why a Conv2d has no INT8 kernel, or None."""
    if type(layer) is not nn.Conv2d:
        return f"type {type(layer).__name__}"
    if layer.groups != 1:
        return f"groups={layer.groups}"
    if tuple(layer.dilation) != (1, 1):
        return f"dilation={tuple(layer.dilation)}"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding mode {layer.padding_mode!r}, padding {layer.padding!r}"
    return None
