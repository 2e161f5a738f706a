# The public names, each written once: `lazy_loader` reads this file, and type checkers do.

from .commands.compare import compare as compare
from .commands.evaluate import evaluate as evaluate
from .hub.card import model_card as model_card
from .hub.push import push_to_hub as push_to_hub
from .models.autoencoder import Autoencoder as Autoencoder
from .models.autoencoder import RecurrentAutoencoder as RecurrentAutoencoder
from .models.autoregressive import CausalTransformer as CausalTransformer
from .models.classifier import DigitClassifier as DigitClassifier
from .models.control import ControlNet2D as ControlNet2D
from .models.dcgan import (
    DCGANDiscriminator as DCGANDiscriminator,
)
from .models.dcgan import (
    DCGANGenerator as DCGANGenerator,
)
from .models.flow import NormalizingFlow as NormalizingFlow
from .models.inception import InceptionV3 as InceptionV3
from .models.latent_vae import LatentVAE as LatentVAE
from .models.log_mel import LogMel as LogMel
from .models.made import MADE as MADE
from .models.mlp_denoiser import MLPDenoiser as MLPDenoiser
from .models.mlp_gan import MLPDiscriminator as MLPDiscriminator
from .models.mlp_gan import MLPGenerator as MLPGenerator
from .models.modeling import ModelMixin as ModelMixin
from .models.patchgan import PatchDiscriminator as PatchDiscriminator
from .models.pixelcnn import GatedPixelCNN as GatedPixelCNN
from .models.priors import LatentMixture as LatentMixture
from .models.priors import PositionPrior as PositionPrior
from .models.series_scaler import SeriesScaler as SeriesScaler
from .models.table_encoder import TableEncoder as TableEncoder
from .models.table_vae import TableVAE as TableVAE
from .models.text import HashedWords as HashedWords
from .models.translator import CycleTranslator as CycleTranslator
from .models.translator import ImageTranslator as ImageTranslator
from .models.unet import UNet2D as UNet2D
from .models.unet_1d import UNet1D as UNet1D
from .models.vae import VAE as VAE
from .models.vqvae import VQVAE as VQVAE
from .pipelines.autoencoder import AutoencoderPipeline as AutoencoderPipeline
from .pipelines.autoencoder_kl import AutoencoderKLPipeline as AutoencoderKLPipeline
from .pipelines.autoregressive import AutoregressivePipeline as AutoregressivePipeline
from .pipelines.base import DiffusionPipeline as DiffusionPipeline
from .pipelines.clip import CLIPPipeline as CLIPPipeline
from .pipelines.diffusion import UnconditionalDiffusionPipeline as UnconditionalDiffusionPipeline
from .pipelines.flow import FlowPipeline as FlowPipeline
from .pipelines.gan import GANPipeline as GANPipeline
from .pipelines.latent_diffusion import LatentDiffusionPipeline as LatentDiffusionPipeline
from .pipelines.recurrent_autoencoder import RecurrentAutoencoderPipeline as RecurrentAutoencoderPipeline
from .pipelines.series import SeriesPipeline as SeriesPipeline
from .pipelines.sound import SoundPipeline as SoundPipeline
from .pipelines.table_diffusion import TableDiffusionPipeline as TableDiffusionPipeline
from .pipelines.table_families import TableFlowPipeline as TableFlowPipeline
from .pipelines.table_families import TableGANPipeline as TableGANPipeline
from .pipelines.table_families import TableVAEPipeline as TableVAEPipeline
from .pipelines.text import TextPipeline as TextPipeline
from .pipelines.text_to_image import TextToImagePipeline as TextToImagePipeline
from .pipelines.translation import CyclePipeline as CyclePipeline
from .pipelines.translation import TranslationPipeline as TranslationPipeline
from .pipelines.vae import VAEPipeline as VAEPipeline
from .pipelines.vq_prior import VQPriorPipeline as VQPriorPipeline
from .pipelines.vqvae import VQVAEPipeline as VQVAEPipeline
from .schedulers.ddim import DDIMScheduler as DDIMScheduler
from .schedulers.ddpm import DDPMScheduler as DDPMScheduler
from .schedulers.scheduling import SchedulerMixin as SchedulerMixin

__version__: str
