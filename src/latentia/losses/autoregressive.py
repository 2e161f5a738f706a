"""The autoregressive loss of a transformer over the codes of images: each code from those before it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.losses.conditions import item_of
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
