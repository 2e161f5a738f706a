"""Time series and sounds in the commands: sampled into files with a figure, and measured beside held-out real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia.commands.modalities import LONG, MODALITIES, Modality, table_columns
from latentia.commands.output import open_output
from latentia.commands.reference import CONFIG
from latentia.commands.sources import load_pipeline
from latentia.data.order import class_labels_like
from latentia.errors import DataError, UsageError
from latentia.evaluation.report.page import write_page
from latentia.evaluation.report.signal_report import SignalReport
from latentia.evaluation.report.table import text_table
from latentia.files.cache import key_of
from latentia.files.logs import get_logger
from latentia.files.reading import read_object, user_path
from latentia.files.writing import write_json
from latentia.hub.card import add_results
from latentia.rng import seed_from
from latentia.runs.command_line import read_config, with_values

logger = get_logger(__name__)

_MOST = 2000  # signals that are sampled of a source


# ------------------------------------------------------------ generate


@dataclass(frozen=True)
class GeneratedSignals:
    """Sampled time series or sounds.

    Args:
        modality: a key of `MODALITIES`.
        signals: as `latentia.data` holds them.
        recipe: all that is needed to sample them again.
    """

    modality: str
    signals: Any
    recipe: dict[str, Any]

    def text(self) -> str:
        """How many, and of what."""
        return f"{len(self.signals)} {MODALITIES[self.modality].word} of {self.recipe['class']}"

    def save(self, output_dir: str | Path = "outputs/generated", *, overwrite: bool = False) -> list[Path]:
        """Write the signals, a figure, and their recipe as recipes.json; arguments as those of `Generated.save`."""
        with open_output(output_dir, "generate", overwrite) as folder:
            written = MODALITIES[self.modality].write(folder, self.signals)
            write_json(folder / "recipes.json", [self.recipe])
        return written


def generate_signals(pipe: Any, count: int, seed: int, recipe: dict[str, Any], **options: Any) -> GeneratedSignals:
    """Sample a pipeline of time series or sounds.

    Args:
        pipe: the pipeline.
        count: how many.
        seed: the same seed gives the same signals, however many are sampled.
        recipe: facts of the call.
        **options: of the pipeline's call.
    """
    generator = torch.Generator().manual_seed(seed)
    made = getattr(pipe(count, generator=generator, output_type=pipe.modality, **options), pipe.modality)
    return GeneratedSignals(pipe.modality, made, {**recipe, "count": count})


# ------------------------------------------------------------ evaluate and compare


@dataclass(repr=False)
class SignalEvaluation:
    """The result of `evaluate` of a source of time series or sounds.

    Args:
        source: name of what was measured.
        about: facts of it.
        data: facts of the real signals.
        report: every metric.
        made: those that were measured.
        real: those that were trained on.
        modality: a key of `MODALITIES`.
        card: README.md of the saved pipeline, if there is one.
        command: the command line that measured it, for the page.
    """

    source: str
    about: dict[str, Any]
    data: dict[str, Any]
    report: SignalReport
    made: Any
    real: Any
    modality: str
    card: Path | None = None
    command: str | None = None

    def __repr__(self) -> str:
        return f"SignalEvaluation({self.source!r}, {self.report.text()})"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as pages and tables of all sources read them."""
        nothing = dict.fromkeys(("likelihood", "latents", "reconstruction", "noise", "runs_of", "failed"))
        about = {"source": self.source, **self.about, **self.report.to_dict(), **nothing}
        return about | {"data": self.data, "latentia": version("latentia")}

    def text(self) -> str:
        """The table of metrics, for the terminal."""
        return f"{self.report.table()}\n{self.source}: {self.about['class']}"

    def save(
        self, output_dir: str | Path = "outputs/evaluation", *, update_card: bool = False, overwrite: bool = False
    ) -> list[Path]:
        """Write a page, index.html, with its figures, and metrics.json; arguments as those of `Evaluation.save`."""
        with open_output(output_dir, "evaluate", overwrite) as folder:
            write_json(folder / "metrics.json", self.to_dict())
            MODALITIES[self.modality].figures(folder, self.real, self.made)
            write_page([self.to_dict()], folder, self.source, self.command)
        if not update_card:
            return [folder]
        if self.card is None:
            raise UsageError(f"update_card must be left out: {self.source} is no saved pipeline with a README.md.")
        name = str(self.data.get("name"))
        if not add_results(self.card, self.report.for_card(), dataset=name, seed=self.report.seed):
            logger.warning(f"{self.card}: its section Evaluation was changed by hand; only the metadata are new.")
        return [folder, self.card]


class SignalComparison(list[SignalEvaluation]):
    """The `SignalEvaluation` of every source, in order."""

    command: str | None = None  # the command line that measured them, for the page

    def text(self) -> str:
        """The table, for the terminal."""
        return text_table([evaluation.to_dict() for evaluation in self])

    def save(
        self, output_dir: str | Path = "outputs/comparison", title: str = "Comparison", *, overwrite: bool = False
    ) -> list[Path]:
        """Write the page, and for each source a folder with a page of its own; arguments as of `Comparison.save`."""
        with open_output(output_dir, "compare", overwrite) as folder:
            for i, evaluation in enumerate(self):
                replace(evaluation, command=self.command).save(folder / str(i))
            return [write_page([evaluation.to_dict() for evaluation in self], folder, title, self.command)]


def compare_signals(modality: str, sources: Sequence[Any], data: Any = None, **options: Any) -> SignalComparison:
    """Measure several sources of signals against the same real ones; options as for `evaluate_signals`."""
    found = SignalComparison()
    if data is None:
        data = next((s for s in sources if run_of(MODALITIES[modality], s) is not None), None)
    names: list[str] = []
    for source in sources:
        one = evaluate_signals(modality, source, data, **options)
        names.append(one.source)
        count = names.count(one.source)
        found.append(replace(one, source=one.source if count == 1 else f"{one.source} ({count})"))
    return found


def evaluate_signals(
    modality: str,
    source: Any,
    data: Any = None,
    *,
    n: int | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    num_inference_steps: int | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    unused: Mapping[str, Any] | None = None,
) -> SignalEvaluation:
    """Measure signals of a source against real ones: those trained on, and as real-data score those held out.

    Args:
        modality: a key of `MODALITIES`.
        source: a saved pipeline, or one in Python; a file or folder of signals, or signals as `latentia.data` holds
            them; the name of a baseline.
        data: the real signals; `None`: those of the run in the folder of the source, read as that run read them.
        n: signals that are compared; default as many as are held out.
        metrics: keys of the metrics of the modality; default all.
        seed: of the samples and of networks.
        num_inference_steps: network evaluations of a sample; `None`: the pipeline's default.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs; `None`: a GPU if there is one.
        unused: arguments of `evaluate` that are of images, or settings of the data, by name.

    Raises:
        UsageError: no data, an argument of images, or an unknown metric.
        DataError: signals of other channels or of another sampling rate.
    """
    how = MODALITIES[modality]
    settings = signal_settings(how, unused or {})
    real, share = real_signals(how, source, data, settings)
    train, held_out = real.parts(share)
    count = min(_MOST, max(len(train) if how.many else len(held_out), n or 0))
    name, about, made, card = _made(
        modality, source, train, count, seed, num_inference_steps, revision, device, settings
    )
    fingerprint = key_of(
        [modality, real.source["name"], len(real), np.ascontiguousarray(real.values[:64]).tobytes().hex()]
    )
    report = how.score(made, train, held_out, n=n, metrics=metrics, seed=seed, fingerprint=fingerprint)
    facts = {**real.source, "modality": modality, "rows": len(real), "split": "all", "label_names": real.label_names}
    return SignalEvaluation(name, about, facts, report, made, train, modality, card)


def signal_settings(how: Modality, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the data among arguments of `evaluate`."""
    for name, value in given.items():
        if value and name not in how.settings:
            raise UsageError(
                f"{name} must be left out: it is not of {how.word}, which the source makes. Got {value!r}."
            )
    return {name: given[name] for name in how.settings if given.get(name)}


def _own(how: Modality, source: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file of generated signals is read by: those of the data, but for columns that it lacks.

    A long table as `generate` writes it is read as one, whatever the layout of the data.
    """
    given = {name: value for name, value in settings.items() if name != "max_train_samples"}
    named = [name for name in given if name.endswith(("_column", "_columns"))]
    columns = table_columns(source) if given else []
    if LONG <= {*columns}:
        given.pop("layout", None)
    for name in named:
        value = given.pop(name)
        kept = value if isinstance(value, str) else [one for one in value if one in columns]
        if kept and (not isinstance(kept, str) or kept in columns):
            given[name] = kept
    return given


def real_signals(how: Modality, source: Any, data: Any, settings: Mapping[str, Any]) -> tuple[Any, float]:
    """The real signals, and the share of them that is held out."""
    run = next((found for one in (data, source) if (found := run_of(how, one)) is not None), None)
    share = how.arguments().held_out_share if run is None else run.held_out_share
    if how.fits(data):
        return data, share
    named = data is not None and run_of(how, data) is None
    if named and not (run is not None and str(data) in (run.dataset_name, run.train_data_dir)):
        given = dict(settings)
        limit = given.pop("max_train_samples", None)
        return how.load(data, max_samples=limit, **given), share
    if run is None:
        shown = source if isinstance(source, str | Path) else type(source).__name__
        raise UsageError(
            f"data is missing: {shown} is no folder of a run, with a {CONFIG} that names {how.word}. Give a file, or "
            f"one of {', '.join(how.shipped)}."
        )
    try:
        return how.from_flags(replace(run, **settings)), share
    except DataError as error:
        if run.train_data_dir is None or Path(run.train_data_dir).exists():
            raise
        raise DataError(f"{error} The run was trained on it; if it lies elsewhere now, give data.") from error


def run_of(how: Modality, source: Any) -> Any:
    """The flags of the data of a run, from its folder; None of anything else."""
    if not isinstance(source, str | Path) or not (user_path(source) / CONFIG).is_file():
        return None
    path = user_path(source) / CONFIG
    given = {key: value for key, value in read_config(path).items() if key in vars(how.arguments())}

    @dataclass(frozen=True)
    class Flags:
        data: how.arguments = how.arguments()  # type: ignore[name-defined]  # a class of the table above

    found = with_values(Flags(), given, source=str(path)).data
    return found if found.dataset_name or found.train_data_dir else None


def _made(
    modality: str,
    source: Any,
    train: Any,
    count: int,
    seed: int,
    steps: int | None,
    revision: str | None,
    device: Any,
    settings: Mapping[str, Any],
) -> tuple[str, dict[str, Any], Any, Path | None]:
    """Name, facts and signals of a source, and the card of a saved pipeline."""
    how = MODALITIES[modality]
    folder = user_path(source) if isinstance(source, str | Path) else None
    pipe: Any = None
    if isinstance(source, str) and source in how.baselines:
        draw, what = how.baselines[source]
        return source, {"kind": "baseline", "class": what, "path": None}, draw(train, count, seed), None
    if getattr(source, "modality", None) == modality:
        pipe, name = source, type(source).__name__
    elif folder is not None and ((folder / "model_index.json").is_file() or not folder.exists()):
        if str(source) not in how.shipped:
            pipe, name = load_pipeline(source, revision), folder.name or str(source)
            if getattr(pipe, "modality", "image") != modality:
                raise UsageError(f"source must make {how.word}; {source} is a {type(pipe).__name__}.")
    if pipe is None:
        if steps is not None:
            raise UsageError(
                f"num_inference_steps must be left out: {how.word} of a file are not sampled. Got {steps}."
            )
        made = source if how.fits(source) else how.load(source, **_own(how, source, settings))
        name = folder.stem if folder is not None else str(made.source["name"])
        _check_alike(how, name, made, train)
        return name, {"kind": "file", "class": f"{how.word} of a file", "path": None}, made, None
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
    if pipe.num_classes and train.labels is not None:  # classes as often as in the data
        options["class_labels"] = class_labels_like(train.labels, count)
    recipe = {"class": type(pipe).__name__}
    made = generate_signals(pipe, count, seed_from(seed, modality) % 2**62, recipe, **options).signals
    _check_alike(how, name, made, train)
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    about = {
        "kind": "pipeline", "class": type(pipe).__name__, "path": None if folder is None else str(source),
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "training_seconds": None if folder is None else _training_seconds(folder),
        "num_inference_steps": steps,
    }  # fmt: skip
    card = None if folder is None else folder / "README.md"
    order = np.random.default_rng(seed).permutation(len(made))  # the first n are compared: of all classes
    return name, about, made.take(order), card if card and card.is_file() else None


def _check_alike(how: Modality, name: str, made: Any, train: Any) -> None:
    if how.form(made) != how.form(train):
        raise DataError(
            f"{name} has {how.form(made)}, and the data have {how.form(train)}. Give {how.word} of the same form."
        )


def _training_seconds(folder: Path) -> float | None:
    try:
        return float(read_object(folder / "run_summary.json")["training_seconds"])
    except (KeyError, TypeError, ValueError):  # our own errors are ValueErrors
        return None
