"""Write a blind comparison for people: an HTML page with pairs of images, one of each from the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentia.commands.evaluate import check_steps, open_from
from latentia.commands.output import check_writable
from latentia.commands.reference import data_options, find_reference
from latentia.commands.sources import Source
from latentia.data import ImageData
from latentia.errors import Count, Seed, Size, check_arguments
from latentia.evaluation import Sheet, write_sheet
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types
from latentia.pipelines.capabilities import Option


@dataclass(frozen=True)
class BlindSheet:
    """The files of a blind comparison.

    Args:
        folder: that holds them.
        files: the page for the raters, a template for votes on paper, and the key.
    """

    folder: Path
    files: Sheet

    def text(self) -> str:
        """What to do with each of the files."""
        return (
            f"{self.files.page}: send this file alone to the raters; it saves votes_NAME.csv.\n"
            f"{self.files.template}: for votes on paper. {self.files.key}: which side is which; keep it from the "
            f"raters.\nThen: latentia votes {self.folder} votes_*.csv"
        )


@check_types
@check_arguments
def sheet(
    source: str | Any,
    data: str | ImageData | None = None,
    *,
    against: str | Any | None = None,
    trials: Count = 50,
    num_inference_steps: Size | None = None,
    seed: Seed = 0,
    output_dir: str | Path = "outputs/sheet",
    **settings: Any,
) -> BlindSheet:
    """Write a blind comparison for people: an HTML page with pairs of images, one of each from the source.

    Args:
        source: a saved pipeline (folder or Hub id), or anything else that `latentia evaluate` takes.
        data: the real images: digits, emoji, factors, a folder, parquet, or a data set on the Hub. If not given, those
            that the source was trained on, read as its run read them.
        against: another source to compare with, instead of the real images.
        trials: pairs to compare; 50 votes give an interval of about ±0.14, 400 of ±0.05.
        num_inference_steps: network evaluations per image, for pipelines that take several; the pipeline's own default
            if not given.
        seed: of the samples, their order and their sides.
        output_dir: where the page, the template and the key go; give raters the page alone.
        **settings: how the data is read, as for `latentia evaluate`.

    Returns:
        The files, and a text that says what to do with them.

    Raises:
        UsageError: a source or setting that is unknown, fewer images than `trials`, or `output_dir` holds another
            sheet.

    Example:
        >>> import tempfile
        >>> sheet("pca", "digits", trials=4, output_dir=tempfile.mkdtemp()).files.page.name
        'sheet.html'
    """
    check_writable(Path(output_dir))
    rivals = [source] if against is None else [source, against]
    reference = find_reference(data, rivals, settings)
    opening = {"seed": seed, "num_inference_steps": num_inference_steps}
    opened = [open_from(one, reference, opening) for one in rivals]
    check_steps(opened, num_inference_steps)

    def sample(chosen: Source) -> tuple[str, Tensor]:
        images = torch.cat([chosen.draw(k, min(k + 100, trials)) for k in range(0, trials, 100)])
        return chosen.name, from_uint8(images)

    name, images = sample(opened[0])
    rival, others = ("real", from_uint8(reference.images.images)) if against is None else sample(opened[1])
    question = {} if against is None else {"question": "Which of the two images looks better?"}
    written = write_sheet(others, images, output_dir, names=(rival, name), trials=trials, seed=seed, **question)
    return BlindSheet(Path(output_dir), written)


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    return data_options()
