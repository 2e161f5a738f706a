"""Rows of tables in the commands: sampled into a CSV file, and measured beside held-out real rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from latentia.commands.output import open_output
from latentia.commands.reference import CONFIG
from latentia.commands.sources import load_pipeline, modality_of
from latentia.data.mixed import MixedTable, load_mixed_table, rows_like
from latentia.data.shipped_tables import SHIPPED
from latentia.data.tables import SUFFIXES, is_table
from latentia.errors import DataError, UsageError, counted
from latentia.evaluation.report.columns import save_table_figures
from latentia.evaluation.report.page import write_page
from latentia.evaluation.report.table import text_table
from latentia.evaluation.report.table_report import TableReport, score_table
from latentia.evaluation.table_metrics import Rows, check_table_metrics
from latentia.files.cache import key_of
from latentia.files.logs import get_logger
from latentia.files.reading import read_object, user_path
from latentia.files.writing import write_json, write_text
from latentia.hub.card import add_results
from latentia.models.priors import LatentMixture
from latentia.models.table_encoder import TableEncoder
from latentia.pipelines.table_families import TableFlowPipeline
from latentia.rng import seed_from
from latentia.runs.command_line import read_config, with_values
from latentia.runs.tables import TableArguments, open_table, rows_of

logger = get_logger(__name__)

BASELINE = "copula"  # a Gaussian copula fitted to the rows that are trained on
_MOST = 20_000  # rows that are sampled of a source


@dataclass(frozen=True)
class GeneratedRows:
    """Sampled rows.

    Args:
        rows: a pandas DataFrame.
        recipe: all that is needed to sample them again.
    """

    rows: Any
    recipe: dict[str, Any]

    def text(self) -> str:
        """How many, and the first of them."""
        return f"{counted(len(self.rows), 'row')} of {self.recipe['class']}; the first:\n{self.rows.head().to_string()}"

    def save(self, output_dir: str | Path = "outputs/generated", *, overwrite: bool = False) -> list[Path]:
        """Write rows.csv, and their recipe as recipes.json; arguments as those of `Generated.save`."""
        with open_output(output_dir, "generate", overwrite) as folder:
            write_text(folder / "rows.csv", self.rows.to_csv(index=False))
            write_json(folder / "recipes.json", [self.recipe])
        return [folder / "rows.csv"]


def is_of_tables(source: Any, data: Any = None) -> bool:
    """Whether a source, or the data, is a table or makes one.

    Example:
        >>> is_of_tables("outputs/nothing", "iris"), is_of_tables("pca", "digits")
        (True, False)
    """
    return any(
        isinstance(one, MixedTable)
        or hasattr(one, "iloc")
        or getattr(one, "modality", None) == "table"
        or (isinstance(one, str | Path) and _names_table(one))
        for one in (source, data)
    )


def _names_table(name: str | Path) -> bool:
    if str(name) in (*SHIPPED, BASELINE) or modality_of(name) == "table":
        return True
    return str(name).lower().endswith(SUFFIXES) and is_table(name)


@dataclass(repr=False)
class TableEvaluation:
    """The result of `evaluate` of a source of rows.

    Args:
        source: name of what was measured.
        about: facts of it.
        data: facts of the real rows.
        report: every metric.
        rows: those that were measured.
        real: the rows that were trained on.
        card: README.md of the saved pipeline, if there is one.
        command: the command line that measured it, for the page.
    """

    source: str
    about: dict[str, Any]
    data: dict[str, Any]
    report: TableReport
    rows: Rows
    real: Rows
    card: Path | None = None
    command: str | None = None

    def __repr__(self) -> str:
        return f"TableEvaluation({self.source!r}, {self.report.text()})"

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
            save_table_figures(folder, self.real, self.rows)
            write_page([self.to_dict()], folder, self.source, self.command)
        if not update_card:
            return [folder]
        if self.card is None:
            raise UsageError(f"update_card must be left out: {self.source} is no saved pipeline with a README.md.")
        name = str(self.data.get("name"))
        if not add_results(self.card, self.report.for_card(), dataset=name, seed=self.report.seed):
            logger.warning(f"{self.card}: its section Evaluation was changed by hand; only the metadata are new.")
        return [folder, self.card]


class TableComparison(list[TableEvaluation]):
    """The `TableEvaluation` of every source, in order."""

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


def compare_tables(sources: Sequence[Any], data: Any = None, **options: Any) -> TableComparison:
    """Measure several sources of rows against the same real ones; options as for `evaluate_table`."""
    found = TableComparison()
    names: list[str] = []
    for source in sources:
        one = evaluate_table(source, data if data is not None else _data_of(sources), **options)
        names.append(one.source)
        count = names.count(one.source)
        found.append(replace(one, source=one.source if count == 1 else f"{one.source} ({count})"))
    return found


def evaluate_table(
    source: Any,
    data: Any = None,
    *,
    n: int | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    revision: str | None = None,
    device: str | torch.device | None = None,
    unused: Mapping[str, Any] | None = None,
) -> TableEvaluation:
    """Measure rows of a source against a table: those that were trained on, and as real-data score those held out.

    Args:
        source: a saved pipeline of tables, or one in Python; a file of rows, or a DataFrame; "copula", the baseline.
        data: the real rows; `None`: those of the run in the folder of the source, read as that run read them.
        n: rows that are compared; default as many as are held out.
        metrics: keys of `TABLE_METRICS`; default all that apply.
        seed: of the samples and of classifiers.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs; `None`: a GPU if there is one.
        unused: arguments of `evaluate` that are of images, or settings of the table, by name.

    Raises:
        UsageError: no data, an argument of images, or an unknown metric.
        DataError: rows of other columns or with unknown categories.
    """
    check_table_metrics(metrics)
    settings = _settings(unused or {})
    table, share = _real(source, data, settings)
    train, held_out = table.parts(share)
    if len(held_out) < 10:
        raise UsageError(
            f"held_out_share must leave at least 10 rows for the real-data score; {counted(len(held_out), 'row')} of "
            f"{len(table)} are held out."
        )
    count = min(_MOST, max(len(train), n or 0))
    name, about, made, card = _rows(source, train, count, seed, revision, device)
    report = score_table(
        Rows(train.columns, made.values, train.target), rows_of(train), rows_of(held_out), n=n, metrics=metrics,
        seed=seed, fingerprint=key_of(["rows", train.values.tobytes().hex()[:10_000], len(train)]),
    )  # fmt: skip
    facts = {**table.source, "modality": "table row", "rows": len(table), "split": "all", "label_names": None}
    return TableEvaluation(name, about, facts, report, rows_of(made), rows_of(train), card)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the table among arguments of `evaluate`."""
    known = {"label_column", "max_train_samples"}
    for name, value in given.items():
        if value and name not in known and (name, value) != ("layout", "rows"):
            raise UsageError(f"{name} must be left out: it is not of tables, and the source makes rows. Got {value!r}.")
    return {name: given[name] for name in known if given.get(name)}


def _data_of(sources: Sequence[Any]) -> Any:
    """The first source that is a run, whose data all are measured against."""
    return next((s for s in sources if isinstance(s, str | Path) and (user_path(s) / CONFIG).is_file()), None)


def _real(source: Any, data: Any, settings: Mapping[str, Any]) -> tuple[MixedTable, float]:
    """The real rows, and the share of them that is held out."""
    run = _run_of(data) or _run_of(source)
    share = TableArguments().held_out_share if run is None else run.held_out_share
    if isinstance(data, MixedTable):
        return data, share
    if data is not None and _run_of(data) is None:
        same = run is not None and str(data) in (run.dataset_name, run.train_data_dir)
        if not same:
            limit = settings.get("max_train_samples")
            kinds: dict[str, str] = {}
            columns = _columns(source)
            if columns is not None:  # read as the pipeline knows them
                table = rows_like(columns, data, settings.get("label_column"))
                return (table if limit is None else table.take(slice(limit))), share
            label = settings.get("label_column")
            return load_mixed_table(data, kinds=kinds, label_column=label, max_samples=limit), share
    if run is None:
        raise UsageError(
            f"data is missing: {source} is no folder of a run, with a {CONFIG} that names a table. Give a CSV or "
            f"parquet file, or one of {', '.join(SHIPPED)}."
        )
    try:
        return open_table(replace(run, **settings)), share
    except DataError as error:
        if run.train_data_dir is None or Path(run.train_data_dir).exists():
            raise
        raise DataError(f"{error} The run was trained on it; if it lies elsewhere now, give data.") from error


def held_out_rows(source: Any) -> MixedTable | None:
    """The rows that a run did not train on, from its folder; None if it is no run, or held none out."""
    run = _run_of(source)
    if run is None:
        return None
    found = open_table(run).parts(run.held_out_share)[1]
    return found if len(found) else None


def name_of_table(source: Any) -> str | None:
    """The table that a run was trained on; None if the source is no folder of a run."""
    run = _run_of(source)
    return None if run is None else run.dataset_name or run.train_data_dir


def _columns(source: Any) -> Any:
    if getattr(source, "modality", None) == "table":
        return source.columns
    if isinstance(source, str | Path) and modality_of(source) == "table":
        return load_pipeline(source).columns
    return None


def _run_of(source: Any) -> TableArguments | None:
    """The flags of the table of a run, from its folder."""
    if not isinstance(source, str | Path) or not (user_path(source) / CONFIG).is_file():
        return None
    path = user_path(source) / CONFIG
    known = {*vars(TableArguments())}
    given = {key: value for key, value in read_config(path).items() if key in known}

    @dataclass(frozen=True)
    class Flags:
        data: TableArguments = TableArguments()

    found = with_values(Flags(), given, source=str(path)).data
    return found if found.dataset_name or found.train_data_dir else None


def _rows(
    source: Any, train: MixedTable, count: int, seed: int, revision: str | None, device: Any
) -> tuple[str, dict[str, Any], MixedTable, Path | None]:
    """Name, facts and rows of a source, and the card of a saved pipeline."""
    folder = user_path(source) if isinstance(source, str | Path) else None
    pipe: Any = None
    if isinstance(source, str) and source == BASELINE:
        pipe, name = fit_copula(train), BASELINE
    elif getattr(source, "modality", None) == "table":
        pipe, name = source, type(source).__name__
    elif folder is not None and not str(source).lower().endswith(SUFFIXES) and str(source) not in SHIPPED:
        pipe, name = load_pipeline(source, revision), folder.name or str(source)
        if getattr(pipe, "modality", "image") != "table":
            raise UsageError(f"source must make rows of a table; {source} is a {type(pipe).__name__}.")
    if pipe is None:
        made = rows_like(train.columns, source, train.target)
        name = folder.stem if folder is not None else "rows"
        return name, {"kind": "table", "class": "rows of a file", "path": None}, made, None
    if [c.name for c in pipe.columns] != train.names:
        raise DataError(f"{name} makes the columns {[c.name for c in pipe.columns]}, and the data have {train.names}.")
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed_from(seed, "rows"))
    encoded = pipe(count, generator=generator, output_type="latent").rows
    values = pipe.encoder.decode(encoded, within=True).cpu().numpy()
    networks = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module) and p is not pipe.encoder]
    about = {
        "kind": "pipeline" if folder is not None and source != BASELINE else "baseline", "class": type(pipe).__name__,
        "path": str(source) if folder is not None and source != BASELINE else None,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
    }  # fmt: skip
    seconds = None if folder is None else _training_seconds(folder)
    card = None if folder is None else folder / "README.md"
    made = MixedTable(train.columns, values, train.target)
    return name, {**about, "training_seconds": seconds}, made, card if card and card.is_file() else None


def fit_copula(train: MixedTable, seed: int = 0) -> TableFlowPipeline:
    """The Gaussian copula of rows: one Gaussian of their normal scores, of at least 2000 draws of places in intervals.

    Args:
        train: the rows.
        seed: of the places.

    Example:
        >>> fit_copula(load_mixed_table("iris"))(2).rows.shape
        (2, 5)
    """
    encoder = TableEncoder.fit(train.columns, train.values, "scores")
    values = torch.from_numpy(train.values).repeat(-(-2000 // len(train)), 1)
    u = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TableFlowPipeline(encoder, LatentMixture.fit(encoder.encode(values, u), 1))


def _training_seconds(folder: Path) -> float | None:
    try:
        return float(read_object(folder / "run_summary.json")["training_seconds"])
    except (KeyError, TypeError, ValueError):  # our own errors are ValueErrors
        return None
