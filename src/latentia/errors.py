"""Errors that say which argument, what rule, what was given and a way out; each kind has its exit code."""

import difflib
from collections.abc import Iterable


class LatentiaError(ValueError):
    """Something the user can mend. Command lines print the message alone and end with `exit_code`."""

    exit_code = 1


class UsageError(LatentiaError):
    """A flag, a configuration key or an argument is wrong."""

    exit_code = 2


class NumericsError(LatentiaError):
    """A loss or a gradient norm is not finite."""

    exit_code = 3


class DataError(LatentiaError):
    """A data set cannot be read, or does not hold what was asked of it."""

    exit_code = 4


class CheckpointError(LatentiaError):
    """A checkpoint or a saved network is missing, damaged or of another configuration."""

    exit_code = 5


class HubError(LatentiaError):
    """The Hub did not take or give what was asked."""

    exit_code = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the nearest of `known`, or an empty string.

    Example:
        >>> did_you_mean("lerning_rate", ["learning_rate", "seed"])
        ' Did you mean "learning_rate"?'
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
