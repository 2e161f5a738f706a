"""Images of texts: a text encoder, a denoising network and a decoder, each trained apart; in latents or in pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.unet import UNet2D
from latentia.pipelines.base import DiffusionPipeline, Images, check_output_type, from_input, to_output
from latentia.pipelines.latents import (
    check_latents,
    check_parts,
    given_in_latents,
    pictures,
    posterior,
    sample_shape,
)
from latentia.pipelines.sampling import (
    Condition,
    Generators,
    check_steps,
    denoise,
    image_generators,
    invert,
    replay,
    slerp,
)
from latentia.pipelines.texts import check_text_encoder, embed_texts

Texts = str | Sequence[str]


class TextToImagePipeline(DiffusionPipeline):
    r"""Texts to images, with the parts and the folder layout of Stable Diffusion, of which each can be swapped alone.

    Args:
        tokenizer, text_encoder: from `load_text_encoder`: CLIP, T5 or an encoder like BERT, of transformers.
        unet: `UNet2D` with `cross_attention_dim`, or diffusers' `UNet2DConditionModel`, which is told the padding too.
        scheduler: any of latentia or diffusers; over latents one that does not clip.
        vae: as for `LatentDiffusionPipeline`; `None` (default): the network makes pixels.
        unconditional: whether the network was trained with some texts hidden, as guidance and negative prompts need.
            Default True.

    Raises:
        UsageError: a component of another class, or components that do not fit each other.

    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021, 2112.10752), section 3.3.

    Example:
        >>> from latentia import DDIMScheduler, UNet2D
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> text_encoder = clip_towers(tokenizer, 32, width=32)[0].eval()
        >>> unet = UNet2D(8, block_out_channels=(32,), cross_attention_dim=32)
        >>> pipe = TextToImagePipeline(tokenizer, text_encoder, unet, DDIMScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> [image.size for image in pipe(["a red bus", "a green heart"], num_inference_steps=2).images]
        [(8, 8), (8, 8)]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (diffusers adds lists)
    _callback_tensor_inputs = ("latents",)

    conditions = ("prompt", "negative_prompt", "image", "mask")
    latents = "continuous"
    latent_conditions = ("prompt",)
    latent_path = "slerp"

    def __init__(self, tokenizer, text_encoder, unet, scheduler, vae=None, unconditional: bool = True):
        super().__init__()
        _check(tokenizer, text_encoder, unet, scheduler, vae)
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(unconditional=unconditional)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts = "",
        *,
        negative_prompt: Texts | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        num_inference_steps: int = 50,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Images | None = None,
        mask: Images | None = None,
        strength: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict | None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images.

        Args:
            prompt: a text or several; "" (default) asks for anything. What is longer than the encoder takes is cut off,
                and a warning says what.
            negative_prompt: what to stay away from, one or one for each prompt; `None` (default): the empty text. Only
                guidance looks at it.
            guidance_scale: \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598,
                eq. 6 with w + 1): 0 ignores the text, 1 (default) follows it, more exaggerates it.
            guidance_rescale: \(\phi\) of Lin et al. (2023, 2305.08891, eq. 16) in [0, 1], against the glaring colours
                of strong guidance. Default 0.
            num_inference_steps: from 1 to the number trained with. Default 50.
            num_images_per_prompt: images of each prompt, next to each other. Default 1.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: start from this noise, (B, D, h, w), instead of drawing it.
            image: a picture to start from, or one for each; `None` (default): none.
            mask: where new pixels are made, 1, and where those of `image` are kept, exactly, 0: (H, W) or (B, 1, H, W),
                or a picture in grey. `None` (default): everywhere.
            strength: how much of the way from noise is gone: 0 gives `image` back, 1 begins with noise alone. `None`
                (default): 0.8, or 1 with a mask.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (the output as
                it is, of the decoder or of the network).
            return_dict: `False` returns the tuple `(images,)`.
            callback_on_step_end: called with (pipeline, step index, time step, {"latents": x}) after each step; may
                return a dict with other latents.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, no prompt, numbers that do not agree, or guidance of a network
                that was never trained without texts.
        """
        check_output_type(output_type)
        self._check_parts()
        check_steps(self.scheduler, num_inference_steps)
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt must be at least 1; got {num_images_per_prompt}.")
        prompts = [text for text in _texts("prompt", prompt) for _ in range(num_images_per_prompt)]
        if latents is not None:
            check_latents(latents, self.unet)
            prompts = prompts * len(latents) if len(prompts) == 1 else prompts
            if len(prompts) != len(latents):
                raise UsageError(f"latents must be one for each of {len(prompts)} images; got {len(latents)}.")
        given = given_in_latents(self, image, mask, strength)
        if given is not None:
            if len(given.image) not in (1, len(prompts)):
                raise UsageError(f"image must be one, or one for each of {len(prompts)}; got {len(given.image)}.")
            given = given.repeated(len(prompts))
        condition = self._condition(prompts, negative_prompt, guidance_scale, guidance_rescale, num_images_per_prompt)
        device, generators = self._execution_device, image_generators(generator, len(prompts))
        if latents is None:
            shape = (len(prompts), *sample_shape(self.unet))
            latents = randn_tensor(shape, generator=generators, device=device, dtype=self.unet.dtype)
        x = denoise(
            self,
            latents.to(device, self.unet.dtype),
            condition,
            num_inference_steps=num_inference_steps,
            eta=eta,
            generators=generators,
            callback=callback_on_step_end,
            given=given,
        )
        made = self._pictures(x)
        images = to_output(made if given is None else given.finish(made), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Any, *, prompt: Texts = "", num_inference_steps: int = 50, refinements: int = 2) -> Tensor:
        """The noise from which `decode` makes these images with this prompt: the deterministic sampler backwards.

        Args:
            images: pictures, or what `from_input` takes.
            prompt: one for all, or one for each.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better. Default 2.

        Returns:
            (B, D, h, w), close to N(0, 1).

        Raises:
            UsageError: images of another size than the network makes.
        """
        self._check_parts()
        place = {"device": self._execution_device, "dtype": self.unet.dtype}
        channels = self.unet.config.in_channels if self.vae is None else self.vae.config.in_channels
        x = from_input(images, channels=channels, **place)
        latents = x if self.vae is None else posterior(self.vae, x)[0]
        if tuple(latents.shape[1:]) != sample_shape(self.unet):
            raise UsageError(
                f"images must be of the size that the network makes, {sample_shape(self.unet)} where it works; those "
                f"of {x.shape[2]} by {x.shape[3]} are {tuple(latents.shape[1:])} there. Resize pictures first."
            )
        condition = self._condition(self._each(prompt, len(x)))
        return invert(self.unet, self.scheduler, latents, condition, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, prompt: Texts = "", num_inference_steps: int = 50, output_type: str = "pil"
    ) -> Any:
        """The images that the deterministic sampler makes of this noise, (B, D, h, w); undoes `encode`."""
        check_output_type(output_type)
        self._check_parts()
        check_latents(latents, self.unet)
        condition = self._condition(self._each(prompt, len(latents)))
        noise = latents.to(self._execution_device, self.unet.dtype)
        x = replay(self.unet, self.scheduler, noise, condition, num_inference_steps)
        return to_output(self._pictures(x), output_type)

    def interpolate(
        self, a: Any, b: Any, steps: int = 8, *, prompt: str = "", num_inference_steps: int = 50,
        output_type: str = "pil",
    ):  # fmt: skip
        """`steps` images on the great circle between the noises of two images, both ends included."""
        if steps < 2:
            raise UsageError(f"steps must be at least 2, for the two ends; got {steps}.")
        options = {"prompt": prompt, "num_inference_steps": num_inference_steps}
        ends = [self.encode(image, **options) for image in (a, b)]
        return self.decode(slerp(*ends, steps), output_type=output_type, **options)

    def _check_parts(self) -> None:
        """Again at each call: any of them may have been swapped."""
        _check(self.tokenizer, self.text_encoder, self.unet, self.scheduler, self.vae)

    def _pictures(self, x: Tensor) -> Tensor:
        return x if self.vae is None else pictures(self.vae, x)

    def _each(self, prompt: Texts, count: int) -> list[str]:
        prompts = _texts("prompt", prompt)
        prompts = prompts * count if len(prompts) == 1 else prompts
        if len(prompts) != count:
            raise UsageError(f"prompt must be one text, or one for each of {count} images; got {len(prompts)}.")
        return prompts

    def _condition(
        self,
        prompts: list[str],
        negative_prompt: Texts | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        repeats: int = 1,
    ) -> Condition:
        if not 0 <= guidance_rescale <= 1:
            raise UsageError(f"guidance_rescale must be in [0, 1]; got {guidance_rescale}.")
        guided = guidance_scale != 1
        if guided and not self.config.unconditional:
            raise UsageError(
                f"guidance_scale must be 1, as this network was trained without hiding texts; got {guidance_scale}. "
                "Train it with --caption_dropout 0.1."
            )
        if negative_prompt is not None and not guided:
            raise UsageError("negative_prompt needs a guidance_scale other than 1, such as 3, to have an effect.")
        told = self._told(prompts)
        if not guided:
            return Condition(told)
        against = [text for text in _texts("negative_prompt", negative_prompt or "") for _ in range(repeats)]
        against = against[:1] * len(prompts) if len(against) == repeats else against
        if len(against) != len(prompts):
            raise UsageError(
                f"negative_prompt must be one text, or one for each of {len(prompts) // repeats} prompts; got "
                f"{len(against) // repeats}."
            )
        return Condition(told, self._told(against), guidance_scale, guidance_rescale)

    def _told(self, texts: list[str]) -> dict[str, Tensor]:
        hidden, mask = embed_texts(self.tokenizer, self.text_encoder, texts)
        told = {"encoder_hidden_states": hidden.to(self._execution_device, self.unet.dtype)}
        if isinstance(self.unet, UNet2D):
            told["encoder_attention_mask"] = mask.to(self._execution_device)
        return told


def _check(tokenizer, text_encoder, unet, scheduler, vae) -> None:
    """UsageError unless the parts fit each other."""
    check_text_encoder(tokenizer, text_encoder)
    if not isinstance(unet, UNet2D | UNet2DConditionModel):
        raise UsageError(f"unet must be a UNet2D or UNet2DConditionModel; got {type(unet).__name__}.")
    wanted, width = unet.config.cross_attention_dim, text_encoder.config.hidden_size
    if wanted is None:
        raise UsageError("unet must be told texts; this one has no cross_attention_dim.")
    if any(dim != width for dim in ([wanted] if isinstance(wanted, int) else wanted)):
        raise UsageError(
            f"unet and text_encoder must agree: the network attends to cross_attention_dim={wanted}, and hidden "
            f"states of {type(text_encoder).__name__} have {width}. Was it trained with another text encoder?"
        )
    if vae is not None:
        check_parts(vae, unet, scheduler)
    elif not hasattr(scheduler, "set_timesteps"):
        raise UsageError(f"scheduler must be one of latentia or diffusers; got {type(scheduler).__name__}.")


def _texts(name: str, given: Texts) -> list[str]:
    texts = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name} must be a text or a list of at least one; got {given!r}.")
    return texts
