"""Settings of a constructor checked against the types of its annotations."""

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin

from latentia.errors import UsageError, check_text

P = ParamSpec("P")
T = TypeVar("T")
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_types(function: Callable[P, T], without: Collection[str] = ()) -> Callable[P, T]:
    """A decorator: each call checks that arguments are of their annotated types, by the rules of `check_settings`.

    Args:
        function: to decorate.
        without: names of arguments that are left to the function, which takes more or says more. Default: none.

    Example:
        >>> @check_types
        ... def train(steps: int = 1): ...
        >>> train(steps=2.5)
        Traceback (most recent call last):
        latentia.errors.UsageError: steps must be an integer; got 2.5.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if not hints:
            hints.update(typing.get_type_hints(inspect.unwrap(function), include_extras=True))
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name not in without and signature.parameters[name].kind not in _SEVERAL:
                _check(name, value, hints.get(name, Any))
        return function(*args, **kwargs)

    return checked


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
        _check(name, value, hints.get(name, Any))


def _check(name: str, value: Any, hint: Any) -> None:
    if isinstance(value, str | Path):
        check_text(name, value)
    if _is_tensor(type(value)) and (value.is_meta or str(value.layout) != "torch.strided"):
        kind = "on the device meta, without values" if value.is_meta else "sparse; give `to_dense()` of it"
        raise UsageError(f"{name} must be a dense tensor of values; got one that is {kind}.")
    if not _fits(value, hint):
        a_list = f' Give ["{value}"].' if isinstance(value, str) and _fits([value], hint) else ""
        raise UsageError(f"{name} must be {_describe(hint)}; got {value!r}.{a_list}")


_KINDS = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a text", "texts")}
_KINDS |= {bool: ("True or False", "True or False"), NoneType: ("None", "None")}
_KINDS |= {Path: ("a path", "paths")}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; of a type that is not known here, any is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (tuple, list, Sequence):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(_fits(one, inner[0]) for one in value)
    if origin is Callable or hint is Callable:
        return callable(value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if _is_tensor(hint):
        return isinstance(value, hint)
    return hint not in _KINDS or isinstance(value, hint) or (hint is bool and type(value).__name__ == "bool")


def _is_tensor(kind: Any) -> bool:
    """Whether a type is torch's, which this file does not import: commands that need none start without."""
    return getattr(kind, "__module__", "") == "torch" and kind.__name__ == "Tensor"


def _describe(hint: Any, plural: bool = False) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe(inner[0], plural)
    if origin in (Union, UnionType):
        return " or ".join(_describe(one, plural) for one in inner)
    if origin in (tuple, list, Sequence):
        return f"{'sequences' if plural else 'a sequence'} of {_describe(inner[0], True)}"
    if origin is Callable or hint is Callable:
        return "functions" if plural else "a function"
    if _is_tensor(hint):
        return "tensors" if plural else "a tensor"
    return _KINDS.get(hint, ("a value", "values"))[plural]
