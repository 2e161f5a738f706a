"""Scores of sampled texts: overlap with the training text, memorised spans, frequencies, beside those of real text."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from latentia.errors import UsageError

OVERLAP, DISTANCE = 8, 3  # characters of an n-gram
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


@dataclass(frozen=True)
class TextScore:
    """One number of texts.

    Args:
        title: of its row.
        value: of the sampled texts, or of the model.
        real: the same of held-out real text; None where the number is of the model.
        better: "as real", or "lower".
        meaning: one sentence.
    """

    title: str
    value: float
    real: float | None
    better: Literal["as real", "lower"]
    meaning: str


@dataclass(frozen=True)
class TextReport:
    """The scores of a text model.

    Args:
        scores: by their names.
        n: characters that were sampled.
        span: the longest sampled span that stands in the training text.
        seed: of the samples.
    """

    scores: dict[str, TextScore]
    n: int
    span: str
    seed: int = 0

    def text(self) -> str:
        """A table of all scores beside those of real text."""
        lines = [f"{'':36} {'model':>10} {'real text':>10}"]
        for score in self.scores.values():
            real = "" if score.real is None else f"{score.real:.4g}"
            lines.append(f"{score.title:36} {score.value:>10.4g} {real:>10}  {score.better}")
        return "\n".join([*lines, f"of {self.n} sampled characters; the longest known span: {self.span!r:.100}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        scores = {key: asdict(score) for key, score in self.scores.items()}
        return {"scores": scores, "n": self.n, "span": self.span, "seed": self.seed}

    def for_card(self) -> list[dict[str, Any]]:
        """The metrics of a model card."""
        return [
            {"name": score.title, "type": key, "value": score.value, "n": self.n}
            | ({} if score.real is None else {"real": score.real})
            for key, score in self.scores.items()
        ]


def score_texts(
    samples: Sequence[str], training: str, real: Sequence[str], bits_per_character: float, seed: int = 0
) -> TextReport:
    """Score sampled texts against the training text, with held-out real texts in their place beside each number.

    Args:
        samples: texts.
        training: what the model was trained on.
        real: held-out texts, about as many characters.
        bits_per_character: of the model on held-out text.
        seed: of the samples.

    Raises:
        UsageError: samples or real texts shorter than an n-gram.

    Example:
        >>> training = "the cat sat on the mat and the dog sat on the cat " * 4
        >>> report = score_texts(["the cat sat on a dog"], training, ["and the cat sat on it"], 1.5)
        >>> report.span, round(report.scores["known_words"].value, 2)
        ('the cat sat on ', 0.75)
    """
    for name, texts in (("samples", samples), ("real", real)):
        if sum(max(0, len(text) - OVERLAP + 1) for text in texts) == 0:
            raise UsageError(f"{name} must have at least {OVERLAP} characters in one text to be scored.")

    def pair(title: str, measured: Callable[[Sequence[str]], float], meaning: str) -> TextScore:
        return TextScore(title, measured(samples), measured(real), "as real", meaning)

    spans = {id(texts): longest_span(texts, training) for texts in (samples, real)}
    scores = {
        "bits_per_character": TextScore(
            "bits per character", bits_per_character, None, "lower",
            "Bits that the model spends on a character of held-out text.",
        ),
        "ngram_overlap": pair(
            f"{OVERLAP}-grams in the training text", lambda texts: ngram_overlap(texts, training),
            f"Share of all spans of {OVERLAP} characters that the training text holds; 1 would be copying.",
        ),
        "longest_span": pair(
            "longest span of the training text", lambda texts: float(len(spans[id(texts)])),
            "Characters of the longest span that the training text holds too.",
        ),
        "ngram_distance": pair(
            f"distance of {DISTANCE}-gram frequencies", lambda texts: ngram_distance(texts, training),
            f"Total variation between the frequencies of {DISTANCE} characters and the training text's, in [0, 1].",
        ),
        "known_words": pair(
            "words of the training text", lambda texts: known_words(texts, training),
            "Share of the words that the training text holds.",
        ),
    }  # fmt: skip
    return TextReport(scores, sum(map(len, samples)), spans[id(samples)], seed)


def ngram_overlap(texts: Sequence[str], training: str, n: int = OVERLAP) -> float:
    """The share of the spans of n characters of texts that the training text holds; NaN without any.

    Example:
        >>> ngram_overlap(["abcd"], "xabcx", 3)
        0.5
    """
    found = np.concatenate([_hashes(text, n) for text in texts])
    return float(_is_among(found, _hashes(training, n)).mean()) if len(found) else math.nan


def longest_span(texts: Sequence[str], training: str) -> str:
    """The longest span of the texts that the training text holds; of several the first.

    Example:
        >>> longest_span(["zebra", "a sebra"], "a zebu")
        'zeb'
    """
    best, low, high = "", 0, max(map(len, texts), default=0)
    while low < high:
        n = (low + high + 1) // 2
        parts = [_hashes(text, n) for text in texts]
        hits = _is_among(np.concatenate(parts), _hashes(training, n))
        found = np.split(hits, np.cumsum([len(part) for part in parts])[:-1])
        span = next((text[i : i + n] for text, hit in zip(texts, found) for i in np.flatnonzero(hit)[:1]), None)
        if span is not None and span in training:
            best, low = span, n
        else:
            high = n - 1
    return best


def ngram_distance(texts: Sequence[str], training: str, n: int = DISTANCE) -> float:
    r"""\(\frac12 \sum_g |p(g) - q(g)|\) over spans g of n characters, their shares in the texts and the training text.

    Example:
        >>> ngram_distance(["aaaa"], "aaaaaaaa"), ngram_distance(["aaaa"], "bbbb")
        (0.0, 1.0)
    """
    pair = [np.concatenate([_hashes(text, n) for text in texts]), _hashes(training, n)]
    grams, places = np.unique(np.concatenate(pair), return_inverse=True)
    first, second = np.split(places, [len(pair[0])])
    shares = [np.bincount(part, minlength=len(grams)) / max(1, len(part)) for part in (first, second)]
    return float(0.5 * np.abs(shares[0] - shares[1]).sum())


def known_words(texts: Sequence[str], training: str) -> float:
    """The share of the words of texts, but those at their ends, that the training text holds; NaN without any.

    Example:
        >>> known_words(["a red dgo ran off"], "a red dog ran off")
        0.6666666666666666
    """
    words = [word for text in texts for word in re.findall(r"\w+", text)[1:-1]]
    known = {*re.findall(r"\w+", training)}
    return sum(word in known for word in words) / len(words) if words else math.nan


def _is_among(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Which of a few numbers are among many, without sorting these."""
    known, places = np.unique(few, return_inverse=True)
    if not len(known):
        return np.zeros(0, bool)
    nearest = np.minimum(np.searchsorted(known, many), len(known) - 1)
    hit = np.zeros(len(known), bool)
    hit[nearest[known[nearest] == many]] = True
    return hit[places]


def _hashes(text: str, n: int) -> np.ndarray:
    """A number of 64 bits for each span of n characters, equal for equal spans (Rabin and Karp, 1987)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(points) < n:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        points = (points + np.uint64(1)) * _BASE
        points ^= points >> np.uint64(29)
        falling = np.cumprod(np.full(len(points), _INVERSE))
        rising = np.cumprod(np.full(len(points), _BASE))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(points * falling, dtype=np.uint64)])
        return (sums[n:] - sums[:-n]) * rising[: len(points) - n + 1]
