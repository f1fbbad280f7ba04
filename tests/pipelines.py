"""diffusers' own pipelines in small configurations with random weights, one builder a model family.

``build(name)`` makes a pipeline; ``run(name, pipeline, steps)`` samples one image from a fixed seed.
"""

import functools
import json
import pathlib
import tempfile

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet2DModel, VQModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from unets import SCALE_SHIFT

import tfq

PROMPT = "a small cat"
TEXT_WIDTH = 24
IMAGE_SIZE = 32
_SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_CONDITIONAL = {
    **_SMALL,
    "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": TEXT_WIDTH,
}
_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}


@functools.cache
def _tokenizer_files():
    """A tokenizer of single letters, in files as CLIP's."""
    folder = pathlib.Path(tempfile.mkdtemp())
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder, len(words)


def _tokenizer():
    folder, _ = _tokenizer_files()
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 20
    return tokenizer


def _text_encoder(cls=CLIPTextModel, width=TEXT_WIDTH):
    _, words = _tokenizer_files()
    return cls(
        CLIPTextConfig(
            vocab_size=words, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=20, projection_dim=width,
            bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
        )
    ).eval()  # fmt: skip


def _vae():
    return AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=8, sample_size=IMAGE_SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def _unet(**settings):
    return UNet2DConditionModel(**{**_CONDITIONAL, **settings}).eval()


def _pixel_unet(**settings):
    config = {
        **_SMALL, "sample_size": 16, "attention_head_dim": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**{**config, **settings}).eval()


def _stable_diffusion(cls, unet, scheduler=None, **more):
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, cls)(
        vae=_vae(), text_encoder=_text_encoder(), tokenizer=_tokenizer(), unet=unet,
        scheduler=scheduler or diffusers.DDIMScheduler(**beta, clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **more,
    )  # fmt: skip


def _xl_unet(**settings):
    unet = _unet(**_XL, **settings)
    # As it is made the time embedding outweighs the added conditions, and an error in them is not seen.
    torch.nn.init.normal_(unet.add_embedding.linear_2.weight, std=0.3)
    return unet


def _sdxl():
    projection = 6 * 8 + TEXT_WIDTH
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_text_encoder(), tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection), tokenizer_2=_tokenizer(),
        unet=_xl_unet(
            cross_attention_dim=2 * TEXT_WIDTH, projection_class_embeddings_input_dim=projection,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def _sdxl_refiner():
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=_vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection), tokenizer_2=_tokenizer(),
        unet=_xl_unet(projection_class_embeddings_input_dim=5 * 8 + TEXT_WIDTH),
        scheduler=diffusers.EulerDiscreteScheduler(), requires_aesthetics_score=True,
        add_watermarker=False,
    )  # fmt: skip


def _controlnet():
    control = ControlNetModel(
        **{k: v for k, v in _CONDITIONAL.items() if k not in ("sample_size", "up_block_types")},
        conditioning_embedding_out_channels=(16, 16),
    ).eval()
    for module in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.1)  # zero at first: it would change nothing
    return _stable_diffusion("StableDiffusionControlNetPipeline", _unet(), controlnet=control)


def _dit():
    return diffusers.DiTPipeline(
        diffusers.DiTTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4,
            in_channels=4, out_channels=8, num_embeds_ada_norm=1000,
        ).eval(),
        _vae(),
        diffusers.DDIMScheduler(),
    )  # fmt: skip


def _ip_adapter():
    pipeline = _stable_diffusion("StableDiffusionPipeline", _unet())
    pipeline.unet._load_ip_adapter_weights([ip_adapter_weights(pipeline.unet)])
    return pipeline


def ip_adapter_weights(unet):
    """An IP-Adapter for `unet` as its file has it, with random weights."""
    width = unet.config.cross_attention_dim
    adapter = {}
    for index, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            adapter[f"{index}.to_k_ip.weight"] = torch.randn(hidden, width) * 0.2
            adapter[f"{index}.to_v_ip.weight"] = torch.randn(hidden, width) * 0.2
    projection = {
        "proj.weight": torch.randn(4 * width, width) * 0.2, "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    return {"image_proj": projection, "ip_adapter": adapter}


def _image():
    pixels = torch.rand(IMAGE_SIZE, IMAGE_SIZE, 3, generator=torch.Generator().manual_seed(5))
    return Image.fromarray((255 * pixels).byte().numpy())


def _mask():
    mask = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    mask[8:24, 8:24] = 255
    return Image.fromarray(mask.numpy())


def _image_embeddings():
    embeddings = torch.randn(2, 1, TEXT_WIDTH, generator=torch.Generator().manual_seed(6))
    return [embeddings]


def _text(**more):
    return lambda: {"prompt": PROMPT, **{k: v() if callable(v) else v for k, v in more.items()}}


# Family -> what makes the pipeline, and what it is called with but for seed, steps and output type.
_FAMILIES = {
    "DDPM": (
        lambda: diffusers.DDPMPipeline(_pixel_unet(), diffusers.DDPMScheduler()),
        lambda: {"batch_size": 2},
    ),
    "DDIM": (
        lambda: diffusers.DDIMPipeline(_pixel_unet(), diffusers.DDIMScheduler()),
        lambda: {"batch_size": 2},
    ),
    "latent diffusion": (
        lambda: diffusers.LDMPipeline(
            VQModel(
                block_out_channels=(16, 16),
                norm_num_groups=8,
                latent_channels=3,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            ).eval(),
            _pixel_unet(),
            diffusers.DDIMScheduler(),
        ),
        lambda: {"batch_size": 2},
    ),  # fmt: skip
    "class-conditional": (
        lambda: diffusers.ConsistencyModelPipeline(
            _pixel_unet(num_class_embeds=5, **SCALE_SHIFT),
            diffusers.CMStochasticIterativeScheduler(),
        ),
        lambda: {"batch_size": 2, "class_labels": [1, 3]},
    ),
    "Stable Diffusion 1": (
        lambda: _stable_diffusion("StableDiffusionPipeline", _unet()),
        _text(),
    ),
    "Stable Diffusion 2": (
        lambda: _stable_diffusion(
            "StableDiffusionPipeline",
            _unet(use_linear_projection=True, attention_head_dim=(4, 8)),
            diffusers.DDIMScheduler(
                prediction_type="v_prediction", clip_sample=False, steps_offset=1
            ),
        ),
        _text(),
    ),
    "img2img": (
        lambda: _stable_diffusion("StableDiffusionImg2ImgPipeline", _unet()),
        _text(image=_image),
    ),
    "inpaint": (
        lambda: _stable_diffusion("StableDiffusionInpaintPipeline", _unet(in_channels=9)),
        _text(image=_image, mask_image=_mask, height=IMAGE_SIZE, width=IMAGE_SIZE),
    ),
    "SDXL base": (_sdxl, _text()),
    "SDXL refiner": (_sdxl_refiner, _text(image=_image, strength=0.9)),
    "SDXL Turbo": (_sdxl, _text(guidance_scale=0.0)),
    "LCM": (
        lambda: _stable_diffusion(
            "LatentConsistencyModelPipeline", _unet(time_cond_proj_dim=12), diffusers.LCMScheduler()
        ),
        _text(),
    ),
    "ControlNet": (_controlnet, _text(image=_image, height=IMAGE_SIZE, width=IMAGE_SIZE)),
    "IP-Adapter": (
        _ip_adapter,
        _text(ip_adapter_image_embeds=_image_embeddings),
    ),
}
FAMILIES = list(_FAMILIES)
_FAMILIES["DiT"] = (_dit, lambda: {"class_labels": [1, 3]})


def build(family):
    """The pipeline of a family, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _FAMILIES[family][0]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(family, pipeline, steps, seed=3, **more):
    """Images of one run as a float64 tensor, values in [0, 1]."""
    output = pipeline(
        **{**_FAMILIES[family][1](), **more},
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    return torch.from_numpy(output.images).double()


def calibrate_and_convert(family, pipeline, config, steps):
    """Convert a pipeline, calibrated on other noise (and another text) than :func:`sample` uses."""

    def calibration(model):
        sample(family, pipeline, steps, seed=4)

    if getattr(pipeline, "controlnet", None) is not None:
        tfq.convert(pipeline.controlnet, config, calibration=calibration)
    arguments = _FAMILIES[family][1]()
    if arguments.keys() <= {"prompt", "guidance_scale"}:
        return tfq.convert(pipeline, config, prompts=["a large dog"], num_inference_steps=steps)
    if arguments.keys() == {"batch_size"}:
        return tfq.convert(pipeline, config, num_inference_steps=steps)
    return tfq.convert(pipeline, config, calibration=calibration)
