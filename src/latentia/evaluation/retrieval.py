"""Retrieval: recall at k and median rank of images by text and of texts by image."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features


@dataclass(frozen=True)
class Retrieval:
    """Result of `retrieval_scores`, and that of a random order.

    Args:
        image_to_text, text_to_image: recall at k, in [0, 1], by k.
        image_to_text_rank, text_to_image_rank: median ranks of the right one, from 1.
        chance: recall at k of a random order, by k.
        chance_rank: median rank in a random order.
        count: of pairs.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    image_to_text_rank: float
    text_to_image_rank: float
    chance: dict[int, float]
    chance_rank: float
    count: int

    def to_dict(self) -> dict[str, float]:
        """One flat row for a JSON file."""
        out: dict[str, float] = {"pairs": self.count}
        for name in ("image_to_text", "text_to_image", "chance"):
            out |= {f"{name}_recall_{k}": value for k, value in getattr(self, name).items()}
            out[f"{name}_median_rank"] = getattr(self, f"{name}_rank")
        return out

    def for_card(self) -> list[dict[str, Any]]:
        """The metrics as `latentia.model_card` takes them; chance stands for the real-data score."""
        return [
            {
                "type": f"{name}_recall_{k}", "name": f"{name.replace('_', ' ').capitalize()}, recall at {k}",
                "value": value, "real": self.chance[k], "n": self.count,
            }
            for name in ("image_to_text", "text_to_image")
            for k, value in getattr(self, name).items()
        ]  # fmt: skip

    def text(self) -> str:
        """A table to print."""
        ks = list(self.chance)
        lines = [f"Retrieval among {self.count} pairs" + "".join(f"{f'recall@{k}':>12}" for k in ks) + "  median rank"]
        for title, name in (
            ("image to text", "image_to_text"),
            ("text to image", "text_to_image"),
            ("chance", "chance"),
        ):
            values = "".join(f"{getattr(self, name)[k]:12.3f}" for k in ks)
            lines.append(f"{title:<{len(lines[0]) - 12 * len(ks) - 13}}{values}{getattr(self, f'{name}_rank'):13.1f}")
        return "\n".join(lines)


@torch.no_grad()
def retrieval_scores(
    image_embeds: Tensor, text_embeds: Tensor, ks: tuple[int, ...] = (1, 5, 10), *, groups: Tensor | None = None
) -> Retrieval:
    """Recall at k and median rank of each image's own text among all texts, and of each text's own image.

    Similarity is the cosine, in float64. Ties count against the right one, so embeddings that are all alike score 0.

    Args:
        image_embeds, text_embeds: (n, D), row i of both a pair.
        ks: 1 <= k. Default 1, 5 and 10.
        groups: (n,) integers; others of a pair's own group, such as those with the same caption, are as right as it and
            do not stand before it. `None` (default): each pair is a group.

    Returns:
        `Retrieval`; chance is what a random order gets where each pair is a group.

    Raises:
        UsageError: no pairs, shapes that differ, or a k below 1.
        NumericsError: a value is NaN or infinite.

    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021, 2103.00020), table 13.

    Example:
        >>> found = retrieval_scores(torch.eye(20), torch.eye(20).roll(1, 0))
        >>> found.image_to_text[1], found.chance[10], found.chance_rank
        (0.0, 0.5, 10.5)
        >>> retrieval_scores(torch.eye(20), torch.eye(20)).text_to_image[1]
        1.0
    """
    for part in (image_embeds, text_embeds):
        check_features(part)
    if image_embeds.shape != text_embeds.shape:
        raise UsageError(
            "`image_embeds` and `text_embeds` must be pairs of shape (n, D). Got "
            f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}."
        )
    if not ks or min(ks) < 1:
        raise UsageError(f"`ks` must be whole numbers of at least 1. Got {ks}.")
    n = len(image_embeds)
    x, t = (F.normalize(part.cpu().double(), dim=1) for part in (image_embeds, text_embeds))
    similarity = x @ t.T
    alike = torch.eye(n, dtype=torch.bool) if groups is None else groups[:, None].cpu() == groups.cpu()
    to_text, to_image = (_ranks(scores, alike) for scores in (similarity, similarity.T))

    def recall(ranks: Tensor) -> dict[int, float]:
        return {k: float((ranks <= k).double().mean()) for k in ks}

    return Retrieval(
        image_to_text=recall(to_text),
        text_to_image=recall(to_image),
        image_to_text_rank=float(to_text.double().quantile(0.5)),
        text_to_image_rank=float(to_image.double().quantile(0.5)),
        chance={k: min(1.0, k / n) for k in ks},
        chance_rank=(n + 1) / 2,
        count=n,
    )


def _ranks(similarity: Tensor, alike: Tensor) -> Tensor:
    """1 + how many of other groups are at least as similar as the own one, up to rounding; (n,)."""
    own = similarity.diagonal()[:, None] - 1e-12
    return 1 + ((similarity >= own) & ~alike).sum(1)
