"""Autoencoders that diffusion can work behind, called alike: images to scaled latents (B, D, h, w) and back.

The contract is that of diffusers: `encode(images)` gives latents, in an output with `latent_dist` or `latents` or as a
tensor; `decode(latents)` gives images, in an output with `sample` or as a tensor; `config.latent_channels` is D, unless
`config` has `vq_embed_dim` or `levels`. Latents of a network with `lookup` are quantized before they are decoded.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentia.errors import CheckpointError, LatentiaError, UsageError
from latentia.files.reading import user_path
from latentia.functional.chunks import in_chunks
from latentia.hub.check import saved_class
from latentia.hub.load import check_components
from latentia.models.layers.convolution import image_size
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.image_conditioning import SourceImage, check_without_image, source_image
from latentia.pipelines.images import Images
from latentia.pipelines.sampling import check_scheduler
from latentia.safety import LOADING

KNOWN = "AutoencoderKL, AutoencoderTiny, VQModel, VQVAE"
_CHUNK = 16  # images at once: large ones fill the memory


def is_autoencoder(network: Any) -> bool:
    """Whether a network has latents that are maps (B, D, h, w), by the contract above."""
    config = getattr(network, "config", None)
    return hasattr(network, "encode") and hasattr(network, "decode") and hasattr(config, "latent_channels")


def check_autoencoder(vae: Any) -> None:
    """UsageError unless `vae` is one whose latents are maps (B, D, h, w)."""
    if not is_autoencoder(vae):
        raise UsageError(
            f"vae must be an autoencoder whose latents are maps (B, D, h, w), such as {KNOWN}; got "
            f"{type(vae).__name__}. examples/train_autoencoder_kl.py trains one."
        )


def check_unet(unet: Any, known: str) -> None:
    """UsageError unless `unet` says what it denoises, as networks called with (sample, timestep) do."""
    wanted = ("in_channels", "out_channels", "sample_size")
    if not all(hasattr(getattr(unet, "config", None), key) for key in wanted) or hasattr(unet, "decode"):
        raise UsageError(f"unet must be {known}; got {type(unet).__name__}.")


def check_parts(vae: Any, unet: Any, scheduler: Any) -> None:
    """UsageError unless autoencoder, network and scheduler fit each other."""
    check_autoencoder(vae)
    check_scheduler(scheduler)
    if unet.config.in_channels != latent_channels(vae):
        raise UsageError(
            f"unet must have as many in_channels as the latents of vae, {latent_channels(vae)}; got "
            f"{unet.config.in_channels}. Was it trained with another autoencoder?"
        )
    check_no_clipping(scheduler)


def check_no_clipping(scheduler: Any) -> None:
    """UsageError for a scheduler that clips: one that was swapped in may bring a default that only pixels want."""
    for rule in ("clip_sample", "thresholding"):
        if scheduler.config.get(rule):
            raise UsageError(
                f"scheduler must have {rule}=False, as latents reach beyond [-1, 1]; got True. Take "
                f"{type(scheduler).__name__}.from_config(scheduler.config, {rule}=False)."
            )


def sample_shape(unet: Any) -> tuple[int, int, int]:
    """Channels, height and width of what a network makes."""
    return (unet.config.in_channels, *image_size(unet.config.sample_size))


def check_latents(latents: Tensor, unet: Any) -> None:
    """UsageError unless noise is (B, D, h, w) with the network's channels."""
    channels = unet.config.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
        raise UsageError(f"latents must have shape (B, {channels}, h, w), B >= 1; got {tuple(latents.shape)}.")


@torch.no_grad()
def latent_shape(
    vae: Any, unet: Any, height: int | None, width: int | None, device: torch.device
) -> tuple[int, int, int]:
    """Channels, height and width of what the network makes for an image of so many pixels; None: its own size.

    Raises:
        UsageError: a size that the autoencoder does not give back.
    """
    channels, h, w = sample_shape(unet)
    if height is None and width is None:
        return channels, h, w
    of_one = (1, 1) if vae is None else _pixels(vae, unet, (channels, h, w), device)[1:]
    sides = []
    for name, size, latent, pixels in (("height", height, h, of_one[0]), ("width", width, w, of_one[1])):
        factor = 1 if vae is None else pixels // latent
        if size is not None and (size < 1 or size % factor):
            raise UsageError(f"{name} must be a positive multiple of {factor}, the pixels of one latent; got {size}.")
        sides.append(latent if size is None else size // factor)
    return channels, sides[0], sides[1]


def _pixels(vae: Any, unet: Any, shape: tuple[int, int, int], device: torch.device) -> tuple[int, int, int]:
    """Channels, height and width of the image of latents of a shape."""
    made = decode_latents(vae, torch.zeros(1, *shape, device=device, dtype=unet.dtype))
    return made.shape[1], made.shape[2], made.shape[3]


@torch.no_grad()
def latent_source_image(
    vae: Any,
    unet: Any,
    shape: tuple[int, int, int],
    image: Images | None,
    mask: Images | None,
    strength: float | None,
    device: torch.device,
) -> SourceImage | None:
    """The `source_image` of a pipeline that works on the latents of `vae`, or on pixels with None for a `vae`."""
    if image is None:
        check_without_image(mask, strength)
        return None
    if vae is None:
        return source_image(image, mask, strength, channels=shape[0], size=shape[1:], device=device)
    channels, height, width = _pixels(vae, unet, shape, device)
    return source_image(
        image,
        mask,
        strength,
        channels=channels,
        size=(height, width),
        device=device,
        encode=lambda x: posterior(vae, x)[0].to(unet.dtype),
    )


def load_autoencoder(name: str) -> Any:
    """The autoencoder of a saved pipeline, folder or Hub id, or of a folder that holds nothing but an autoencoder.

    Args:
        name: what examples/train_autoencoder_kl.py left, any latent diffusion pipeline, or what `save_pretrained` of an
            autoencoder wrote.

    Returns:
        One that fulfils the contract of this module, in evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, or weights are missing.
        UsageError: it holds no such autoencoder.
    """
    folder = user_path(name)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").exists():
        parts = [_load_alone(folder)]
    else:
        parts = list(DiffusionPipeline.from_pretrained(name).components.values())
    found = next((part for part in parts if is_autoencoder(part)), None)
    if found is None:
        raise UsageError(f"{name} must hold an autoencoder, such as {KNOWN}; it holds none.")
    return found.eval()


def load_codec(name: str) -> Any:
    """The codec of a saved pipeline of time series or sounds, a `SeriesScaler` or a `LogMel`; None of images."""
    folder = user_path(name)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").exists():
        return None
    return DiffusionPipeline.from_pretrained(name).components.get("codec")


def _load_alone(folder: Path) -> Any:
    kind: Any = saved_class(folder / "config.json")
    if not issubclass(kind, nn.Module) or not hasattr(kind, "decode"):
        return None
    try:
        check_components({"": kind}, folder)
        with LOADING:
            found, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except LatentiaError:
        raise
    except Exception as error:  # each of the layers below has errors of its own
        raise CheckpointError(f"{folder} cannot be loaded as an autoencoder: {error}") from error
    missing = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]
    if missing:
        raise CheckpointError(
            f"The weights in {folder} do not fit {kind.__name__}: {missing[0]}, {sorted(info[missing[0]])[:3]}."
        )
    found.register_to_config(_name_or_path=None)  # else a folder of this machine ends up in saved files
    return found


def latent_channels(vae: Any) -> int:
    """D of its latents (B, D, h, w)."""
    config = vae.config
    if config.get("levels"):  # of finite scalar quantisation
        return len(config["levels"])
    return config.get("vq_embed_dim") or config["latent_channels"]


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    r"""Mean and standard deviation of the scaled latents \(\tilde z = (z - \text{shift}) \cdot \text{scaling}\).

    Shift and scaling are those of the configuration, `shift_factor` and `scaling_factor`; one that is not there is 0
    or 1. The latents of a quantised autoencoder are those before quantisation, which belongs to its decoder.

    Args:
        vae: an autoencoder, in evaluation mode.
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

    def parameters(part: Tensor) -> Tensor:
        out = vae.encode(part)
        if isinstance(out, Tensor):
            return out
        return out.latent_dist.parameters if hasattr(out, "latent_dist") else out.latents

    found = in_chunks(parameters, images.to(vae.device, vae.dtype), size=_CHUNK)
    if found.shape[1] == latent_channels(vae):
        return (found - shift) * scaling, None
    mean, log_variance = found.chunk(2, 1)
    return (mean - shift) * scaling, (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * scaling


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """The images of scaled latents (B, D, h, w): (B, C, H, W), about in [-1, 1].

    Example:
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> decode_latents(autoencoder_kl(16, 1, block_out_channels=(8, 8)).eval(), torch.zeros(3, 4, 8, 8)).shape
        torch.Size([3, 1, 16, 16])
    """
    shift, scaling = _scale(vae)

    def images(part: Tensor) -> Tensor:
        if hasattr(vae, "lookup"):
            part = vae.quantize(part)[0].to(part.dtype)
        out = vae.decode(part)
        return out if isinstance(out, Tensor) else out.sample

    return in_chunks(images, latents.to(vae.device, vae.dtype) / scaling + shift, size=_CHUNK)


def fingerprint(vae: Any) -> str:
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


def _scale(vae: Any) -> tuple[float, float]:
    shift, scaling = (getattr(vae.config, key, None) for key in ("shift_factor", "scaling_factor"))
    return shift or 0.0, 1.0 if scaling is None else scaling
