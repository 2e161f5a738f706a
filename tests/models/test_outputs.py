"""What networks return: dataclasses that accelerate can rebuild, whatever their fields."""

import dataclasses
import importlib
import pkgutil
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from accelerate.utils import convert_to_fp32, send_to_device
from diffusers.utils import BaseOutput
from zoo import ZOO

import latentia.models


def _output_classes():
    for found in pkgutil.walk_packages(latentia.models.__path__, "latentia.models."):
        for thing in vars(importlib.import_module(found.name)).values():
            if isinstance(thing, type) and issubclass(thing, BaseOutput) and thing.__module__ == found.name:
                yield thing


OUTPUTS = sorted(_output_classes(), key=lambda cls: cls.__name__)


def _value(annotation: Any) -> Any:
    """A value of a field's type, its tensors of bfloat16."""
    if get_origin(annotation) is tuple:
        return tuple(_value(each) for each in get_args(annotation) if each is not ...)
    if isinstance(annotation, type) and issubclass(annotation, tuple):  # a named tuple
        return annotation(*(_value(each) for each in get_type_hints(annotation).values()))
    assert torch.Tensor in (annotation, *get_args(annotation)), annotation
    return torch.randn(2, 3, dtype=torch.bfloat16)


def _assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape and torch.equal(a.float(), b.float())
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            _assert_equal(one, other)
    else:
        assert a is None


def _tensors(value: Any):
    if isinstance(value, torch.Tensor):
        yield value
    for each in value if isinstance(value, tuple) else ():
        yield from _tensors(each)


def _check_rebuilt(output: BaseOutput) -> None:
    names = [field.name for field in dataclasses.fields(output)]
    for rebuilt in (convert_to_fp32(output), send_to_device(output, "cpu")):
        assert type(rebuilt) is type(output) and list(rebuilt) == list(output)
        for name in names:
            _assert_equal(getattr(output, name), getattr(rebuilt, name))
    found = [t.dtype for name in names for t in _tensors(getattr(convert_to_fp32(output), name))]
    assert torch.bfloat16 not in found


def test_every_file_of_networks_is_looked_at():
    assert {"VAEOutput", "DiscriminatorOutput", "UNet2DOutput"} <= {cls.__name__ for cls in OUTPUTS}


@pytest.mark.parametrize("cls", OUTPUTS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("optional", [True, False])
def test_accelerate_rebuilds_every_output(cls, optional):
    """As after a step in mixed precision; with and without the fields that a network may leave out."""
    first, *others = dataclasses.fields(cls)
    assert all(field.default is None for field in others), "accelerate hands over all fields as one dictionary"
    types = get_type_hints(cls)
    left_out = {name for name, of in types.items() if type(None) in get_args(of)}
    values = {field.name: _value(types[field.name]) for field in (first, *others)}
    _check_rebuilt(cls(**{name: value for name, value in values.items() if optional or name not in left_out}))


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_accelerate_rebuilds_what_networks_return(entry):
    torch.manual_seed(0)
    network = entry.build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _check_rebuilt(network(**entry.inputs(2)))
