"""The command line of a training script: flags from the defaults, then a file, then the words that were typed.

Defaults are overridden by `--config file.yaml` (or .json), and that by the command line. The file is flat, key for
flag, so a run's `training_config.json` is one.
"""

import dataclasses
import io
import json
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from latentia.errors import LatentiaError, UsageError, add_dashes, did_you_mean
from latentia.files.reading import read_text
from latentia.runs.arguments import check_ranges, show_ranges
from latentia.runs.pace import fitting
from latentia.runs.program import program
from latentia.training.signals import output_that_may_be_lost

T = TypeVar("T")
Flat = tyro.conf.OmitArgPrefixes


def run_script(arguments: type[T], main: Callable[[T], int], description: str) -> None:
    """Parse the command line, run `main`, and end the process with an exit code that schedulers understand.

    0 done, 2 usage, 3 numerics, 4 data, 5 checkpoint, 6 Hub, 75 interrupted after a checkpoint, 130 by a second Ctrl-C.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no UTF-8 must not end a run that prints it
        sys.stdout.reconfigure(errors="backslashreplace")
    started = program()
    try:
        filled: Any = parse_arguments(
            arguments,
            prog=" ".join(started) if started[0] == "latentia" else None,
            description=f"{description}\n\nAll flags can also be given in a file, "
            "--config run.yaml; the command line overrides it.",
        )
        with output_that_may_be_lost():
            code = main(fitting(filled, main))
    except LatentiaError as error:
        print(f"error: {add_dashes(str(error), flat_values(arguments()))}", file=sys.stderr)
        code = error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or re.search("tried to allocate|out of memory", str(error))):
            raise
        first = str(error).partition("\n")[0]
        print(
            f"error: There is not enough memory: {first}. Lower --train_batch_size or the sizes of the network.",
            file=sys.stderr,
        )
        code = UsageError.exit_code
    except KeyboardInterrupt:
        print("Stopped at once. Start the same command again to go on from the last checkpoint.", file=sys.stderr)
        code = 130
    sys.exit(code)


def parse_arguments(cls: type[T], argv: Sequence[str] | None = None, *, description: str, prog: str | None = None) -> T:
    """Fill a dataclass of groups from its defaults, then `--config`, then the command line.

    Args:
        cls: a frozen dataclass whose fields are dataclasses of flags.
        argv: the command line; `None`: that of the process.
        description: shown by `--help`.
        prog: name of the program in messages; `None`: that of the process.

    Raises:
        UsageError: the file is missing, not a mapping, or has an unknown key or a value of the wrong type; or a number
            is out of its range.
        SystemExit: with 2 for a wrong flag, as command lines do.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    default = cls()
    for i, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            if word == "--config" and i + 1 == len(argv):
                raise UsageError("--config needs the path of a .yaml or .json file.")
            path = argv[i + 1] if word == "--config" else word.removeprefix("--config=")
            del argv[i : i + 1 + (word == "--config")]
            default = with_values(default, read_config(Path(path)), source=path)
            break
    show_ranges(default)
    filled = tyro.cli(
        cls, args=argv, default=default, description=description, prog=prog, use_underscores=True, config=(Flat,)
    )
    check_ranges(filled)
    return filled


def read_config(path: Path) -> Mapping[str, Any]:
    """A YAML or JSON file as a mapping of flags to values."""
    try:
        text = read_text(path, error=UsageError)
    except UsageError as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is not valid YAML or JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise UsageError(f"--config {path} must hold a mapping of flags to values; got {type(values).__name__}.")
    return values


def with_values(default: Any, values: Mapping[str, Any], source: str) -> Any:
    """A copy of `default` with the fields named in `values` set, each checked against its type.

    Raises:
        UsageError: unknown key, with the nearest known one; value of the wrong type.
    """
    known = {f.name: g.name for g in dataclasses.fields(default) for f in dataclasses.fields(getattr(default, g.name))}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(
                f'{source}: unknown key "{key}".{did_you_mean(str(key), known)} See --help for all keys; a file of '
                "latentia 0.1 may have other names."
            )
        group = getattr(default, known[key])
        hint = typing.get_type_hints(type(group))[key]
        groups.setdefault(known[key], {})[key] = _checked(value, hint, f"{source}: {key}")
    return dataclasses.replace(
        default, **{name: dataclasses.replace(getattr(default, name), **new) for name, new in groups.items()}
    )


def flat_values(arguments: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The flags of a filled-in dataclass as one flat mapping, ready for JSON and for `--config`.

    Args:
        arguments: groups of flags.
        without: names of groups that are left out. Default: none.
    """
    groups = (getattr(arguments, group.name) for group in dataclasses.fields(arguments) if group.name not in without)
    return json.loads(json.dumps({key: value for group in groups for key, value in vars(group).items()}))


# Flags that may change between the parts of one run: how long, how fast, how spread out (the global batch must stay).
_FREE = {
    "minutes", "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "compile", "allow_tf32", "distributed_timeout", "on_nonfinite",
    "max_skips",
}  # fmt: skip


def run_identity(arguments: Any) -> dict[str, Any]:
    """The flags that must be equal for a checkpoint to be continued: those of all groups that identify a run."""
    groups = (getattr(arguments, group.name) for group in dataclasses.fields(arguments))
    values = {
        key: value
        for group in groups
        if getattr(group, "identifies", True)
        for key, value in vars(group).items()
        if key not in _FREE
    }
    return json.loads(json.dumps(values))


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        for option in options[:-1]:
            try:
                return _checked(value, option, where)
            except UsageError:
                pass  # another option may take it; the last one explains
        return _checked(value, options[-1], where)
    elif origin is Literal:
        if value is False and "no" in options:
            return "no"  # which YAML 1.1 reads as false
        if value in options and type(value) in {type(option) for option in options}:
            return value
        raise UsageError(
            f"{where} must be one of {options}; got {value!r}.{did_you_mean(str(value), map(str, options))}"
        )
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_checked(item, options[0], where) for item in value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        return float(value)  # YAML 1.1 reads 1e-3 as text, because it has no point
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where} must be of type {name}; got {value!r} ({type(value).__name__}).")
