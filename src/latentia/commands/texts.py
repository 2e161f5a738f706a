"""Evaluation of pipelines that write texts: bits per character of held-out text, and samples beside real text."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from latentia.commands.output import open_output
from latentia.commands.reference import CONFIG
from latentia.data import TextData, load_text
from latentia.errors import UsageError
from latentia.evaluation.report.style import STYLE
from latentia.evaluation.texts import TextReport, score_texts
from latentia.files.logs import get_logger
from latentia.files.reading import user_path
from latentia.files.writing import write_json, write_text
from latentia.hub.card import add_results
from latentia.runs.command_line import read_config

logger = get_logger(__name__)

_COUNT, _LENGTH, _SHOWN = 20, 1000, 4  # texts and characters of each; texts on the page


@dataclass(repr=False)
class TextEvaluation:
    """The result of `evaluate` of a pipeline that writes texts.

    Args:
        source: name of what was measured.
        about: facts of it.
        data: facts of the held-out text.
        report: every score.
        samples: the sampled texts.
        card: README.md of the saved pipeline, if there is one.
        command: the command line that measured it, for the page.
    """

    source: str
    about: dict[str, Any]
    data: dict[str, Any]
    report: TextReport
    samples: list[str]
    card: Path | None = None
    command: str | None = None

    def __repr__(self) -> str:
        return f"TextEvaluation({self.source!r}, {self.report.text()})"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        about = {"source": self.source, **self.about, **self.report.to_dict()}
        return about | {"data": self.data, "latentia": version("latentia")}

    def text(self) -> str:
        """The table of scores for the terminal."""
        return f"{self.source} on the test part of {self.data.get('name')}\n{self.report.text()}"

    def save(
        self, output_dir: str | Path = "outputs/evaluation", *, update_card: bool = False, overwrite: bool = False
    ) -> list[Path]:
        """Write a page, index.html, samples.txt and metrics.json; arguments as those of `Evaluation.save`."""
        with open_output(output_dir, "evaluate", overwrite) as folder:
            write_json(folder / "metrics.json", self.to_dict())
            write_text(folder / "samples.txt", "\n\n----------\n\n".join(self.samples) + "\n")
            write_text(folder / "index.html", self._page())
        if not update_card:
            return [folder]
        if self.card is None:
            raise UsageError(f"update_card must be left out: {self.source} is no saved pipeline with a README.md.")
        metrics = [metric | {"split": "test"} for metric in self.report.for_card()]
        if not add_results(self.card, metrics, dataset=str(self.data.get("name")), seed=self.report.seed):
            logger.warning(f"{self.card}: its section Evaluation was changed by hand; only the metadata are new.")
        return [folder, self.card]

    def _page(self) -> str:
        def cell(value: float | None) -> str:
            return "<td></td>" if value is None else f"<td>{value:.4g}</td>"

        rows = "".join(
            f'<tr><th scope=row title="{html.escape(score.meaning)}">{html.escape(score.title)}'
            f"<small>{score.better}</small></th>{cell(score.real)}{cell(score.value)}</tr>"
            for score in self.report.scores.values()
        )
        texts = "".join(f"<h3>{i + 1}</h3><pre>{html.escape(t)}</pre>" for i, t in enumerate(self.samples[:_SHOWN]))
        title, name = html.escape(self.source), html.escape(str(self.data.get("name")))
        command = "" if self.command is None else f"<pre><code>{html.escape(self.command)}</code></pre>"
        return (
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>'
            f"\n<h1>{title}</h1>\n<p>{html.escape(self.about['class'])} on the test part of {name}, "
            f"{self.data['characters']} characters; latentia {version('latentia')}</p>\n{command}\n<h2>Scores</h2>\n"
            f"<table><tr><td></td><th scope=col>Real text</th><th scope=col>{title}</th></tr>{rows}</table>\n"
            f"<p>The longest sampled span of the training text: {html.escape(repr(self.report.span))}</p>\n"
            f"<h2>Samples</h2>\n{texts}\n</html>\n"
        )


def evaluate_texts(
    pipe: Any,
    source: str,
    data: str | None,
    *,
    n: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    unused: Mapping[str, Any],
) -> TextEvaluation:
    """Measure a pipeline that writes texts.

    Args:
        pipe: the pipeline.
        source: its folder or name.
        data: a text as for `load_text`; `None`: that of the run in the folder.
        n: texts to sample, of 1000 characters each; `None`: 20.
        seed: of the samples.
        device: where it runs; `None`: a GPU if there is one.
        unused: arguments of `evaluate` that are of images, as they were given, by name.

    Raises:
        UsageError: an argument of images, or no text named and no run in the folder.
        DataError: the text cannot be read, is too short, or has characters that the vocabulary does not hold.
    """
    for name, value in unused.items():
        if value:
            raise UsageError(f"{name} must be left out: {type(pipe).__name__} writes texts. Got {value!r}.")
    training, test = (_part(pipe, source, data, split) for split in (None, "test"))
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)
    count, held_out = _COUNT if n is None else n, test.text
    samples = pipe(count, length=_LENGTH, generator=torch.Generator().manual_seed(seed)).texts
    real = [held_out[i : i + _LENGTH] for i in range(0, min(len(held_out), count * _LENGTH), _LENGTH)]
    bits = pipe.bits_per_character(held_out).item()
    report = score_texts(samples, training.text, real, bits, seed)
    folder = user_path(source)
    about = {
        "kind": "pipeline", "class": type(pipe).__name__, "path": source,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
    }  # fmt: skip
    card = folder / "README.md"
    return TextEvaluation(
        folder.name or source, about, test.describe(), report, samples, card if card.is_file() else None
    )


def _part(pipe: Any, source: str, data: str | None, split: str | None) -> TextData:
    """A part of the text that `data` names or the run was trained on; `None`: the part that it was trained on."""
    path = user_path(source) / CONFIG
    found = read_config(path) if path.is_file() else {}
    name = data or found.get("train_data_dir") or found.get("dataset_name")
    if name is None:
        raise UsageError(f"data is missing: {source} is no folder of a run, with a {CONFIG} that names a text.")
    same = data is None or data in (found.get("train_data_dir"), found.get("dataset_name"))
    return load_text(
        str(name),
        1,
        split=split or str(found.get("split") or "train"),
        text_column=found.get("text_column") if same else None,
        vocabulary=pipe.config.vocabulary,
        unknown_character=pipe.config.unknown_character,
    )
