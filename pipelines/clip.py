"""CLIP: texts and images as vectors of one space; similarity, retrieval and zero-shot classification."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.chunks import in_chunks
from latentia.pipelines.arguments import check_call
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.images import Images, from_input
from latentia.pipelines.texts import check_text_encoder, pool_texts


class CLIPPipeline(DiffusionPipeline):
    r"""CLIP: a text encoder and an image encoder with embeddings in one space.

    Args:
        tokenizer, text_encoder: of transformers, with a projection: `CLIPTextModelWithProjection`.
        image_encoder: `CLIPVisionModelWithProjection` of the same `projection_dim`, trained on images in [-1, 1].
        scale: \(e^\tau\), factor of the cosines in a softmax, in (0, 100]. Default 100.

    Raises:
        UsageError: a component of another class, or two spaces.

    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021, 2103.00020).

    Example:
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> text_encoder, image_encoder = clip_towers(tokenizer, 32)
        >>> pipe = CLIPPipeline(tokenizer, text_encoder.eval(), image_encoder.eval())
        >>> pipe(torch.zeros(2, 3, 32, 32), ["heart", "bus", "tree"]).shape
        torch.Size([2, 3])
    """

    tokenizer: Any
    text_encoder: Any
    image_encoder: Any

    model_cpu_offload_seq = "text_encoder->image_encoder"

    latents = "embeddings"

    def __init__(self, tokenizer, text_encoder, image_encoder, scale: float = 100.0):
        super().__init__()
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        check_text_encoder(tokenizer, text_encoder)
        for name, part, kind in (
            ("text_encoder", text_encoder, CLIPTextModelWithProjection),
            ("image_encoder", image_encoder, CLIPVisionModelWithProjection),
        ):
            if not isinstance(part, kind):
                raise UsageError(f"{name} must be a {kind.__name__}; got {type(part).__name__}.")
        sizes = [part.config.projection_dim for part in (text_encoder, image_encoder)]
        if sizes[0] != sizes[1]:
            raise UsageError(
                f"text_encoder and image_encoder must have one projection_dim; got {sizes[0]} and {sizes[1]}. Take the "
                "two that were trained together."
            )
        if not 0 < scale <= 100:
            raise UsageError(f"scale must be in (0, 100]; got {scale}.")
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, image_encoder=image_encoder)
        self.register_to_config(scale=scale)

    @check_call
    @torch.no_grad()
    def __call__(self, images: Images, texts: Sequence[str]) -> Tensor:
        r"""Zero-shot classification: which of the texts fits each image, \(\mathrm{softmax}_j(e^\tau \cos(x_i, t_j))\).

        Args:
            images: B images, or what `from_input` takes.
            texts: K of them, such as names of classes.

        Returns:
            Probabilities (B, K), float32, rows of sum 1.
        """
        return (self.config.scale * self.similarity(images, texts)).softmax(1)

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """Unit vectors (B, D), float32, of images."""
        config = self.image_encoder.config
        place = {"device": self._execution_device, "dtype": self.image_encoder.dtype}
        x = from_input(images, channels=config.num_channels, size=config.image_size, **place)
        return F.normalize(in_chunks(lambda x: self.image_encoder(pixel_values=x).image_embeds.float(), x), dim=1)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Unit vectors (B, D), float32, of one text or of B."""
        return F.normalize(pool_texts(self.tokenizer, self.text_encoder, texts), dim=1)

    def similarity(self, images: Images, texts: str | Sequence[str]) -> Tensor:
        """Cosines (B, K) of each image with each text, in [-1, 1]."""
        return self.encode(images) @ self.encode_text(texts).T


def scale_of(logit_scale: Tensor) -> float:
    """The factor of the cosines that a trained `logit_scale` stands for, at most 100 as in its loss."""
    return min(100.0, math.exp(float(logit_scale)))
