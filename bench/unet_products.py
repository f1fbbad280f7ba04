"""The integer products of published UNets as a converted one runs them on a card, most work first.

Per image, with how often one call of the UNet has each; tests/test_sweep.py finds them in the models
themselves. A shortcut over a concatenation is a product for each source, key and value of the text are
products of 77 rows, and the convolution of an upsampler is that of the enlarged image. Where a convolution
of stride 2 pads one side alone, a padded ``unet_shapes.Conv`` has as many outputs of as many terms.
"""

import collections

from unet_shapes import Conv, Linear

PRODUCTS = {
    "sdxl": [  # 128 x 128 latent
        Linear(1024, 10240, 1280, count=60, geglu=True),
        Linear(1024, 1280, 1280, count=377),
        Linear(1024, 1280, 5120, count=60),
        Conv(1280, 1280, 32, count=10),
        Linear(4096, 5120, 640, count=10, geglu=True),
        Linear(4096, 640, 640, count=74),
        Conv(320, 320, 128, count=7),
        Conv(640, 640, 64, count=6),
        Linear(4096, 640, 2560, count=10),
        Conv(2560, 1280, 32, count=2),
        Conv(1280, 1280, 64),
        Conv(640, 640, 128),
        Conv(640, 320, 128, count=2),
        Conv(1920, 640, 64),
        Conv(960, 320, 128),
        Conv(1280, 640, 64),
        Linear(77, 1280, 2048, count=120),
        Conv(1920, 1280, 32),
        Conv(960, 640, 64),
        Linear(16384, 320, 320, count=5),
        Conv(320, 640, 64),
        Conv(640, 1280, 32),
        Conv(320, 320, 128, stride=2),
        Conv(640, 640, 64, stride=2),
        Linear(4096, 640, 1280),
        Linear(16384, 320, 640),
        Linear(77, 640, 2048, count=20),
        Linear(4096, 640, 320, count=2),
        Linear(1024, 1280, 640, count=2),
    ],
    "sd15": [  # 64 x 64 latent
        Conv(320, 320, 64, count=7),
        Conv(1280, 1280, 16, count=7),
        Conv(640, 640, 32, count=6),
        Linear(4096, 320, 320, count=45),
        Linear(256, 1280, 1280, count=45),
        Linear(1024, 640, 640, count=44),
        Linear(4096, 2560, 320, count=5, geglu=True),
        Linear(1024, 5120, 640, count=5, geglu=True),
        Linear(256, 10240, 1280, count=5, geglu=True),
        Conv(2560, 1280, 16, count=2),
        Conv(1280, 1280, 32),
        Conv(640, 640, 64),
        Conv(640, 320, 64, count=2),
        Conv(1920, 640, 32),
        Conv(960, 320, 64),
        Conv(1280, 1280, 8, count=11),
        Linear(4096, 320, 1280, count=5),
        Linear(1024, 640, 2560, count=5),
        Linear(256, 1280, 5120, count=5),
        Conv(1280, 640, 32),
        Conv(2560, 1280, 8, count=3),
        Conv(1920, 1280, 16),
        Conv(960, 640, 32),
        Conv(320, 640, 32),
        Conv(640, 1280, 16),
        Linear(64, 1280, 1280, count=14),
        Conv(320, 320, 64, stride=2),
        Conv(640, 640, 32, stride=2),
        Conv(1280, 1280, 16, stride=2),
        Linear(77, 1280, 768, count=12),
        Linear(64, 10240, 1280, geglu=True),
        Linear(1024, 640, 1280),
        Linear(4096, 320, 640),
        Linear(1024, 640, 320, count=2),
        Linear(256, 1280, 640, count=2),
        Linear(64, 1280, 5120),
        Linear(77, 640, 768, count=10),
        Linear(77, 320, 768, count=10),
    ],
    "ddpm-cifar10": [  # 32 x 32 image
        Conv(128, 128, 32, count=7),
        Conv(256, 256, 16, count=7),
        Conv(512, 256, 16, count=2),
        Conv(256, 256, 32),
        Conv(256, 128, 32, count=2),
        Conv(384, 128, 32),
        Linear(256, 256, 256, count=25),
        Conv(256, 256, 8, count=8),
        Conv(512, 256, 8, count=3),
        Conv(384, 256, 16),
        Conv(256, 256, 4, count=11),
        Linear(1024, 128, 128, count=5),
        Conv(128, 256, 16),
        Conv(512, 256, 4, count=3),
        Conv(128, 128, 32, stride=2),
        Conv(256, 256, 16, stride=2),
        Linear(1024, 128, 256),
        Linear(64, 256, 256, count=6),
        Linear(256, 256, 128, count=2),
        Linear(16, 256, 256, count=10),
        Conv(256, 256, 8, stride=2),
    ],
}
# (name, batch) of what is measured on a card.
UNETS = [("sdxl", 2), ("sdxl", 1), ("sd15", 2), ("sd15", 8), ("ddpm-cifar10", 64)]


def key_of(batch, layer):
    """(operation, m, n, k): what the library chooses a tile by."""
    if isinstance(layer, Linear):
        return "gemm_s8", batch * layer.tokens, layer.out_channels, layer.channels
    pixels = batch * (layer.size // layer.stride) ** 2
    return "conv2d_s8", pixels, layer.out_channels, layer.kernel**2 * layer.channels


def by_share():
    """(batch, layer) of each product of UNETS once, those first that are most of the work of their UNet.

    Layers of several UNets, or of stride 1 and 2, can be one product: the one of most work stands for it.
    """
    found = collections.defaultdict(list)
    for name, batch in UNETS:
        work = [(layer.count * layer.operations(batch), layer) for layer in PRODUCTS[name]]
        total = sum(operations for operations, _ in work)
        for operations, layer in work:
            found[key_of(batch, layer)].append((operations / total, batch, layer))
    by_work = sorted(found.values(), key=lambda same: -sum(share for share, *_ in same))
    return [max(same)[1:] for same in by_work]
