"""Errors that say which argument, what rule, what was given and a way out; each kind has its exit code."""

import difflib
import re
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


def add_dashes(message: str, arguments: Iterable[str]) -> str:
    """Replace the names of arguments in an error by the flags of a command line, `learning_rate` by `--learning_rate`.

    A library error names arguments as Python does. A name is replaced where it cannot be an ordinary word: at the
    beginning of the message, in backticks, and anywhere if it has an underscore. In quotation marks and in paths it
    stays.

    Args:
        message: of the error.
        arguments: names of all flags of the command.

    Example:
        >>> add_dashes("seed must be at least 0; got -1. Or leave `seed` and train_seed out.", ["seed", "train_seed"])
        '--seed must be at least 0; got -1. Or leave --seed and --train_seed out.'
        >>> add_dashes('the column "train_seed" of data/train_seed.csv is no seed', ["seed", "train_seed"])
        'the column "train_seed" of data/train_seed.csv is no seed'
    """
    names = sorted(arguments, key=len, reverse=True)
    anywhere = [name for name in names if "_" in name]
    if names:
        message = re.sub(rf"`({'|'.join(names)})`", r"--\1", message)
        message = re.sub(rf"\A({'|'.join(names)})(?=\s)", r"--\1", message)
    if anywhere:
        apart = r"\w\-/\\\"'`="
        message = re.sub(rf"(?<![{apart}.])({'|'.join(anywhere)})(?![{apart}(]|\.\w)", r"--\1", message)
    return message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the nearest of `known`, or an empty string.

    Example:
        >>> did_you_mean("lerning_rate", ["learning_rate", "seed"])
        ' Did you mean "learning_rate"?'
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
