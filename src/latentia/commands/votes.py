"""Count the votes of a blind comparison: the fooling rate with its exact binomial interval."""

from collections.abc import Sequence
from pathlib import Path

from latentia.evaluation import Votes, read_votes
from latentia.functional.settings import check_types


@check_types
def votes(folder: str | Path, files: Sequence[str | Path]) -> Votes:
    """Count the votes of a blind comparison: the fooling rate with its exact binomial interval.

    Args:
        folder: what `latentia sheet` wrote.
        files: the CSV files of the raters.

    Returns:
        The rates with their intervals, of all raters together and of each.

    Raises:
        DataError: a file cannot be read, or is of another sheet.

    Example:
        >>> votes("/nowhere", ["votes_eva.csv"])
        Traceback (most recent call last):
        latentia.errors.DataError: ...
    """
    return read_votes(files, folder)
