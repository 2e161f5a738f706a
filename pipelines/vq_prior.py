"""Autoregressive sampling of the codes of a VQ-VAE by a transformer, in raster order; its decoder makes the images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.chunks import in_chunks
from latentia.losses.autoregressive import code_log_probs
from latentia.models.vq_prior import code_prefix, condition_length
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_uniform, image_generators
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.codebook import (
    codebook_size,
    decode_codes,
    encode_tensors,
    input_shape,
    interpolate_tensors,
    is_quantised,
)
from latentia.pipelines.forms import form_of
from latentia.pipelines.texts import warn_of_cuts
from latentia.pipelines.threads import tokenize
from latentia.pipelines.tokens import inverse_cdf, make_processors

Texts = str | Sequence[str] | None


class VQPriorPipeline(DiffusionPipeline):
    r"""\(p(c \mid y) = \prod_i p(c_i \mid c_{<i}, y)\) over the codes of a `VQVAE`, given a class, a text or nothing.

    Args:
        vqvae: a `VQVAE`.
        transformer: from `latentia.models.vq_prior.code_transformer`, trained on its codes.
        tokenizer: of the texts that can be asked for; `None` (default): no texts.
        label_names: names of the classes, in the order of their indices; `None` (default): none.
        codec: of a network of sequences, the `SeriesScaler` of time series or the `LogMel` of sounds. Where images are
            named below, the pipeline then takes and gives what `SeriesPipeline` or `SoundPipeline` does. `None`
            (default): of images.

    Raises:
        UsageError: a component of another class, or a transformer of another codebook, code shape or tokenizer.

    Zero-Shot Text-to-Image Generation (Ramesh et al., 2021, 2102.12092), whose ranking of samples is left out.

    Example:
        >>> from latentia import VQVAE
        >>> from latentia.models.vq_prior import code_transformer
        >>> vqvae = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16)
        >>> pipe = VQPriorPipeline(vqvae.eval(), code_transformer(16, (4, 4), num_classes=10, width=32).eval())
        >>> [image.size for image in pipe(class_labels=[3, 8], top_k=4).images]
        [(8, 8), (8, 8)]
    """

    vqvae: Any
    transformer: Any
    tokenizer: Any
    codec: Any

    model_cpu_offload_seq = "transformer->vqvae->codec"
    _optional_components = ["tokenizer", "codec"]  # noqa: RUF012 (diffusers reads a list)

    conditions = ("class_labels", "prompt")
    latents = "indices"
    likelihood = Likelihood("exact", "indices")

    def __init__(
        self,
        vqvae,
        transformer,
        tokenizer=None,
        label_names: Sequence[str] | Mapping[str, str] | None = None,
        codec=None,
    ):
        super().__init__()
        _check(vqvae, transformer, tokenizer)
        self.register_modules(vqvae=vqvae, transformer=transformer, tokenizer=tokenizer, codec=codec)
        self._register_label_names(label_names)
        self.modality = self.form.modality

    @property
    def form(self) -> Any:
        """What it takes and gives, see `latentia.pipelines.forms`."""
        return form_of(self.codec, input_shape(self.vqvae), self)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        prompt: Texts = None,
        class_labels: Labels = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: Generators = None,
        output_type: str | None = None,
        return_dict: bool = True,
    ) -> Any:
        r"""Sample images: one code after the other, then the decoder.

        Args:
            batch_size: number of images; `None` (default): as many as `prompt` or `class_labels`, else 1.
            prompt: a text, or one for each image. What was trained with texts needs it, and "" is one. What is longer
                than the transformer takes is cut off, and a warning says what.
            class_labels: an index or a name, or one for each image. What was trained with classes needs it.
            temperature: T of \(\mathrm{softmax}(l / T)\), above 0. 1 (default) is the model; less makes images more
                typical and alike.
            top_k: draw from the k likeliest codes, at least 1; `None` (default): from all.
            top_p: draw from the fewest codes that have this probability together, in (0, 1]. Default 1: from all.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw); of
                series and sounds those of their pipelines. `None` (default): "pil", of series "pandas", of sounds "np".
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`; of series `.series` and `.lengths`, of sounds `.sound` and `.sampling_rate`.

        Raises:
            UsageError: an argument out of its range, or a prompt or class that is missing, not expected or not known.

        The Curious Case of Neural Text Degeneration (Holtzman et al., 2019, 1904.09751), eq. 2, for `top_p`.
        """
        output_type = self.form.check(output_type)
        processors = make_processors(temperature, top_k, top_p)
        labels = self._class_indices(class_labels, required=True)
        count = count_images(batch_size, class_labels=labels, prompt=prompt or None)
        prefix = self._prefix(prompt, class_labels, count)
        length = math.prod(self.vqvae.code_shape)
        # Of 24 bits, so that in 64 a product with a sum stays below that sum.
        uniform = draw_uniform(image_generators(generator, count), (length,), prefix.device)
        codes = in_chunks(
            lambda rows: self._draw(prefix[rows], uniform[rows], processors), torch.arange(count, device=prefix.device)
        )
        x = decode_codes(self.vqvae, codes.view(count, *self.vqvae.code_shape), prefix.device)
        self.maybe_free_model_hooks()
        return self.form.answer(x, output_type, None if labels is None else labels.expand(count), return_dict)

    def _tensors(self, images: Any) -> Tensor:
        return self.form.tensors(images, self._execution_device, self.vqvae.dtype)

    def encode(self, images: Any, *, continuous: bool = False) -> Tensor:
        """Codes of images, int64 (B, h, w); or latents before they are quantised, (B, D, h, w)."""
        return encode_tensors(self.vqvae, self._tensors(images), continuous)

    def decode(self, codes: Tensor, *, output_type: str | None = None) -> Any:
        """Images of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first."""
        output_type = self.form.check(output_type)
        return self.form.output(decode_codes(self.vqvae, codes, self._execution_device), output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, mode: str = "lerp", output_type: str | None = None) -> Any:
        """Interpolate two images through the latents before quantisation, both ends included; no transformer is used.

        `mode`: "lerp" (default), the straight line, or "slerp", the great circle.
        """
        output_type, ends = self.form.check(output_type), [self._tensors(end) for end in (a, b)]
        x = interpolate_tensors(self.vqvae, ends[0], ends[1], steps, mode, self._execution_device)
        return self.form.output(x, output_type)

    @torch.no_grad()
    def log_likelihood(self, images: Any, *, prompt: Texts = None, class_labels: Labels = None) -> Tensor:
        r"""\(\log p(c \mid y)\), in nats per image, summed over the codes c that the encoder gives it.

        It is exact for the codes and says nothing of the pixels: many images share their codes, and no image has a
        density. So it compares images or priors under one `VQVAE`, and never with the likelihood of another family.

        Args:
            images: images, or what `from_input` takes.
            prompt, class_labels: as for sampling.

        Returns:
            float32, (B,). Divide by \(-\ln 2\) and the number of codes of an image for bits per code.
        """
        codes = self.encode(images).flatten(1)
        prefix = self._prefix(prompt, class_labels, len(codes))
        width = prefix.shape[1]
        return in_chunks(
            lambda rows: code_log_probs(self.transformer, rows[:, :width], rows[:, width:]).sum(1),
            torch.cat([prefix, codes], 1),
        )

    def _draw(self, prefix: Tensor, uniform: Tensor, processors: Any) -> Tensor:
        """Codes (B, n) after `prefix`, each from its number of `uniform` (B, n)."""
        cache, tokens, codes = None, prefix, []
        for numbers in uniform.T:
            out = self.transformer(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, scores = out.past_key_values, out.logits[:, -1, : self.transformer.config.codebook_size].float()
            tokens = inverse_cdf(processors(tokens, scores), numbers)
            codes.append(tokens)
        return torch.cat(codes, 1)

    def _prefix(self, prompt: Texts, class_labels: Labels, count: int) -> Tensor:
        """What stands before the codes of `count` images, (count, L + 1)."""
        condition = self._class_indices(class_labels, count, required=True)
        if condition is not None:
            condition = condition[:, None]
        if self.tokenizer is None and prompt is not None:
            raise UsageError("prompt was given, but this pipeline was trained without texts; leave it out.")
        if self.tokenizer is not None:
            texts = [prompt] * count if isinstance(prompt, str) else list(prompt or [])
            if len(texts) not in (1, count) or not all(isinstance(text, str) for text in texts):
                raise UsageError(
                    f"prompt must be a text, or one for each of {count} images, as this pipeline was trained with "
                    f"texts; got {prompt!r}."
                )
            texts = texts * (count // len(texts))
            warn_of_cuts(self.tokenizer, texts, self.tokenizer.model_max_length)
            condition = text_tokens(self.tokenizer, texts)
        return code_prefix(self.transformer.config.codebook_size, condition, count).to(self._execution_device)


def text_tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """Tokens of texts, int64 (B, L), each padded or cut to L = `tokenizer.model_max_length`.

    Example:
        >>> from latentia.models.clip import train_tokenizer
        >>> text_tokens(train_tokenizer(["a red heart"], 300, max_tokens=6), ["red", ""]).shape
        torch.Size([2, 6])
    """
    return tokenize(tokenizer, texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


def _check(vqvae: Any, transformer: Any, tokenizer: Any) -> None:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not is_quantised(vqvae):
        raise UsageError(f"vqvae must be a VQVAE; got {type(vqvae).__name__}.")
    if not isinstance(transformer, PreTrainedModel) or not hasattr(transformer.config, "codebook_size"):
        raise UsageError(f"transformer must come from code_transformer; got {type(transformer).__name__}.")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(f"tokenizer must be one of transformers; got {type(tokenizer).__name__}.")
    config, size, shape = transformer.config, codebook_size(vqvae), vqvae.code_shape
    for name, trained, now in (
        ("codes", config.codebook_size, size),
        ("height and width" if len(shape) == 2 else "number", tuple(config.code_shape), tuple(shape)),
    ):
        if trained != now:
            raise UsageError(
                f"transformer must be over the codes of vqvae, whose {name} are {now}; those of the transformer are "
                f"{trained}. Take the VQ-VAE that it was trained with."
            )
    words = len(tokenizer) if tokenizer is not None else config.num_class_embeds or 0
    places = condition_length(config.num_class_embeds, tokenizer) + 1 + math.prod(shape)
    if (config.vocab_size, config.max_position_embeddings) != (size + 1 + words, places):
        raise UsageError(
            f"tokenizer must be the one that transformer was trained with, or None without; with this one it would "
            f"have {size + 1 + words} tokens and {places} places, and it has {config.vocab_size} and "
            f"{config.max_position_embeddings}."
        )
