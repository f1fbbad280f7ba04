"""Train the small denoiser shipped with the package.

The model is a stock ``diffusers.UNet2DModel`` with 3.94 million parameters which predicts
the noise in 32x32 grey images (Fashion-MNIST, padded from 28x28). It is small enough to travel
inside a wheel as float16, and real enough to show what quantisation does to a trajectory.
Nothing starts on import::

    python -m tfq.demo.train --data fashion_mnist.npz --out runs/fashion32 --steps 20000
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import pathlib
import shutil
import statistics
import sys
import time

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .data import (
    EVALUATED_IMAGES,
    SCHEDULER_CONFIG,
    add_noise,
    evaluate,
    load_images,
    make_alphas_cumprod,
    normalize,
)
from .model import WEIGHTS

MAX_WEIGHT_BYTES = 8_000_000
"""Upper limit for the stored weights, in bytes: they are part of every wheel."""

UNET_CONFIG = {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
    "norm_num_groups": 16,
}
"""Arguments of ``UNet2DModel``; everything else keeps its default."""

CARD = """\
# Embedded demonstration model

A `diffusers.UNet2DModel` with {parameters:,} parameters which predicts the noise in 32x32 grey
images with values in [-1, 1].

- Data: Fashion-MNIST (Zalando SE, MIT licence), padded with background from 28x28 to 32x32.
- Diffusion: 1000 steps, `beta_schedule="squaredcos_cap_v2"`, epsilon prediction, unconditional.
- Training: `python -m tfq.demo.train`; the last run took {steps:,} steps of batch {batch}, peak
  learning rate {lr:g}, weights averaged with decay {decay:g}{init}.
- Mean squared error of the predicted noise: {test_mse:.5f} on {test_images:,} test images.
- File: float16 safetensors. Load with `tfq.demo.load_model()`, which returns float32.

The weights are licensed under Apache-2.0 like the project; LICENSE holds the notice of the data.
"""


def draw_batch(images, batch, flip, generator):
    """Draw images, noise and timesteps for one step.

    Parameters
    ----------
    images : torch.Tensor
        uint8 of shape (n, 1, 32, 32).
    batch : int
    flip : bool
        Mirror half of the images.
    generator : torch.Generator

    Returns
    -------
    clean, noise : torch.Tensor
        float32 of shape (batch, 1, 32, 32).
    timesteps : torch.Tensor
        int64 of shape (batch,), 0 to 999.
    """
    index = torch.randint(images.shape[0], (batch,), generator=generator)
    clean = normalize(images[index])
    if flip:
        mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        clean = torch.where(mirrored, clean.flip(-1), clean)
    noise = torch.randn(clean.shape, generator=generator)
    # The loss depends strongly on t: even coverage in a batch lowers the gradient's variance.
    strata = torch.arange(batch) + torch.rand(batch, generator=generator)
    timesteps = (strata * (1000.0 / batch)).long().clamp_(max=999)
    return clean, noise, timesteps


def learning_rate(step, steps, peak, warmup):
    """Return the rate: linear warm-up to `peak`, then a cosine which reaches 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_ema(ema, unet, decay):
    """Move the averaged weights towards the current ones: ema += (1 - decay) * (unet - ema)."""
    torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1.0 - decay)


def save_checkpoint(path, **state):
    """Write beside `path` and rename, so that an interrupted run never leaves half a file."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def save_model(ema, out, **facts):
    """Write the averaged weights in the form which the package embeds.

    Parameters
    ----------
    ema : diffusers.UNet2DModel
        float32; it is copied, not changed.
    out : pathlib.Path
        Folder; gets the model (float16), the scheduler's configuration, a licence and a card.
    **facts
        Values which the model card names.

    Raises
    ------
    RuntimeError
        If the weights are larger than `MAX_WEIGHT_BYTES`.
    """
    from diffusers import DDIMScheduler

    copy.deepcopy(ema).half().save_pretrained(out)
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(out)
    for name in ("config.json", "scheduler_config.json"):
        config = {
            key: value
            for key, value in json.loads((out / name).read_text()).items()
            if key != "_name_or_path"
        }
        (out / name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (out / "README.md").write_text(
        CARD.format(parameters=sum(p.numel() for p in ema.parameters()), **facts)
    )
    if out.resolve() != WEIGHTS.resolve():
        shutil.copy(WEIGHTS / "LICENSE", out / "LICENSE")
    size = (out / "diffusion_pytorch_model.safetensors").stat().st_size
    if size > MAX_WEIGHT_BYTES:
        raise RuntimeError(f"the weights take {size} bytes, the package allows {MAX_WEIGHT_BYTES}")


def parse_arguments(argv=None):
    """Parse the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m tfq.demo.train", description="Train the embedded demonstration model."
    )
    parser.add_argument(
        "--data", required=True, help="fashion_mnist.npz with x_train and x_test, uint8"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        help="folder for the model, its checkpoint and log.csv",
    )
    parser.add_argument("--init", help="folder of a model to start from; default: random weights")
    parser.add_argument(
        "--steps", type=int, default=20_000, help="optimizer steps in all (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="images per step (default: %(default)s)"
    )
    parser.add_argument(
        "--lr", type=float, default=3e-4, help="peak learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=200, help="steps of linear warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--ema",
        type=float,
        default=0.999,
        help="decay of the averaged weights (default: %(default)s)",
    )
    parser.add_argument(
        "--flip", action="store_true", help="mirror half of the images (shoes then point both ways)"
    )
    parser.add_argument(
        "--float32", action="store_true", help="compute in float32 instead of bfloat16 autocast"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the training step with torch.compile (needs a C++ compiler)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=500,
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in --out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    arguments = parser.parse_args(argv)
    for name in ("steps", "batch", "checkpoint_every"):
        if getattr(arguments, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}"
            )
    if not 0.0 <= arguments.ema < 1.0:
        parser.error(f"--ema must be in [0, 1), got {arguments.ema}")
    return arguments


def train(arguments):
    """Run the training described by the command line.

    Parameters
    ----------
    arguments : argparse.Namespace
        As `parse_arguments` returns it.

    Returns
    -------
    float
        Test error of the averaged weights, see `evaluate`.
    """
    from diffusers import UNet2DModel
    from tqdm import tqdm

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / "checkpoint.pt"
    train_images = load_images(arguments.data, "x_train")
    test_images = load_images(arguments.data, "x_test")
    alphas_cumprod = make_alphas_cumprod()

    torch.manual_seed(arguments.seed)
    if arguments.init:
        unet = UNet2DModel.from_pretrained(arguments.init, dtype=torch.float32)
    else:
        unet = UNet2DModel(**UNET_CONFIG)
    unet.train()
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    # Compiling takes one to two minutes and saves a fifth of every step.
    forward = torch.compile(unet) if arguments.compile else unet
    first = 0
    if arguments.resume:
        state = torch.load(checkpoint, weights_only=True)
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    log_path = arguments.out / "log.csv"
    if first == 0:
        log_path.write_text("step,seconds,lr,train_mse,test_mse\n")
    started, losses = time.monotonic(), []

    def measure(step):
        ema_mse = evaluate(ema, test_images, alphas_cumprod)
        rate = optimizer.param_groups[0]["lr"]
        mean = statistics.fmean(losses) if losses else math.nan
        with log_path.open("a") as log:
            log.write(
                f"{step},{time.monotonic() - started:.0f},{rate:.3e},{mean:.5f},{ema_mse:.5f}\n"
            )
        losses.clear()
        return ema_mse

    test_mse = measure(first)
    bar = tqdm(
        range(first, arguments.steps),
        initial=first,
        total=arguments.steps,
        unit="step",
        mininterval=5.0,
    )
    for step in bar:
        # One generator per step: a resumed run draws what an uninterrupted one would have drawn.
        generator = torch.Generator().manual_seed((arguments.seed << 32) + step)
        clean, noise, timesteps = draw_batch(
            train_images, arguments.batch, arguments.flip, generator
        )
        noisy = add_noise(clean, noise, timesteps, alphas_cumprod)

        rate = learning_rate(step, arguments.steps, arguments.lr, arguments.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # At 64 tokens, plain attention has a much quicker backward pass than the flash kernel.
        attention = sdpa_kernel(SDPBackend.MATH)
        precision = (
            contextlib.nullcontext() if arguments.float32 else torch.autocast("cpu", torch.bfloat16)
        )
        with attention, precision:
            predicted = forward(noisy, timesteps, return_dict=False)[0]
            loss = functional.mse_loss(predicted.float(), noise)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        # A short horizon at first, else random initial weights would stay in the average for long.
        warm_decay = 1.0 if arguments.init else (1 + done) / (10 + done)
        update_ema(ema, unet, min(arguments.ema, warm_decay))
        losses.append(loss.item())
        if done % 20 == 0:
            bar.set_postfix(
                loss=f"{statistics.fmean(losses[-20:]):.4f}", test=f"{test_mse:.4f}", refresh=False
            )
        if done % arguments.checkpoint_every == 0 or done == arguments.steps:
            test_mse = measure(done)
            save_checkpoint(
                checkpoint,
                step=done,
                unet=unet.state_dict(),
                ema=ema.state_dict(),
                optimizer=optimizer.state_dict(),
            )

    save_model(
        ema,
        arguments.out,
        steps=arguments.steps,
        batch=arguments.batch,
        lr=arguments.lr,
        decay=arguments.ema,
        init=", starting from an earlier run" if arguments.init else "",
        test_images=min(EVALUATED_IMAGES, len(test_images)),
        test_mse=test_mse,
    )
    return test_mse


def main(argv=None):
    """Entry point of ``python -m tfq.demo.train``; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        test_mse = train(arguments)
    except (OSError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(f"test error {test_mse:.5f}, model in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
