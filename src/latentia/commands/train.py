"""Train a model of any family: run one of the training scripts that are shipped with the package.

    latentia train                                 lists the families
    latentia train vae --dataset_name digits       runs the script train_vae.py
    latentia train vae --help                      shows the flags of that script
    accelerate launch -m latentia train vae ...    runs it on several processes
    latentia train vae --train_data_dir table.csv  of a table: train_table.py with --family vae
    latentia train --eject vae                     writes train_vae.py into the current folder, to be changed

A family is the name of a script of `latentia.examples` without "train_". There is no list of them: the package is read.
"""

import ast
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentia.errors import UsageError, did_you_mean
from latentia.files.writing import write_new
from latentia.functional.settings import check_types

SCRIPTS = "latentia.examples"
_PREFIX = "train_"
_OF_TABLES = {"vae": "vae", "gan": "gan", "flow": "flow", "ddpm": "diffusion"}  # family -> --family of train_table.py


@dataclass(frozen=True)
class Families:
    """The families that can be trained.

    Args:
        summaries: family -> first line of its script.
    """

    summaries: dict[str, str]

    def text(self) -> str:
        """A line for each family, and how to start one."""
        width = max(map(len, self.summaries))
        lines = [f"  {name:{width}}  {summary}" for name, summary in self.summaries.items()]
        return "\n".join(["latentia train FAMILY ...    latentia train FAMILY --help shows its flags", *lines])


@dataclass(frozen=True)
class Ejected:
    """A training script that was copied to `path`."""

    path: Path

    def text(self) -> str:
        """Where the script is and how to start it."""
        return f"{self.path}: change it as you like, then: accelerate launch {self.path} --help"


@check_types
def train(
    family: str | None = None, *flags: str, eject: bool = False, output: str | Path | None = None
) -> Families | Ejected:
    """Train a model of any family on your images, the Hub's or embedded ones.

    Runs the family's training script in this process, as if it had been started as a program: exit codes, signals,
    `--config`, resuming and several processes (`accelerate launch -m latentia train ...`) are the script's own.

    Args:
        family: name of a training script without "train_", such as vae; all are listed if not given.
        flags: of the script, as on its command line; `--help` lists them. Of a table, a CSV or parquet file or the name
            of one, vae, gan, flow and ddpm run the script table with `--family`.
        eject: write the script to a file instead of running it, so that you can change it.
        output: where `eject` writes; train_FAMILY.py in the current folder if not given. It must not exist.

    Returns:
        The families if none is named, or the script that was written.

    Raises:
        SystemExit: the script has ended, with its exit code.
        UsageError: an unknown family, or `output` exists or cannot be written.

    Example:
        >>> "vae" in train().summaries
        True
        >>> train("vea")
        Traceback (most recent call last):
        latentia.errors.UsageError: family must be one of ...
    """
    found = families()
    if family is None:
        if flags or eject or output is not None:
            raise UsageError(f"family is missing: name one of {', '.join(found)}.")
        return Families(found)
    if family not in found:
        raise UsageError(
            f'family must be one of these; got "{family}".{did_you_mean(family, found)}\n{Families(found).text()}'
        )
    if "--eject" in flags:  # after the family, as it may be read in the usage line
        eject, rest = True, [word for word in flags if word != "--eject"]
        if len(rest) == 2 and rest[0] == "--output":
            output = rest[1]
        elif rest:
            raise UsageError(f"eject takes no flags of the script; got {' '.join(rest)}. Give them when you run it.")
    if eject:
        return _eject(family, Path(output or f"{_PREFIX}{family}.py"))
    if output is not None:
        raise UsageError("output is for eject only; a training script takes its own output_dir, after the family.")
    if family in _OF_TABLES and any(map(_names_table, _data_of(flags))):
        family, flags = "table", ("--family", _OF_TABLES[family], *flags)
    before = sys.argv
    sys.argv = [before[0], *flags]
    sys.modules.pop(f"{SCRIPTS}.{_PREFIX}{family}", None)  # if it was imported: runpy warns, as it is run anew
    try:
        runpy.run_module(f"{SCRIPTS}.{_PREFIX}{family}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    raise SystemExit(0)


def families() -> dict[str, str]:
    """The families that have a training script, with the first line of its docstring."""
    package = find_spec(SCRIPTS)
    if package is None or package.submodule_search_locations is None:
        raise UsageError(f"{SCRIPTS} is not installed; install latentia again.")
    names = [module.name for module in pkgutil.iter_modules(package.submodule_search_locations)]
    scripts = [name for name in names if name.startswith(_PREFIX)]
    return {
        name.removeprefix(_PREFIX): (ast.get_docstring(ast.parse(_source(name))) or "").partition("\n")[0]
        for name in sorted(scripts)
    }


def _data_of(flags: Sequence[str]) -> list[str]:
    """The values of the flags that name the data."""
    found = []
    for word, following in zip(flags, [*flags[1:], ""]):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") in ("__dataset_name", "__train_data_dir"):
            found.append(value if equals else following)
    return found


def _names_table(data: str) -> bool:
    """Whether data are a table: a shipped one, or a file of one."""
    from latentia.data.shipped_tables import SHIPPED  # with numpy, which listing the families needs not
    from latentia.data.tables import SUFFIXES, is_table

    return data in SHIPPED or (data.lower().endswith(SUFFIXES) and is_table(data))


def _source(script: str) -> str:
    loader: Any = find_spec(f"{SCRIPTS}.{script}").loader  # type: ignore[union-attr] # it was listed
    return loader.get_source(f"{SCRIPTS}.{script}")


def _eject(family: str, path: Path) -> Ejected:
    try:
        write_new(path, _source(f"{_PREFIX}{family}").encode())
    except FileExistsError:
        raise UsageError(f"output must not exist; {path} does. Give another name.") from None
    except OSError as error:
        raise UsageError(f"output {path} cannot be written: {error.strerror}.") from error
    return Ejected(path)
