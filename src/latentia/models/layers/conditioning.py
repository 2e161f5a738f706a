"""Conditioning of networks: encodings of time, and embeddings of labels and captions."""

import math

import torch
from torch import Tensor, nn

from latentia.errors import UsageError, check_range
from latentia.functional.checks import check_indices

CONDITION_WIDTH = 64  # of the embedding of a label or caption
SMOOTH = 0.03  # highest frequency per time step of networks with `smooth_time`


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0, highest: float = 1.0) -> Tensor:
    r"""Time encoding \(\cos(\omega_i t), \sin(\omega_i t)\) with \(\omega_i = P^{-i/(d/2)}\).

    Args:
        t: time steps, shape (B,), any real dtype.
        dim: even width d of the encoding.
        max_period: P, the longest wavelength over 2 pi. Default 10 000.
        highest: entries of frequencies above it are 0. Default 1, so none.

    Returns:
        float32 of shape (B, dim).

    Attention Is All You Need (Vaswani et al., 2017, 1706.03762), section 3.5.

    Example:
        >>> sinusoidal_embedding(torch.tensor([0, 10]), 8).shape
        torch.Size([2, 8])
    """
    omega = torch.exp(-math.log(max_period) / (dim // 2) * torch.arange(dim // 2, device=t.device))
    angle = t[:, None].float() * omega
    waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return waves if highest >= 1 else waves * (omega <= highest).repeat(2)


def check_class_labels(class_labels: Tensor | None, num_class_embeds: int | None) -> None:
    """Raises a `UsageError` unless labels in the range are given to a network that has classes, and to no other.

    Example:
        >>> check_class_labels(None, None)
        >>> check_class_labels(None, 10)
        Traceback (most recent call last):
        latentia.errors.UsageError: class_labels are missing: this network was built with num_class_embeds=10.
    """
    _check_given("class_labels", class_labels, "num_class_embeds", num_class_embeds)
    if class_labels is not None and num_class_embeds is not None:
        check_rows(class_labels, num_class_embeds)


def check_rows(class_labels: Tensor, rows: int) -> None:
    """Raises a `UsageError` unless labels are indices of an embedding of so many rows.

    Only on the CPU: to read values back from another device at each call would make it wait.

    Example:
        >>> check_rows(torch.tensor([4]), 4)
        Traceback (most recent call last):
        latentia.errors.UsageError: class_labels must be from 0 to 3; got 4 to 4.
    """
    if class_labels.device.type == "cpu" and class_labels.numel():
        check_indices("class_labels", class_labels, rows)


class ConditionEmbedding(nn.Module):
    """A label, a caption's vector, or the sum of both, as an embedding whose values have variance 1.

    Args:
        num_class_embeds: number of classes; `None`: no labels.
        text_embed_dim: dimensions of a caption's vector; `None`: no captions.

    Raises:
        UsageError: numbers below 1; conditions that are missing or not expected, vectors of another width.

    Example:
        >>> ConditionEmbedding(10, None)(torch.tensor([3, 1]), None).shape
        torch.Size([2, 64])
    """

    def __init__(self, num_class_embeds: int | None, text_embed_dim: int | None):
        super().__init__()
        check_range("num_class_embeds", num_class_embeds, 1)
        check_range("text_embed_dim", text_embed_dim, 1)
        self.num_classes, self.text_dim = num_class_embeds, text_embed_dim
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, CONDITION_WIDTH)
        if text_embed_dim is not None:
            projection = nn.Linear(text_embed_dim, CONDITION_WIDTH)
            self.text_projection = nn.Sequential(
                nn.LayerNorm(text_embed_dim, elementwise_affine=False),  # whatever the encoder's scale
                projection,
            )
            nn.init.normal_(projection.weight, std=text_embed_dim**-0.5)

    @property
    def width(self) -> int:
        """Of the embedding: 0 without a condition."""
        return CONDITION_WIDTH if self.num_classes is not None or self.text_dim is not None else 0

    def forward(self, class_labels: Tensor | None, text_embeds: Tensor | None) -> Tensor | None:
        """The embedding (B, width), or None without a condition.

        Args:
            class_labels: integers in [0, num_class_embeds), (B,).
            text_embeds: (B, text_embed_dim).
        """
        check_class_labels(class_labels, self.num_classes)
        _check_given("text_embeds", text_embeds, "text_embed_dim", self.text_dim)
        embedding = None if class_labels is None else self.class_embedding(class_labels)
        if text_embeds is not None:
            if text_embeds.ndim != 2 or text_embeds.shape[1] != self.text_dim:
                raise UsageError(f"text_embeds must be (B, {self.text_dim}); got {tuple(text_embeds.shape)}.")
            text = self.text_projection(text_embeds)
            embedding = text if embedding is None else embedding + text
        return embedding


def _check_given(name: str, given: Tensor | None, option: str, has: int | None) -> None:
    if given is None and has is not None:
        raise UsageError(f"{name} are missing: this network was built with {option}={has}.")
    if given is not None and has is None:
        raise UsageError(f"{name} were given, but this network takes none; set {option} for them.")
