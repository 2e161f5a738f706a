"""The command `latentia NAME ...`: the function `latentia.commands.NAME`, called with what its signature asks for.

The command line is built from the signature and the docstring: arguments without a default are positional, the others
are flags, and what only Python can give (tensors, functions) is left out. If the result has a `save`, its arguments are
flags too, and it is called. Only the command that runs is imported, so that `latentia --help` is instant.
"""

import inspect
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from latentia import commands
from latentia.errors import LatentiaError, UsageError, add_dashes, did_you_mean, escaped, explain_os_error, ranges
from latentia.files.reading import read_text

_TYPED = (str, int, float, bool, Path, type(None))


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `latentia`."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags: list[str] = []
    try:
        if words[:1] == ["--version"]:
            print(f"latentia {version('latentia')}")
        elif not words or words[0] in ("-h", "--help"):
            print(overview())
            sys.exit(0)
        elif code := run(words[0], words[1:], flags):
            sys.exit(code)
        print(end="", flush=True)  # here, where a closed pipe is no traceback
    except LatentiaError as error:
        print(f"error: {add_dashes(str(error), flags)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:  # a command may say what is done
        print(add_dashes(" ".join(["Stopped.", *map(str, stop.args)]), ["overwrite"]), file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # of the disk; where it names no file, of the output
        broken = isinstance(error, BrokenPipeError)  # who read the output has seen enough, such as `| head`
        if not broken:
            print(explain_os_error(error), file=sys.stderr)
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it fails again when Python ends
        sys.exit(141 if broken else UsageError.exit_code)


def overview() -> str:
    """The commands, with the first line of each one's file.

    Example:
        >>> "\\n  evaluate  " in overview()
        True
    """
    width = max(map(len, commands.__all__))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in commands.__all__]
    return "\n".join(
        [
            "usage: latentia COMMAND [OPTIONS]    latentia COMMAND --help shows the options of a command",
            "\nEvery family of generative and representation learning behind the interface of diffusers.\n",
            *lines,
            "\n  --version  the version of latentia",
        ]
    )


def run(name: str, words: Sequence[str], flags: list[str]) -> int:
    """Run one command.

    Args:
        name: of the command.
        words: what follows it on the command line.
        flags: is filled with the names of the command's flags, also if it fails.

    Returns:
        The exit code.

    Raises:
        UsageError: there is no such command.
        SystemExit: a flag is wrong, or help was asked for.
    """
    _check_current_folder()
    if name not in commands.__all__:
        raise UsageError(f'There is no command "{name}".{did_you_mean(name, commands.__all__)}\n{overview()}')
    function = getattr(commands, name)
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds
    if inspect.Parameter.VAR_POSITIONAL in kinds and words and not words[0].startswith("-"):
        result, saving = function(*words), {}  # the words are another program's
    else:
        saver = getattr(typing.get_type_hints(function).get("return"), "save", None)
        known, saved = arguments(function), {} if saver is None else arguments(saver)
        if open_ended:
            more = sys.modules[function.__module__].options(words)
            known |= {key: argument(key, option.type, option.default, option.help) for key, option in more.items()}
        known |= saved
        flags += [key for key, parameter in known.items() if parameter.default is not inspect.Parameter.empty]
        values = _parse(known, words, f"latentia {name}", _description(function), open_ended)
        if open_ended:  # what is not typed is left to the command, which knows better defaults
            typed = {re.sub("^--(no[-_])?", "", word.partition("=")[0]).replace("-", "_") for word in words}
            values = {key: value for key, value in values.items() if key not in more or key in typed}
        flags += [key for key in values if key not in known]
        saving = {key: values.pop(key) for key in saved}
        if "output_dir" in saving:  # before anything is computed
            from latentia.commands.output import check_output  # which imports torch, as the command has done

            check_output(saving["output_dir"], name, saving["overwrite"])
        result = function(**values)
        if hasattr(result, "command"):  # shown on its page
            result.command = shlex.join(["latentia", name, *words])
    if _is_main_process():
        print(escaped(result if isinstance(result, str) else result.text()))
        if saving:
            print("Written:", *(escaped(str(path)) for path in result.save(**saving)))
    return getattr(result, "exit_code", 0)


def arguments(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a function that can be typed, as parameters that tyro understands, with their help.

    Example:
        >>> def command(source: str | type, n: int = 3, *, data: type | None = None): ...
        >>> list(arguments(command))
        ['source', 'n']
    """
    from docstring_parser import parse

    said = {key: arg.description for arg in parse(function.__doc__ or "").params for key in arg.arg_name.split(", ")}
    hints, allowed, found = typing.get_type_hints(function), ranges(function), {}
    parameters = inspect.signature(function).parameters
    rest = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values())
    for key, parameter in parameters.items():
        kind = _typed(hints.get(key))
        if kind is not None and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            before_rest = rest and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            rule = f" It must be {allowed[key].rule()}." if key in allowed else ""
            found[key] = argument(key, kind, parameter.default, (said.get(key) or "") + rule, positional=before_rest)
    return found


def argument(name: str, kind: Any, default: Any, help: str, *, positional: bool = False) -> inspect.Parameter:
    """One argument of a command line.

    Args:
        name: of the argument; the flag is `--name`.
        kind: its type: str, int, float, bool, Path, a Literal, or a union or tuple of them.
        default: `inspect.Parameter.empty` for an argument that must be given, which is then positional.
        help: shown by `--help`.
        positional: whether it is positional in spite of a default.
    """
    from tyro.conf import Positional, arg

    positional = positional or default is inspect.Parameter.empty
    about = arg(
        help=re.sub(r"\\[()]", "", " ".join(help.split())),  # without the marks of formulas
        metavar=name.upper() if positional else None if kind is bool else _metavar(kind),
        help_behavior_hint="" if default in (None, ()) or positional else None,
    )
    marker: Any = Positional
    annotation: Any = typing.Annotated[kind, about]
    annotation = marker[annotation] if positional else annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _metavar(kind: Any) -> str:
    """How the type of a flag is shown, "INT" or "STR ..."; None is not, as it is the same as no flag."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        return f"{_metavar(inner[0])} ..."
    if inner:
        return "|".join(_metavar(one) for one in inner if one is not type(None))
    return kind.__name__.upper()


def _parse(
    parameters: Mapping[str, inspect.Parameter], words: Sequence[str], prog: str, text: str, open_ended: bool
) -> dict[str, Any]:
    """The values that a command line gives; with `open_ended`, a flag that is not known is True, for the command."""
    import tyro

    def command(**values: Any) -> dict[str, Any]:
        return values

    command.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined] # tyro reads it
    command.__annotations__ = {key: parameter.annotation for key, parameter in parameters.items()}
    if {"-h", "--help"} & {*words}:
        words = ["--help"]  # alone, as tyro leaves out of the help what was given before it
    options: dict[str, Any] = {"args": words, "prog": prog, "description": text, "use_underscores": True}
    if not open_ended:
        return tyro.cli(command, **options)
    values, left = tyro.cli(command, **options, return_unknown_args=True)
    more = [word[2:].partition("=")[0].replace("-", "_") for word in left if word.startswith("--")]
    if left and not more:
        raise UsageError(f"{' '.join(left)} is one argument too many. {prog} --help shows what there is.")
    return {**values, **dict.fromkeys(more, True)}


def _typed(hint: Any) -> Any:
    """The part of a type that can be typed on a command line; None if there is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _TYPED or origin is Literal:
        return hint
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in map(_typed, inner) if kind is not None]
        several = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        kinds = [kind for kind in kinds if (kind is not Path or str not in kinds) and _tuple_of(kind) not in several]
        return typing.Union[tuple(kinds)] if set(kinds) - {type(None)} else None  # noqa: UP007 # of a list of types
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence) and inner:
        item = _typed(inner[0])
        return None if item is None else _tuple_of(item)
    return None


def _tuple_of(kind: Any) -> Any:
    return types.GenericAlias(tuple, (kind, ...))


def _description(function: Callable) -> str:
    from docstring_parser import parse

    found = parse(function.__doc__ or "")
    return "\n\n".join(part for part in (found.short_description, found.long_description) if part)


def _summary(name: str) -> str:
    """The first line of a command's file."""
    return read_text(Path(__file__).with_name(f"{name}.py")).partition("\n")[0].strip().strip('"')


def _check_current_folder() -> None:
    """Without a current folder torch ends the process when it is imported, and relative paths mean nothing."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("The current folder was deleted or cannot be read; go to another one (cd).") from error


def _is_main_process() -> bool:
    """Whether this is the first of the processes that share a command, as under `accelerate launch`."""
    accelerate = sys.modules.get("accelerate")  # a command that shares its work has imported it
    return accelerate is None or accelerate.PartialState().is_main_process
