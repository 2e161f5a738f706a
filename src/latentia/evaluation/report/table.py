"""Rows of a comparison: for every metric and fact a cell for each model and one for real images."""

from collections.abc import Callable, Sequence
from statistics import stdev
from typing import Any, NamedTuple

from latentia.evaluation.metrics import METRICS
from latentia.evaluation.series_metrics import SERIES_METRICS
from latentia.evaluation.sound_metrics import SOUND_METRICS
from latentia.evaluation.table_metrics import TABLE_METRICS
from latentia.evaluation.translation import SCORES

NEAR = 10  # a value within so many half-widths of the range of real images is near it


class Fact(NamedTuple):
    """What the table shows of each model beside the metrics: title, meaning, and whether a page shows it first."""

    title: str
    meaning: str
    headline: bool = False


FACTS = {
    "parameters": Fact("Parameters", "Weights of all networks of the pipeline."),
    "training_seconds": Fact("Training, s", "Seconds of training, from the summary of its run."),
    "num_inference_steps": Fact("Network evaluations", "Steps of the sampler for an image."),
    "milliseconds_per_image": Fact("Sampling, ms per image", "Time to sample, divided by the number of images.", True),
    "memory_mb": Fact("Memory of sampling, MB", "How far memory rose while sampling."),
}
_BETTER = {"lower": "lower", "higher": "higher", "real": "as real", "": ""}
_LATENTS = (
    "Latents: of {n} {images}; paths lead from the latent of one to that of another, and the column of real images has "
    "plain cross-fades of them and a probe of raw pixels."
)
_RUNS = "Several runs: mean ± standard deviation over them. "
_FAILED = (
    "A run failed if its Frechet distance is above that of a Gaussian in the principal components (pca), or if half of "
    "the classes or more are missing."
)
_LENGTH = "How far features move along a path between two latents; in the column of real images, of cross-fades."
_PROBE = "Accuracy of a linear classifier on the latents; in the column of real images, on raw pixels."
_RECONSTRUCTIONS = {
    "psnr": ("PSNR, dB", "Peak signal-to-noise ratio: squared error of the pixels, on a logarithmic scale."),
    "ssim": ("SSIM", "Likeness of local means, contrasts and structures; 1 for equal images."),
    "frechet_distance": ("Frechet distance", "Fréchet distance between reconstructions and real images (rFID)."),
}
_MARKS = {"best": "*", "tied": "=", "": " "}


class Cell(NamedTuple):
    """One number of the table.

    Args:
        text: the number.
        spread: its interval, "1.2 to 3.4", or its standard deviation over runs, "± 0.3".
        value, low, high: number and interval, for drawing and for ties; None where there are none.
        rank: "best" of those compared, "tied" with the best, as their intervals overlap, or neither.
        level: "as real", where its interval overlaps the range of real images; "beyond" it, on the better side; "near",
            within 10 half-widths of it; else "far". Empty where real images have no score.
    """

    text: str = "–"
    spread: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    rank: str = ""
    level: str = ""


class Row(NamedTuple):
    """One line of the table: a cell for each model, and one for the real-data score."""

    title: str
    cells: list[Cell]
    real: Cell
    better: str
    group: str
    meaning: str
    headline: bool = False


_KNOWN = {**METRICS, **TABLE_METRICS, **SERIES_METRICS, **SOUND_METRICS}


def columns(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Columns of the table: name to its results, several where they are runs of one model."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result.get("runs_of") or result["source"], []).append(result)
    return found


def table(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows of a comparison: a cell for each of its `columns`, of several runs their mean and standard deviation.

    Args:
        results: `Evaluation.to_dict()` of each run, of equal n, data and extractor.
    """
    rows, shown = [], list(columns(results).values())
    for key in dict.fromkeys(key for result in results for key in result["scores"]):
        scores = [[run["scores"][key] for run in runs if key in run["scores"]] for runs in shown]
        one, metric = (
            next(found[0] for found in scores if found),
            _KNOWN[key],
        )
        real = _measured(one["real"], one["real_low"], one["real_high"])
        cells = [
            _measured(s[0]["value"], s[0]["low"], s[0]["high"]) if len(s) == 1 else _mean([x["value"] for x in s])
            for s in scores
        ]
        ranked = cells if _noise_wins(results[0], key) else _ranked(cells, one["better"], one["real"])
        cells = [_levelled(cell, real, one["better"]) for cell in ranked]
        better = _BETTER[one["better"]]
        rows.append(Row(one["title"], cells, real, better, metric.group, metric.meaning, metric.headline))
    if any(result.get("likelihood") for result in results):
        bits = [_bits([run["likelihood"] for run in runs if run["likelihood"]]) for runs in shown]
        meaning = "Negative log-likelihood of held-out images in bits for each value of a pixel."
        rows.append(Row("Bits per dimension", bits, Cell(""), "lower", "Likelihood", meaning))
    rows += _latent_rows(shown)
    rows += _reconstruction_rows(shown)
    rows += _translation_rows(shown)
    for key, fact in FACTS.items():
        values = [[run[key] for run in runs if run.get(key) is not None] for runs in shown]
        if any(values):
            cells = [_mean(found) for found in values]
            rows.append(Row(fact.title, cells, Cell(""), "", "Cost", fact.meaning, fact.headline))
    if any(len(runs) > 1 for runs in shown):
        failed = [[run["failed"] for run in runs if run["failed"] is not None] for runs in shown]
        cells = [_share(found) for found in failed]
        rows.append(Row("Runs that failed", cells, Cell(""), "lower", "Cost", _FAILED))
    return rows


def _latent_rows(shown: Sequence[list[dict[str, Any]]]) -> list[Row]:
    """Path length and probe of the latents, if any run has them; as real-data score cross-fades and raw pixels."""
    latents = [[run["latents"] for run in runs if run.get("latents")] for runs in shown]
    one = next((found[0] for found in latents if found), None)
    if one is None:
        return []
    lengths = [_mean([x["path_length"]["mean"] for x in found]) for found in latents]
    rows = [
        Row("Path length of the latents", lengths, Cell(number(one["fade_length"]["mean"])), "", "Latents", _LENGTH)
    ]
    if one["probe"]:
        probes = [_mean([x["probe"]["mean"] for x in found]) for found in latents]
        rows.append(
            Row(
                "Linear probe of the latents",
                probes,
                Cell(number(one["pixels_probe"]["mean"])),
                "higher",
                "Latents",
                _PROBE,
            )
        )
    widths = [_mean([x["dimensions"] for x in found]) for found in latents]
    return [*rows, Row("Dimensions of a latent", widths, Cell(""), "", "Latents", "Values of a latent.")]


def _reconstruction_rows(shown: Sequence[list[dict[str, Any]]]) -> list[Row]:
    """PSNR, SSIM and distance of reconstructions, if any run has them; as real-data score the images themselves."""
    found = [[run["reconstruction"] for run in runs if run.get("reconstruction")] for runs in shown]
    one = next((runs[0] for runs in found if runs), None)
    if one is None:
        return []
    real = {"frechet_distance": number(one["original_distance"])}
    return [
        Row(
            f"{title} of reconstructions",
            [_mean([run[key] for run in runs]) for runs in found],
            Cell(real.get(key, "")),
            "lower" if key in real else "higher",
            "Reconstructions",
            meaning,
        )
        for key, (title, meaning) in _RECONSTRUCTIONS.items()
    ]


def _translation_rows(shown: Sequence[list[dict[str, Any]]]) -> list[Row]:
    """Scores of translations, if any run has them, with those of the baselines in words."""
    found = [[run["translation"]["scores"] for run in runs if run.get("translation")] for runs in shown]
    one = next((runs[0] for runs in found if runs), None)
    if one is None:
        return []
    rows = []
    for key, (title, better) in SCORES.items():
        values = [[scores["model"][key] for scores in runs if key in scores["model"]] for runs in found]
        if not any(values):
            continue
        beside = [f"{name} {number(scores[key])}" for name, scores in one.items() if name != "model" and key in scores]
        meaning = f"Baselines: {', '.join(beside)}." if beside else "There is no baseline."
        direction = better if better in ("lower", "higher") else ""
        rows.append(
            Row(f"{title} of translations", [_mean(x) for x in values], Cell(""), direction, "Translations", meaning)
        )
    return rows


def _mean(values: Sequence[float]) -> Cell:
    """Mean and standard deviation; of one value itself, of none a dash."""
    if not values:
        return Cell()
    mean = values[0] if len({*values}) == 1 else sum(values) / len(values)
    half = stdev(values) if len({*values}) > 1 else 0.0
    return Cell(number(mean), f"± {number(half, 2)}" if half else "", mean, mean - half, mean + half)


def _share(failed: Sequence[bool]) -> Cell:
    return Cell(f"{sum(failed)} of {len(failed)}" if failed else "–")


def number(value: float | int | None, digits: int = 4) -> str:
    """`value` with at most `digits` digits, without an exponent where none is needed; a dash for None.

    Example:
        >>> number(0.123456), number(1234567), number(None)
        ('0.1235', '1,234,567', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _measured(value: float, low: float | None, high: float | None) -> Cell:
    """A number with its 95 % interval, where it has one."""
    spread = "" if low is None else f"{number(low, 3)} to {number(high, 3)}"
    return Cell(number(value), spread, value, low, high)


def _noise_wins(result: dict[str, Any], key: str) -> bool:
    """Whether some noise gets as much as real images do, so that to have the most is no merit."""
    noise, score = result.get("noise"), result["scores"].get(key)
    if not noise or score is None or score["better"] != "higher":
        return False
    return any(scores.get(key, -1.0) >= score["real"] for scores in noise["scores"].values())


def _ranked(cells: Sequence[Cell], better: str, real: float) -> list[Cell]:
    """Cells with the best one marked, or those that are tied with it; none where all are tied, or there is but one."""
    cost: dict[str, Callable[[float], float]] = {
        "lower": lambda value: value,
        "higher": lambda value: -value,
        "real": lambda value: abs(value - real),
    }
    costs = {}
    for i, cell in enumerate(cells):
        if cell.value is not None:
            low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
            ends = [cost[better](low), cost[better](high)]
            floor = 0.0 if better == "real" and low <= real <= high else min(ends)
            costs[i] = (cost[better](cell.value), floor, max(ends))
    if len(costs) < 2:
        return list(cells)
    best = min(costs.values())
    tied = {i for i, (_, low, high) in costs.items() if low <= best[2] and best[1] <= high}
    if len(tied) == len(costs):
        return list(cells)
    mark = "tied" if len(tied) > 1 else "best"
    return [cell._replace(rank=mark if i in tied else "") for i, cell in enumerate(cells)]


def _levelled(cell: Cell, real: Cell, better: str) -> Cell:
    """The cell with its level, see `Cell`."""
    if cell.value is None or real.value is None or real.low is None or real.high is None:
        return cell
    low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
    if low <= real.high and high >= real.low:
        return cell._replace(level="as real")
    if better != "real" and (cell.value < real.value) == (better == "lower"):
        return cell._replace(level="beyond")
    near = abs(cell.value - real.value) <= NEAR * (real.high - real.low) / 2
    return cell._replace(level="near" if near else "far")


_OTHER_VALUES = {"binarisation": "binarised", "of the codes": "codes", "fewer levels": "levels"}


def _bits(likelihoods: Sequence[dict[str, Any]]) -> Cell:
    if not likelihoods:
        return Cell()
    cell = _mean([likelihood["bits_per_dimension"] for likelihood in likelihoods])
    kind = likelihoods[0]["kind"]
    # Of other values than the bytes of pixels: no such number compares with the others of its row.
    mark = next((f" ({mark})" for word, mark in _OTHER_VALUES.items() if word in kind), "")
    return cell._replace(text=("≤ " if "bound" in kind else "") + cell.text + mark)


def facts(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Conditions that are equal for all sources: label to text."""
    one = results[0]
    data = one.get("data", {})
    kind = "rows" if data.get("modality") == "table row" else "images"
    named = [data.get("name", data["kind"]), f"({data.get('split', 'all')}),"] if data else []
    return {
        "Data": " ".join(map(str, [*named, one["n_real"], kind])),
        "Samples": f"{one['n']} of each",
        "Features": f"{one['extractor']} {one['extractor_sha256'][:8]}",
        "Seed": str(one["seed"]),
    }


def notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader should know of single sources and rows, as lines of text."""
    return [
        *dict.fromkeys(f"{result['source']}: {note}" for result in results for note in result["notes"]),
        *(f"{r['source']}: likelihood {r['likelihood']['kind']}." for r in results if r["likelihood"]),
        *dict.fromkeys(
            "Reconstructions: of {n} {images}.".format(**r["reconstruction"])
            for r in results
            if r.get("reconstruction")
        ),
        *dict.fromkeys(_LATENTS.format(**r["latents"]) for r in results if r.get("latents")),
        *([_RUNS + _FAILED] if any(len(runs) > 1 for runs in columns(results).values()) else []),
    ]


def text_table(results: Sequence[dict[str, Any]]) -> str:
    """The comparison for the terminal: a row for each metric, a column for each model and for the real-data score."""
    lines = [["", *columns(results), "real data", "better"]]
    for row in table(results):
        cells = [
            f"{cell.text}{f' {cell.spread}' if cell.spread.startswith('±') else ''}{_MARKS[cell.rank]}"
            for cell in row.cells
        ]
        lines.append([row.title, *cells, row.real.text, row.better])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:])) for line in lines]
    text.insert(1, "─" * len(text[0]))
    about = "n = {Samples}, against {Data}; features: {Features}; seed {Seed}.".format(**facts(results))
    legend = "* the best of those compared; = tied with the best: their intervals overlap"
    return "\n".join(line.rstrip() for line in [*text, about, *notes(results), legend])
