"""Prompts of text-to-image: texts, or their hidden states in their place, and a row of them for each image."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from latentia.errors import UsageError
from latentia.pipelines.texts import embed_texts

Texts = str | Sequence[str]
Embedded = tuple[Tensor, Tensor | None]  # hidden states (B, L, D), and the mask (B, L) if there is one


def listed(name: str, given: Texts) -> list[str]:
    """A text or several as a list.

    Raises:
        UsageError: none, or something that is no text.

    Example:
        >>> listed("prompt", "a cat")
        ['a cat']
    """
    texts = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name} must be a text or a list of at least one; got {given!r}.")
    return texts


def embed_prompt(
    name: str,
    tokenizer: Any,
    text_encoder: Any,
    texts: Texts,
    embeds: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    needs_mask: bool = False,
) -> Embedded:
    """Hidden states and mask of texts, or those given in their place.

    Args:
        name: "prompt" or "negative_prompt", for messages.
        tokenizer, text_encoder: from `load_text_encoder`.
        texts: "" if `embeds` are given.
        embeds: (B, L, D); `None` (default): the texts are encoded.
        mask: (B, L), True for tokens and False for padding; `None` (default): none.
        needs_mask: whether the network does not look at padding. Default False.

    Raises:
        UsageError: both texts and embeds, a mask that is missing or alone, or another shape.
    """
    if embeds is None:
        if mask is not None:
            raise UsageError(f"{name}_attention_mask belongs to {name}_embeds; give them too, or leave it out.")
        return embed_texts(tokenizer, text_encoder, listed(name, texts))
    if texts != "":
        raise UsageError(f"{name} and {name}_embeds are two ways to give the texts; give one of them.")
    width = text_encoder.config.hidden_size
    if embeds.ndim != 3 or not len(embeds) or embeds.shape[2] != width:
        raise UsageError(f"{name}_embeds must have shape (B, L, {width}); got {tuple(embeds.shape)}.")
    if mask is None and needs_mask:
        raise UsageError(
            f"{name}_attention_mask must be given with {name}_embeds, as this network does not look at padding. "
            "encode_prompt returns both."
        )
    if mask is not None and mask.shape != embeds.shape[:2]:
        raise UsageError(f"{name}_attention_mask must have shape {tuple(embeds.shape[:2])}; got {tuple(mask.shape)}.")
    return embeds, mask


def rows(name: str, given: Embedded, prompts: int, repeats: int) -> Embedded:
    """One row for each image: those of a prompt lie next to each other, and one text is for all prompts.

    Raises:
        UsageError: neither one text nor one for each of `prompts`.
    """
    hidden, mask = given
    if len(hidden) not in (1, prompts):
        raise UsageError(f"{name} must be one text, or one for each of {prompts} prompts; got {len(hidden)}.")
    times = repeats * (prompts if len(hidden) == 1 else 1)
    return hidden.repeat_interleave(times, 0), None if mask is None else mask.repeat_interleave(times, 0)
