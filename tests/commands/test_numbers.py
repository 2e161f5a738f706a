"""A range beside every number of every command, checked before anything is computed."""

import inspect
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentia import commands
from latentia.commands.main import main
from latentia.data import load_images, load_table
from latentia.errors import UsageError, range_of

NUMBERS = [
    (command, name, hint)
    for command in commands.__all__
    for name, hint in typing.get_type_hints(getattr(commands, command), include_extras=True).items()
    if name in inspect.signature(getattr(commands, command)).parameters
    and any(kind in str(typing.get_type_hints(getattr(commands, command))[name]) for kind in ("int", "float"))
    and "Literal" not in str(hint)
]


def test_all_numbers_are_found():
    assert len(NUMBERS) > 20


@pytest.mark.parametrize("command, name, hint", NUMBERS, ids=[f"{c}-{n}" for c, n, _ in NUMBERS])
def test_a_number_out_of_its_range_is_refused_by_name(command, name, hint, tmp_path, capsys):
    allowed = range_of(hint)
    assert allowed is not None
    words = {"compare": ["pca", "kde"], "convert": [str(tmp_path / "a.bin"), "b"], "doctor": []}.get(command, ["pca"])
    for value in (-1, 0, math.nan, math.inf, 1e308, 10**30):
        if value in allowed:
            assert value == 0 or abs(value) < 1e9
            continue
        with pytest.raises(SystemExit) as ended:
            main([command, *words, f"--{name}", str(value)])
        said = capsys.readouterr()
        assert ended.value.code == 2 and f"--{name}" in said.out + said.err
        assert "must be" in said.err or not isinstance(value, int)  # what is no number of its type, the parser refuses


CALLS = [*(getattr(commands, name) for name in commands.__all__), load_images, load_table]
KINDS = (int, float, str, bool, Path, type(None))


def plain(hint):
    """The types of a hint, if it is of these alone; else nothing."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [plain(one) for one in typing.get_args(hint)]
        return set().union(*parts) if all(parts) else set()
    return {hint} & {*KINDS}


@pytest.mark.parametrize("call", CALLS, ids=[call.__name__ for call in CALLS])
def test_a_wrong_type_is_refused_by_name(call):
    hints, arguments = typing.get_type_hints(inspect.unwrap(call)), inspect.signature(call).parameters
    arguments = {name: one for name, one in arguments.items() if "VAR_" not in one.kind.name}
    needed = [name for name, one in arguments.items() if one.default is one.empty]
    needed = {name: ["x"] if typing.get_origin(hints[name]) is Sequence else "x" for name in needed}
    keys = [name for name in arguments if plain(hints.get(name))]
    assert keys
    for name in keys:
        of = plain(hints[name])
        for value in (2.5, 3, "three", {3}, b"3"):
            if type(value) in of or (value == 3 and float in of):
                continue
            with pytest.raises(UsageError, match=rf"\A{name} must be .*; got "):
                call(**needed | {name: value})
