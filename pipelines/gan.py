"""Pictures from a generator and what its latent space is good for; a discriminator that sorts them out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.models.layers.convolution import image_size
from latentia.pipelines.autoencoder import between
from latentia.pipelines.base import DiffusionPipeline, Labels, check_output_type, from_input, to_output
from latentia.pipelines.rejection import rejection_sample
from latentia.pipelines.unconditional import Generators, image_generators

_CHUNK = 64  # latents at once: one shape of a batch, so that a picture does not depend on its neighbours


class GANPipeline(DiffusionPipeline):
    """Sampling, and everything that a latent and a discriminator are good for.

    Args:
        generator: `DCGANGenerator`, or what else has its `decode(latents, class_labels=, text_embeds=)`: a `VAE` too.
        discriminator: the network it was trained against; `None` (default): none. `rejection` needs one that judges
            pictures one by one; without it, `encode` compares pixels alone.
        text_encoder: texts -> (B, text_embed_dim), for a generator that was told captions; `None` (default): none.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import DCGANGenerator
        >>> pipe = GANPipeline(DCGANGenerator(sample_size=8, out_channels=1, latent_dim=4, block_out_channels=(8,)))
        >>> pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).images[0].size
        (8, 8)
        >>> len(pipe.interpolate(torch.randn(4), torch.randn(4), steps=5))
        5
    """

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
        r"""Sample pictures: z ~ N(0, I), then the generator.

        Args:
            batch_size: number of pictures; `None` (default): as many as `class_labels`, `prompt` or `latents`, else 1.
            class_labels: an index or a name, or one for each picture. A network that was told labels needs them.
            prompt: a text, or one for each picture. A network that was told captions needs them.
            truncation: \(\psi\), factor of z: 1 (default) is the model, less makes pictures more typical and more
                alike, 0 makes them one. It scales; it does not draw again what is far out.
            rejection: keep a picture with the probability that the discriminator's density ratio gives (see
                `rejection_sample`). Default False.
            generator: one `torch.Generator` or one per picture. The same seed gives the same pictures whatever the
                batch.
            latents: (B, latent_dim), instead of drawn ones.
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
        for name, values in (("latents", latents), ("class_labels", class_labels), ("prompt", prompt)):
            if _several(values):
                batch_size = len(values) if batch_size is None else batch_size
                if len(values) not in (1, batch_size):
                    raise UsageError(f"batch_size is {batch_size}, but {name} are given for {len(values)} pictures.")
        batch_size = 1 if batch_size is None else batch_size
        if batch_size < 1 or (latents is not None and batch_size != len(latents)):
            raise UsageError(f"batch_size must be at least 1, and the number of latents given; got {batch_size}.")
        told = self._told(class_labels, prompt, batch_size)
        if rejection:
            images = self._accepted(image_generators(generator, batch_size), truncation, told)
        else:
            z = self._noise(image_generators(generator, batch_size)) if latents is None else self._latents(latents)
            images = self._pictures(truncation * z, told)
        images = to_output(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        class_labels: Labels = None,
        prompt: str | Sequence[str] | None = None,
        output_type: str = "pil",
    ) -> Any:
        """The pictures of latents (B, latent_dim): the generator is a decoder in all but how it was trained."""
        check_output_type(output_type)
        z = self._latents(latents)
        return to_output(self._pictures(z, self._told(class_labels, prompt, len(z))), output_type)

    def encode(
        self,
        images: Any,
        *,
        class_labels: Labels = None,
        prompt: str | Sequence[str] | None = None,
        steps: int = 200,
        starts: int = 4,
        learning_rate: float = 0.1,
        feature_weight: float = 0.1,
        generator: Generators = None,
    ) -> Tensor:
        r"""Latents whose pictures come nearest to `images`, found by Adam: a generator has no encoder.

        It minimises \(\|G(z) - x\|^2 / \|x - \bar x\|^2 + w\, \|f(G(z)) - f(x)\|^2 / \|f(x)\|^2\) with f the
        discriminator's features, from several starts, and returns the best of each picture.

        Args:
            images: pictures, or what `from_input` takes.
            class_labels, prompt: as for sampling.
            steps: of Adam, whose rate falls to 0 by a cosine. Default 200.
            starts: draws of N(0, I) to start from. Default 4.
            learning_rate: default 0.1, in standard deviations of z.
                feature_weight: w, default 0.1.
            generator: of the starts, one or one per picture; `None` (default): the same ones always.

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
        told = self._told(class_labels, prompt, len(x))
        generators = image_generators(generator or torch.Generator().manual_seed(0), len(x))
        z = torch.stack([self._noise(generators) for _ in range(starts)], 1).flatten(0, 1)  # (B * starts, latent_dim)

        def search(z: Tensor, x: Tensor, **told: Tensor) -> tuple[Tensor, Tensor]:
            return self._search(z, x, told, steps, learning_rate, feature_weight)

        told = {key: value.repeat_interleave(starts, 0) for key, value in told.items()}
        z, error = _in_chunks(search, z, x.repeat_interleave(starts, 0), **told)
        chosen = error.unflatten(0, (len(x), starts)).argmin(1)
        return z.unflatten(0, (len(x), starts))[torch.arange(len(x), device=z.device), chosen]

    def reconstruct(self, images: Any, *, output_type: str = "pil", **options: Any) -> Any:
        """The pictures of the pictures' latents; options as for `encode`."""
        check_output_type(output_type)
        told = {key: options[key] for key in ("class_labels", "prompt") if key in options}
        return self.decode(self.encode(images, **options), output_type=output_type, **told)

    def reconstruction_error(self, images: Any, **options: Any) -> Tensor:
        """Mean squared difference of each picture and its reconstruction, (B,), in [0, 4]; options as for `encode`.

        Large for pictures that the generator cannot make, whatever the reason: modes that it has dropped, and
        anomalies.
        """
        again = self.reconstruct(images, output_type="latent", **options)
        return (again - self._input(images)).square().flatten(1).mean(1)

    def interpolate(
        self,
        a: Any,
        b: Any,
        steps: int = 8,
        *,
        mode: str = "slerp",
        class_labels: Labels = None,
        prompt: str | None = None,
        output_type: str = "pil",
    ) -> Any:
        """`steps` pictures on the way from `a` to `b`, both ends included.

        Args:
            a, b: a latent (latent_dim,) or (1, latent_dim) each, or a picture each, which is encoded first.
            steps: at least 2. Default 8.
            mode: "slerp" (default): the great circle, on which the length of a latent stays that of Gaussian noise;
                "lerp": the straight line.
            class_labels, prompt: one for all, for a network that was told any.
            output_type: as for sampling.

        Sampling Generative Networks (White, 2016, 1609.04468), section 2.1.
        """
        told: dict[str, Any] = {"class_labels": class_labels, "prompt": prompt}
        ends = [self._latent_of(end, told) for end in (a, b)]
        if any(len(end) != 1 for end in ends):
            raise UsageError(f"a and b must be one each; got {len(ends[0])} and {len(ends[1])}.")
        return self.decode(between(*ends, steps, mode), output_type=output_type, **told)

    def arithmetic(self, a: Any, b: Any, c: Any, *, output_type: str = "pil", **told: Any) -> Any:
        """The picture of `mean(a) - mean(b) + mean(c)`, as in smiling woman - woman + man.

        Args:
            a, b, c: latents (n, latent_dim) of pictures that share a property, or such pictures. Take three of each:
                fewer show themselves, and with three the sum has the usual length.
            output_type: as for sampling.
            **told: class_labels or prompt.

        DCGAN (Radford et al., 2015, 1511.06434), section 6.3.2.
        """
        means = [self._latent_of(part, told).mean(0, keepdim=True) for part in (a, b, c)]
        return self.decode(means[0] - means[1] + means[2], output_type=output_type, **told)

    # ------------------------------------------------------------ parts

    @property
    def _latent_dim(self) -> int:
        return self.generator.config.latent_dim

    @property
    def _judges_alone(self) -> bool:
        config = getattr(self.discriminator, "config", None)
        return config is not None and config.get("pack", 1) == 1

    def _input(self, images: Any) -> Tensor:
        config = self.generator.config
        channels = config["out_channels" if "out_channels" in config else "in_channels"]
        place = {"device": self._execution_device, "dtype": self.generator.dtype}
        return from_input(images, channels=channels, size=image_size(config.sample_size), **place)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        shape = (len(generators), self._latent_dim)
        return randn_tensor(shape, generator=generators, device=self._execution_device, dtype=self.generator.dtype)

    def _latents(self, latents: Tensor) -> Tensor:
        z = latents.to(self._execution_device, self.generator.dtype)
        if z.ndim != 2 or z.shape[1] != self._latent_dim or not len(z):
            raise UsageError(f"latents must have shape (B, {self._latent_dim}); got {tuple(z.shape)}.")
        return z

    def _latent_of(self, end: Any, told: dict[str, Any]) -> Tensor:
        """(n, latent_dim) of latents as they are, or of pictures."""
        if isinstance(end, Tensor) and end.ndim <= 2:
            return self._latents(end if end.ndim == 2 else end[None])
        return self.encode(end, **told)

    def _pictures(self, z: Tensor, told: dict[str, Tensor]) -> Tensor:
        with _evaluating(self.generator):
            return _in_chunks(lambda z, **told: (self._made(z, **told),), z, **told)[0]

    def _made(self, z: Tensor, **told: Tensor) -> Tensor:
        sample = self.generator.decode(z, **told)
        return self.generator.mean_of(sample) if hasattr(self.generator, "mean_of") else sample  # a VAE's

    def _judged(self, x: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The discriminator's logit of each picture, (B,)."""
        with _evaluating(self.discriminator):
            return _in_chunks(lambda x, **told: (self.discriminator(x, **told).logits,), x, **told)[0]

    def _search(self, z, x, told, steps: int, rate: float, weight: float) -> tuple[Tensor, Tensor]:
        """Adam on latents of one chunk; every row by itself."""
        weight = weight if self._judges_alone else 0.0
        with torch.enable_grad(), _evaluating(self.generator, self.discriminator):
            spread = (x - x.flatten(1).mean(1).view(-1, 1, 1, 1)).square().flatten(1).sum(1).clamp(min=1e-3)
            seen = self.discriminator(x, **told).features.detach() if weight else None
            z = z.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([z], lr=rate)

            def error() -> Tensor:
                sample = self._made(z, **told)
                total = (sample - x).square().flatten(1).sum(1) / spread
                if seen is not None:
                    gap = (self.discriminator(sample, **told).features - seen).square().sum(1)
                    total = total + weight * gap / seen.square().sum(1).clamp(min=1e-3)
                return total

            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                (z.grad,) = torch.autograd.grad(error().sum(), z)
                optimizer.step()
            return z.detach(), error().detach()

    def _accepted(self, generators: list[torch.Generator], truncation: float, told: dict[str, Tensor]) -> Tensor:
        """`rejection_sample` in the words of this class: one stream of candidates for each picture."""
        if not self._judges_alone:
            has = "none" if self.discriminator is None else "one that judges packs"
            raise UsageError(f"rejection needs a discriminator of single pictures, and this pipeline has {has}.")

        groups = None
        if told:
            conditions = torch.cat([value.double().reshape(len(value), -1) for value in told.values()], 1)
            groups = conditions.unique(dim=0, return_inverse=True)[1]

        def draw(rows: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
            part = {key: value[rows.to(value.device)] for key, value in told.items()}
            images = self._pictures(truncation * self._noise(generators), part)
            return images, self._judged(images, part)

        return rejection_sample(draw, generators, groups)

    def _told(self, class_labels: Labels, prompt: str | Sequence[str] | None, count: int) -> dict[str, Tensor]:
        """What the networks are told beside z or x, one row for each of `count` pictures."""
        told = {}
        labels = self._class_indices(class_labels, count, required=True)
        if labels is not None:
            told["class_labels"] = labels
        width = getattr(self.generator.config, "text_embed_dim", None)
        if (width is None) != (prompt is None):
            trained = "was trained without captions; leave it out" if width is None else "was trained with captions"
            raise UsageError(f"prompt {'was given' if width is None else 'is missing'}, and this pipeline {trained}.")
        if prompt is not None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            if len(texts) not in (1, count):
                raise UsageError(f"prompt must be one, or one for each of {count} pictures; got {len(texts)}.")
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UsageError(f"prompt must be texts that are not empty; got {texts}.")
            with torch.no_grad(), _evaluating(self.text_encoder):
                told["text_embeds"] = self.text_encoder(texts).to(self._execution_device).expand(count, -1)
        return told


@contextmanager
def _evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Networks in evaluation mode: in training, a picture depends on its batch."""
    training = [network for network in networks if isinstance(network, nn.Module) and network.training]
    for network in training:
        network.eval()
    try:
        yield
    finally:
        for network in training:
            network.train()


def _several(values: Any) -> bool:
    return (
        values is not None and not isinstance(values, str | int) and (not isinstance(values, Tensor) or values.ndim > 0)
    )


def _in_chunks(function: Callable[..., tuple[Tensor, ...]], x: Tensor, *others: Tensor, **told: Tensor) -> tuple:
    """`function(x, *others, **told)` of chunks of one size, the last one padded, so that all are rounded alike."""
    padding = -len(x) % _CHUNK
    rows = [torch.cat([row, row.new_zeros(padding, *row.shape[1:])]) for row in (x, *others, *told.values())]
    parts, many = [], 1 + len(others)
    for i in range(0, len(rows[0]), _CHUNK):
        chunk = [row[i : i + _CHUNK] for row in rows]
        parts.append(function(*chunk[:many], **dict(zip(told, chunk[many:]))))
    return tuple(torch.cat(column)[: len(x)] for column in zip(*parts))
