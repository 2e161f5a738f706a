"""The page that compares models: one table, one picture of all, and what each one made."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { border-bottom: 2px solid #444; vertical-align: bottom; }
td small { color: #777; display: block; }
td.best { font-weight: 600; }
td.floor { color: #555; font-style: italic; }
figure { display: inline-block; margin: 0 1.5rem 1.5rem 0; vertical-align: top; }
figure img { max-width: 100%; } figure.wide img { width: 800px; } figure.tall img { max-height: 560px; }
th small { display: block; font-weight: normal; color: #777; }
figcaption { color: #555; } p.note { color: #555; max-width: 50rem; }
"""
_PICTURES = (  # file, caption, class of the figure
    ("samples", "samples", "tall"),
    ("neighbours", "generated, and the nearest real images", "tall"),
    ("feature_map", "feature map", "wide"),
    ("classes", "classes", "wide"),
)
FACTS = {  # what the table shows of each model beside the metrics
    "parameters": "Parameters",
    "training_seconds": "Training, s",
    "milliseconds_per_image": "Sampling, ms per image",
    "memory_mb": "Memory of sampling, MB",
}
_BETTER = {"lower": "lower", "higher": "higher", "real": "as real", "": ""}


class Cell(NamedTuple):
    """One number of the table: `value` and below it `interval`, as text."""

    value: str
    interval: str = ""
    best: bool = False


class Row(NamedTuple):
    """One line of the table: a cell for each model, and the floor."""

    title: str
    cells: list[Cell]
    floor: Cell
    better: str


def table(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The lines of a comparison.

    Args:
        results: `Evaluation.to_dict()` of each model, of equal n, data and extractor.
    """
    rows = []
    for key in dict.fromkeys(key for result in results for key in result["scores"]):
        scores = [result["scores"].get(key) for result in results]
        one, best = next(filter(None, scores)), _best(scores)
        floor = Cell(number(one["floor"]), _interval(one["floor_low"], one["floor_high"]))
        cells = [
            Cell(number(s["value"]), _interval(s["low"], s["high"]), s is best) if s else Cell("–") for s in scores
        ]
        rows.append(Row(one["title"], cells, floor, _BETTER[one["better"]]))
    if any(result["likelihood"] for result in results):
        bits = [_bits(result["likelihood"]) for result in results]
        rows.append(Row("Bits per dimension", bits, Cell(""), "lower"))
    for key, title in FACTS.items():
        if any(result.get(key) is not None for result in results):
            rows.append(Row(title, [Cell(number(result.get(key))) for result in results], Cell(""), ""))
    return rows


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


def _best(scores: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The best of several scores of one metric; None if there is nothing to compare, or two are equally good."""
    having = [s for s in scores if s]
    rank = {
        "lower": lambda s: s["value"],
        "higher": lambda s: -s["value"],
        "real": lambda s: abs(s["value"] - s["floor"]),
    }
    first, *rest = sorted(having, key=rank[having[0]["better"]])
    return first if rest and rest[0]["value"] != first["value"] else None


def _bits(likelihood: dict[str, Any] | None) -> Cell:
    if not likelihood:
        return Cell("–")
    return Cell(("≤ " if "bound" in likelihood["kind"] else "") + number(likelihood["bits_per_dimension"]))


def conditions(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers rest on, as lines of text."""
    one = results[0]
    data = one["data"]
    real = f"{data.get('name', data['kind'])} ({data.get('split', 'all')})"
    return [
        f"n = {one['n']} of each, against {one['n_real']} images of {real}; "
        f"features: {one['extractor']} {one['extractor_sha256'][:8]}; seed {one['seed']}.",
        *dict.fromkeys(f"{result['source']}: {note}" for result in results for note in result["notes"]),
        *(f"{r['source']}: likelihood {r['likelihood']['kind']}." for r in results if r["likelihood"]),
    ]


def text_table(results: Sequence[dict[str, Any]]) -> str:
    """The comparison for the terminal: a row for each metric, a column for each model and for the real images."""
    lines = [["", *(result["source"] for result in results), "real images", "better"]]
    for row in table(results):
        cells = [f"{cell.value}{'*' if cell.best else ' '}" for cell in row.cells]
        lines.append([row.title, *cells, row.floor.value, row.better])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:])) for line in lines]
    text.insert(1, "─" * len(text[0]))
    return "\n".join(line.rstrip() for line in [*text, *conditions(results), "* the best of those compared"])


def write_page(results: Sequence[dict[str, Any]], folder: str | Path, title: str = "Comparison") -> Path:
    """index.html and comparison.json beside the pictures that `Evaluation.save` left in folders named 0, 1, ...

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
    kinds = [escape(str(result.get("class") or result.get("kind", ""))) for result in results]
    heads = [f"<th>{name}<small>{kind}</small></th>" for name, kind in zip(names, kinds)]
    body = [
        f"<tr><td>{escape(row.title)}</td>{''.join(map(td, row.cells))}"
        f"{td(row.floor, 'floor')}<td>{row.better}</td></tr>"
        for row in table(results)
    ]
    shown = []
    for i, name in enumerate(names):
        shown.append(f"<h2>{name}</h2>")
        for file, caption, kind in _PICTURES:
            if (folder / str(i) / f"{file}.png").exists():
                image = f'<img src="{i}/{file}.png" alt="{caption}, {name}">'
                shown.append(f"<figure class={kind}>{image}<figcaption>{caption}</figcaption></figure>")
    page = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", f"<h1>{escape(title)}</h1>",
        f"<table><tr><th></th>{''.join(heads)}<th>real images<small>at this n</small></th><th>better</th></tr>",
        *body, "</table>",
        *(f'<p class="note">{escape(line)}</p>' for line in conditions(results)),
        '<p class="note">Bold: the best of those compared. Below a value: its 95 % interval. The real images were '
        "measured as the samples were, with n of them held out.</p>",
        '<figure class=wide><img src="precision_recall.png" alt="precision over recall of all models"></figure>',
        *shown, "</html>",
    ]  # fmt: skip
    (folder / "index.html").write_text("\n".join(page) + "\n", encoding="utf-8")
    return folder / "index.html"
