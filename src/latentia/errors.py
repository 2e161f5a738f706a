"""Errors that say which argument, what rule, what was given and a way out; each kind has its exit code."""

import difflib
import functools
import inspect
import math
import numbers
import re
import shlex
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MOST = 4000  # characters of a message


def printable(text: str) -> str:
    """Escape what is no text for a terminal, such as the codes that set its title or its clipboard, and cut it.

    Names of files, weights and columns come from files of others; a byte of a name that is no UTF-8 is escaped too.

    Example:
        >>> printable("a\\x1b]0;title\\x07b, photos_\\udce9")
        'a\\\\x1b]0;title\\\\x07b, photos_\\\\udce9'
    """
    return escaped(text if len(text) <= _MOST else f"{text[:_MOST]}... ({len(text)} characters)")


def escaped(text: str) -> str:
    """Escape what is no text for a terminal; see `printable`, which also cuts.

    Example:
        >>> escaped("photos\\x1b[2J")
        'photos\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class LatentiaError(ValueError):
    """Something the user can mend. Command lines print the message alone and end with `exit_code`."""

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


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


def explain_os_error(error: OSError) -> str:
    """What the system says, and of which file, as a message.

    Example:
        >>> explain_os_error(OSError(28, "No space left on device", "a.png"))
        'error: No space left on device: a.png.'
    """
    where = "the output of this command" if error.filename is None else error.filename
    return printable(f"error: {error.strerror or error}: {where}.")


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


def check_text(name: str, value: object) -> None:
    """Raises a `UsageError` for a text or path with a zero character, which no system takes; others pass."""
    if "\0" in str(value):
        raise UsageError(f"{name} must hold no zero character; got {str(value)!r}.")


def counted(number: int, what: str) -> str:
    """A number of things, such as "1 image" and "2 images".

    Example:
        >>> counted(1, "image"), counted(2, "image")
        ('1 image', '2 images')
    """
    return f"{number} {what}{'s' * (number != 1)}"


@dataclass(frozen=True)
class Range:
    """The range of a number, declared in its type: `Annotated[int, Range(1)]`.

    Args:
        low, high: the ends; infinite (default): no end there.
        closed: which ends belong to the range: "both" (default), "left", "right" or "neither".
        most: a technical limit of the absolute value, which is said only to who goes beyond it. Default infinite.

    Example:
        >>> Range(0, 1, closed="left").rule()
        'in [0, 1)'
        >>> Range(1, most=2**20).rule()
        'at least 1'
    """

    low: float = -math.inf
    high: float = math.inf
    closed: Literal["both", "left", "right", "neither"] = "both"
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        from_low, to_high = self.closed in ("both", "left"), self.closed in ("both", "right")
        above = self.low <= value if from_low else self.low < value
        below = value <= self.high if to_high else value < self.high
        return _is_finite(value) and above and below and abs(value) <= self.most

    def rule(self, wrong: Iterable[float] = ()) -> str:
        """What a number must be, as words that follow "must be", for the numbers that are not."""
        from_low, to_high = self.closed in ("both", "left"), self.closed in ("both", "right")
        low, high, wrong = format_number(self.low), format_number(self.high), list(wrong)
        if any(_is_finite(value) and abs(value) > self.most for value in wrong):
            return f"at most {format_number(self.most)}"
        if self.high == math.inf:
            rule = f"at least {low}" if from_low else "positive" if self.low == 0 else f"above {low}"
            rule = "finite" if self.low == -math.inf else rule
        elif self.low == -math.inf:
            rule = f"at most {high}" if to_high else f"below {high}"
        else:
            rule = f"in {'[' if from_low else '('}{low}, {high}{']' if to_high else ')'}"
        return rule if rule == "finite" or all(map(_is_finite, wrong)) else f"{rule} and finite"


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an integer may be too large for a float


Size = Annotated[int, Range(1, most=2**20)]  # channels, layers, pixels, tokens: what a network is made of
Count = Annotated[int, Range(1, most=2**40)]  # steps, images
Natural = Annotated[int, Range(0, most=2**40)]
Seed = Annotated[int, Range(0, most=2**63 - 1)]
Positive = Annotated[float, Range(0, closed="neither", most=1e30)]  # within what float32 holds
Weight = Annotated[float, Range(0, most=1e30)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, "left")]  # of dropout, of decay
Finite = Annotated[float, Range(most=1e30)]


def ranges(annotated: Any) -> dict[str, Range]:
    """The ranges that are declared in the types of a function's arguments, or of a class's fields.

    Example:
        >>> def train(steps: Count | None, widths: tuple[Size, ...], name: str): ...
        >>> {name: found.rule() for name, found in ranges(train).items()}
        {'steps': 'at least 1', 'widths': 'at least 1'}
    """
    hints = typing.get_type_hints(annotated, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := range_of(hint)) is not None}


def range_of(hint: Any) -> Range | None:
    """The range in a type, or in a type that it is made of; None if there is none."""
    if isinstance(hint, Range):
        return hint
    parts = (*typing.get_args(hint), *getattr(hint, "__metadata__", ()))
    return next((found for part in parts if (found := range_of(part)) is not None), None)


def check_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: each call checks the numbers that are given against the ranges that their types declare.

    Example:
        >>> @check_arguments
        ... def train(steps: Count = 1): ...
        >>> train(steps=0)
        Traceback (most recent call last):
        latentia.errors.UsageError: steps must be at least 1; got 0.
    """
    signature = inspect.signature(function)
    found: dict[str, Range] = {}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if not found:
            found.update(ranges(function))
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in found:
                check_value(name, value, found[name])
        return function(*args, **kwargs)

    return checked


def check_value(name: str, value: Any, allowed: Range, advice: str = "") -> None:
    """Raises a `UsageError` unless a number, or each of several, is in a range; what is no number passes.

    Args:
        name: what the argument is called.
        value: a number, or several, also nested; `None` means "not given" and passes.
        allowed: the range.
        advice: what to do instead, a sentence that follows the rule. Default none.
    """
    several = isinstance(value, Iterable) and not isinstance(value, str)
    values = list(_numbers(value))
    wrong = [number for number in values if number not in allowed]
    if not wrong:
        return
    each, given = ("each ", tuple(values)) if several else ("", value)
    raise UsageError(f"{name} must {each}be {allowed.rule(wrong)}; got {given}.{advice and ' ' + advice}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, numbers.Real):
        yield float(value) if not isinstance(value, int) else value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for one in value:
            yield from _numbers(one)


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
    rule, given = Range(low, high, closed).rule(), tuple(values) if several else repr(value)
    each = "each " if several else ""
    if integer and not all(isinstance(v, Integral) and not isinstance(v, bool) for v in values):
        rule = "an integer" if rule == "finite" else f"an integer, {rule}"
        raise UsageError(f"{name} must {each}be {rule}; got {given}.{advice and ' ' + advice}")
    if any(isinstance(v, str) or not hasattr(v, "__float__") for v in values):
        rule = "a finite number" if rule == "finite" else f"a number, {rule}"
        raise UsageError(f"{name} must {each}be {rule}; got {given}.{advice and ' ' + advice}")
    check_value(name, value, Range(low, high, closed), advice)
