"""Layer shapes of UNets, per image; `count` is the calls in one evaluation of the UNet."""

import typing


class Conv(typing.NamedTuple):
    """A square convolution of ``size`` x ``size`` images with padding ``kernel // 2``."""

    channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    count: int = 1

    def operations(self, batch):
        """Multiplications and additions of a call."""
        pixels = batch * (self.size // self.stride) ** 2
        return 2 * pixels * self.out_channels * self.channels * self.kernel**2

    def __str__(self):
        stride = f"/{self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"conv{kernel}{stride} {self.channels}->{self.out_channels}@{self.size}"


class Linear(typing.NamedTuple):
    """A linear layer over ``tokens`` tokens an image; `geglu`: half of its outputs gate the others."""

    tokens: int
    out_channels: int
    channels: int
    count: int = 1
    geglu: bool = False

    def operations(self, batch):
        """Multiplications and additions of a call."""
        return 2 * batch * self.tokens * self.out_channels * self.channels

    def __str__(self):
        return f"linear {self.tokens}x{self.channels}->{self.out_channels}"


# UNet2DConditionModel of Stable Diffusion 1.5, 64 x 64 latent.
SD15_CONVS = [
    Conv(320, 320, 64, count=7),
    Conv(640, 320, 64, count=2),
    Conv(960, 320, 64),
    Conv(640, 640, 64),
    Conv(640, 640, 32, count=6),
    Conv(1920, 640, 32),
    Conv(1280, 1280, 32),
    Conv(1280, 1280, 16, count=7),
    Conv(2560, 1280, 16, count=2),
    Conv(1280, 1280, 8, count=11),
    Conv(2560, 1280, 8, count=3),
    Conv(320, 320, 64, stride=2),
    Conv(2560, 1280, 16, kernel=1, count=2),
]
SD15_LINEARS = [
    linear
    for tokens, width in ((4096, 320), (1024, 640), (256, 1280))
    for linear in (
        Linear(tokens, width, width, 25),
        Linear(tokens, 3 * width, width, 5),
        Linear(tokens, 8 * width, width, 5),
        Linear(tokens, width, 4 * width, 5),
    )
]
# UNet2DConditionModel of Stable Diffusion XL, 128 x 128 latent.
SDXL_LINEARS = [
    linear
    for tokens, width, blocks in ((1024, 1280, 60), (4096, 640, 10))
    for linear in (
        Linear(tokens, 8 * width, width, blocks),
        Linear(tokens, width, 4 * width, blocks),
        Linear(tokens, width, width, 6 * blocks),
        Linear(77, width, 2048, 2 * blocks),
    )
]
# UNet2DModel google/ddpm-cifar10-32.
DDPM_CONVS = [
    Conv(128, 128, 32, count=7),
    Conv(256, 128, 32, count=2),
    Conv(384, 128, 32),
    Conv(256, 256, 32),
    Conv(256, 256, 16, count=7),
    Conv(512, 256, 16, count=2),
    Conv(256, 256, 8, count=8),
    Conv(256, 256, 4, count=11),
]
DDPM_LINEARS = [Linear(256, 768, 256), Linear(256, 256, 256)]

# (heads, tokens, tokens of key and value, channels of a head)
SD15_ATTENTIONS = [
    (8, 4096, 4096, 40),
    (8, 1024, 1024, 80),
    (8, 256, 256, 160),
    (8, 4096, 77, 40),
]
DDPM_ATTENTIONS = [(1, 256, 256, 256)]

# (channels of the hidden state, channels of the skip connection, size)
SD15_NORMS = [(320, 0, 64), (640, 320, 64), (640, 0, 32), (1280, 640, 32), (1280, 1280, 16)]
DDPM_NORMS = [(128, 0, 32), (256, 128, 32), (256, 0, 16), (256, 256, 16)]
# (tokens, channels)
SD15_LAYER_NORMS = [(4096, 320), (1024, 640), (256, 1280)]
SD15_GEGLUS = [(4096, 1280), (1024, 2560), (256, 5120)]
