"""Hidden states of the captions of a data set: computed once by a text encoder and cached on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentia.data.base import Dataset, description
from latentia.data.images import ImageData
from latentia.data.latents import LatentData
from latentia.errors import DataError, UsageError
from latentia.files.cache import cached_tensors, key_of
from latentia.files.logs import get_logger

logger = get_logger(__name__)

FORMAT = "1"  # raise it when the meaning of the files changes


class CaptionData:
    """A `Dataset` whose batches hold the hidden states of its captions too; made by [`cached_captions`].

    Args:
        hidden: of each text, (M, L, D).
        mask: True for tokens, False for padding, (M, L).
        texts: the M different captions and "", the empty one.
        data: the images or latents, whose captions these are.
        fingerprint: of texts and data.
    """

    endless = False

    def __init__(self, hidden: Tensor, mask: Tensor, texts: list[str], data: ImageData | LatentData, fingerprint: str):
        self.data, self.fingerprint, self.modality = data, fingerprint, data.modality
        self.shape: tuple[int, ...] = data.shape
        self.labels, self.label_names, self.captions = data.labels, data.label_names, data.captions
        self._hidden, self._mask, self._rows = hidden, mask, {text: row for row, text in enumerate(texts)}

    @property
    def has_captions(self) -> bool:
        """True if batches hold captions."""
        return self.captions is not None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"CaptionData({self.data!r} with {len(self._rows)} texts of shape {self.text_shape})"

    @property
    def text_shape(self) -> tuple[int, int]:
        """L tokens and D channels of the hidden states of a text."""
        _, tokens, channels = self._hidden.shape
        return tokens, channels

    @property
    def empty(self) -> tuple[Tensor, Tensor]:
        """Hidden states (L, D) and mask (L,) of the empty text, the unconditional one of classifier-free guidance."""
        row = self._rows[""]
        return self._hidden[row], self._mask[row]

    def describe(self) -> dict[str, Any]:
        """Description of the data, with the fingerprint of data and texts and the shape of the texts."""
        return {
            **self.data.describe(),
            **description(self),
            "text_shape": list(self.text_shape),
            "made_of": description(self.data),
        }

    def require(self, n: int) -> None:
        """DataError if there are fewer than n elements, one global batch over all processes and accumulation."""
        self.data.require(n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`, as the data's own `batch` gives them.

        Returns:
            Its batch, with "text", hidden states (B, L, D), and "text_mask" (B, L), True for tokens.
        """
        out = self.data.batch(start, stop, seed=seed, device=device)
        rows = torch.tensor([self._rows[caption] for caption in out["captions"]], dtype=torch.int64)
        out["text"] = self._hidden[rows].to(device, non_blocking=True)
        out["text_mask"] = self._mask[rows].to(device, non_blocking=True)
        return out


def cached_captions(
    data: Dataset,
    encode: Callable[[list[str]], tuple[Tensor, Tensor]],
    text_encoder: str,
    *,
    file: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> CaptionData:
    """Encode the captions of a data set once, or read them if this text encoder encoded them before.

    Each different caption is encoded once, and the empty text with them. One process computes while others wait for its
    file, and all read the same bytes. They are held in memory, 4 bytes for each of the texts' L x D values.

    Args:
        data: images or latents with captions.
        encode: texts -> hidden states (M, L, D) and mask (M, L), as `embed_texts` of `latentia.pipelines.texts` gives.
        text_encoder: a text that changes with the encoder, its tokenizer and L, such as `text_fingerprint` and L.
        file: a safetensors file of these texts and this encoder, written if it is not there; `None` (default): one of
            the cache, under a name made of both.
        cache_dir: as in `load_images`.

    Raises:
        UsageError: data without captions, or a stream.
        DataError: `file` is of another encoder or other captions, hidden states that are not finite or not (M, L, D),
            or the disk is full.

    Example:
        >>> import tempfile
        >>> data = ImageData(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), captions=["a", "b", "a"])
        >>> ones = lambda texts: (torch.ones(len(texts), 4, 2), torch.ones(len(texts), 4).bool())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     captioned = cached_captions(data, ones, "ones", cache_dir=folder)
        >>> captioned.text_shape, captioned.batch(0, 2)["text"].shape
        ((4, 2), torch.Size([2, 4, 2]))
    """
    if not isinstance(data, ImageData | LatentData):
        raise UsageError(
            f"data must be images or latents, whose captions are encoded once; got {type(data).__name__}. Load them "
            "without streaming."
        )
    if data.captions is None:
        raise UsageError("data must have captions, and this data set has none. Name them with caption_column.")
    texts = sorted({"", *data.captions})
    made_of = {"format": FORMAT, "text_encoder": text_encoder, "texts": key_of(texts)}
    found = cached_tensors(lambda: _compute(texts, encode), made_of, "texts", cache_dir=cache_dir, file=file)
    return CaptionData(found["hidden"], found["mask"], texts, data, key_of([key_of(made_of), data.fingerprint]))


def _compute(texts: list[str], encode) -> dict[str, Tensor]:
    logger.info("encoding %d texts", len(texts))
    hidden, mask = encode(texts)
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2] or len(hidden) != len(texts):
        raise DataError(
            f"encode must give (M, L, D) and (M, L) of M = {len(texts)} texts; got {tuple(hidden.shape)} and "
            f"{tuple(mask.shape)}."
        )
    if not torch.isfinite(hidden).all():
        raise DataError("encode must give finite hidden states; some are not. Encode in float32.")
    return {"hidden": hidden.detach().float().cpu(), "mask": mask.bool().cpu()}
