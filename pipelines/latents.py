"""The autoencoders that diffusion can work behind, all called alike: pictures to scaled latents and back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from latentia.errors import CheckpointError, LatentiaError, UsageError
from latentia.hub.load import check_component
from latentia.models.vqvae import VQVAE
from latentia.pipelines.autoencoder import in_chunks
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.conditioning import Given, given_picture
from latentia.safety import read_json

AUTOENCODERS = (AutoencoderKL, AutoencoderTiny, VQModel, VQVAE)
_CHUNK = 16  # pictures at once: large ones fill the memory


def check_autoencoder(vae) -> None:
    """UsageError unless `vae` is one whose latents are small pictures."""
    if not isinstance(vae, AUTOENCODERS):
        known = ", ".join(kind.__name__ for kind in AUTOENCODERS)
        raise UsageError(
            f"vae must be one of {known}, whose latents are small pictures; got {type(vae).__name__}. "
            "examples/train_autoencoder_kl.py trains one."
        )


def check_parts(vae, unet, scheduler) -> None:
    """UsageError unless autoencoder, network and scheduler fit each other."""
    check_autoencoder(vae)
    if not hasattr(scheduler, "set_timesteps"):
        raise UsageError(f"scheduler must be one of latentia or diffusers; got {type(scheduler).__name__}.")
    if unet.config.in_channels != latent_channels(vae):
        raise UsageError(
            f"unet must have as many in_channels as the latents of vae, {latent_channels(vae)}; got "
            f"{unet.config.in_channels}. Was it trained with another autoencoder?"
        )
    check_no_clipping(scheduler)


def check_no_clipping(scheduler) -> None:
    """UsageError for a scheduler that clips: one that was swapped in may bring a default that only pixels want."""
    for rule in ("clip_sample", "thresholding"):
        if scheduler.config.get(rule):
            raise UsageError(
                f"scheduler must have {rule}=False, as latents reach beyond [-1, 1]; got True. Take "
                f"{type(scheduler).__name__}.from_config(scheduler.config, {rule}=False)."
            )


def sample_shape(unet) -> tuple[int, int, int]:
    """Channels, height and width of what a network makes."""
    size = unet.config.sample_size
    return (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))


def check_latents(latents: Tensor, unet) -> None:
    """UsageError unless noise is (B, D, h, w) with the network's channels."""
    channels = unet.config.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
        raise UsageError(f"latents must have shape (B, {channels}, h, w), B >= 1; got {tuple(latents.shape)}.")


def given_in_latents(pipe, image: Any, mask: Any, strength: float | None) -> Given | None:
    """`given_picture` for a pipeline with `unet` and `vae`, or with None for a `vae`."""
    if image is None:
        return given_picture(image, mask, strength, channels=1, size=(1, 1), to_sample=lambda x: x, device="cpu")
    channels, *small = sample_shape(pipe.unet)
    if pipe.vae is None:
        return given_picture(
            image, mask, strength, channels=channels, size=tuple(small), to_sample=lambda x: x,
            device=pipe._execution_device,
        )  # fmt: skip
    with torch.no_grad():
        place = {"device": pipe._execution_device, "dtype": pipe.unet.dtype}
        pixels = pictures(pipe.vae, torch.zeros(1, channels, *small, **place)).shape  # what the decoder makes
    return given_picture(
        image, mask, strength, channels=pixels[1], size=tuple(pixels[2:]), device=pipe._execution_device,
        to_sample=lambda x: posterior(pipe.vae, x.to(pipe.vae.dtype))[0].to(pipe.unet.dtype),
    )  # fmt: skip


def load_autoencoder(name: str):
    """The autoencoder of a saved pipeline, folder or Hub id, or of a folder that holds nothing but an autoencoder.

    Args:
        name: what examples/train_autoencoder_kl.py left, any latent diffusion pipeline, or what `save_pretrained` of an
            autoencoder wrote.

    Returns:
        One of `AUTOENCODERS`, in evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, or weights are missing.
        UsageError: it holds no such autoencoder.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file() and not (folder / "model_index.json").exists():
        parts = [_load_alone(folder)]
    else:
        parts = list(DiffusionPipeline.from_pretrained(name).components.values())
    found = next((part for part in parts if isinstance(part, AUTOENCODERS)), None)
    if found is None:
        known = ", ".join(kind.__name__ for kind in AUTOENCODERS)
        raise UsageError(f"{name} must hold an autoencoder, one of {known}; it holds none of them.")
    return found.eval()


def _load_alone(folder: Path):
    try:
        saved = read_json(folder / "config.json").get("_class_name")
        kind = next((kind for kind in AUTOENCODERS if kind.__name__ == saved), None)
        if kind is None:
            return None
        check_component(kind, folder, "")
        found, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except LatentiaError:
        raise
    except Exception as error:  # each of the layers below has errors of its own
        raise CheckpointError(f"{folder} cannot be loaded as an autoencoder: {error}") from error
    missing = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]
    if missing:
        raise CheckpointError(
            f"The weights in {folder} do not fit {saved}: {missing[0]}, {sorted(info[missing[0]])[:3]}."
        )
    found.register_to_config(_name_or_path=None)  # else a folder of this machine ends up in saved files
    return found


def latent_channels(vae) -> int:
    """D of its latents (B, D, h, w)."""
    if isinstance(vae, VQVAE):
        return vae.quantize.latent_channels
    return getattr(vae.config, "vq_embed_dim", None) or vae.config.latent_channels


@torch.no_grad()
def posterior(vae, images: Tensor) -> tuple[Tensor, Tensor | None]:
    r"""Mean and standard deviation of the scaled latents \(\tilde z = (z - \text{shift}) \cdot \text{scaling}\).

    Shift and scaling are those of the configuration, `shift_factor` and `scaling_factor`; one that is not there is 0
    or 1. The latents of a quantised autoencoder are those before quantisation, which belongs to its decoder.

    Args:
        vae: one of `AUTOENCODERS`, in evaluation mode.
        images: (B, C, H, W) in [-1, 1].

    Returns:
        Both (B, D, h, w); of an autoencoder that is no Gaussian the second is None.

    Raises:
        UsageError: images of other channels.

    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021, 2112.10752), appendix G.

    Example:
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> mean, std = posterior(autoencoder_kl(16, 1, block_out_channels=(8, 8)).eval(), torch.zeros(3, 1, 16, 16))
        >>> mean.shape, bool((std > 0).all())
        (torch.Size([3, 4, 8, 8]), True)
    """
    if images.shape[1] != vae.config.in_channels:
        raise UsageError(
            f"images must have {vae.config.in_channels} channels, as the autoencoder takes them; got {images.shape[1]}."
        )
    shift, scaling = _scale(vae)
    x = images.to(vae.device, vae.dtype)
    if isinstance(vae, AutoencoderKL):
        moments = in_chunks(lambda part: vae.encode(part).latent_dist.parameters, x, _CHUNK)
        mean, log_variance = moments.chunk(2, 1)
        return (mean - shift) * scaling, (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * scaling
    ours = isinstance(vae, VQVAE)
    latents = in_chunks(lambda part: vae.encode(part) if ours else vae.encode(part).latents, x, _CHUNK)
    return (latents - shift) * scaling, None


@torch.no_grad()
def pictures(vae, latents: Tensor) -> Tensor:
    """What the decoder makes of scaled latents (B, D, h, w): (B, C, H, W), about in [-1, 1].

    Example:
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> pictures(autoencoder_kl(16, 1, block_out_channels=(8, 8)).eval(), torch.zeros(3, 4, 8, 8)).shape
        torch.Size([3, 1, 16, 16])
    """
    shift, scaling = _scale(vae)
    z = latents.to(vae.device, vae.dtype) / scaling + shift
    if isinstance(vae, VQVAE):
        return in_chunks(lambda part: vae.decode(vae.quantize(part)[0].to(part.dtype)), z, _CHUNK)
    return in_chunks(lambda part: vae.decode(part).sample, z, _CHUNK)


def fingerprint(vae) -> str:
    """32 hexadecimal digits of an autoencoder: class, configuration with its scaling, and every weight.

    Example:
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> vae = autoencoder_kl(16, 1, block_out_channels=(8, 8))
        >>> before = fingerprint(vae)
        >>> vae.register_to_config(scaling_factor=0.5)
        >>> before == fingerprint(vae)
        False
    """
    return digest_of(vae, {key: value for key, value in vae.config.items() if not key.startswith("_")})


def digest_of(network: nn.Module, config: Any) -> str:
    """32 hexadecimal digits of a network's class, of `config`, anything JSON can hold, and of every weight."""
    described = json.dumps([type(network).__name__, config], sort_keys=True, default=str)
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _scale(vae) -> tuple[float, float]:
    shift, scaling = (getattr(vae.config, key, None) for key in ("shift_factor", "scaling_factor"))
    return shift or 0.0, 1.0 if scaling is None else scaling
