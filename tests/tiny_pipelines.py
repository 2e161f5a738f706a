"""Pipelines small enough for a test, their networks, and the schedulers that they run under."""

import diffusers
import torch
from helpers import perturbed, quiet

from latentia import VQVAE, DDIMScheduler, DDPMScheduler, TextToImagePipeline, UNet2D
from latentia.models.autoencoder_kl import autoencoder_kl
from latentia.models.clip import clip_towers, train_tokenizer

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
WORDS = ["a red heart", "a green bus", "two blue birds", "a black cat"]
TEXT_SCHEDULERS = [
    DDIMScheduler(**COSINE),
    DDPMScheduler(**COSINE),
    *(
        kind(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler)
    ),
    diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    FLOW(),
]
SCHEDULERS = [
    *TEXT_SCHEDULERS,
    diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
]


def kl(seed=0, **changes):
    """An `AutoencoderKL` from 16 x 16 images to 8 x 8 latents."""
    torch.manual_seed(seed)
    vae = autoencoder_kl(**{"sample_size": 16, "in_channels": 1, "block_out_channels": (8, 8), **changes}).eval()
    vae.register_to_config(shift_factor=0.1, scaling_factor=2.0)
    return vae


def vqvae():
    return VQVAE(sample_size=16, in_channels=1, block_out_channels=(8,), codebook_size=16, latent_channels=4).eval()


def unet(channels=4, size=8, classes=None, width=None, **more):
    """A `UNet2D`, conditioned on classes or, with `width`, on text embeddings of that size."""
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16), "attention_head_dim": 8, "layers_per_block": 1} | more
    if width is not None:
        config |= {"attention_stages": (True, True), "cross_attention_dim": width}
    return perturbed(UNet2D(sample_size=size, in_channels=channels, num_class_embeds=classes, **config)).eval()


def texts(width=32, seed=0, max_tokens=12):
    """A tokenizer trained on `WORDS` and a CLIP text encoder."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(WORDS, 300, max_tokens)
    return tokenizer, clip_towers(tokenizer, 16, width=width, text_layers=1, image_layers=1)[0].eval()


def text_pipeline(latent=True, scheduler=None, **options):
    """A text-to-image pipeline over latents or, with `latent=False`, over pixels."""
    network, vae = (unet(width=32), kl(in_channels=3)) if latent else (unet(3, 16, width=32), None)
    return quiet(TextToImagePipeline(*texts(), network, scheduler or DDIMScheduler(**COSINE), vae, **options))
