"""Sampled images as pictures."""

import math

import torch

_GAP = 2
# How much stronger than it is a difference is shown.
AMPLIFIED = 8
_LEAST_WIDTH = 320


def to_uint8(images):
    """Images in [-1, 1] as they are saved: uint8 of the same shape."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def grid_geometry(count, width, least_width=_LEAST_WIDTH, least_scale=1):
    """Columns, rows and magnification of a nearly square grid of images `width` pixels wide."""
    columns = math.ceil(math.sqrt(count))
    scale = max(least_scale, math.ceil(least_width / (width * columns)))
    return columns, math.ceil(count / columns), scale


def to_pixels(images):
    """uint8 ``(n, height, width, 1 or 3)`` of images in [-1, 1] ``(n, channels, height, width)``.

    Of other numbers of channels (a latent) the first is shown.
    """
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    return to_uint8(images).permute(0, 2, 3, 1)


def grid(pixels):
    """Arrange images of :func:`to_pixels` in a nearly square PIL image, small ones enlarged."""
    from PIL import Image

    count, height, width, channels = pixels.shape
    columns, rows, scale = grid_geometry(count, width)
    page = torch.full(
        (rows * (height * scale + _GAP) - _GAP, columns * (width * scale + _GAP) - _GAP, channels),
        255, dtype=torch.uint8,
    )  # fmt: skip
    large = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for index, image in enumerate(large):
        row, column = divmod(index, columns)
        top, left = row * (height * scale + _GAP), column * (width * scale + _GAP)
        page[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(page.squeeze(-1).numpy())


def difference(float_images, images):
    """Images in [-1, 1] whose grey is no difference, :data:`AMPLIFIED` times the difference beside."""
    return ((images - float_images) * AMPLIFIED).clamp(-1, 1)


def before_after(float_images, images):
    """Float images, converted ones and their amplified difference side by side, a PIL image."""
    from PIL import Image

    sides = [grid(to_pixels(side)) for side in (float_images, images)]
    sides.append(grid(to_pixels(difference(float_images, images))))
    width, height = sides[0].size
    page = Image.new("RGB", (3 * width + 2 * 16, height), "white")
    for index, side in enumerate(sides):
        page.paste(side, (index * (width + 16), 0))
    return page
