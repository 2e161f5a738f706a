"""A range beside every number of every command, checked before anything is computed."""

import inspect
import math
import typing

import pytest

from latentia import commands
from latentia.commands.main import main
from latentia.errors import range_of

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
