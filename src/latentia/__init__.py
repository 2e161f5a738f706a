"""latentia: every family of generative and representation learning behind the interface of Hugging Face diffusers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentia import registration

__version__ = "0.1.0.dev0"

# Public name -> the module that defines it. Nothing heavy is imported before a name is first used.
_EXPORTS = {
    "ModelMixin": "latentia.models.modeling",
    "SchedulerMixin": "diffusers",
    "UNet2D": "latentia.models.unet",
    "VAE": "latentia.models.vae",
    "Autoencoder": "latentia.models.autoencoder",
    "RecurrentAutoencoder": "latentia.models.autoencoder",
    "VQVAE": "latentia.models.vqvae",
    "PositionPrior": "latentia.models.vqvae",
    "PatchDiscriminator": "latentia.models.patchgan",
    "DCGANGenerator": "latentia.models.dcgan",
    "DCGANDiscriminator": "latentia.models.dcgan",
    "MLPGenerator": "latentia.models.dcgan",
    "MLPDiscriminator": "latentia.models.dcgan",
    "HashedWords": "latentia.models.text",
    "LatentMixture": "latentia.models.mixture",
    "DigitClassifier": "latentia.models.classifier",
    "InceptionV3": "latentia.models.inception",
    "DDPMScheduler": "latentia.schedulers.ddpm",
    "DDIMScheduler": "latentia.schedulers.ddim",
    "DiffusionPipeline": "latentia.pipelines.base",
    "UnconditionalDiffusionPipeline": "latentia.pipelines.unconditional",
    "LatentDiffusionPipeline": "latentia.pipelines.latent_diffusion",
    "AutoencoderPipeline": "latentia.pipelines.autoencoder",
    "AutoencoderKLPipeline": "latentia.pipelines.autoencoder_kl",
    "CLIPPipeline": "latentia.pipelines.clip",
    "GANPipeline": "latentia.pipelines.gan",
    "TextToImagePipeline": "latentia.pipelines.text_to_image",
    "VAEPipeline": "latentia.pipelines.vae",
    "VQVAEPipeline": "latentia.pipelines.vqvae",
    "VQPriorPipeline": "latentia.pipelines.vq_prior",
    "evaluate": "latentia.scoreboard",
    "compare": "latentia.comparison",
    "model_card": "latentia.hub.card",
    "push_to_hub": "latentia.hub.push",
}
__all__ = [
    "VAE",
    "VQVAE",
    "Autoencoder",
    "AutoencoderKLPipeline",
    "AutoencoderPipeline",
    "CLIPPipeline",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DDIMScheduler",
    "DDPMScheduler",
    "DiffusionPipeline",
    "DigitClassifier",
    "GANPipeline",
    "HashedWords",
    "InceptionV3",
    "LatentDiffusionPipeline",
    "LatentMixture",
    "MLPDiscriminator",
    "MLPGenerator",
    "ModelMixin",
    "PatchDiscriminator",
    "PositionPrior",
    "RecurrentAutoencoder",
    "SchedulerMixin",
    "TextToImagePipeline",
    "UNet2D",
    "UnconditionalDiffusionPipeline",
    "VAEPipeline",
    "VQPriorPipeline",
    "VQVAEPipeline",
    "__version__",
    "compare",
    "evaluate",
    "model_card",
    "push_to_hub",
]

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from latentia.comparison import compare
    from latentia.hub.card import model_card
    from latentia.hub.push import push_to_hub
    from latentia.models.autoencoder import Autoencoder, RecurrentAutoencoder
    from latentia.models.classifier import DigitClassifier
    from latentia.models.dcgan import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
    from latentia.models.inception import InceptionV3
    from latentia.models.mixture import LatentMixture
    from latentia.models.modeling import ModelMixin
    from latentia.models.patchgan import PatchDiscriminator
    from latentia.models.text import HashedWords
    from latentia.models.unet import UNet2D
    from latentia.models.vae import VAE
    from latentia.models.vqvae import VQVAE, PositionPrior
    from latentia.pipelines.autoencoder import AutoencoderPipeline
    from latentia.pipelines.autoencoder_kl import AutoencoderKLPipeline
    from latentia.pipelines.base import DiffusionPipeline
    from latentia.pipelines.clip import CLIPPipeline
    from latentia.pipelines.gan import GANPipeline
    from latentia.pipelines.latent_diffusion import LatentDiffusionPipeline
    from latentia.pipelines.text_to_image import TextToImagePipeline
    from latentia.pipelines.unconditional import UnconditionalDiffusionPipeline
    from latentia.pipelines.vae import VAEPipeline
    from latentia.pipelines.vq_prior import VQPriorPipeline
    from latentia.pipelines.vqvae import VQVAEPipeline
    from latentia.schedulers.ddim import DDIMScheduler
    from latentia.schedulers.ddpm import DDPMScheduler
    from latentia.scoreboard import evaluate

registration.install()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'latentia' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
