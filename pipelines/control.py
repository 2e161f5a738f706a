"""Conditioning images of diffusion: what the network sees of them, and what of them the result keeps exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentia.data.pairs import Degradation
from latentia.errors import UsageError
from latentia.functional.degradation import larger, masked, with_luminance
from latentia.models.control import Controlled, ControlNet2D
from latentia.pipelines.image_conditioning import SourceImage, SuperResolution, super_resolution
from latentia.pipelines.images import Images, from_input
from latentia.pipelines.sampling import Conditioning

_WAYS = {"masked": "mask, with its image,", "smaller": "low_resolution"}  # degradation -> in place of control_image


@dataclass(frozen=True)
class Control:
    """The conditioning images of a call.

    Args:
        condition: as the network sees them, (B, C, H, W) in [-1, 1], or one for all.
        degradation: what the images of training became them by; None for images of their own.
    """

    condition: Tensor
    degradation: Degradation | None

    def expand(self, count: int) -> "Control":
        """One for each of `count` samples."""
        return replace(self, condition=self.condition.expand(count, *self.condition.shape[1:]))

    def keep(self, images: Tensor) -> Tensor:
        """Images with what the condition says exactly: the luminance of grey, the outside of a mask."""
        name = None if self.degradation is None else self.degradation.name
        condition = self.condition.to(images.device)
        if name == "grey":
            return with_luminance(images, condition.to(images.dtype))
        if name == "masked":
            return torch.where(condition[:, -1:] > 0, images, condition[:, :-1].to(images.dtype))
        return images

    def join(self, conditioning: Conditioning | None, dtype: torch.dtype) -> Conditioning:
        """A conditioning with these images beside its classes, with and without guidance."""
        more = {"condition": self.condition.to(dtype)}
        if conditioning is None:
            return Conditioning(more)
        against = conditioning.unconditional
        return replace(
            conditioning,
            inputs=conditioning.inputs | more,
            unconditional=None if against is None else against | more,
        )


def denoiser(unet: Any, controlnet: Any) -> Any:
    """What is called at each step: the network, with its control branch if there is one."""
    return unet if controlnet is None else Controlled(unet, controlnet)


def check_controlnet(unet: Any, controlnet: Any) -> None:
    """UsageError unless a control branch is None, or one that fits the network."""
    if controlnet is None:
        return
    if not isinstance(controlnet, ControlNet2D):
        raise UsageError(f"controlnet must be a ControlNet2D; got {type(controlnet).__name__}.")
    for name in ("in_channels", "block_out_channels", "layers_per_block", "patch_size", "num_class_embeds"):
        own, other = (_plain(part.config.get(name)) for part in (controlnet, unet))
        if own != other:
            raise UsageError(
                f"controlnet must be a branch of this network; its {name} is {own} and that of unet {other}. "
                "ControlNet2D.from_unet(unet, condition_channels=1) makes one."
            )


def condition_config(unet: Any, controlnet: Any) -> tuple[int | None, int]:
    """Channels of the conditioning images, None without, and their sides over those of the sample."""
    config = (unet if controlnet is None else controlnet).config
    return getattr(config, "condition_channels", None), getattr(config, "condition_scale", None) or 1


def degradation_of(saved: Mapping[str, Any] | None) -> Degradation | None:
    """A degradation from a saved configuration, "name" and "strength".

    Raises:
        UsageError: other keys.
    """
    if saved is None:
        return None
    if not isinstance(saved, Mapping) or not {"name"} <= {*saved} <= {"name", "strength"}:
        raise UsageError(f'degradation must have a "name" and may have a "strength"; got {saved!r}.')
    return Degradation(saved["name"], saved.get("strength"))


def saved_degradation(degradation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A degradation as a configuration holds it, checked."""
    made = degradation_of(degradation)
    return None if made is None else {"name": made.name, "strength": made.strength}


def control_of(
    pipe: Any,
    control_image: Images | None,
    sides: tuple[int, int],
    source: SourceImage | None = None,
    low: SuperResolution | None = None,
) -> Control | None:
    """The conditioning images of a call; None for a network that was trained without.

    Args:
        pipe: has `unet`, `controlnet` and `degradation`.
        control_image: as for `from_input`: one, or one for each image.
        sides: height and width of the sample of the network.
        source: the image and mask of the call, from which a network that was trained on holes makes its condition.
        low: its small images, from which one that was trained on smaller images makes it.

    Raises:
        UsageError: conditioning images that are missing, not expected, or of another size, range or kind.
    """
    channels, scale = condition_config(pipe.unet, pipe.controlnet)
    if channels is None:
        if control_image is not None:
            raise UsageError(
                "control_image must be left out: this network was trained without conditioning images. Train one with "
                "them: latentia train ddpm --degrade edges, or with --control_from this pipeline."
            )
        return None
    made: Degradation | None = pipe.degradation
    name = None if made is None else made.name
    size = (scale * sides[0], scale * sides[1])
    if control_image is None:
        if name == "masked" and source is not None and source.mask is not None:
            image, mask = source.image, (source.mask > 0).to(source.image)
            count = max(len(image), len(mask))
            return Control(masked(image.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1)), made)
        if made is not None and name == "smaller" and low is not None:
            if low.factor != made.scale:
                raise UsageError(
                    f"low_resolution must be {size[0] // made.scale} by {size[1] // made.scale}, as this network was "
                    f"trained to enlarge by {made.scale}; got {low.low.shape[2]} by {low.low.shape[3]}."
                )
            return Control(larger(low.low, made.scale), made)
        what = _WAYS.get(name or "", "control_image")
        kind = "on pairs" if name is None else f'with degrade "{name}"'
        raise UsageError(f"{what} must be given, as this network was trained {kind}; got none.")
    try:
        condition = from_input(control_image, channels=channels, size=size, device=pipe._execution_device)
    except UsageError as error:
        raise UsageError(str(error).replace("images must", "control_image must", 1)) from None
    return Control(condition, made)


def latent_super_resolution(pipe: Any, low_resolution: Images | None, sides: tuple[int, int]) -> SuperResolution | None:
    """The small images of a call over latents, of a network that was trained to enlarge them; None for none.

    Args:
        pipe: has `vae`, `unet`, `controlnet` and `degradation`.
        low_resolution: as for `from_input`.
        sides: height and width of the latents.

    Raises:
        UsageError: a network that was trained for something else, or another size.
    """
    if low_resolution is None:
        return None
    if pipe.degradation is None or pipe.degradation.name != "smaller":
        raise UsageError(
            "low_resolution must be left out over latents, whose means are not means of pixels, unless the network was "
            "trained to enlarge: latentia train latent_diffusion --degrade smaller."
        )
    _, scale = condition_config(pipe.unet, pipe.controlnet)
    size, device = (scale * sides[0], scale * sides[1]), pipe._execution_device
    return super_resolution(low_resolution, channels=pipe.vae.config.in_channels, size=size, device=device)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
