"""What the pipelines of all families of tables share: rows in and out, conditions, and the words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.data.mixed import MixedTable, rows_like
from latentia.data.table_columns import TableColumn
from latentia.errors import UsageError, check_choice, did_you_mean
from latentia.functional.interpolation import interpolate
from latentia.models.table_encoder import TableEncoder
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline

OUTPUT_TYPES = ("pandas", "np", "latent")
CHUNK = 512  # rows at once
_TRIES = 2000  # rows that are drawn for one that meets a condition
Where = str | Mapping[str, Any] | None
Test = Callable[[np.ndarray], np.ndarray]


@dataclass
class TableOutput(BaseOutput):
    """`rows`: a pandas DataFrame, a dict of arrays by column, or encoded rows (B, D)."""

    rows: Any


class TablePipeline(DiffusionPipeline):
    """The base of pipelines of tables: a subclass draws encoded rows, `_draw`, and declares its likelihood and latents.

    Rows are taken as a pandas DataFrame, a mapping of columns to arrays, a file, or encoded rows (B, D).
    """

    modality = "table"
    encoder: TableEncoder

    @property
    def columns(self) -> tuple[TableColumn, ...]:
        """The columns of the table."""
        return tuple(TableColumn.of_dict(column) for column in self.encoder.config.columns)

    def _register_encoder(self, encoder: Any) -> None:
        if not isinstance(encoder, TableEncoder):
            raise UsageError(f"encoder must be a TableEncoder; got {type(encoder).__name__}.")
        for column in encoder.config.columns:
            TableColumn.of_dict(column)

    def _draw(self, generators: list[torch.Generator], labels: Tensor | None, **options: Any) -> Tensor:
        """Encoded rows, (B, D), one of each generator; labels are None unless rows are conditioned on categories."""
        raise NotImplementedError

    def _labels(self, generators: list[torch.Generator], tests: Mapping[str, Any]) -> Tensor | None:
        """Of each row the category that it is conditioned on; None for a network that has none."""
        return None

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        where: Where = None,
        generator: Generators = None,
        output_type: str = "pandas",
        return_dict: bool = True,
    ) -> TableOutput | tuple:
        """Sample rows.

        Args:
            batch_size: number of rows; `None` (default): 1.
            where: conditions by column, such as {"region": "north", "age": (20, 30)}, or as a text "region=north,
                age=20..30": rows are drawn until they meet them. `None` (default): none.
            generator: one `torch.Generator` or one per row. The same seed gives the same rows whatever the batch.
            output_type: "pandas" (default), "np", a dict of arrays by column, or "latent", encoded rows (B, D).
            return_dict: `False` returns the tuple `(rows,)`.

        Returns:
            `.rows`.

        Raises:
            UsageError: a column or category that is not known, or conditions that the model hardly ever meets.
        """
        return answer(self._sample(batch_size, where, generator, output_type), return_dict)

    # ------------------------------------------------------------ what calls and words are made of

    def _sample(
        self, batch_size: int | None, where: Where, generator: Generators, output_type: str, **options: Any
    ) -> Any:
        check_choice("output_type", output_type, OUTPUT_TYPES)
        count = count_images(batch_size)
        asked = parse_where(where)
        tests = [(c, test) for name, value in asked.items() for c, test in [self._test(name, value)]]
        generators = image_generators(generator, count)
        found = torch.zeros(count, self.encoder.width, device=self._execution_device)
        values = torch.zeros(count, len(self.columns), dtype=torch.float64, device=found.device)
        pending = list(range(count))
        for _ in range(_TRIES if tests else 1):
            drawn = [generators[i] for i in pending]
            rows = self._draw(drawn, self._labels(drawn, asked), **options)
            decoded = self.encoder.decode(rows, within=True)
            met = np.ones(len(pending), dtype=bool)
            for c, test in tests:
                met &= test(decoded[:, c].cpu().numpy())
            kept = torch.from_numpy(np.flatnonzero(met))
            places = torch.tensor(pending)[kept].to(found.device)
            found[places] = rows[kept.to(rows.device)].to(found)
            values[places] = decoded[kept.to(decoded.device)].to(values.device)
            pending = [i for i, fits in zip(pending, met) if not fits]
            if not pending:
                break
        else:
            said = ", ".join(f"{name}={value}" for name, value in asked.items())
            raise UsageError(
                f"where must be met by one of {_TRIES} rows; {said} is not: the model knows hardly any such rows. Ask "
                "for less, or train on data that have more of them."
            )
        self.maybe_free_model_hooks()
        return found if output_type == "latent" else self._rows(values, output_type)

    def _rows(self, values: Tensor, output_type: str) -> Any:
        table = MixedTable(self.columns, values.cpu().numpy())
        return table.frame() if output_type == "pandas" else table.columns_of()

    def _test(self, name: str, value: Any) -> tuple[int, Test]:
        """The column of a condition, and whether its numbers meet it."""
        names = [column.name for column in self.columns]
        if name not in names:
            raise UsageError(f'where must name columns, {names}; got "{name}".{did_you_mean(name, names)}')
        c = names.index(name)
        column = self.columns[c]
        if not column.is_number:
            text = str(value).lower() if column.of == "boolean" else str(value)
            if text not in column.categories:
                near = did_you_mean(text, column.categories)
                raise UsageError(f'where must be one of {column.categories} for {name}; got "{value}".{near}')
            return c, lambda numbers: numbers == column.categories.index(text)
        low, high = _ends(value) if not isinstance(value, tuple | list) else value
        try:
            ends = [float(self._number(column, end)) for end in (low, high)]
        except (TypeError, ValueError):
            raise UsageError(
                f"where must be a number or two ends for {name}, which is {column.kind}, such as 20..30; got {value!r}."
            ) from None
        if column.kind == "numeric" and ends[0] == ends[1]:
            raise UsageError(
                f"where must have two ends for {name}, whose numbers are hardly ever equal: 1.5..2.5; got {value}."
            )
        least, most = (float(end[self._place(c)]) for end in self.encoder.ends.view(torch.float64))
        if ends[0] > most or ends[1] < least:
            known = [str(column.values_of(np.array([end]))[0]) for end in (least, most)]
            raise UsageError(f"where must lie within {known[0]}..{known[1]} for {name}, as in training; got {value}.")
        return c, lambda numbers: (numbers >= ends[0]) & (numbers <= ends[1])

    def _place(self, c: int) -> int:
        """The place of a column among those of numbers."""
        return sum(column.is_number for column in self.columns[:c])

    @staticmethod
    def _number(column: TableColumn, value: Any) -> float:
        if column.kind != "date":
            return float(value)
        unit = {"day": "D", "second": "s"}.get(column.unit or "day", "us")
        return float(np.array(str(value), dtype=f"datetime64[{unit}]").astype(np.int64))

    def _input(self, rows: Any) -> Tensor:
        """Encoded rows (B, D), float32, of whatever rows are given as."""
        if isinstance(rows, Tensor):
            if rows.ndim != 2 or rows.shape[1] != self.encoder.width or not rows.is_floating_point() or not len(rows):
                raise UsageError(
                    f"rows must be encoded rows (B, {self.encoder.width}) if they are a tensor; got {rows.dtype} "
                    f"{tuple(rows.shape)}."
                )
            return rows.to(self._execution_device, torch.float32)
        return self.encoder.encode(self._values(rows)).float()

    def _values(self, rows: Any) -> Tensor:
        """Values (B, C), float64, of rows."""
        if isinstance(rows, Tensor):
            return self.encoder.decode(self._input(rows))
        table = rows if isinstance(rows, MixedTable) else rows_like(self.columns, rows)
        return torch.from_numpy(table.values).to(self._execution_device)

    def _between(self, a: Any, b: Any, steps: int, mode: str, output_type: str) -> Any:
        ends = [self.encode(rows) for rows in (a, b)]
        if len(ends[0]) != 1 or len(ends[1]) != 1:
            raise UsageError(f"a and b must be one row each; got {len(ends[0])} and {len(ends[1])}.")
        return self.decode(interpolate(ends[0], ends[1], steps, mode), output_type=output_type)

    def _output(self, rows: Tensor, output_type: str) -> Any:
        """Encoded rows as they are asked for."""
        check_choice("output_type", output_type, OUTPUT_TYPES)
        rows = rows.float()
        return rows if output_type == "latent" else self._rows(self.encoder.decode(rows, within=True), output_type)


def check_width(name: str, width: int, encoder: Any) -> None:
    """Raises a `UsageError` unless a network has rows of the width that an encoder gives."""
    if width != encoder.width:
        raise UsageError(f"{name} must have rows of {encoder.width} values, as encoder gives; got {width}.")


def answer(rows: Any, return_dict: bool) -> TableOutput | tuple:
    """What a call returns."""
    return TableOutput(rows) if return_dict else (rows,)


def parse_where(where: Where) -> dict[str, Any]:
    """Conditions by column, of a mapping or of a text such as "region=north, age=20..30".

    Example:
        >>> parse_where("region=north, age=20..30")
        {'region': 'north', 'age': '20..30'}
    """
    if where is None or isinstance(where, Mapping):
        return dict(where or {})
    found = {}
    for part in where.split(","):
        name, sign, value = part.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise UsageError(f'where must be such as "region=north, age=20..30"; got "{where}".')
        found[name.strip()] = value.strip()
    return found


def _ends(value: Any) -> Sequence[Any]:
    low, sign, high = str(value).partition("..")
    return (low, high) if sign else (value, value)
