"""The examples in the docstrings of functions, networks, losses and schedulers run as they are printed."""

import doctest
import importlib
import pkgutil

import pytest
import torch

ROOMS = ("functional", "models", "losses", "schedulers")
MODULES = [
    found.name
    for room in ROOMS
    for found in pkgutil.walk_packages(importlib.import_module(f"latentia.{room}").__path__, f"latentia.{room}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
