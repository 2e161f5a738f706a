"""Draw a log-likelihood and the bounds of EM that touch it, computed from data: why EM and VAEs work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from latentia.commands.output import open_output
from latentia.commands.reference import find_reference
from latentia.data import load_table
from latentia.data.tables import is_table
from latentia.errors import Count, DataError, Range, check_arguments
from latentia.evaluation.report.plots import COLORS
from latentia.files.writing import write_figure, write_json
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types
from latentia.inference.bound_curves import BoundCurves, em_bounds


@dataclass(frozen=True)
class Bounds:
    """The result of `bounds`: the curves, and the name of the data."""

    curves: BoundCurves
    data: str

    def text(self) -> str:
        """A line for each iteration of EM."""
        curves = self.curves
        lines = [f"A mean of two Gaussians over the first principal component of {self.data}, nats of a datum:"]
        lines.append(f"{'iteration':>9} {'mean':>10} {'log p':>12} {'slope':>12} {'of the bound':>12} {'its top':>12}")
        for t, theta in enumerate(curves.iterates.tolist()):
            row = f"{t:9} {theta:10.4f} {curves.touched[t]:12.6f} {curves.slopes[t]:12.6f}"
            if t < len(curves.bounds):
                row += f" {curves.bound_slopes[t]:12.6f} {curves.bounds[t].max():12.6f}"
            lines.append(row)
        return "\n".join(lines)

    def save(self, output_dir: str | Path = "outputs/bounds", *, overwrite: bool = False) -> list[Path]:
        """Write bounds.png and bounds.json.

        Args:
            output_dir: where image and numbers go; it must be empty.
            overwrite: delete what an earlier `bounds` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "bounds", overwrite) as folder:
            write_json(folder / "bounds.json", {key: value.tolist() for key, value in vars(self.curves).items()})
            self._draw(folder / "bounds.png")
        return [folder]

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        curves, grid = self.curves, self.curves.grid.numpy()
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        panel = figure.subplots()
        panel.plot(grid, curves.log_likelihood.numpy(), color="black", linewidth=2, label="log-likelihood")
        reach = 0.08 * (grid[-1] - grid[0])
        for t, values in enumerate(curves.bounds):
            color, theta, height = COLORS[t % len(COLORS)], float(curves.iterates[t]), float(curves.touched[t])
            panel.plot(grid, values.numpy(), color=color, label=f"bound with the posterior at iteration {t}")
            ends = [theta - reach, theta + reach]
            slope = float(curves.slopes[t])
            panel.plot(ends, [height - slope * reach, height + slope * reach], color=color, linewidth=1, linestyle="--")
            panel.plot(theta, height, "o", color=color)
            panel.annotate(f"$\\theta^{{({t})}}$", (theta, height), textcoords="offset points", xytext=(4, -14))
        panel.plot(float(curves.iterates[-1]), float(curves.touched[-1]), "*", color="black", markersize=12)
        low, high = float(curves.log_likelihood.min()), float(curves.log_likelihood.max())
        panel.set_ylim(low - 0.35 * (high - low), high + 0.1 * (high - low))
        panel.set(xlabel="$\\theta$, the mean of one component", ylabel="nats of a datum")
        panel.legend(frameon=False, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        write_figure(path, figure, dpi=120)


@check_types
@check_arguments
def bounds(
    data: str,
    *,
    iterations: Annotated[int, Range(1, 20)] = 3,
    max_samples: Count = 2000,
) -> Bounds:
    r"""Draw a log-likelihood and the bounds of EM that touch it, computed from data.

    A mixture of two Gaussians describes the first principal component of the data, in units of its standard deviation.
    One mean is free. Each iteration of EM takes the posterior of the components at its mean, which gives a bound that
    touches the log-likelihood there with equal slope, and goes to the top of that bound.

    Args:
        data: images: digits, emoji, factors, a folder, parquet, or a data set on the Hub; or a table.
        iterations: of EM.
        max_samples: use at most so many images or rows.

    Returns:
        The curves.

    Raises:
        UsageError: a number out of range.
        DataError: data that cannot be read, or that are all equal.

    Example:
        >>> found = bounds("digits", iterations=2, max_samples=100)
        >>> bool((found.curves.bounds <= found.curves.log_likelihood + 1e-12).all())
        True
    """
    if is_table(data):
        name, rows = Path(data).name, load_table(data, max_samples=max_samples).standardized.double()
    else:
        found = find_reference(data, [], {"max_train_samples": max_samples}).images
        name, rows = str(found.source.get("name", found.source["kind"])), from_uint8(found.images.flatten(1)).double()
    centred = rows - rows.mean(0)
    if len(rows) < 2 or not centred.abs().max() > 0:
        raise DataError(f"{name} must hold at least 2 samples that differ; got {len(rows)}.")
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    direction = direction * direction[direction.abs().argmax()].sign()  # else it is of the machine's choice
    values = centred @ direction
    return Bounds(em_bounds((values / values.std())[:, None], iterations=iterations), name)
