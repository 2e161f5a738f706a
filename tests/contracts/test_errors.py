"""Errors: names of arguments as in Python, with dashes on the command line; whole numbers with all digits."""

import ast
import math
import re
from pathlib import Path

import pytest
import torch

import latentia
from latentia.errors import UsageError, add_dashes, check_range, format_number
from latentia.evaluation import check_images
from latentia.functional.checks import check_values

PACKAGE = Path(latentia.__file__).parent
COMMAND_LINES = {"commands/main.py", "runs/command_line.py"}  # which read the flags, and so name them as typed
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if str(path.relative_to(PACKAGE)) not in COMMAND_LINES]

FLAGS = ["n", "seed", "split", "data", "num_images", "num", "output_dir", "train_batch_size"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("n must be at least 1; got 0.", "--n must be at least 1; got 0."),
        ("num_images must be at least 1; got 0.", "--num_images must be at least 1; got 0."),
        ("Lower num_images, or raise train_batch_size.", "Lower --num_images, or raise --train_batch_size."),
        ("`split` and `seed` must agree.", "--split and --seed must agree."),
        ("The split has no data of that seed.", "The split has no data of that seed."),
        ("numbers must be finite.", "numbers must be finite."),
        ("num_images_more is nothing known.", "num_images_more is nothing known."),
        ("--num_images must be at least 1.", "--num_images must be at least 1."),
        ('The column "num_images" is missing.', 'The column "num_images" is missing.'),
        ("/tmp/output_dir/run and output_dir/run.json exist.", "/tmp/output_dir/run and output_dir/run.json exist."),
        ("data", "data"),
        ("seed: it is missing.", "seed: it is missing."),
        ("num_images=3 must divide 4; got num_images=3.", "--num_images 3 must divide 4; got --num_images 3."),
        ('Give split="" or split="a[:2]".', "Give --split '' or --split 'a[:2]'."),
        ("Give num=True, seed=False, or data=None.", "Give --num, --no_seed, or data=None."),
        ('The mode="reduce" of torch.data=3 stays.', 'The mode="reduce" of torch.data=3 stays.'),
    ],
)
def test_only_names_of_arguments_get_dashes(message, said):
    assert add_dashes(message, FLAGS) == said
    assert add_dashes(said, FLAGS) == said
    assert add_dashes(message, []) == message


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda: check_range("n", 0, 2**20), "n must be at least 1048576; got 0."),
        (lambda: check_range("n", 2**21, high=2**20, closed="left"), "n must be below 1048576; got 2097152."),
        (lambda: check_range("n", 0, 1, 12_345_678), "n must be in [1, 12345678]; got 0."),
        (lambda: check_range("n", 2.0, 0, 0.1234567), "n must be in [0, 0.123457]; got 2.0."),
        (lambda: check_values("x", torch.tensor([1e6, 2.0**21]), 0, 2**20),
         "x must be in [0, 1048576]; got values from 1000000 to 2097152."),
        (lambda: check_images(torch.tensor([0.0, 65535.0]).reshape(2, 1, 1, 1)),
         "`images` must lie in [-1, 1]. Got [0, 65535]; "),
    ],
)  # fmt: skip
def test_whole_numbers_have_all_their_digits(check, said):
    with pytest.raises(UsageError) as caught:
        check()
    assert str(caught.value).startswith(said)


def test_numbers_that_are_not_whole_are_rounded():
    assert format_number(1 / 3) == "0.333333"
    assert format_number(1e300) == "1e+300"
    assert (format_number(math.inf), format_number(math.nan)) == ("inf", "nan")


def raised_texts(source):
    """Line and text of each error that a source raises, without commands to type, such as `latentia card --write`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            parts = [part for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            text = "".join(part.value for part in parts if isinstance(part.value, str))
            yield node.lineno, re.sub(r"\b(latentia|hf|accelerate) [a-z]+ [^.;,)\n]*", "", text)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_library_errors_name_arguments_without_dashes(path):
    found = list(raised_texts(path.read_text(encoding="utf-8")))
    assert not [(line, text) for line, text in found if re.search(r"(?<![\w-])--[a-z]", text)]


def test_the_rule_of_dashes_forbids():
    wrong = 'raise UsageError(f"{a} is too large. Lower --learning_rate.")'
    right = 'raise UsageError(f"{a} has no card. Write one: latentia card {a} --write")'
    assert [bool(re.search("--[a-z]", text)) for _, text in raised_texts(f"{wrong}\n{right}")] == [True, False]


def test_one_channel_is_not_called_channels():
    """Numbers of channels are written by `counted`, as grey images have one."""
    plural = re.compile(r"\{[^{}]+\} channels\b")
    assert not [(path.name, line) for path in LIBRARY for line in path.read_text().splitlines() if plural.search(line)]
