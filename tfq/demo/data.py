"""Images, noise and error of the embedded model: what its training and its checks share.

The data file is an ``.npz`` with the arrays ``x_train`` (60000, 28, 28) and ``x_test``
(10000, 28, 28) of Fashion-MNIST, uint8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

SCHEDULER_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
}
"""Arguments shared by the scheduler of the training and the one of the demo."""

EVALUATED_IMAGES = 1024
"""Images which `evaluate` looks at unless told otherwise."""


def load_images(path, key):
    """Read images and pad them to the size of the model.

    Parameters
    ----------
    path : str or path-like
        ``.npz`` file with the array `key`, uint8 of shape (n, 28, 28), values 0 to 255.
    key : str
        ``"x_train"`` or ``"x_test"``.

    Returns
    -------
    torch.Tensor
        uint8 of shape (n, 1, 32, 32), padded with 0 (black) by two pixels on each side.

    Raises
    ------
    ValueError
        If the array is missing or has another shape or type.
    """
    with np.load(path) as arrays:
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}, it holds {sorted(arrays)}")
        images = arrays[key]
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{path}: {key} must be uint8 of shape (n, 28, 28), got {images.dtype} {images.shape}"
        )
    return functional.pad(torch.from_numpy(images)[:, None], (2, 2, 2, 2))


def normalize(images):
    """Map uint8 values 0 to 255 onto float32 values -1 to 1."""
    return images.float().div_(127.5).sub_(1.0)


def make_alphas_cumprod():
    """Return the cumulative products of 1 - beta, float32 of shape (1000,)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**SCHEDULER_CONFIG).alphas_cumprod


def add_noise(clean, noise, timesteps, alphas_cumprod):
    """Draw from q(x_t | x_0).

    Parameters
    ----------
    clean, noise : torch.Tensor
        float32 of shape (n, 1, 32, 32).
    timesteps : torch.Tensor
        int64 of shape (n,), 0 to 999.
    alphas_cumprod : torch.Tensor
        float32 of shape (1000,).

    Returns
    -------
    torch.Tensor
        float32 of shape (n, 1, 32, 32).
    """
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise


@torch.no_grad()
def evaluate(unet, images, alphas_cumprod, count=EVALUATED_IMAGES, batch=128, seed=1234):
    """Measure the error of the predicted noise, with fixed noise and timesteps.

    Parameters
    ----------
    unet : diffusers.UNet2DModel
        float32.
    images : torch.Tensor
        uint8 of shape (n, 1, 32, 32). `count` of them are drawn, for files may be sorted by class.
    alphas_cumprod : torch.Tensor
        float32 of shape (1000,).
    count, batch : int
        Number of images, and of images per call.
    seed : int
        Seed of the choice and of the noise; the timesteps are spread evenly over 0 to 999.

    Returns
    -------
    float
        Mean squared error per pixel; the noise has variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = normalize(images[torch.randperm(len(images), generator=generator)[:count]])
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.linspace(0, 999, clean.shape[0]).round().long()
    noisy = add_noise(clean, noise, timesteps, alphas_cumprod)
    total = 0.0
    for part in torch.arange(clean.shape[0]).split(batch):
        total += (unet(noisy[part], timesteps[part]).sample - noise[part]).square().sum().item()
    return total / clean.numel()
