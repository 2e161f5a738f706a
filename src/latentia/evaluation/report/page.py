"""Comparison page: one table of all models, one plot of all, and the samples of each."""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { border-bottom: 2px solid #444; vertical-align: bottom; }
td small { color: #777; display: block; }
td.best { font-weight: 600; }
td.real { color: #555; font-style: italic; }
figure { display: inline-block; margin: 0 1.5rem 1.5rem 0; vertical-align: top; }
figure img { max-width: 100%; } figure.wide img { width: 800px; } figure.tall img { max-height: 560px; }
th small { display: block; font-weight: normal; color: #777; }
figcaption { color: #555; } p.note { color: #555; max-width: 50rem; }
"""
_FIGURES = (  # file, caption, class of the figure
    ("samples", "samples", "tall"),
    ("neighbours", "generated images, each with its nearest real images", "tall"),
    ("features", "features in the plane", "wide"),
    ("classes", "classes", "wide"),
)
FACTS = {  # what the table shows of each model beside the metrics
    "parameters": "Parameters",
    "training_seconds": "Training, s",
    "num_inference_steps": "Network evaluations",
    "milliseconds_per_image": "Sampling, ms per image",
    "memory_mb": "Memory of sampling, MB",
}
_BETTER = {"lower": "lower", "higher": "higher", "real": "as real", "": ""}


_LATENTS = (
    "Latents: of {n} {images}; paths lead from the latent of one to that of another, and the last column has plain "
    "cross-fades of them and a probe of raw pixels."
)
_RUNS = (
    "Several runs: mean ± standard deviation over them. A run failed if its Frechet distance is above that of a "
    "Gaussian in the principal components (pca), or if half of the classes or more are missing."
)


class Cell(NamedTuple):
    """One number of the table: `value` and below it `interval`, as text."""

    value: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """One line of the table: a cell for each model, and one for the real-data score."""

    title: str
    cells: list[Cell]
    real: Cell
    better: str


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
        one = next(found[0] for found in scores if found)
        means = [sum(s["value"] for s in found) / len(found) if found else None for found in scores]
        best = _best(means, one["better"], one["real"])
        real = Cell(number(one["real"]), _interval(one["real_low"], one["real_high"]))
        cells = [
            Cell(
                number(mean),
                _interval(s[0]["low"], s[0]["high"]) if len(s) == 1 else _spread([x["value"] for x in s]),
                i == best,
            )
            for i, (s, mean) in enumerate(zip(scores, means))
        ]
        rows.append(Row(one["title"], cells, real, _BETTER[one["better"]]))
    if any(result["likelihood"] for result in results):
        bits = [_bits([run["likelihood"] for run in runs if run["likelihood"]]) for runs in shown]
        rows.append(Row("Bits per dimension", bits, Cell(""), "lower"))
    rows += _latent_rows(shown)
    rows += _reconstruction_rows(shown)
    for key, title in FACTS.items():
        values = [[run[key] for run in runs if run.get(key) is not None] for runs in shown]
        if any(values):
            rows.append(Row(title, [_mean(found) for found in values], Cell(""), ""))
    if any(len(runs) > 1 for runs in shown):
        failed = [[run["failed"] for run in runs if run["failed"] is not None] for runs in shown]
        rows.append(Row("Runs that failed", [_share(found) for found in failed], Cell(""), "lower"))
    return rows


def _latent_rows(shown: Sequence[list[dict[str, Any]]]) -> list[Row]:
    """Path length and probe of the latents, if any run has them; in the last column cross-fades and raw pixels."""
    latents = [[run["latents"] for run in runs if run.get("latents")] for runs in shown]
    one = next((found[0] for found in latents if found), None)
    if one is None:
        return []
    lengths = [_mean([x["path_length"]["mean"] for x in found]) for found in latents]
    rows = [Row("Path length of the latents", lengths, Cell(number(one["fade_length"]["mean"])), "")]
    if one["probe"]:
        probes = [_mean([x["probe"]["mean"] for x in found]) for found in latents]
        rows.append(Row("Linear probe of the latents", probes, Cell(number(one["pixels_probe"]["mean"])), "higher"))
    widths = [_mean([x["dimensions"] for x in found]) for found in latents]
    return [*rows, Row("Dimensions of a latent", widths, Cell(""), "")]


def _reconstruction_rows(shown: Sequence[list[dict[str, Any]]]) -> list[Row]:
    """PSNR, SSIM and distance of reconstructions, if any run has them; in the last column the images themselves."""
    found = [[run["reconstruction"] for run in runs if run.get("reconstruction")] for runs in shown]
    one = next((runs[0] for runs in found if runs), None)
    if one is None:
        return []
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "frechet_distance": "Frechet distance"}
    real = {"frechet_distance": number(one["original_distance"])}
    return [
        Row(
            f"{title} of reconstructions",
            [_mean([run[key] for run in runs]) for runs in found],
            Cell(real.get(key, "")),
            "lower" if key in real else "higher",
        )
        for key, title in titles.items()
    ]


def _mean(values: Sequence[float]) -> Cell:
    """Mean and standard deviation; of one value itself, of none a dash."""
    if not values:
        return Cell("–")
    mean = values[0] if len({*values}) == 1 else sum(values) / len(values)
    return Cell(number(mean), _spread(values))


def _spread(values: Sequence[float]) -> str:
    """The standard deviation over runs, as the `interval` of a cell; nothing if there is no spread."""
    return f"± {number(stdev(values), 2)}" if len({*values}) > 1 else ""


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


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{number(low, 3)} to {number(high, 3)}"


def _best(values: Sequence[float | None], better: str, real: float) -> int | None:
    """Which of several values is the best; None if there is nothing to compare, or two are equally good."""
    rank: dict[str, Callable[[float], float]] = {
        "lower": lambda value: value,
        "higher": lambda value: -value,
        "real": lambda value: abs(value - real),
    }
    first, *rest = sorted((rank[better](value), value, i) for i, value in enumerate(values) if value is not None)
    return first[2] if rest and rest[0][1] != first[1] else None


def _bits(likelihoods: Sequence[dict[str, Any]]) -> Cell:
    if not likelihoods:
        return Cell("–")
    cell = _mean([likelihood["bits_per_dimension"] for likelihood in likelihoods])
    return cell._replace(value=("≤ " if "bound" in likelihoods[0]["kind"] else "") + cell.value)


def conditions(results: Sequence[dict[str, Any]]) -> list[str]:
    """Conditions of the measurement, as lines of text."""
    one = results[0]
    data = one["data"]
    real = f"{data.get('name', data['kind'])} ({data.get('split', 'all')})"
    return [
        f"n = {one['n']} of each, against {one['n_real']} images of {real}; "
        f"features: {one['extractor']} {one['extractor_sha256'][:8]}; seed {one['seed']}.",
        *dict.fromkeys(f"{result['source']}: {note}" for result in results for note in result["notes"]),
        *(f"{r['source']}: likelihood {r['likelihood']['kind']}." for r in results if r["likelihood"]),
        *dict.fromkeys(
            "Reconstructions: of {n} {images}.".format(**r["reconstruction"])
            for r in results
            if r.get("reconstruction")
        ),
        *dict.fromkeys(_LATENTS.format(**r["latents"]) for r in results if r.get("latents")),
        *([_RUNS] if any(len(runs) > 1 for runs in columns(results).values()) else []),
    ]


def text_table(results: Sequence[dict[str, Any]]) -> str:
    """The comparison for the terminal: a row for each metric, a column for each model and for the real-data score."""
    lines = [["", *columns(results), "real data", "better"]]
    for row in table(results):
        cells = [
            f"{cell.value}{f' {cell.interval}' if cell.interval.startswith('±') else ''}{'*' if cell.best else ' '}"
            for cell in row.cells
        ]
        lines.append([row.title, *cells, row.real.value, row.better])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:])) for line in lines]
    text.insert(1, "─" * len(text[0]))
    return "\n".join(line.rstrip() for line in [*text, *conditions(results), "* the best of those compared"])


def write_page(results: Sequence[dict[str, Any]], folder: str | Path, title: str = "Comparison") -> Path:
    """index.html and comparison.json beside the images that `Evaluation.save` wrote in folders named 0, 1, ...

    Args:
        results: `Evaluation.to_dict()` of each model, of equal n, data and extractor.
        folder: where it goes.
        title: of the page.

    Returns:
        The path of the page.
    """
    folder, escape = Path(folder), html.escape
    (folder / "comparison.json").write_text(json.dumps(list(results), indent=1) + "\n", encoding="utf-8")

    def td(cell: Cell, kind: str = "") -> str:
        kind = "best" if cell.best else kind
        below = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
        return f"<td{f' class={kind}' if kind else ''}>{escape(cell.value)}{below}</td>"

    names = [escape(result["source"]) for result in results]
    heads = []
    for name, runs in columns(results).items():
        kind = escape(str(runs[0].get("class") or runs[0].get("kind", "")))
        count = f", {len(runs)} runs" if len(runs) > 1 else ""
        heads.append(f"<th>{escape(name)}<small>{kind}{count}</small></th>")
    body = [
        f"<tr><td>{escape(row.title)}</td>{''.join(map(td, row.cells))}{td(row.real, 'real')}<td>{row.better}</td></tr>"
        for row in table(results)
    ]
    shown = []
    for i, name in enumerate(names):
        shown.append(f"<h2>{name}</h2>")
        for file, caption, kind in _FIGURES:
            if (folder / str(i) / f"{file}.png").exists():
                image = f'<img src="{i}/{file}.png" alt="{caption}, {name}">'
                shown.append(f"<figure class={kind}>{image}<figcaption>{caption}</figcaption></figure>")
    page = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", f"<h1>{escape(title)}</h1>",
        f"<table><tr><th></th>{''.join(heads)}<th>real-data score<small>at this n</small></th><th>better</th></tr>",
        *body, "</table>",
        *(f'<p class="note">{escape(line)}</p>' for line in conditions(results)),
        '<p class="note">Bold: the best of those compared. Below a value: its 95 % interval. The real-data score '
        "is what n held-out real images get in place of the samples.</p>",
        '<figure class=wide><img src="precision_recall.png" alt="precision over recall of all models"></figure>',
        *shown, "</html>",
    ]  # fmt: skip
    (folder / "index.html").write_text("\n".join(page) + "\n", encoding="utf-8")
    return folder / "index.html"
