"""Shapes the kernels are tested with: awkward ones and those of real UNets."""

import itertools

from tfq.geometry import normalize_padding

SIZES = range(1, 98)  # every remainder of every block width

# (m, n, k) in which n and k each take every size.
GEMM_SIZES = [(1 + size * 29 % 70, size, 1 + size * 37 % 97) for size in SIZES]

# (m, n, k): SD1.5 and DDPM linears, with fewer tokens where only the depth matters.
UNET_GEMMS = [
    (4096, 320, 320),
    (1024, 640, 640),
    (64, 5120, 640),
    (100, 1280, 5120),
    (77, 640, 768),
    (1024, 768, 256),
]

# (batch, channels, height, width, out_channels, kernel, stride, padding, upsample).
# SD1.5 and DDPM CIFAR-10 convolutions; the last is the deepest sum of any (k = 23,040).
UNET_CONVS = [
    (1, 320, 32, 32, 320, 3, 1, 1, 1),
    (2, 128, 32, 32, 128, 3, 1, 1, 1),
    (1, 960, 16, 16, 320, 1, 1, 0, 1),
    (2, 128, 32, 32, 128, 3, 2, (0, 1, 0, 1), 1),
    (1, 320, 32, 32, 320, 3, 2, 1, 1),
    (2, 256, 8, 8, 256, 3, 1, 1, 2),
    (3, 256, 4, 4, 256, 3, 1, 1, 1),
    (1, 2560, 8, 8, 160, 3, 1, 1, 1),
]

# The same, for the Winograd kernels: one to eight chunks of channels, tiles cut by every edge, rows of
# tiles that tasks divide, images that a task spans, odd panels and columns beyond the last.
WINOGRAD_CONVS = [
    (1, 64, 8, 8, 16, 3, 1, 1, 1),
    (1, 128, 16, 16, 80, 3, 1, 1, 1),
    (3, 256, 13, 18, 35, 3, 1, (2, 0, 1, 3), 1),
    (2, 320, 7, 30, 48, 3, 1, 0, 1),
    (5, 192, 9, 9, 33, 3, 1, 1, 1),
    (2, 128, 9, 7, 20, 3, 1, 1, 2),
    (1, 1536, 16, 16, 32, 3, 1, 1, 1),
    (1, 448, 33, 65, 17, 3, 1, (0, 1, 0, 1), 1),
]

KERNELS = [1, 3, 5, (2, 3)]
STRIDES = [1, 2, (2, 1)]
PADDINGS = [0, 1, (0, 1), (0, 1, 0, 1), (2, 0, 1, 3)]
IMAGES = [
    (1, 1, 5, 7, 3),
    (2, 3, 6, 5, 17),
    (3, 16, 4, 9, 33),
    (2, 65, 5, 5, 70),
    (1, 32, 1, 3, 16),
]


def _fits(image, kernel, padding, upsample):
    kernel, _, (top, bottom, left, right) = normalize_padding(kernel, 1, padding)
    height, width = image[2] * upsample, image[3] * upsample
    return height + top + bottom >= kernel[0] and width + left + right >= kernel[1]


def awkward_convs():
    """Every kernel x stride x padding x upsample, on images that take turns."""
    turns = itertools.cycle(IMAGES)
    for kernel, stride, padding, upsample in itertools.product(KERNELS, STRIDES, PADDINGS, (1, 2)):
        image = next(i for i in turns if _fits(i, kernel, padding, upsample))
        yield (*image, kernel, stride, padding, upsample)


# (batch, channels, channels2, height, width, num_groups); channels2 > 0 is a skip connection, and
# with (17, 15), (1280, 640) or (640, 320) channels a group straddles the seam.
GROUP_NORMS = [
    (1, 32, 0, 5, 7, 8),
    (2, 33, 0, 3, 3, 11),
    (2, 40, 24, 6, 5, 8),
    (3, 17, 15, 4, 9, 2),
    (1, 6, 0, 1, 1, 2),
    (2, 96, 32, 16, 16, 32),
    (4, 128, 0, 32, 32, 32),
    (1, 320, 0, 64, 64, 32),
    (1, 640, 320, 32, 32, 32),
    (2, 1280, 640, 8, 8, 32),
]

# (rows, channels)
LAYER_NORMS = [(77, 768), (256, 1280), (1024, 320), (3, 2), (1, 4097)]
GEGLUS = [(64, 1280), (33, 2560), (256, 1280), (1, 5), (7, 8191)]
