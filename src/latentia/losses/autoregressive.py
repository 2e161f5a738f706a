"""Autoregressive losses: each code, character or value of a pixel from those before it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.functional.pixels import to_levels
from latentia.losses.conditions import item_of, labels_of
from latentia.losses.networks import config_of
from latentia.rng import Rng


def code_log_probs(transformer: Any, prefix: Tensor, codes: Tensor) -> Tensor:
    r"""\(\log p(c_i \mid c_{<i}, y)\) in nats of each code, among the K codes.

    Args:
        transformer: from `latentia.models.vq_prior.code_transformer`, may be wrapped for several processes.
        prefix: what stands before the codes, (B, L + 1); see `latentia.models.vq_prior.code_prefix`.
        codes: int64 in [0, K), (B, n) in raster order.

    Returns:
        float32 (B, n).
    """
    size = config_of(transformer).codebook_size
    tokens = torch.cat([prefix, codes[:, :-1]], 1)  # nothing comes after the last code
    logits = transformer(input_ids=tokens, use_cache=False, logits_to_keep=codes.shape[1]).logits[..., :size]
    return logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def code_loss(transformer: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    r"""\(-\frac{1}{n} \sum_i \log p(c_i \mid c_{<i}, y)\), the mean over images and their n codes; the words of y
    are read and not predicted.

    Args:
        transformer: as in `code_log_probs`.
        batch: "prefix" (B, L + 1) and "codes" (B, n), int64.
        rng: not used; dropout is torch's own.

    Returns:
        "loss", nats per code, and "bits_per_code", the same over ln 2.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937), section 3.3; Zero-Shot
    Text-to-Image Generation (Ramesh et al., 2021, 2102.12092), section 2.2.

    Example:
        >>> from latentia.models.vq_prior import code_prefix, code_transformer
        >>> transformer = code_transformer(16, (2, 2), width=32, layers=1)
        >>> batch = {"prefix": code_prefix(16, None, 3), "codes": torch.randint(16, (3, 4))}
        >>> sorted(code_loss(transformer, batch, Rng(0, 0, 3, 0, 3)))
        ['bits_per_code', 'loss']
    """
    loss = -code_log_probs(transformer, item_of(batch, "prefix"), item_of(batch, "codes")).mean(1).mean()
    return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}


def token_log_probs(network: Any, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
    r"""\(\log p(x_i | x_1, ..., x_{i-1}, y)\) in nats of each token.

    Args:
        network: `CausalTransformer`, `GatedPixelCNN` or `MADE`, may be wrapped for several processes.
        tokens: integers in [0, K), of the shape that the network takes.
        class_labels: integers (B,), for a network that is conditioned on classes.

    Returns:
        float32, the shape of `tokens`.
    """
    logits = network(tokens, class_labels=class_labels).logits.float()
    return -torch.nn.functional.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view_as(tokens)


def token_loss(network: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    r"""\(-\frac{1}{n} \sum_i \log p(x_i | x_1, ..., x_{i-1}, y)\), the mean over samples and their n tokens.

    Args:
        network: as in `token_log_probs`.
        batch: "x", the tokens as whole numbers of any type, and "labels" for a network that is conditioned on classes.
        rng: not used; dropout is torch's own.

    Returns:
        "loss", nats per token, and "bits_per_token", the same over ln 2.

    Example:
        >>> from latentia import CausalTransformer
        >>> transformer = CausalTransformer(levels=5, shape=(8,), width=16, layers=1)
        >>> sorted(token_loss(transformer, {"x": torch.zeros(3, 8)}, Rng(0, 0, 3, 0, 3)))
        ['bits_per_token', 'loss']
    """
    classes = getattr(config_of(network), "num_class_embeds", None)
    labels = None if classes is None else labels_of(batch, classes)
    loss = -token_log_probs(network, item_of(batch, "x").long(), labels).flatten(1).mean(1).mean()
    return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}


def pixel_loss(network: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    """`token_loss` of the values of images in [-1, 1], each as one of the network's K levels.

    For two levels grey pixels are binarised anew at each step: a value v is white with probability (v + 1) / 2 (dynamic
    binarisation). Pixels that are black or white already stay as they are.

    Args:
        network: as in `token_log_probs`, of images.
        batch: "x", images (B, C, H, W) in [-1, 1], and "labels" as in `token_loss`.
        rng: the randomness of this micro-batch.

    Returns:
        "loss", nats per value, and "bits_per_dimension", the same over ln 2.

    Example:
        >>> from latentia import MADE
        >>> network = MADE(sample_size=4, hidden_sizes=(8,))
        >>> sorted(pixel_loss(network, {"x": torch.zeros(3, 1, 4, 4)}, Rng(0, 0, 3, 0, 3)))
        ['bits_per_dimension', 'loss']
    """
    x, levels = item_of(batch, "x"), config_of(network).levels
    values = (rng.uniform("binarise", x.shape[1:]) < (x + 1) / 2).long() if levels == 2 else to_levels(x, levels)
    found = token_loss(network, {**batch, "x": values}, rng)
    return {"loss": found["loss"], "bits_per_dimension": found["bits_per_token"]}
