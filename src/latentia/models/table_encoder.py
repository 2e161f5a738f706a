"""TableEncoder: rows of tables of mixed kinds as vectors for networks, and back without loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.errors import DataError, Size, UsageError, check_arguments, check_choice
from latentia.functional.checks import check_indices
from latentia.functional.scores import (
    categories_of_scores,
    category_scores,
    inner,
    mixture_log_density,
    mixture_scores,
    mixture_values,
)
from latentia.functional.tabular import split_row
from latentia.inference.mixture import fit_mixture
from latentia.models.modeling import ModelMixin

LAYOUTS = ("one_hot", "scores")
_NUMBERS = ("numeric", "integer", "date")
_FITTED_ON = 4000  # rows at most, spread evenly
_TAIL = 1e-3  # weight of a wide component, so that values far from all others keep scores apart


@dataclass
class TableEncoderOutput(BaseOutput):
    """`rows`: encoded rows, (B, D)."""

    rows: Tensor


class TableEncoder(ModelMixin, ConfigMixin):
    r"""The encoding of a table, fitted to rows to train on: \(z = \Phi^{-1}(F(x))\) of numbers, one-hot categories.

    F is the distribution function of a Gaussian mixture, fitted by EM to each column of numbers: each mode becomes a
    part of one standard normal distribution, so that all numbers of an encoded row are N(0, 1) on their own. Values of
    finitely many decimals, whole numbers and dates are placed at random within their interval for training, and
    decoding rounds to them. A column with missing values has a category for them, or a second variable "missing".

    Its parameters are not trained by gradients. They are kept as the bits of float64, which no cast of the pipeline to
    another type changes.

    Args:
        columns: descriptions of the C columns, as `latentia.data.table_columns.TableColumn.to_dict` gives them.
        layout: "one_hot" (default): an encoded row holds all numbers, then the blocks of all categories; or "scores":
            each category is one N(0, 1) number too, a place within its interval of probabilities.
        components: Gaussians of each mixture at most. Default 8.

    Raises:
        UsageError: descriptions that are none; rows of another width.

    Example:
        >>> from latentia.data.mixed import load_mixed_table
        >>> table = load_mixed_table("iris")
        >>> encoder = TableEncoder.fit(table.columns, table.values)
        >>> x = encoder.encode(torch.from_numpy(table.values))
        >>> x.shape, bool((encoder.decode(x) == torch.from_numpy(table.values)).all())
        (torch.Size([150, 7]), True)
    """

    mixtures: Tensor
    shares: Tensor
    ends: Tensor
    unit: Tensor

    @register_to_config
    @check_arguments
    def __init__(self, columns: Sequence[dict], layout: str = "one_hot", components: Size = 8):
        super().__init__()
        check_choice("layout", layout, LAYOUTS)
        if not len(columns) or not all(isinstance(column, Mapping) and "kind" in column for column in columns):
            raise UsageError(f"columns must be descriptions of columns, at least one; got {str(columns)[:200]}.")
        self._numbers = [c for c, column in enumerate(columns) if column["kind"] in _NUMBERS]
        self._classes = [c for c, column in enumerate(columns) if column["kind"] not in _NUMBERS]
        # (column, number of categories, those of missing values included) of each variable of categories
        self._variables = [(c, 2) for c in self._numbers if columns[c].get("missing")]
        self._variables += [
            (c, len(columns[c].get("categories", ())) + bool(columns[c].get("missing"))) for c in self._classes
        ]
        self.counts = [count for _, count in self._variables]
        if any(count < 2 for count in self.counts):
            raise UsageError("columns must have at least two categories each, a missing value included.")
        steps = [_step(columns[c]) for c in self._numbers]
        self._steps = torch.tensor(steps, dtype=torch.float64, device="cpu")
        most = max(self.counts, default=1)
        mixtures = torch.zeros(3, len(self._numbers), components, dtype=torch.float64)
        mixtures[0, :, 0], mixtures[2] = 1, 1
        self.register_buffer("mixtures", _bits(mixtures))  # weights, means, deviations
        self.register_buffer("shares", _bits(torch.ones(len(self.counts), most, dtype=torch.float64)))
        self.register_buffer("ends", _bits(torch.tensor([[-1.0], [1.0]]).double().repeat(1, len(self._numbers))))
        self.register_buffer("unit", torch.ones(()))  # of encoded rows; its dtype is theirs

    # ------------------------------------------------------------ fitting

    @classmethod
    def fit(cls, columns: Sequence[Any], values: Any, layout: str = "one_hot", components: int = 8) -> "TableEncoder":
        """The encoding fitted to rows: mixtures of the numbers, by BIC, and shares of the categories.

        Args:
            columns: `TableColumn`s.
            values: (N, C), float64, NaN where a value is missing.
            layout, components: of the constructor.
        """
        encoder = cls([column.to_dict() for column in columns], layout=layout, components=components)
        x = torch.as_tensor(values).double()
        mixtures, ends = encoder._of_bits("mixtures"), encoder._of_bits("ends")
        for i, c in enumerate(encoder._numbers):
            known = x[:, c][~x[:, c].isnan()]
            if known.min() == known.max():
                name = columns[c].name
                raise DataError(f'column "{name}" is constant in the rows to train on; leave it out with drop_columns.')
            mixtures[:, i] = _fit_mixture(known, components, float(encoder._steps[i]))
            ends[:, i] = torch.stack([known.min(), known.max()])
        shares = torch.zeros_like(encoder._of_bits("shares"))
        for j, indices in enumerate(encoder._indices(x).T):
            counts = indices.bincount(minlength=encoder.counts[j]).double()
            shares[j, : encoder.counts[j]] = (counts + 1e-3) / (counts + 1e-3).sum()  # none is 0
        for name, found in (("mixtures", mixtures), ("ends", ends), ("shares", shares)):
            getattr(encoder, name).copy_(_bits(found))
        return encoder.eval()

    # ------------------------------------------------------------ what it gives

    @property
    def width(self) -> int:
        """D, values of an encoded row."""
        return len(self._numbers) + (sum(self.counts) if self.config.layout == "one_hot" else len(self.counts))

    @property
    def categories(self) -> tuple[int, ...]:
        """Sizes of the one-hot blocks at the end of an encoded row; none of the layout "scores"."""
        return tuple(self.counts) if self.config.layout == "one_hot" else ()

    @property
    def conditions(self) -> list[str]:
        """A name for each category of each variable, "column=value", as rows are conditioned on them."""
        return [f"{self.config.columns[c]['name']}={text}" for c, text in self._named()]

    @property
    def condition_shares(self) -> Tensor:
        """How frequent each of `conditions` is if a variable is drawn first, each with equal probability."""
        shares = self._of_bits("shares")
        return torch.cat([shares[j, :count] / len(self.counts) for j, count in enumerate(self.counts)])

    def encode(self, values: Tensor, u: Tensor | None = None) -> Tensor:
        """Encoded rows (B, D), float64, of values (B, C), NaN where they are missing.

        Args:
            values: float64.
            u: places within intervals, in [0, 1), (B, C); `None` (default): the middle.
        """
        x = self._checked(values)
        u = torch.full_like(x, 0.5) if u is None else inner(u.to(x))
        numbers = x[:, self._numbers]
        gaps, inside = numbers.isnan(), u[:, self._numbers]
        mixtures, steps = self._of_bits("mixtures"), self._steps.to(x.device)
        places = torch.where(gaps, mixtures[1, :, 0], numbers + (inside - 0.5) * steps)
        # A missing number is noise: the same distribution as of the others.
        scores = torch.where(gaps, torch.special.ndtri(inside), mixture_scores(places, *mixtures))
        indices = self._indices(x)
        if self.config.layout == "one_hot":
            blocks = [torch.nn.functional.one_hot(i, k).to(x) for i, k in zip(indices.T, self.counts)]
            return torch.cat([scores, *blocks], 1)
        shares = self._of_bits("shares")
        places = u[:, [c for c, _ in self._variables]]
        columns = [
            category_scores(indices[:, j], shares[j, :count], places[:, j]) for j, count in enumerate(self.counts)
        ]
        return torch.cat([scores, *(column[:, None] for column in columns)], 1)

    def decode(self, rows: Tensor, within: bool = False) -> Tensor:
        """Values (B, C), float64, on the encoder's device, of encoded rows (B, D): the inverse of `encode` for any `u`.

        Args:
            rows: of a block the largest value is the category.
            within: whether numbers are kept between the least and the largest that were there in fitting. Default
                False: a number may be any.
        """
        x = self._checked_rows(rows).double()
        found = x.new_full((len(x), len(self.config.columns)), math.nan)
        numbers, blocks = split_row(x, self.categories)
        if self.config.layout == "scores":
            shares = self._of_bits("shares")
            numbers, scores = x.tensor_split([len(self._numbers)], 1)
            indices = [categories_of_scores(scores[:, j], shares[j, :count]) for j, count in enumerate(self.counts)]
        else:
            indices = [block.argmax(1) for block in blocks]
        if self._numbers:
            values = mixture_values(numbers, *self._of_bits("mixtures"))
            if within:
                low, high = self._of_bits("ends")
                values = values.clamp(low, high)
            scale = self._steps.to(x.device).reciprocal().round()  # whole, so that 3 / 10 is the 0.3 of a file
            values = torch.where(scale.isfinite(), (values * scale).round() / scale, values)
            found[:, self._numbers] = values
        for (c, count), index in zip(self._variables, indices):
            missing = bool(self.config.columns[c].get("missing"))
            gap = index == count - 1 if missing else torch.zeros_like(index, dtype=torch.bool)
            if c in self._numbers:
                found[:, c] = torch.where(gap, math.nan, found[:, c])
            else:
                found[:, c] = torch.where(gap, math.nan, index.double())
        return found

    def forward(self, values: Tensor, return_dict: bool = True) -> TableEncoderOutput | tuple[Tensor]:
        """`encode` in the dtype of the network."""
        rows = self.encode(values).to(self.unit.dtype) * self.unit
        return TableEncoderOutput(rows) if return_dict else (rows,)

    def log_det(self, values: Tensor, u: Tensor) -> Tensor:
        r"""\(\log |\partial z / \partial x|\) of the numbers, and the log-size of each interval: (B,), float64.

        Added to the log-density of `encode(values, u)`, its mean over u is a lower bound of the log-probability of a
        row; the density of those numbers that have no step. In the layout "one_hot" it is of the numbers alone.
        """
        x = self._checked(values)
        numbers, mixtures = x[:, self._numbers], self._of_bits("mixtures")
        gaps, steps = numbers.isnan(), self._steps.to(x.device)
        places = torch.where(gaps, mixtures[1, :, 0], numbers + (inner(u)[:, self._numbers] - 0.5) * steps)
        z = self.encode(values, u)
        normal = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        sizes = mixture_log_density(places, *mixtures) + torch.where(steps > 0, steps, 1).log()
        found = torch.where(gaps, 0.0, sizes).sum(1) - normal[:, : len(self._numbers)].sum(1)
        if self.config.layout == "one_hot":
            return found
        shares, indices = self._of_bits("shares"), self._indices(x)
        for j in range(len(self.counts)):
            found = found + shares[j].log()[indices[:, j]]
        return found - normal[:, len(self._numbers) :].sum(1)

    def category_indices(self, values: Tensor) -> Tensor:
        """The index in `conditions` of each variable's category, int64 (B, S)."""
        starts = torch.tensor([0, *self.counts[:-1]]).cumsum(0) if self.counts else torch.zeros(0)
        return self._indices(self._checked(values)) + starts.long().to(values.device)

    # ------------------------------------------------------------ parts

    def _named(self) -> list[tuple[int, str]]:
        found = []
        for c, count in self._variables:
            column = self.config.columns[c]
            texts = [*column["categories"]] if c in self._classes else ["present"]
            found += [(c, text) for text in [*texts, "missing"][:count]]
        return found

    def _indices(self, x: Tensor) -> Tensor:
        """The category of each variable, int64 (B, S); the last one is a missing value."""
        for c, column in enumerate(self.config.columns):
            gaps = x[:, c].isnan()
            if not column.get("missing") and bool(gaps.any()):
                raise DataError(
                    f'column "{column["name"]}" has a missing value in row {int(gaps.nonzero()[0])}, and none was '
                    "missing in the rows that the encoding was fitted to. Leave such rows out, or train on rows that "
                    "have some."
                )
        columns = []
        for c, count in self._variables:
            gaps = x[:, c].isnan()
            index = gaps.long() if c in self._numbers else torch.where(gaps, float(count - 1), x[:, c]).long()
            check_indices(f'values of column "{self.config.columns[c]["name"]}"', index, count)
            columns.append(index)
        return torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0, dtype=torch.int64)

    def _checked(self, values: Tensor) -> Tensor:
        columns = len(self.config.columns)
        if values.ndim != 2 or values.shape[1] != columns or not values.is_floating_point():
            raise UsageError(f"values must be floats (B, {columns}); got {values.dtype} {tuple(values.shape)}.")
        return values.double()

    def _checked_rows(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise UsageError(f"rows must have shape (B, {self.width}); got {tuple(rows.shape)}.")
        return rows.to(self.unit.device)

    def _of_bits(self, name: str) -> Tensor:
        return getattr(self, name).view(torch.float64).clone()


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int64)


def _step(column: Mapping[str, Any]) -> float:
    decimals = column.get("decimals")
    return 0.0 if decimals is None else 10.0**-decimals


def _fit_mixture(known: Tensor, components: int, step: float) -> Tensor:
    """Weights, means and deviations, (3, K), of a wide Gaussian and up to K - 1 others, as many as BIC says.

    Estimating the Dimension of a Model (Schwarz, 1978, doi:10.1214/aos/1176344136).
    """
    rows = known[torch.linspace(0, len(known) - 1, min(len(known), _FITTED_ON)).long()]
    generator = torch.Generator().manual_seed(0)
    places = rows + (torch.rand(len(rows), generator=generator, dtype=torch.float64) - 0.5) * step
    shift, spread = places.mean(), places.std(correction=0)
    places = ((places - shift) / spread)[:, None]
    different = len(rows.unique())
    best, chosen, worse = math.inf, None, 0
    for k in range(
        1, min(components - 1, max(1, different // 4), max(1, len(rows) // 10)) + 1 if components > 1 else 2
    ):
        fit = fit_mixture(places, k, added_variance=1e-4, max_iterations=60)
        bic = -2 * float(fit.bounds[-1]) * len(rows) + (3 * k - 1) * math.log(len(rows))
        if bic < best:
            best, chosen, worse = bic, fit.model, 0
        else:
            worse += 1
        if worse == 2:
            break
    assert chosen is not None  # the loop runs for one component at least
    found = torch.zeros(3, components, dtype=torch.float64)
    found[2] = 1
    k = len(chosen.weights)
    found[0, :k] = chosen.weights
    found[1, :k] = chosen.means[:, 0] * spread + shift
    found[2, :k] = chosen.covariances[:, 0, 0].sqrt() * spread
    if components > k:
        found[0, :k] *= 1 - _TAIL
        found[:, k] = torch.stack([known.new_tensor(_TAIL), (known.min() + known.max()) / 2, known.max() - known.min()])
    return found
