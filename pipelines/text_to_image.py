"""Text-to-image diffusion: a text encoder, a denoising network and a decoder, each trained apart; latents or pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.interpolation import interpolate
from latentia.pipelines.arguments import Generators, check_call, draw_noise, image_generators, renamed
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.denoising import Callback, Steps
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.latents import (
    check_latents,
    check_parts,
    check_unet,
    decode_latents,
    latent_shape,
    latent_source_image,
    posterior,
    sample_shape,
)
from latentia.pipelines.prompts import Embedded, Texts, embed_prompt, listed, rows
from latentia.pipelines.sampling import (
    Conditioning,
    check_scheduler,
    initial_sample,
    invert_ode,
    predict,
    sample_ode,
    scale_input,
    set_steps,
    step_end,
    step_options,
    takes_variance,
)
from latentia.pipelines.texts import check_text_encoder


class TextToImagePipeline(DiffusionPipeline):
    r"""Text-to-image, with the parts and the folder layout of Stable Diffusion, of which each can be swapped alone.

    Args:
        tokenizer, text_encoder: from `load_text_encoder`: CLIP, T5 or an encoder like BERT, of transformers.
        unet: `UNet2D` with `cross_attention_dim`, or diffusers' `UNet2DConditionModel`, which sees the padding of
            texts too.
        scheduler: any of latentia or diffusers; over latents one that does not clip.
        vae: as for `LatentDiffusionPipeline`; `None` (default): the network works on pixels.
        unconditional: whether the network was trained with caption dropout, as guidance and negative prompts need.
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

    tokenizer: Any
    text_encoder: Any
    unet: Any
    scheduler: Any
    vae: Any

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (diffusers adds lists)
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    conditions = ("prompt", "negative_prompt", "image", "mask")
    latents = "continuous"
    latent_conditions = ("prompt",)
    latent_path = "slerp"

    def __init__(
        self,
        tokenizer,
        text_encoder,
        unet,
        scheduler,
        vae=None,
        unconditional: bool = True,
    ):
        super().__init__()
        _check(tokenizer, text_encoder, unet, scheduler, vae)
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(unconditional=unconditional)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts = "",
        *,
        negative_prompt: Texts | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        use_clipped_model_output: bool = True,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Images | None = None,
        mask: Images | None = None,
        mask_image: Images | None = None,
        strength: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images of texts; with `image` img2img, with `mask` inpainting.

        Args:
            prompt: a text or several; "" (default) asks for anything. What is longer than the encoder takes is cut off,
                and a warning says what.
            negative_prompt: what to stay away from, one or one for each prompt; `None` (default): the empty text. Only
                guidance looks at it.
            prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask: in place of
                the texts, as `encode_prompt` returns them. Default none.
            guidance_scale: classifier-free guidance: 0 ignores the text, 1 (default) follows it, more exaggerates it.
                \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598, eq. 6 with
                w + 1).
            guidance_rescale: against the glaring colours of strong guidance, in [0, 1]; default 0. \(\phi\) of Lin et
                al. (2023, 2305.08891), eq. 16.
            num_inference_steps: from 1 to the number trained with. Default 50.
            timesteps, sigmas: a descending list of time steps, or of noise levels, in its place, for schedulers that
                take one. Default none.
            num_images_per_prompt: images of each prompt, next to each other. Default 1.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            use_clipped_model_output: compute eps anew from a clipped x_0, as a clipped x_0 with the eps of the
                unclipped one drifts off the data, and under guidance far off. Default True; in diffusers False.
            height: of the images in pixels; `None` (default): the height that the network was trained on.
            width: as `height`.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: start from this noise, (B, D, h, w), instead of drawing it.
            image: an image to start from, or one for each; `None` (default): none.
            mask: inpainting: 1 where new pixels are made, 0 where those of `image` are kept, exactly: (H, W) or
                (B, 1, H, W), or a grey image. `None` (default): everywhere.
            mask_image: diffusers' name for `mask`.
            strength: share of the steps that is run: 0 returns `image`, 1 starts from noise alone. `None` (default):
                0.8, or 1 with a mask.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (the output as
                it is, of the decoder or of the network).
            return_dict: `False` returns the tuple `(images,)`.
            callback_on_step_end: called with (pipeline, step index, time step, {"latents": x}) after each step; may
                return a dict with other latents. Those of `diffusers.callbacks` work too.
            callback_on_step_end_tensor_inputs: what the dict holds: "latents" (default), "prompt_embeds",
                "negative_prompt_embeds".

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, no prompt, numbers that do not agree, or guidance of a network
                that was trained without caption dropout.
        """
        check_output_type(output_type)
        self._check_parts()
        check_range("num_images_per_prompt", num_images_per_prompt, 1)
        mask = renamed("mask", mask, "mask_image", mask_image)
        texts = self._embedded("prompt", prompt, prompt_embeds, prompt_attention_mask)
        count = len(texts[0]) * num_images_per_prompt
        if latents is not None:
            check_latents(latents, self.unet)
            count = len(latents) if count == 1 else count
            if count != len(latents):
                raise UsageError(f"latents must be one for each of {count} images; got {len(latents)}.")
        device = self._execution_device
        shape = latent_shape(self.vae, self.unet, height, width, device)
        source = latent_source_image(self.vae, self.unet, shape, image, mask, strength, device)
        if source is not None and len(source.image) not in (1, count):
            raise UsageError(f"image must be one, or one for each of {count}; got {len(source.image)}.")
        guided = self._check_guidance(guidance_scale, negative_prompt, negative_prompt_embeds)
        negative = None
        if guided:
            negative = self._embedded(
                "negative_prompt", negative_prompt or "", negative_prompt_embeds, negative_prompt_attention_mask
            )
        conditioning: Conditioning | None = self._conditioning(texts, count, negative, guidance_scale, guidance_rescale)
        generators = image_generators(generator, count)
        if latents is None:
            noise = draw_noise(generators, shape, device, self.unet.dtype)
        else:
            noise = latents.to(device, self.unet.dtype)

        steps = Steps(self, guidance_scale, callback_on_step_end, callback_on_step_end_tensor_inputs)
        scheduler = steps.scheduler  # of this call alone
        length = set_steps(scheduler, num_inference_steps, device, timesteps, sigmas)
        options, with_variance = (
            step_options(scheduler, generators, eta, use_clipped_model_output),
            takes_variance(scheduler),
        )
        x, times = initial_sample(scheduler, noise), scheduler.timesteps
        if source is not None:  # img2img
            source = source.expand(count)
            x, times = source.start(scheduler, noise, length)
        for i, t in steps.over(times):
            target = step_end(self.unet, scheduler, times, i)
            output = predict(self.unet, scale_input(scheduler, x, t), t, conditioning, with_variance, target)
            x = scheduler.step(output, t, x, **options).prev_sample
            if source is not None:  # inpainting
                x = source.keep_known(x, scheduler, noise, times[i + 1 :])
            x, conditioning = steps.end(i, t, x, conditioning)
        made = self._images(x)
        made = made if source is None else source.composite(made)

        self.maybe_free_model_hooks()
        images = to_output(made, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(
        self, images: Images, *, prompt: Texts = "", num_inference_steps: int = 50, refinements: int = 2
    ) -> Tensor:
        """DDIM inversion: the noise from which `decode` makes these images with this prompt.

        Args:
            images: images, or what `from_input` takes.
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
        latents = x if self.vae is None else posterior(self.vae, x)[0].to(self.unet.dtype)
        if tuple(latents.shape[1:]) != sample_shape(self.unet):
            raise UsageError(
                f"images must be of the size that the network makes, {sample_shape(self.unet)} where it works; those "
                f"of {x.shape[2]} by {x.shape[3]} are {tuple(latents.shape[1:])} there. Resize images first."
            )
        conditioning = self._conditioning(self._each(prompt, len(x)), len(x))
        return invert_ode(self.unet, self.scheduler, latents, conditioning, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, prompt: Texts = "", num_inference_steps: int = 50, output_type: str = "pil"
    ) -> Any:
        """The images that the deterministic sampler makes of noise, (B, D, h, w); undoes `encode`."""
        check_output_type(output_type)
        self._check_parts()
        check_latents(latents, self.unet)
        conditioning = self._conditioning(self._each(prompt, len(latents)), len(latents))
        noise = latents.to(self._execution_device, self.unet.dtype)
        x = sample_ode(self.unet, self.scheduler, noise, conditioning, num_inference_steps)
        return to_output(self._images(x), output_type)

    def interpolate(
        self,
        a: Images,
        b: Images,
        steps: int = 8,
        *,
        prompt: str = "",
        num_inference_steps: int = 50,
        output_type: str = "pil",
    ) -> Any:
        """Interpolate two images: `steps` of them on the great circle between their noises, both ends included."""
        check_output_type(output_type)
        check_range("steps", steps, 2)
        options: dict[str, Any] = {"prompt": prompt, "num_inference_steps": num_inference_steps}
        path = interpolate(self.encode(a, **options), self.encode(b, **options), steps, "slerp")
        return self.decode(path, output_type=output_type, **options)

    def _check_parts(self) -> None:
        """Again at each call: any of them may have been swapped."""
        _check(self.tokenizer, self.text_encoder, self.unet, self.scheduler, self.vae)

    def _images(self, x: Tensor) -> Tensor:
        return x if self.vae is None else decode_latents(self.vae, x)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Texts,
        *,
        negative_prompt: Texts | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What the call takes in place of texts: the hidden states of texts and their masks.

        Args:
            prompt: a text or several.
            negative_prompt: one, or one for each prompt; `None` (default): the empty text.
            num_images_per_prompt: how often each is repeated. Default 1.
            do_classifier_free_guidance: `False`: no negative ones, as for a guidance_scale of 1. Default True.

        Returns:
            `prompt_embeds` (B, L, D), `prompt_attention_mask` (B, L), `negative_prompt_embeds` and
            `negative_prompt_attention_mask`; the last two are None without guidance.
        """
        self._check_parts()
        texts = self._embedded("prompt", prompt)
        found = rows("prompt", texts, len(texts[0]), num_images_per_prompt)
        if not do_classifier_free_guidance:
            return *found, None, None
        negative = self._embedded("negative_prompt", negative_prompt or "")
        return *found, *rows("negative_prompt", negative, len(texts[0]), num_images_per_prompt)

    def _each(self, prompt: Texts, count: int) -> Embedded:
        prompts = listed("prompt", prompt)
        if len(prompts) not in (1, count):
            raise UsageError(f"prompt must be one text, or one for each of {count} images; got {len(prompts)}.")
        return self._embedded("prompt", prompts)

    def _embedded(self, name: str, texts: Texts, embeds: Tensor | None = None, mask: Tensor | None = None) -> Embedded:
        needs_mask = getattr(self.unet, "masks_padding", False)
        return embed_prompt(name, self.tokenizer, self.text_encoder, texts, embeds, mask, needs_mask=needs_mask)

    def _check_guidance(self, guidance_scale: float, *negative: Any) -> bool:
        """Whether there is guidance, which the network must have been trained for."""
        check_range("guidance_scale", guidance_scale)
        guided = guidance_scale != 1
        if guided and not self.config.unconditional:
            raise UsageError(
                "guidance_scale must be 1, as this network was trained without caption dropout, always with its text; "
                f"got {guidance_scale}. Train it with caption_dropout=0.1."
            )
        if not guided and any(given is not None for given in negative):
            raise UsageError("negative_prompt needs a guidance_scale other than 1, such as 3, to have an effect.")
        return guided

    def _conditioning(
        self,
        texts: Embedded,
        count: int,
        negative: Embedded | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
    ) -> Conditioning:
        """The conditioning of `count` images, as many next to each other as there are images of each text."""
        check_range("guidance_rescale", guidance_rescale, 0, 1)
        each = len(texts[0])
        inputs = self._inputs(*rows("prompt", texts, each, count // each))
        if negative is None:
            return Conditioning(inputs)
        if negative[0].shape[1:] != texts[0].shape[1:]:
            raise UsageError(
                f"negative_prompt_embeds must have the shape of prompt_embeds, {tuple(texts[0].shape[1:])} each; got "
                f"{tuple(negative[0].shape[1:])}."
            )
        against = self._inputs(*rows("negative_prompt", negative, each, count // each))
        return Conditioning(inputs, against, guidance_scale, guidance_rescale)

    def _inputs(self, hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The keyword arguments of the network for hidden states."""
        inputs = {"encoder_hidden_states": hidden.to(self._execution_device, self.unet.dtype)}
        if mask is not None and getattr(self.unet, "masks_padding", False):
            inputs["encoder_attention_mask"] = mask.to(self._execution_device)
        return inputs


def _check(tokenizer: Any, text_encoder: Any, unet: Any, scheduler: Any, vae: Any) -> None:
    """UsageError unless the parts fit each other."""
    check_text_encoder(tokenizer, text_encoder)
    check_unet(unet, "a UNet2D or UNet2DConditionModel")
    wanted, width = getattr(unet.config, "cross_attention_dim", None), text_encoder.config.hidden_size
    if wanted is None:
        raise UsageError("unet must be conditioned on texts; this one has no cross_attention_dim.")
    if any(dim != width for dim in ([wanted] if isinstance(wanted, int) else wanted)):
        raise UsageError(
            f"unet and text_encoder must agree: the network attends to cross_attention_dim={wanted}, and hidden "
            f"states of {type(text_encoder).__name__} have {width}. Was it trained with another text encoder?"
        )
    if vae is not None:
        check_parts(vae, unet, scheduler)
    else:
        check_scheduler(scheduler)
