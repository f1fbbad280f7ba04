"""The models that whole-model benchmarks run."""

import importlib.util
import pathlib

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Trained models too large for the project, beside its checkout.
SHARED_MODELS = ROOT.parent / "shared" / "models"

# Configuration of google/ddpm-cifar10-32.
DDPM_CIFAR10 = dict(
    sample_size=32,
    in_channels=3,
    out_channels=3,
    layers_per_block=2,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    attention_head_dim=None,
)

# Configuration of stable-diffusion-v1-5's UNet.
SD15 = dict(
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=768,
    attention_head_dim=8,
)

# Configuration of stable-diffusion-xl-base-1.0's UNet.
SDXL = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
# Configuration of facebook/DiT-XL-2-256, and DiT-S/2 of the same paper (Peebles and Xie, ICCV 2023).
DIT_XL2 = dict(
    sample_size=32,
    num_layers=28,
    patch_size=2,
    attention_head_dim=72,
    num_attention_heads=16,
    in_channels=4,
    out_channels=8,
    attention_bias=True,
)
DIT_S2 = {**DIT_XL2, "num_layers": 12, "attention_head_dim": 64, "num_attention_heads": 6}
# Configuration of PixArt-alpha/PixArt-XL-2-256x256.
PIXART_XL2 = {**DIT_XL2, "cross_attention_dim": 1152, "caption_channels": 4096}
# As narrow as DiT-S/2; no such model is published.
PIXART_S2 = {**DIT_S2, "cross_attention_dim": 384, "caption_channels": 4096}
CONFIGURATIONS = {
    "ddpm-cifar10": (UNet2DModel, DDPM_CIFAR10),
    "sd15": (UNet2DConditionModel, SD15),
    "sdxl": (UNet2DConditionModel, SDXL),
    "dit-s2": (DiTTransformer2DModel, DIT_S2),
    "dit-xl2": (DiTTransformer2DModel, DIT_XL2),
    "pixart-s2": (PixArtTransformer2DModel, PIXART_S2),
    "pixart-xl2": (PixArtTransformer2DModel, PIXART_XL2),
}


def random_weights(name):
    """(model, scheduler) of a published configuration with random weights: for speed only."""
    torch.manual_seed(0)
    cls, configuration = CONFIGURATIONS[name]
    return cls(**configuration).eval(), DDIMScheduler()


def fashion32():
    """(UNet, scheduler) of the model embedded in the package: trained on Fashion-MNIST."""
    from tfq.demo.model import load_model

    return load_model()


def load_shared(path):
    """Python module `path` beside the shared models, or None where it is not at hand."""
    path = SHARED_MODELS / path
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def animeface64():
    """(UNet, scheduler) of the trained 64x64 DDPM, or None where it is not at hand."""
    module = load_shared("animeface64/load.py")
    if module is None:
        return None
    # Spacing "trailing" starts at pure noise, where any error is divided by a vanishing alpha.
    scheduler = DDIMScheduler.from_config(
        module.scheduler("ddim").config, timestep_spacing="leading"
    )
    return module.load(), scheduler


@torch.no_grad()
def trajectory(unet, scheduler, steps, images, seed):
    """DDIM, eta 0: yields ``(images, channels, size, size)`` after each step, not clamped."""
    generator = torch.Generator().manual_seed(seed)
    size = unet.config.sample_size
    x = torch.randn(images, unet.config.in_channels, size, size, generator=generator)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        x = scheduler.step(unet(x, timestep).sample, timestep, x, eta=0.0).prev_sample
        yield x


def sample(unet, scheduler, steps, images, seed):
    """DDIM, eta 0: images in [-1, 1] of ``(images, channels, size, size)``."""
    *_, last = trajectory(unet, scheduler, steps, images, seed)
    return last.clamp(-1, 1)
