"""Runs on tables: flags of the data, the rows to train on and those held out, figures and scores on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from latentia.data.mixed import HELD_OUT, MixedTable, load_mixed_table
from latentia.data.shipped_tables import SHIPPED
from latentia.errors import Count, Natural, Range, UsageError
from latentia.evaluation.report.columns import draw_columns
from latentia.evaluation.report.table_report import TableReport, score_table
from latentia.evaluation.table_metrics import Rows, check_table_metrics
from latentia.files.writing import make_folder, write_image
from latentia.models.table_encoder import TableEncoder
from latentia.training.loop import Hook
from latentia.training.progress import Progress

_DRAWN = 2000  # rows of a figure


@dataclass(frozen=True)
class TableArguments:
    """The table."""

    dataset_name: str | None = None
    """A shipped table: iris, wine, breast_cancer or people."""
    train_data_dir: str | None = None
    """A .csv, .tsv or .parquet file whose first line names the columns."""
    label_column: str | None = None
    """Column that scores predict from the others; not given: that of a shipped table, label or target."""
    kinds: tuple[str, ...] = ()
    """Kinds of columns in place of those found: COLUMN=numeric, integer, categorical, boolean or date."""
    drop_columns: tuple[str, ...] = ()
    """Columns that are left out."""
    held_out_share: Annotated[float, Range(0, 1, closed="left")] = HELD_OUT
    """Share of the rows that nothing is trained on, for scores."""
    max_train_samples: Count | None = None
    """Use at most so many rows, spread evenly over the table."""


@dataclass(frozen=True)
class TableEvaluationArguments:
    """Figures and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: Natural = 0
    """Steps between figures of all columns; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores; 0: only at the end."""
    eval_num_samples: Natural = 2000
    """Rows to sample for a score; 0: no score."""
    eval_metrics: tuple[str, ...] = ("ks", "total_variation", "correlation", "detection", "closest")
    """What a score holds, as `latentia evaluate` lists it."""


def open_table(args: TableArguments) -> MixedTable:
    """The table that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir; kinds that are not COLUMN=KIND.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        names = ", ".join(SHIPPED)
        raise UsageError(f"Give dataset_name ({names}) or train_data_dir (a CSV or parquet file); got {given}.")
    if args.dataset_name is not None and args.dataset_name not in SHIPPED:
        raise UsageError(
            f"dataset_name must be one of {', '.join(SHIPPED)} for a table; got {args.dataset_name!r}. A file of your "
            "own: train_data_dir."
        )
    kinds = {}
    for word in args.kinds:
        name, sign, kind = word.rpartition("=")
        if not sign or not name:
            raise UsageError(f"kinds must be such as age=integer; got {word!r}.")
        kinds[name] = kind
    return load_mixed_table(
        args.dataset_name or Path(args.train_data_dir or ""),
        kinds=kinds,
        drop_columns=args.drop_columns,
        label_column=args.label_column,
        max_samples=args.max_train_samples,
    )


def rows_of(table: MixedTable) -> Rows:
    """A table as metrics take it."""
    return Rows(table.columns, table.values, table.target)


class TableValidation:
    """Figures and scores of a run on a table, from its pipeline; what `Validation` is for images.

    Args:
        args: has the groups `output`, `optimization` and `evaluation`.
        train, held_out: the rows that are trained on, and those that are not.
        encoder: of the pipeline.
        pipeline: weights -> pipeline.
        weights: the network that is sampled, put in evaluation mode meanwhile.
    """

    trackers: Sequence[Any] = ()
    pipelines: tuple[str, ...] = ()  # samplers of images: none

    def __init__(
        self,
        args: Any,
        train: MixedTable,
        held_out: MixedTable,
        encoder: TableEncoder,
        pipeline: Callable[[Any], Any],
        weights: Any,
    ):
        self.args, self.train, self.held_out = args, train, held_out
        self.encoder, self.pipeline, self.weights = encoder, pipeline, weights
        self.folder = Path(args.output.output_dir)
        self.report: TableReport | None = None
        check_table_metrics(args.evaluation.eval_metrics)

    def hooks(self) -> list[Hook]:
        return [
            Hook(self.args.evaluation.validation_steps, self.draw),
            Hook(self.args.evaluation.eval_steps, self.score),
        ]

    def check(self) -> None:
        """Draw a few rows: a setting that fails there does so before training."""
        self.sample(4, 0)

    def sample(self, count: int, seed: int) -> Rows:
        """Rows of the pipeline as it is now."""
        training = self.weights.training
        self.weights.eval()
        try:
            pipe = self.pipeline(self.weights).to(self.weights.device)
            found = pipe(count, generator=torch.Generator().manual_seed(seed), output_type="latent").rows
            values = pipe.encoder.decode(found, within=True).cpu().numpy()
        finally:
            self.weights.train(training)
            self.encoder.cpu()  # where the data encodes rows with it
        return Rows(self.train.columns, values, self.train.target)

    def draw(self, progress: Progress) -> None:
        """Save a figure of all columns."""
        make_folder(self.folder / "samples")
        write_image(self.folder / "samples" / f"step-{progress.step:06d}.png", self._figure())

    def finish(self, step: int) -> dict[str, Any]:
        """Write the last figure as grid.png, which the model card shows."""
        make_folder(self.folder / "samples")
        write_image(self.folder / "samples" / "grid.png", self._figure())
        return {}

    def score(self, progress: Progress) -> dict[str, float]:
        """The metrics of `--eval_metrics`, each with that of held-out rows."""
        count = self.args.evaluation.eval_num_samples
        if count < 10 or len(self.held_out) < 10:
            return {}
        rows = self.sample(count, 1)
        applying = [key for key in self.args.evaluation.eval_metrics if self._applies(key)]
        self.report = score_table(rows, rows_of(self.train), rows_of(self.held_out), metrics=applying)
        values = {f"eval/{key}": found.value for key, found in self.report.scores.items()}
        return values | {f"eval/{key}_real": found.real for key, found in self.report.scores.items()}

    def _applies(self, key: str) -> bool:
        numbers = [column.is_number for column in self.train.columns]
        return {
            "ks": any(numbers),
            "total_variation": not all(numbers),
            "train_on_synthetic": self.train.target is not None,
        }.get(key, True)

    def _figure(self) -> Any:
        made = self.sample(_DRAWN, self.args.optimization.seed)
        spread = np.linspace(0, len(self.train) - 1, min(len(self.train), 10 * _DRAWN)).astype(int)
        return draw_columns(rows_of(self.train.take(spread)), made)
