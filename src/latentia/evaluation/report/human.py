"""Human evaluation: a blind two-alternative forced choice, and the fooling rate with an exact interval."""

import base64
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentia.errors import DataError, UsageError, did_you_mean
from latentia.evaluation.pairs import _check
from latentia.evaluation.report.grids import image_grid
from latentia.evaluation.report.sheet import page
from latentia.files.reading import MAX_TEXT, read_object, read_text
from latentia.files.writing import write_text
from latentia.rng import seed_from

QUESTION = "Which of the two images is real?"
COLUMNS = ("sheet", "rater", "trial", "choice")
_SIDES = ("left", "right")
_TILE = 320  # pixels: images are enlarged by the largest whole factor that keeps them within


class Sheet(NamedTuple):
    """The files that `write_sheet` wrote.

    Args:
        page: the HTML to give to the raters; it holds everything that they need.
        template: a CSV to type in votes that were given on paper.
        key: the JSON that says which side is which; not for the raters.
    """

    page: Path
    template: Path
    key: Path


@dataclass(frozen=True)
class RaterVotes:
    """The votes of one rater, with the fields of `Votes`."""

    rater: str
    n: int
    fooled: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Votes:
    """Votes of all raters.

    Args:
        n: votes.
        fooled: how many of them chose the image of `names[1]`, by default the model's.
        rate: `fooled / n`, the fooling rate. 0.5: nobody can tell the two apart; 0: everybody always can. Above 0.5 the
            model's images are preferred.
        low, high: exact (Clopper-Pearson) interval of the rate.
        confidence: of the interval.
        p_value: probability of votes at least this far from one half if everybody guesses (exact, two-sided). A small
            one says that the two can be told apart. A large one says little if n is small: look at the interval.
        left_rate: share of votes for the left side, near 0.5; images were put there as often as on the right.
        names: of the two kinds of images.
        raters: the same per rater. Votes on the same trials are not quite independent of each other, so the interval
            of several raters together is somewhat too narrow if some images are much harder than others.
    """

    n: int
    fooled: int
    rate: float
    low: float
    high: float
    confidence: float
    p_value: float
    left_rate: float
    names: tuple[str, str]
    raters: tuple[RaterVotes, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def text(self) -> str:
        """A line for the terminal, and one per rater."""
        head = (
            f'"{self.names[1]}" chosen over "{self.names[0]}" in {_line(self)}, {self.confidence:.0%} interval; '
            f"p = {self.p_value:.2g} if all guess; left chosen in {self.left_rate:.0%}"
        )
        return "\n".join([head, *(f"  {rater.rater}: {_line(rater)}" for rater in self.raters)])


def write_sheet(
    a: torch.Tensor,
    b: torch.Tensor,
    folder: str | Path,
    *,
    names: tuple[str, str] = ("real", "model"),
    trials: int = 50,
    seed: int = 0,
    question: str = QUESTION,
) -> Sheet:
    """Write a blind comparison for people: in each trial an image of `a` beside one of `b`, in random order.

    `sheet.html` works by double click, without network, on phones and on paper, and saves a `votes_<rater>.csv`.
    `votes_template.csv` is for votes on paper. `key.json` says which side is which: give the raters the page alone. The
    key is not encrypted, and the page does not need it; its images have no names and no metadata, and are of one size.

    Images are chosen without replacement and shown with 8 bits per channel, enlarged by a whole factor without
    blurring. Each kind is on the left in half of the trials (for an odd number, in one more for one of them).

    Args:
        a: (N, C, H, W) in [-1, 1], C = 1 or 3, the real images; N >= trials.
        b: (M, C, H, W) likewise, those of the model. Take care that nothing but quality tells the two apart: the same
            size, cropping, compression, and share of the classes.
        folder: where the files go; made if needed. It must not hold another sheet.
        names: of the two kinds; they stand in the key only.
        trials: number of pairs. 50 votes give an interval of about +-0.14 around one half, 400 of +-0.05.
        seed: of the choice of images, their order and their sides; equal arguments write equal bytes.
        question: asked such that choosing `b` counts for it, as "Which of the two images is real?".

    Raises:
        UsageError: wrong images (the message says which of `a` and `b`), too few of them, equal names, or the folder
            holds another sheet.
        DataError: images hold NaN.

    Example:
        >>> import tempfile
        >>> images = torch.rand(6, 1, 8, 8) * 2 - 1
        >>> sheet = write_sheet(images, -images, tempfile.mkdtemp(), trials=4)
        >>> [path.name for path in sheet]
        ['sheet.html', 'votes_template.csv', 'key.json']
    """
    _check("a", a)
    _check("b", b)
    if a.shape[1:] != b.shape[1:]:
        raise UsageError(
            "`a` and `b` must have the same (C, H, W), or the size gives them away. "
            f"Got {tuple(a.shape[1:])} and {tuple(b.shape[1:])}."
        )
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UsageError(f"`names` must be two different texts. Got {tuple(names)}.")
    if not 1 <= trials <= min(len(a), len(b)):
        raise UsageError(
            f"`trials` must be between 1 and the number of images in each set, {len(a)} in `a` and {len(b)} in `b`, "
            f"as none is shown twice. Got {trials}."
        )
    if not question.strip():
        raise UsageError("`question` must not be empty.")
    order_a, order_b = (_permutation(seed, stream, len(images))[:trials] for stream, images in (("a", a), ("b", b)))
    # The first half has b on the left; for an odd number the seed decides which kind gets the extra one.
    b_left = torch.arange(trials) < (trials + int(_permutation(seed, "extra", 2)[0])) // 2
    b_left = b_left[_permutation(seed, "sides", trials)]
    pairs, rows = [], []
    for number, (i, j, swap) in enumerate(zip(order_a.tolist(), order_b.tolist(), b_left.tolist()), 1):
        sides = [(names[0], i, _data_uri(a[i])), (names[1], j, _data_uri(b[j]))]
        left, right = reversed(sides) if swap else sides
        pairs.append((left[2], right[2]))
        rows.append(
            {"trial": number, "left": left[0], "right": right[0], "left_index": left[1], "right_index": right[1]}
        )
    # The name of the sheet follows from what it shows, so it gives nothing away.
    sheet = hashlib.sha256(json.dumps([question, pairs]).encode()).hexdigest()[:12]
    key = {"sheet": sheet, "names": list(names), "question": question, "seed": seed, "trials": rows}
    template = [",".join(COLUMNS), *(f"{sheet},,{number}," for number in range(1, trials + 1))]
    height, width = a.shape[2:]
    factor = max(1, _TILE // max(height, width))
    texts = (
        page(question, sheet, pairs, width * factor, factor > 1),
        "\n".join(template) + "\n",
        json.dumps(key, indent=1) + "\n",
    )

    folder = Path(folder)
    files = Sheet(folder / "sheet.html", folder / "votes_template.csv", folder / "key.json")
    for path, text in zip(files[::-1], texts[::-1]):  # the key first, which says most
        if os.path.lexists(path) and read_text(path, error=DataError) != text:
            raise UsageError(
                f"`folder` must not hold another sheet, whose votes could no longer be read, nor votes. {path} is of "
                "another sheet, or was changed; give another folder, or delete it."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, texts):
        write_text(path, text)
    return files


def read_votes(
    files: str | Path | Iterable[str | Path], key: str | Path | Mapping[str, Any], *, confidence: float = 0.95
) -> Votes:
    """Read the votes of one or several raters and compare them with the key.

    Args:
        files: CSV files with the columns sheet, rater, trial, choice (left or right), in any number and order.
        key: the `key.json` of the sheet, the folder that holds it, or its content.
        confidence: of the intervals, in (0, 1).

    Returns:
        The fooling rate with its exact interval, together and per rater. A rater need not have voted on every trial.

    Raises:
        UsageError: no file given, or `confidence` out of range.
        DataError: a file or the key cannot be read; a row is incomplete, of another sheet, of an unknown trial or
            choice, or votes again on the same trial. The message names file and line.

    Example:
        >>> import tempfile
        >>> images, folder = torch.rand(4, 1, 8, 8) * 2 - 1, Path(tempfile.mkdtemp())
        >>> sheet = write_sheet(images, -images, folder, trials=4)
        >>> name = json.loads(sheet.key.read_text())["sheet"]
        >>> rows = [f"{name},eva,{trial},left" for trial in (1, 2, 3, 4)]
        >>> _ = (folder / "votes_eva.csv").write_text("\\n".join(["sheet,rater,trial,choice", *rows]))
        >>> read_votes(folder / "votes_eva.csv", folder).rate  # always left: each kind was there twice
        0.5
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(path) for path in files]
    if not paths:
        raise UsageError("`files` must name at least one CSV file of votes. Got none.")
    sheet, names, kinds = _read_key(key)
    seen: dict[tuple[str, str], str] = {}
    choices: dict[str, list[tuple[str, bool]]] = {}
    for path in paths:
        rows = list(_rows(path))
        if not rows:
            raise DataError(f"{path} must hold at least one row of votes below its header. It holds no votes.")
        for place, row in rows:
            if row["sheet"] != sheet:
                raise DataError(f'{place}: `sheet` must be that of the key, {sheet}. Got "{row["sheet"]}".')
            if row["trial"] not in kinds:
                raise DataError(f'{place}: `trial` must be a number from 1 to {len(kinds)}. Got "{row["trial"]}".')
            if row["choice"] not in _SIDES:
                hint = did_you_mean(row["choice"], _SIDES)
                raise DataError(f'{place}: `choice` must be left or right. Got "{row["choice"]}".{hint}')
            vote = (row["rater"], row["trial"])
            if vote in seen:
                raise DataError(
                    f'{place}: rater "{vote[0]}" has already voted on trial {vote[1]}, in {seen[vote]}. Remove one of '
                    "the two, or give different raters different names."
                )
            seen[vote] = place
            fooled = kinds[row["trial"]][row["choice"]] == names[1]
            choices.setdefault(row["rater"], []).append((row["choice"], fooled))
    everything = [vote for votes in choices.values() for vote in votes]
    from scipy.stats import binomtest

    total = _count(everything, confidence)
    return Votes(
        **total,
        confidence=confidence,
        p_value=float(binomtest(total["fooled"], total["n"]).pvalue),
        left_rate=sum(choice == "left" for choice, _ in everything) / len(everything),
        names=names,
        raters=tuple(RaterVotes(rater, **_count(votes, confidence)) for rater, votes in sorted(choices.items())),
    )


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a probability after `successes` in n independent trials.

    It covers the true probability at least as often as `confidence` says, whatever the probability and n.

    References:
        "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", Clopper and Pearson 1934,
        Biometrika 26(4).

    Example:
        >>> low, high = binomial_interval(0, 10)
        >>> low, round(high, 4)  # 1 - 0.025 ** (1 / 10)
        (0.0, 0.3085)
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"`successes` must be between 0 and `n`, n >= 1. Got {successes} of {n}.")
    if not 0 < confidence < 1:
        raise UsageError(f"`confidence` must be between 0 and 1, for example 0.95. Got {confidence}.")
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(beta.isf(tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def _count(votes: Sequence[tuple[str, bool]], confidence: float) -> dict[str, Any]:
    n, fooled = len(votes), sum(fooled for _, fooled in votes)
    low, high = binomial_interval(fooled, n, confidence)
    return {"n": n, "fooled": fooled, "rate": fooled / n, "low": low, "high": high}


def _line(votes: Votes | RaterVotes) -> str:
    return f"{votes.fooled} of {votes.n} = {votes.rate:.1%} [{votes.low:.1%}, {votes.high:.1%}]"


def _permutation(seed: int, stream: str, n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_from(seed, "sheet", stream)))


def _data_uri(image: torch.Tensor) -> str:
    buffer = io.BytesIO()
    image_grid(image[None], padding=0, tile=_TILE).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _read_key(key: str | Path | Mapping[str, Any]) -> tuple[str, tuple[str, str], dict[str, dict[str, str]]]:
    """Name of the sheet, the two kinds, and for each trial the kind on each side."""
    where, content = "`key`", key
    if isinstance(key, str | Path):
        path = Path(key) / "key.json" if Path(key).is_dir() else Path(key)
        where = str(path)
        content = read_object(path, MAX_TEXT, error=DataError)
    try:
        found: Any = content
        first, second = found["names"]
        kinds = {str(row["trial"]): {side: row[side] for side in _SIDES} for row in found["trials"]}
        sheet = str(found["sheet"])
        if not all(isinstance(one, str) for one in (first, second)):
            raise TypeError("names must be texts")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} must hold sheet, names and trials, as write_sheet wrote it. Got {error!r}."
        ) from error
    if wrong := [
        trial for trial, sides in kinds.items() if [*sides.values()] not in ([first, second], [second, first])
    ]:
        raise DataError(f'{where}: each trial must have "{first}" on one side and "{second}" on the other. {wrong[:4]}')
    return sheet, (first, second), kinds


def _rows(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    """The rows of a CSV of votes, each with its file and line."""
    text = read_text(path, error=DataError)
    if not text.strip():
        raise DataError(f"{path} must be a CSV file of votes. It is empty.")
    reader = csv.reader(io.StringIO(text))
    for cells in _cells(reader, path):
        place = f"{path}, line {reader.line_num}"
        if reader.line_num == 1:
            if tuple(cells) != COLUMNS:
                raise DataError(f"{place} must be {','.join(COLUMNS)}, with commas. Got {','.join(cells)!r}.")
        elif cells:
            if len(cells) != len(COLUMNS) or not all(cell.strip() for cell in cells):
                raise DataError(
                    f"{place} must hold {', '.join(COLUMNS)}. Got {','.join(cells)!r}; a trial without an answer is "
                    "left out with its whole row."
                )
            yield place, dict(zip(COLUMNS, (cell.strip() for cell in cells)))


def _cells(reader: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
