"""Sampling from a GAN: truncation, rejection, GAN inversion, interpolation and arithmetic in its latent space."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.models.layers.convolution import image_size
from latentia.pipelines.arguments import (
    Generators,
    check_call,
    count_images,
    draw_noise,
    dropout_seeds,
    image_generators,
)
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.rejection import rejection_sample
from latentia.pipelines.threads import evaluating


class GANPipeline(DiffusionPipeline):
    """GAN: sampling, truncation, rejection sampling, inversion, interpolation and arithmetic of latents.

    Args:
        generator: `DCGANGenerator`, or a network with `decode(latents, class_labels=, text_embeds=)`, such as `VAE`.
        discriminator: the network it was trained against; `None` (default): none. `rejection` needs one that scores
            images one by one; without it, `encode` compares pixels alone.
        text_encoder: texts -> (B, text_embed_dim), for a generator that is conditioned on text; `None` (default): none.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import DCGANGenerator
        >>> pipe = GANPipeline(DCGANGenerator(sample_size=8, out_channels=1, latent_dim=4, block_out_channels=(8,)))
        >>> pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).images[0].size
        (8, 8)
        >>> len(pipe.interpolate(torch.randn(4), torch.randn(4), steps=5))
        5
    """

    generator: Any
    discriminator: Any
    text_encoder: Any

    model_cpu_offload_seq = "text_encoder->generator->discriminator"
    _optional_components = ["discriminator", "text_encoder"]  # noqa: RUF012 (diffusers reads a list)

    conditions = ("class_labels", "prompt")
    latents = "continuous"
    latent_conditions = ("class_labels", "prompt")

    def __init__(
        self,
        generator,
        discriminator=None,
        text_encoder=None,
        label_names: Sequence[str] | Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator, text_encoder=text_encoder)
        self._register_label_names(label_names)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        prompt: str | Sequence[str] | None = None,
        truncation: float = 1.0,
        rejection: bool = False,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images: z ~ N(0, I), then the generator.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels`, `prompt` or `latents`, else 1.
            class_labels: an index or a name, or one for each image. A network that is conditioned on classes needs it.
            prompt: a text, or one for each image. A network that is conditioned on text needs it.
            truncation: \(\psi\), factor of z: 1 (default) is the model, less makes images more typical and more alike,
                0 makes them one. It scales z; it does not draw again what is far out.
            rejection: keep an image with the probability that the discriminator's density ratio gives (see
                `rejection_sample`). Default False.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these, (B, latent_dim), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or labels or texts that are missing or not known.
        """
        check_output_type(output_type)
        if not 0 <= truncation < math.inf:
            raise UsageError(f"truncation must be at least 0 and finite; got {truncation}.")
        if rejection and latents is not None:
            raise UsageError("rejection chooses latents, so none may be given beside it; leave one of them out.")
        batch_size = count_images(batch_size, {"latents": latents}, class_labels=class_labels, prompt=prompt)
        inputs = self._inputs(class_labels, prompt, batch_size)
        if rejection:
            images = self._rejection_sample(image_generators(generator, batch_size), truncation, inputs)
        else:
            generators = image_generators(generator, batch_size)
            z = self._noise(generators) if latents is None else self._latents(latents)
            images = self._generate(truncation * z, inputs, generators)
        self.maybe_free_model_hooks()
        output = to_output(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        class_labels: Labels = None,
        prompt: str | Sequence[str] | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Images of latents (B, latent_dim): a generator is a decoder that was trained in another way.

        Dropout that stays on (`keep_dropout`) is that of seed 0 here; the call takes a generator for it.
        """
        check_output_type(output_type)
        z = self._latents(latents)
        return to_output(self._generate(z, self._inputs(class_labels, prompt, len(z))), output_type)

    def encode(
        self,
        images: Images,
        *,
        class_labels: Labels = None,
        prompt: str | Sequence[str] | None = None,
        steps: int = 200,
        starts: int = 4,
        learning_rate: float = 0.1,
        feature_weight: float = 0.1,
        generator: Generators = None,
    ) -> Tensor:
        r"""GAN inversion: latents whose images come nearest to `images`, found by Adam, as a generator has no encoder.

        It minimises \(\|G(z) - x\|^2 / \|x - \bar x\|^2 + w\, \|f(G(z)) - f(x)\|^2 / \|f(x)\|^2\) with f the
        discriminator's features, from several starts, and returns the best of each image.

        Args:
            images: images, or what `from_input` takes.
            class_labels, prompt: as for sampling.
            steps: of Adam, whose rate falls to 0 by a cosine. Default 200.
            starts: draws of N(0, I) to start from. Default 4.
            learning_rate: default 0.1, in standard deviations of z.
            feature_weight: w, default 0.1.
            generator: of the starts, one or one per image; `None` (default): the same ones always.

        Returns:
            (B, latent_dim). What the generator cannot make is not found: see `reconstruction_error`.

        Raises:
            UsageError: an argument out of its range.

        Generative Visual Manipulation on the Natural Image Manifold (Zhu et al., 2016, 1609.03552), eq. 4; AnoGAN
        (Schlegl et al., 2017, 1703.05921), eq. 5.
        """
        if min(steps, starts) < 1 or not learning_rate > 0 or not feature_weight >= 0:
            raise UsageError(
                "steps and starts must be at least 1, learning_rate positive and feature_weight at least 0; got "
                f"{steps}, {starts}, {learning_rate} and {feature_weight}."
            )
        x = self._input(images)
        generators = image_generators(generator or torch.Generator().manual_seed(0), len(x))
        z = torch.stack([self._noise(generators) for _ in range(starts)], 1).flatten(0, 1)  # (B * starts, latent_dim)
        inputs = {
            key: value.repeat_interleave(starts, 0) for key, value in self._inputs(class_labels, prompt, len(x)).items()
        }

        def search(z: Tensor, x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            return self._search(z, x, dict(zip(inputs, values)), steps, learning_rate, feature_weight)

        z, error = in_chunks(search, z, x.repeat_interleave(starts, 0), *inputs.values())
        best = error.unflatten(0, (len(x), starts)).argmin(1)
        return z.unflatten(0, (len(x), starts))[torch.arange(len(x), device=z.device), best]

    def reconstruct(self, images: Images, *, output_type: str = "pil", **options: Any) -> Any:
        """Reconstruct images by GAN inversion; options as for `encode`."""
        check_output_type(output_type)
        conditions = {key: options[key] for key in ("class_labels", "prompt") if key in options}
        return self.decode(self.encode(images, **options), output_type=output_type, **conditions)

    def reconstruction_error(self, images: Images, **options: Any) -> Tensor:
        """Mean squared difference of each image and its reconstruction, (B,), in [0, 4]; options as for `encode`.

        Large for images that the generator cannot make, whatever the reason: dropped modes, and anomalies.
        """
        again = self.reconstruct(images, output_type="latent", **options)
        return (again - self._input(images)).square().flatten(1).mean(1)

    def interpolate(
        self,
        a: Tensor | Images,
        b: Tensor | Images,
        steps: int = 8,
        *,
        mode: str = "slerp",
        class_labels: Labels = None,
        prompt: str | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Interpolate in the latent space: `steps` images on the way from `a` to `b`, both ends included.

        Args:
            a, b: a latent (latent_dim,) or (1, latent_dim) each, or an image each, which is encoded first.
            steps: at least 2. Default 8.
            mode: "slerp" (default): the great circle, on which the length of a latent stays that of Gaussian noise;
                "lerp": the straight line.
            class_labels, prompt: one for all, for a network that is conditioned on them.
            output_type: as for sampling.

        Sampling Generative Networks (White, 2016, 1609.04468), section 2.1.
        """
        conditions: dict[str, Any] = {"class_labels": class_labels, "prompt": prompt}
        start, end = (self._as_latents(end, conditions) for end in (a, b))
        if len(start) != 1 or len(end) != 1:
            raise UsageError(f"a and b must be one each; got {len(start)} and {len(end)}.")
        return self.decode(interpolate(start, end, steps, mode), output_type=output_type, **conditions)

    def arithmetic(
        self, a: Tensor | Images, b: Tensor | Images, c: Tensor | Images, *, output_type: str = "pil", **conditions: Any
    ) -> Any:
        """Latent arithmetic: the image of `mean(a) - mean(b) + mean(c)`, as in smiling woman - woman + man.

        Args:
            a, b, c: latents (n, latent_dim) of images that share a property, or such images. Take three of each: with
                fewer, properties of single images show, and with three the sum has the usual length.
            output_type: as for sampling.
            **conditions: class_labels or prompt.

        DCGAN (Radford et al., 2015, 1511.06434), section 6.3.2.
        """
        means = [self._as_latents(part, conditions).mean(0, keepdim=True) for part in (a, b, c)]
        return self.decode(means[0] - means[1] + means[2], output_type=output_type, **conditions)

    # ------------------------------------------------------------ parts

    @property
    def _latent_dim(self) -> int:
        return self.generator.config.latent_dim

    @property
    def _scores_single_images(self) -> bool:
        config = getattr(self.discriminator, "config", None)
        return config is not None and config.get("pack", 1) == 1

    def _input(self, images: Images) -> Tensor:
        config = self.generator.config
        channels = config["out_channels" if "out_channels" in config else "in_channels"]
        place = {"device": self._execution_device, "dtype": self.generator.dtype}
        return from_input(images, channels=channels, size=image_size(config.sample_size), **place)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        return draw_noise(generators, (self._latent_dim,), self._execution_device, self.generator.dtype)

    def _latents(self, latents: Tensor) -> Tensor:
        z = latents.to(self._execution_device, self.generator.dtype)
        if z.ndim != 2 or z.shape[1] != self._latent_dim or not len(z):
            raise UsageError(f"latents must have shape (B, {self._latent_dim}); got {tuple(z.shape)}.")
        return z

    def _as_latents(self, end: Any, conditions: dict[str, Any]) -> Tensor:
        """(n, latent_dim) of latents as they are, or of images."""
        if isinstance(end, Tensor) and end.ndim <= 2:
            return self._latents(end if end.ndim == 2 else end[None])
        return self.encode(end, **conditions)

    def _generate(
        self, z: Tensor, inputs: dict[str, Tensor], generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Images of latents; dropout that stays on follows the generator of each image, without one seed 0."""
        if generators is not None and self.generator.config.get("keep_dropout"):
            inputs = inputs | {"dropout_seeds": dropout_seeds(generators, z.device)}

        def images(z: Tensor, *values: Tensor) -> Tensor:
            return self._mean(z, dict(zip(inputs, values)))

        with evaluating(self.generator):
            return in_chunks(images, z, *inputs.values())

    def _mean(self, z: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The generator's images; of a VAE as a generator, whose `decode` gives parameters of p(x|z), its mean."""
        sample = self.generator.decode(z.to(self.generator.dtype), **inputs)
        return self.generator.mean_of(sample) if hasattr(self.generator, "mean_of") else sample

    def _logits(self, x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The discriminator's logit of each image, (B,)."""

        def logits(x: Tensor, *values: Tensor) -> Tensor:
            return self.discriminator(x, **dict(zip(inputs, values))).logits

        with evaluating(self.discriminator):
            return in_chunks(logits, x, *inputs.values())

    def _search(
        self, z: Tensor, x: Tensor, inputs: dict[str, Tensor], steps: int, rate: float, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Adam on the latents of one chunk, every row by itself; in at least float32, as its steps are small."""
        dtype, wide = z.dtype, torch.promote_types(z.dtype, torch.float32)
        weight = weight if self._scores_single_images else 0.0
        with torch.enable_grad(), evaluating(self.generator, self.discriminator):
            target = x.to(wide)
            spread = (target - target.flatten(1).mean(1).view(-1, 1, 1, 1)).square().flatten(1).sum(1).clamp(min=1e-3)
            features = self.discriminator(x, **inputs).features.detach().to(wide) if weight else None
            z = z.detach().to(wide, copy=True).requires_grad_()
            optimizer = torch.optim.Adam([z], lr=rate)

            def error() -> Tensor:
                sample = self._mean(z, inputs)
                total = (sample.to(wide) - target).square().flatten(1).sum(1) / spread
                if features is not None:
                    gap = (self.discriminator(sample, **inputs).features.to(wide) - features).square().sum(1)
                    total = total + weight * gap / features.square().sum(1).clamp(min=1e-3)
                return total

            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                (z.grad,) = torch.autograd.grad(error().sum(), z)
                optimizer.step()
            return z.detach().to(dtype), error().detach()

    def _rejection_sample(
        self, generators: list[torch.Generator], truncation: float, inputs: dict[str, Tensor]
    ) -> Tensor:
        """`rejection_sample` of generator and discriminator: one stream of candidates for each image."""
        if not self._scores_single_images:
            has = "none" if self.discriminator is None else "one that scores packs"
            raise UsageError(f"rejection needs a discriminator of single images, and this pipeline has {has}.")

        groups = None
        if inputs:
            conditions = torch.cat([value.double().reshape(len(value), -1) for value in inputs.values()], 1)
            groups = conditions.unique(dim=0, return_inverse=True)[1]

        def draw(rows: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
            part = {key: value[rows.to(value.device)] for key, value in inputs.items()}
            images = self._generate(truncation * self._noise(generators), part, generators)
            return images, self._logits(images, part)

        return rejection_sample(draw, generators, groups)

    def _inputs(self, class_labels: Labels, prompt: str | Sequence[str] | None, count: int) -> dict[str, Tensor]:
        """The conditioning inputs of both networks, one row for each of `count` images."""
        inputs = {}
        labels = self._class_indices(class_labels, count, required=True)
        if labels is not None:
            inputs["class_labels"] = labels
        width = getattr(self.generator.config, "text_embed_dim", None)
        if (width is None) != (prompt is None):
            trained = "was trained without captions; leave it out" if width is None else "was trained with captions"
            raise UsageError(f"prompt {'was given' if width is None else 'is missing'}, and this pipeline {trained}.")
        if prompt is not None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            if len(texts) not in (1, count):
                raise UsageError(f"prompt must be one, or one for each of {count} images; got {len(texts)}.")
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UsageError(f"prompt must be texts that are not empty; got {texts}.")
            with torch.no_grad(), evaluating(self.text_encoder):
                embeds = self.text_encoder(texts).to(self._execution_device, self.generator.dtype)
            inputs["text_embeds"] = embeds.expand(count, -1)
        return inputs
