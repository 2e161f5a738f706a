"""Page of an evaluation or comparison: images of all sources in a row, the table of metrics, and the figures of each.

HTML and CSS alone, without scripts and without anything from the network: what is folded is a `<details>`.
"""

import html
import os
import re
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentia.evaluation.report.style import STYLE, scroll_hint
from latentia.evaluation.report.table import NEAR, Cell, Row, columns, facts, notes, table
from latentia.files.reading import user_path
from latentia.files.writing import write_json, write_text

HEADLINES = 5  # rows that are shown unfolded
_FIGURES = (  # file, heading, what it shows
    ("samples", "Samples", "the first generated images"),
    ("neighbours", "Nearest real images", "generated images, each with its nearest real images"),
    ("columns", "Columns", "distribution of each column, generated and real"),
    ("correlations", "Correlations", "correlations of all numbers and categories, real and generated"),
    ("signals", "Signals", "generated signals beside real ones"),
    ("spectra", "Spectra", "spectra of generated and real signals"),
    ("features", "Features in the plane", "features of generated and real images in the plane"),
    ("classes", "Classes", "share of each class among generated and real images"),
)
_LEVELS = {
    "as real": "as real images: the intervals overlap",
    "near": f"near real images: within {NEAR} half-widths of their range",
    "far": "far from real images",
    "beyond": "better than real images get, as copies can be",
}
_RANKS = {"best": ("★", "the best of those compared"), "tied": ("≈", "tied with the best: their intervals overlap")}
_WIDTH, _MIDDLE = 96, 6  # pixels of a drawn interval: its width, and the height of its axis


def write_page(
    results: Sequence[dict[str, Any]], folder: str | Path, title: str = "Comparison", command: str | None = None
) -> Path:
    """Write index.html beside the images that `save_figures` wrote, and of several results comparison.json.

    Args:
        results: `Evaluation.to_dict()` of each source or run, of equal n, data and extractor. The images of one alone
            lie in the folder itself, those of several in folders named 0, 1, ...
        folder: where it goes.
        title: of the page.
        command: that made the results, to be shown; None if it was none.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    places = [f"{i}/" for i in range(len(results))] if len(results) > 1 else [""]
    if len(results) > 1:
        write_json(folder / "comparison.json", list(results))
    about = {**facts(results), "Date": date.today().isoformat(), "Version": f"latentia {version('latentia')}"}
    listed = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in about.items())
    lines = "".join(f"<li>{_text(line)}</li>" for line in notes(results))
    count = 1 + len(columns(results))
    page = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>", f"<style>{STYLE}{scroll_hint(count)}</style>",
        f"<header><h1>{_text(title)}</h1><dl>{listed}</dl>",
        f"<pre tabindex=0><code>{_text(command)}</code></pre>" if command else "", "</header>", "<main>",
        _gallery(results, folder, places), *_board(results),
        *([f"<h2>Notes</h2><ul class=notes>{lines}</ul>"] if lines else []),
        "<h2>Figures</h2>",
        *_figures(results, folder, places), "</main>", "</html>",
    ]  # fmt: skip
    write_text(folder / "index.html", "\n".join(part for part in page if part) + "\n")
    return folder / "index.html"


def small_table(results: Sequence[dict[str, Any]]) -> str:
    """The table as plain HTML without style, for notebooks.

    Args:
        results: `Evaluation.to_dict()` of each source or run.

    Example:
        >>> from latentia import evaluate
        >>> found = evaluate("pca", "digits", n=20, metrics=["kid"])
        >>> small_table([found.to_dict()]).count("<th>")
        4
    """
    head = "".join(f"<th>{_text(name)}</th>" for name in ("", "real images", *columns(results), "better"))
    lines = [
        f"<tr><td>{_text(row.title)}</td>"
        + "".join(f"<td>{_text(cell.text)}{_below(cell)} {_rank(cell)}</td>" for cell in (row.real, *row.cells))
        + f"<td>{row.better}</td></tr>"
        for row in table(results)
    ]
    about = "; ".join(f"{key.lower()}: {value}" for key, value in facts(results).items())
    return f"<table><tr>{head}</tr>{''.join(lines)}</table><p><small>{_text(about)}</small></p>"


def _text(text: Any) -> str:
    return html.escape(str(text))


def _name(text: Any) -> str:
    """A name that may be broken between its words, as in DiffusionPipeline or runs/ddpm-1."""
    return "<wbr>".join(map(_text, re.split(r"(?<=[:/_.-])(?=.)|(?<=[a-z])(?=[A-Z])", str(text))))


# ------------------------------------------------------------ images of all sources


def _gallery(results: Sequence[dict[str, Any]], folder: Path, places: Sequence[str]) -> str:
    """A row of one image for real images and one for each source, with links to its own page and to its card."""
    first = {name: i for i, name in reversed([*enumerate(r.get("runs_of") or r["source"] for r in results)])}
    data = results[0]["data"]
    kind = _text(data.get("name", data["kind"]))
    cards = [_card(f"{places[0]}real", "Real images", kind, [])]
    for name, runs in columns(results).items():
        i = first[name]
        links = []
        for number, run in enumerate(runs, i):
            label = f" of run {number - i + 1}" if len(runs) > 1 else ""
            if places[number]:
                links.append(f'<a href="{places[number]}index.html">details{label}</a>')
            if run.get("path"):
                target, what = _target(run["path"], folder)
                links.append(f'<a href="{_text(target)}">{what}{label}</a>')
        cards.append(_card(f"{places[i]}samples", name, _kind(runs), links))
    return f'<div class=row role=region aria-label="Images of all sources" tabindex=0>{"".join(cards)}</div>'


def _card(file: str, name: str, kind: str, links: Iterable[str]) -> str:
    image = f'<a href="{file}.png"><img src="{file}_preview.png" alt="images of {_text(name)}"></a>'
    caption = f"<strong>{_name(name)}</strong><small>{kind}</small>{' '.join(links)}"
    return f"<figure class=card>{image}<figcaption>{caption}</figcaption></figure>"


def _kind(runs: Sequence[dict[str, Any]]) -> str:
    kind = _name(runs[0].get("class") or runs[0].get("kind", ""))
    return kind + (f", {len(runs)} runs" if len(runs) > 1 else "")


def _target(path: str, folder: Path) -> tuple[str, str]:
    """The address of a saved pipeline or folder, relative to the page, and what is there."""
    place = user_path(path)
    if not place.exists():
        return f"https://huggingface.co/{quote(path)}", "card"
    card = place / "README.md"
    what, place = ("card", card) if card.is_file() else ("folder" if place.is_dir() else "file", place)
    return quote(os.path.relpath(place.resolve(), folder.resolve()).replace(os.sep, "/")), what


# ------------------------------------------------------------ table


def _board(results: Sequence[dict[str, Any]]) -> list[str]:
    """The headline rows, and below them a folded table for each group of the others; all scroll together."""
    rows = sorted(table(results), key=lambda row: not row.headline)
    rest = rows[HEADLINES:]
    order = list(dict.fromkeys(row.group for row in rest))
    names = "".join(
        f"<th scope=col>{_name(n)}<small>{_kind(runs)}</small></th>" for n, runs in columns(results).items()
    )
    data = results[0]["data"]
    head = (
        "<thead><tr><td></td><th scope=col>Real images<small>real-data score, "
        f"{_text(data.get('name', data['kind']))}</small></th>{names}</tr></thead>"
    )
    parts = [_table(head, rows[:HEADLINES])]
    for group, members in groupby(sorted(rest, key=lambda row: order.index(row.group)), lambda row: row.group):
        lines = list(members)
        titles = _text(", ".join(row.title for row in lines))
        summary = f"<summary><strong>{_text(group)}</strong> <small>{titles}</small></summary>"
        parts.append(f"<details class=group>{summary}{_table(head, lines)}</details>")
    keys = [
        f"<li class={name.replace(' ', '-')}><svg width=12 height=12>{_dot(name, 6)}</svg>{text}</li>"
        for name, text in _LEVELS.items()
    ]
    if len(columns(results)) > 1:
        keys += [f"<li><b>{mark}</b>{text}</li>" for mark, text in _RANKS.values()]
    keys.append("<li><svg width=24 height=12><rect class=band width=24 height=12></rect></svg>real images</li>")
    return [
        "<h2>Metrics</h2>", f"<ul class=keys>{''.join(keys)}</ul>",
        "<p class=hint>More columns to the right: scroll the table sideways →</p>",
        f'<div class=board role=region aria-label="Metrics" tabindex=0 style="--columns:{1 + len(columns(results))}">',
        *parts, "</div>",
    ]  # fmt: skip


def _table(head: str, rows: Sequence[Row]) -> str:
    return f"<table>{head}<tbody>{''.join(map(_row, rows))}</tbody></table>"


def _row(row: Row) -> str:
    better = {"": "", "as real": "best as real images"}.get(row.better, f"{row.better} is better")
    title = (
        f'<details class=term><summary title="{_text(row.meaning)}">{_text(row.title)}</summary>'
        f"<p>{_text(row.meaning)}</p></details>{f'<small>{better}</small>' if better else ''}"
    )
    drawn = [cell for cell in (row.real, *row.cells) if cell.value is not None] if row.real.value is not None else []
    ends = [end for cell in drawn for end in (cell.value, cell.low, cell.high) if end is not None]
    scale = (min(ends), max(ends)) if ends else None
    cells = "".join(_cell(cell, row.real, scale) for cell in row.cells)
    return f"<tr><th scope=row>{title}</th>{_cell(row.real, row.real, scale)}{cells}</tr>"


def _cell(cell: Cell, real: Cell, scale: tuple[float, float] | None) -> str:
    drawn = _interval(cell, real, scale) if scale and cell.value is not None else ""
    names = [cell.level.replace(" ", "-") if cell is not real else "real", cell.rank]
    return f'<td class="{" ".join(names).strip()}">{_rank(cell)}{_text(cell.text)}{_below(cell)}{drawn}</td>'


def _rank(cell: Cell) -> str:
    mark, meaning = _RANKS.get(cell.rank, ("", ""))
    return f'<abbr title="{meaning}">{mark}</abbr>' if mark else ""


def _below(cell: Cell) -> str:
    return f"<small>{_text(cell.spread)}</small>" if cell.spread.startswith("±") else ""


def _interval(cell: Cell, real: Cell, scale: tuple[float, float]) -> str:
    """A drawing: the range of real images, the interval, and a dot whose shape is the level."""
    low, high = scale
    inner = _WIDTH - 2 * _MIDDLE

    def x(value: float) -> float:
        return round(_MIDDLE + inner * (value - low) / ((high - low) or 1), 1)

    parts = []
    if real.low is not None and real.high is not None:
        width = max(2.0, round(x(real.high) - x(real.low), 1))
        parts.append(f"<rect class=band x={x(real.low)} width={width} height={2 * _MIDDLE}></rect>")
    if cell.low is not None and cell.high is not None:
        parts.append(f'<path class=line d="M{x(cell.low)} {_MIDDLE}H{x(cell.high)}"></path>')
    parts.append(_dot("real" if cell is real else cell.level, x(cell.value or 0)))
    said = ". ".join(
        part for part in (cell.spread and f"95 % interval {cell.spread}", _LEVELS.get(cell.level, "")) if part
    )
    size = f"width={_WIDTH} height={2 * _MIDDLE}"
    return f'<svg {size} role=img aria-label="{said}"><title>{said}</title>{"".join(parts)}</svg>'


def _dot(level: str, x: float) -> str:
    """A mark at x: a filled, half or empty circle for as real, near, far; a diamond beyond; a line for real images."""
    y = _MIDDLE
    if level == "real":
        return f'<path class=line d="M{x} 1V{2 * y - 1}"></path>'
    if level == "beyond":
        shape = f'<path class=full d="M{x} {y - 5}l5 5l-5 5l-5 -5z"></path>'
    else:
        kind = "full" if level == "as real" else "ring"
        shape = f"<circle class={kind} cx={x} cy={y} r=4></circle>"
        if level == "near":
            shape += f'<path class=full d="M{x} {y - 4}a4 4 0 0 0 0 8z"></path>'
    return shape


# ------------------------------------------------------------ figures


def _figures(results: Sequence[dict[str, Any]], folder: Path, places: Sequence[str]) -> list[str]:
    """The figures of all sources side by side, a row for each kind; folded if there are several sources."""
    found = []
    if (folder / "precision_recall.png").exists():
        found.append('<figure class=wide><img src="precision_recall.png" alt="precision over recall of all"></figure>')
    for file, heading, what in _FIGURES:
        shown = [
            f'<figure class="{file}"><a href="{place}{file}.png"><img loading=lazy src="{place}{file}.png" '
            f'alt="{what}: {_text(result["source"])}"></a><figcaption>{_text(result["source"])}</figcaption></figure>'
            for place, result in zip(places, results)
            if (folder / place / f"{file}.png").exists()
        ]
        if shown:
            fold = "<details class=figures>" if len(results) > 1 else "<details class=figures open>"
            row = f'<div class=row role=region aria-label="{heading}" tabindex=0>{"".join(shown)}</div>'
            found.append(f"{fold}<summary><strong>{heading}</strong> <small>{what}</small></summary>{row}</details>")
    return found
