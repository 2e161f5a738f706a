"""Every flag that an error or a suggestion names exists."""

import dataclasses
import importlib
import re
import typing
from pathlib import Path

from latentia import commands
from latentia.commands.train import families

ROOT = Path(__file__).parents[2]
# Of other programs: git, accelerate and hf; of every command line; and of examples in docstrings.
OTHERS = {
    *("always", "dirty", "abbrev", "exclude", "error", "num_processes", "num_machines", "dynamo_backend", "local"),
    *("fsdp_version", "config", "help", "version", "train_seed"),
}


def known_flags() -> set[str]:
    line = importlib.import_module("latentia.commands.main")
    known = set(OTHERS)
    for name in commands.__all__:
        function = getattr(commands, name)
        saver = getattr(typing.get_type_hints(function).get("return"), "save", None)
        known |= {*line.arguments(function), *(line.arguments(saver) if saver else ())}
    for family in [f"train_{name}" for name in families()] + ["demo"]:
        arguments = importlib.import_module(f"latentia.examples.{family}").Arguments()
        groups = [getattr(arguments, field.name) for field in dataclasses.fields(arguments)]
        known |= {field.name for group in [arguments, *groups] if dataclasses.is_dataclass(group)
                  for field in dataclasses.fields(group)}  # fmt: skip
    for path in (ROOT / "pipelines").glob("*.py"):  # `latentia generate` takes the arguments of their calls
        known |= set(re.findall(r"^        (\w+): [^\n]* = ", path.read_text(encoding="utf-8"), re.MULTILINE))
    return known


def test_every_flag_that_is_named_exists():
    known, unknown = known_flags(), {}
    for folder in ("src", "pipelines", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name in ("page.py", "style.py"):  # properties of a style sheet look the same
                continue
            for flag in re.findall(r"(?<![\w-])--(?:no_)?([a-z][a-z_0-9]+)", path.read_text(encoding="utf-8")):
                if flag not in known:
                    unknown.setdefault(flag, path.name)
    assert not unknown
