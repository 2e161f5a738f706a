"""HashedWords: captions as vectors, without a vocabulary, training or a download."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.modeling import ModelMixin


class HashedWords(ModelMixin, ConfigMixin):
    r"""Feature hashing of captions: counts of words and of pairs of neighbours, hashed to signed places, normalised.

    \(v = \sum_w \sum_{k<K} s_k(w)\, e_{h_k(w)}\), \(v / \lVert v \rVert\): the K places h and signs s = +-1 of a word w
    come from a hash of its letters. So words that two captions share make them alike, all others hardly do, and the
    vector of a caption never changes. Case and the form of Unicode do not matter; the pairs tell "red dog" and "dog
    red" apart. It has no weights: networks that use it learn a layer upon it. It knows nothing of meaning; a trained
    text encoder can take its place.

    Args:
        dim: dimensions of the vector, a multiple of `places`. Default 512.
        places: K, places of each word. Default 4.

    Raises:
        UsageError: `dim` that is no multiple; a caption without words, or something that is no text.

    Feature Hashing for Large Scale Multitask Learning (Weinberger et al., 2009, 0902.2206), eq. 1 and section 3.

    Example:
        >>> words = HashedWords(dim=512)
        >>> a, b, c = words(["a red dog", "A red cat!", "seven"])
        >>> bool(a @ b > 0.3), bool((a @ c).abs() < 0.2), round(a.norm().item(), 4)
        (True, True, 1.0)
    """

    length: Tensor

    @register_to_config
    def __init__(self, dim: int = 512, places: int = 4):
        super().__init__()
        if places < 1 or dim < places or dim % places:
            raise UsageError(f"dim must be a multiple of places, both at least 1; got dim={dim}, places={places}.")
        self.register_buffer("length", torch.ones(()))  # of the vectors; its dtype and device are theirs too

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, dim), float32, of B captions."""
        if isinstance(captions, str):
            captions = [captions]
        indices, signs, rows = [], [], []
        for row, caption in enumerate(captions):
            for index, sign in self._places(caption):
                indices.append(index)
                signs.append(float(sign))
                rows.append(row)
        counts = torch.zeros(len(captions), self.config.dim, dtype=torch.float64)
        counts.index_put_((torch.tensor(rows).long(), torch.tensor(indices).long()), torch.tensor(signs).double(), True)
        return F.normalize(counts, dim=1).to(self.length) * self.length

    def _places(self, caption: str) -> Iterator[tuple[int, int]]:
        if not isinstance(caption, str):
            raise UsageError(f"captions must be texts; got {type(caption).__name__}.")
        words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", caption).casefold())
        said = [word for word in words if not unicodedata.category(word[0]).startswith("P")]  # no punctuation
        if not said:
            raise UsageError(f"captions must each hold at least one word; got {caption!r}. Leave such images out.")
        block = self.config.dim // self.config.places  # places of one word never meet, so it cannot cancel itself
        for feature in [*said, *(" ".join(pair) for pair in pairwise(said))]:
            for k in range(self.config.places):
                digest = hashlib.blake2b(feature.encode(), digest_size=8, salt=str(k).encode()).digest()
                number = int.from_bytes(digest, "little")
                yield k * block + (number >> 1) % block, 1 - 2 * (number & 1)
