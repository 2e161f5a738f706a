"""Conditioning in a training step: labels and captions of a batch, mismatched ones, and those left out for guidance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.checks import check_indices
from latentia.losses.networks import config_of
from latentia.rng import Rng

Conditions = dict[str, Tensor]
TextEncoder = Callable[[Sequence[str]], Tensor]


def item_of(batch: Mapping[str, Any], name: str) -> Any:
    """What a batch holds under a name.

    Raises:
        UsageError: it holds nothing of that name.

    Example:
        >>> item_of({"x": 3}, "x")
        3
        >>> item_of({"images": 3}, "x")
        Traceback (most recent call last):
        latentia.errors.UsageError: batch must hold "x"; it holds only "images".
    """
    if name not in batch:
        held = ", ".join(f'"{key}"' for key in batch)
        raise UsageError(f'batch must hold "{name}"; it holds {f"only {held}" if held else "nothing"}.')
    return batch[name]


def labels_of(batch: Mapping[str, Any], classes: int) -> Tensor:
    """The labels of a batch.

    Args:
        batch: holds "labels", integers (B,).
        classes: how many there are.

    Raises:
        UsageError: no labels, or one outside [0, classes).

    Example:
        >>> labels_of({"labels": torch.tensor([0, 9])}, 10)
        tensor([0, 9])
    """
    if "labels" not in batch:
        raise UsageError(f"labels are missing: a network of {classes} classes needs them beside its images.")
    check_indices("labels", batch["labels"], classes)
    return batch["labels"]


def conditions_of(network: Any, batch: Mapping[str, Any], text_encoder: TextEncoder | None) -> Conditions:
    """The conditions that a network takes by its configuration, as arguments of its `forward`.

    Args:
        network: has `num_class_embeds` or `text_embed_dim` in its configuration if it is conditional.
        batch: "labels" (B,) and "captions".
        text_encoder: captions -> (B, text_embed_dim).

    Returns:
        "class_labels" (B,) and "text_embeds" (B, text_embed_dim), those that the network takes.

    Raises:
        UsageError: a condition that the batch does not hold, or captions without an encoder.

    Example:
        >>> from latentia import DCGANGenerator
        >>> generator = DCGANGenerator(num_class_embeds=10)
        >>> conditions_of(generator, {"labels": torch.tensor([3])}, None)
        {'class_labels': tensor([3])}
    """
    config = config_of(network)
    conditions: Conditions = {}
    if getattr(config, "num_class_embeds", None) is not None:
        conditions["class_labels"] = labels_of(batch, config.num_class_embeds)
    if getattr(config, "text_embed_dim", None) is not None:
        if "captions" not in batch or text_encoder is None:
            missing = "captions are missing beside the images" if "captions" not in batch else "text_encoder is missing"
            raise UsageError(
                f"{missing}: this network is conditioned on captions. Give a HashedWords, and data with captions."
            )
        with torch.no_grad():
            conditions["text_embeds"] = text_encoder(batch["captions"])
    return conditions


def mismatched_conditions(conditions: Conditions, rng: Rng, classes: int | None) -> tuple[Conditions, Tensor]:
    """Labels of any other class, and captions of another image of the batch.

    Args:
        conditions: from `conditions_of`, not empty.
        rng: the randomness of this micro-batch.
        classes: how many there are; `None` without labels.

    Returns:
        The conditions, and whether they do differ, bool (B,).

    Raises:
        UsageError: one class, or captions of a batch of one.

    Example:
        >>> wrong, differs = mismatched_conditions({"class_labels": torch.tensor([0, 1])}, Rng(0, 0, 2, 0, 2), 2)
        >>> wrong, differs
        ({'class_labels': tensor([1, 0])}, tensor([True, True]))
    """
    wrong: Conditions = {}
    differs = torch.zeros(0)
    if "class_labels" in conditions and classes is not None:
        if classes < 2:
            raise UsageError("mismatched needs at least two classes; this network has one.")
        shift = 1 + (rng.uniform("mismatched labels") * (classes - 1)).long().clamp(max=classes - 2)
        wrong["class_labels"] = (conditions["class_labels"] + shift) % classes
        differs = torch.ones_like(wrong["class_labels"], dtype=torch.bool)
    if "text_embeds" in conditions:
        text = conditions["text_embeds"]
        if len(text) < 2:
            raise UsageError("mismatched takes the caption of another image of the batch; got a batch of one.")
        wrong["text_embeds"] = text.roll(1, 0)  # neighbours in a batch are as random as any two
        apart = (text != wrong["text_embeds"]).any(1)
        differs = apart | differs if len(differs) else apart
    return wrong, differs


def dropped_conditions(
    network: Any, batch: Mapping[str, Any], rng: Rng, dropout: float, empty_text: tuple[Tensor, Tensor] | None
) -> Conditions:
    """The labels and texts of a batch, those of a share of the images left out, for classifier-free guidance.

    A conditioning image is never left out.

    Args:
        network: has `num_class_embeds` if it takes labels, which is also the index of "no class".
        batch: "labels" (B,) in [0, num_class_embeds), of which a network without classes takes none; "text" (B, L, D)
            and "text_mask" (B, L); "condition", conditioning images (B, C, H, W); "step_mask" (B, T) of sequences of
            unequal lengths.
        rng: the randomness of this micro-batch.
        dropout: the share, in [0, 1].
        empty_text: hidden states (L, D) and mask (L,) of the empty text.

    Returns:
        "class_labels"; "encoder_hidden_states" and "encoder_attention_mask"; "condition"; "step_mask" of a network that
        takes one.

    Raises:
        UsageError: a dropout or label out of its range, no labels for a network with classes, or texts to leave out and
            no empty text.

    Classifier-Free Diffusion Guidance (Ho and Salimans, 2022, 2207.12598), algorithm 1.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(num_class_embeds=10, block_out_channels=(32,))
        >>> dropped_conditions(unet, {"labels": torch.tensor([3])}, Rng(0, 0, 1, 0, 1), 1.0, None)
        {'class_labels': tensor([10])}
    """
    check_range("class_dropout", dropout, 0, 1)
    conditions: Conditions = {"condition": batch["condition"]} if "condition" in batch else {}
    if getattr(config_of(network), "masked", False):
        conditions["step_mask"] = item_of(batch, "step_mask")
    classes: Any = getattr(config_of(network), "num_class_embeds", None)
    labels = labels_of(batch, classes) if classes is not None else None
    if labels is None and "text" not in batch:
        return conditions
    dropped = rng.uniform("class_dropout") < dropout
    if labels is not None:
        conditions["class_labels"] = labels.masked_fill(dropped, classes)
    if "text" in batch:
        if empty_text is None and dropout > 0:
            raise UsageError("empty_text is missing: a share of texts is left out, unless class_dropout is 0.")
        text, mask = batch["text"], item_of(batch, "text_mask")
        if empty_text is not None:
            text = torch.where(dropped[:, None, None], empty_text[0].to(text), text)
            mask = torch.where(dropped[:, None], empty_text[1].to(mask), mask)
        conditions |= {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    return conditions
