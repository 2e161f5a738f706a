"""Errors that say which argument, what rule, what was given and a way out; each kind has its exit code."""

import difflib
import inspect
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


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


class MissingSplitError(DataError):
    """A data set has no split of that name."""


class CheckpointError(LatentiaError, OSError):
    """A checkpoint or a saved network is missing, damaged or of another configuration.

    An `OSError` too, as loaders of diffusers raise: `except OSError` around `from_pretrained` finds it.
    """

    exit_code = 5


class HubError(LatentiaError, OSError):
    """The Hub did not take or give what was asked. An `OSError` too, as those of the Hub's own client are."""

    exit_code = 6


def add_dashes(message: str, arguments: Iterable[str]) -> str:
    """Replace the names of arguments in an error by the flags of a command line, `learning_rate` by `--learning_rate`.

    A library error names arguments as Python does. A name is replaced where it cannot be an ordinary word: at the
    beginning of the message, in backticks, and anywhere if it has an underscore. In quotation marks and in paths it
    stays. A value that is given as in Python, `on_bad_image="skip"`, becomes that of the flag, `--on_bad_image skip`.

    Args:
        message: of the error.
        arguments: names of all flags of the command.

    Example:
        >>> add_dashes("seed must be at least 0; got -1. Or leave `seed` and train_seed out.", ["seed", "train_seed"])
        '--seed must be at least 0; got -1. Or leave --seed and --train_seed out.'
        >>> add_dashes('leave them out with on_bad_image="skip"', ["on_bad_image"])
        'leave them out with --on_bad_image skip'
        >>> add_dashes('the column "train_seed" of data/train_seed.csv is no seed', ["seed", "train_seed"])
        'the column "train_seed" of data/train_seed.csv is no seed'
    """
    names = sorted(arguments, key=len, reverse=True)
    anywhere = [name for name in names if "_" in name]
    if names:
        message = re.sub(rf"(?<![\w\-.])({'|'.join(names)})=(\"[^\"]*\"|True|False|[\d.]*\d)", _as_flag, message)
        message = re.sub(rf"`({'|'.join(names)})`", r"--\1", message)
        message = re.sub(rf"\A({'|'.join(names)})(?=\s)", r"--\1", message)
    if anywhere:
        apart = r"\w\-/\\\"'`="
        message = re.sub(rf"(?<![{apart}.])({'|'.join(anywhere)})(?![{apart}(]|\.\w)", r"--\1", message)
    return message


def _as_flag(found: re.Match[str]) -> str:
    name, value = found.groups()
    if value in ("True", "False"):
        return f"--{name if value == 'True' else f'no_{name}'}"
    return f"--{name} {shlex.quote(value.strip(chr(34)))}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the nearest of `known`, or the only one with these words in it; or an empty string.

    Example:
        >>> did_you_mean("lerning_rate", ["learning_rate", "seed"])
        ' Did you mean "learning_rate"?'
        >>> did_you_mean("steps", ["num_inference_steps", "seed"])
        ' Did you mean "num_inference_steps"?'
    """
    known = list(known)
    longer = [one for one in known if set(name.split("_")) < set(one.split("_"))]
    near = longer if len(longer) == 1 else difflib.get_close_matches(name, known, n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def format_number(value: float, digits: int = 6) -> str:
    """Format a number for a message: a whole number with all its digits, any other rounded.

    Args:
        value: the number; infinity and NaN are allowed.
        digits: significant digits of a number that is not whole. Default 6.

    Example:
        >>> format_number(2**20), format_number(65535.0, 4), format_number(0.123456, 4)
        ('1048576', '65535', '0.1235')
    """
    whole = math.isfinite(value) and value == int(value) and abs(value) < 2**53
    return str(int(value)) if whole else f"{value:.{digits}g}"


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raises a `UsageError` unless `value` is one of `known`; the sentence names them all and the nearest.

    Args:
        name: what the argument is called.
        value: what was given.
        known: what it may be.

    Example:
        >>> check_choice("norm", "batch", ("batch", "group"))
        >>> check_choice("norm", "bach", ("batch", "group"))
        Traceback (most recent call last):
        latentia.errors.UsageError: norm must be one of batch, group; got 'bach'. Did you mean "batch"?
    """
    choices = list(known)
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def check_known(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises a `UsageError` for the first name that is not one of `known`.

    Args:
        owner: what the names are given to.
        given: names of arguments or keys.
        known: those that it takes.

    Example:
        >>> check_known("VAE", ["latent_dims"], ["latent_dim", "norm"])
        Traceback (most recent call last):
        latentia.errors.UsageError: latent_dims is not known to VAE. Did you mean "latent_dim"?
    """
    names = list(known)
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names) or " Leave it out."
            raise UsageError(f"{name} is not known to {owner}.{hint}")


def check_settings(kind: type, settings: Mapping[str, Any]) -> None:
    """Raises a `UsageError` unless settings are of the types by which a constructor annotates them.

    Integers count as real numbers, any sequence but a text as a tuple, and only `True` and `False` as bool. Names and
    types that are not known here pass.

    Args:
        kind: a class; arguments of the constructors of its bases, which it may call, count too.
        settings: values by name.

    Example:
        >>> class Network:
        ...     def __init__(self, channels: int = 1, sizes: int | tuple[int, ...] = (8,)): ...
        >>> check_settings(Network, {"channels": 3, "sizes": [8, 4]})
        >>> check_settings(Network, {"sizes": "8"})
        Traceback (most recent call last):
        latentia.errors.UsageError: sizes must be an integer or a sequence of integers; got '8'.
    """
    hints: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            for name, argument in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
                hints[name] = Union[hints.get(name, argument.annotation), argument.annotation]  # noqa: UP007
    for name, value in settings.items():
        if name in hints and not _fits(value, hints[name]):
            raise UsageError(f"{name} must be {_describe(hints[name])}; got {value!r}.")


_KINDS = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a text", "texts")}
_KINDS |= {bool: ("True or False", "True or False"), NoneType: ("None", "None")}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; of a type that is not known here, any is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (tuple, list, Sequence):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(_fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return hint not in _KINDS or isinstance(value, hint) or (hint is bool and type(value).__name__ == "bool")


def _describe(hint: Any, plural: bool = False) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_describe(one, plural) for one in inner)
    if origin in (tuple, list, Sequence):
        return f"{'sequences' if plural else 'a sequence'} of {_describe(inner[0], True)}"
    return _KINDS[hint][plural]


def check_range(
    name: str,
    value: float | Iterable[float] | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    closed: Literal["both", "left", "right", "neither"] = "both",
    integer: bool = False,
    advice: str = "",
) -> None:
    """Raises a `UsageError` unless `value` is a finite number between `low` and `high`.

    Args:
        name: what the argument is called.
        value: a number, or several, of which each is checked; `None` means "not given" and passes.
        low, high: the ends; infinite (default): no end there.
        closed: which ends belong to the range: "both" (default), "left", "right" or "neither".
        integer: whether it must be an integer. Default False.
        advice: what to do instead, a sentence that follows the rule. Default none.

    Example:
        >>> check_range("dropout", 0.1, 0, 1, closed="left")
        >>> check_range("dropout", 1.0, 0, 1, closed="left")
        Traceback (most recent call last):
        latentia.errors.UsageError: dropout must be in [0, 1); got 1.0.
        >>> check_range("hidden_sizes", (8, 0), 1)
        Traceback (most recent call last):
        latentia.errors.UsageError: hidden_sizes must each be at least 1; got (8, 0).
        >>> check_range("steps", 2.5, 1, integer=True)
        Traceback (most recent call last):
        latentia.errors.UsageError: steps must be an integer, at least 1; got 2.5.
    """
    if value is None:
        return
    several = isinstance(value, Iterable) and not isinstance(value, str)
    values: list[Any] = list(value) if isinstance(value, Iterable) and several else [value]
    finite = all(_is_finite(v) for v in values)
    from_low, to_high = closed in ("both", "left"), closed in ("both", "right")
    if finite and all(
        (low <= v if from_low else low < v)
        and (v <= high if to_high else v < high)
        and (not integer or (isinstance(v, Integral) and not isinstance(v, bool)))
        for v in values
    ):
        return
    lowest, highest = format_number(low), format_number(high)
    if high == math.inf:
        rule = f"at least {lowest}" if from_low else ("positive" if low == 0 else f"above {lowest}")
        rule = "finite" if low == -math.inf else rule
    elif low == -math.inf:
        rule = f"at most {highest}" if to_high else f"below {highest}"
    else:
        rule = f"in {'[' if from_low else '('}{lowest}, {highest}{']' if to_high else ')'}"
    if integer and not all(isinstance(v, Integral) and not isinstance(v, bool) for v in values):
        rule = "an integer" if rule == "finite" else f"an integer, {rule}"
    elif not all(isinstance(v, Real) for v in values) and not finite:
        rule = "a finite number" if rule == "finite" else f"a number, {rule}"
    elif rule != "finite" and not finite:
        rule += " and finite"
    given = tuple(values) if several else repr(value) if isinstance(value, str) else value
    raise UsageError(f"{name} must {'each ' if several else ''}be {rule}; got {given}.{advice and ' ' + advice}")


def _is_finite(value: Any) -> bool:
    """Whether a value is a finite number; a text is none."""
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except TypeError:
        return False
