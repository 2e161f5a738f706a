"""A device that is not the CPU, on any machine: real numbers that refuse to meet tensors of the CPU.

`there(x)` is a tensor that says of itself to be on the device "meta" and holds the values of x. Operations on it give
the same numbers as on the CPU, and raise where an accelerator would: with a CPU tensor that is not a scalar beside it,
and at `numpy()`. Under `other_device()` tensors can be made on it too, and moved to and fro.
"""

import contextlib
import unittest.mock
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_generators: dict[int, torch.Generator] = {}  # those of the other device
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class There(torch.Tensor):
    """A tensor on the other device; `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        self.inner = inner
        return self

    def __repr__(self) -> str:
        return f"There({self.inner!r})"

    def tolist(self) -> Any:  # accelerators give their values to Python, though not to NumPy
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors that are made on the other device, or moved there, are `There`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """`torch.tensor` with `device=DEVICE` keeps its values, and a generator has to be on the device of the result."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            stays = _is_there(kwargs["device"]) if kwargs.get("device") else isinstance(args[0], There)
            if stays != (id(generator) in _generators):
                raise RuntimeError(f"Expected the generator of {function} to be on the device of its result")
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return There(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


def _run(function, args, kwargs):
    flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in flat if isinstance(leaf, There)]
    here = [leaf for leaf in flat if not isinstance(leaf, There) and leaf.ndim > 0]
    if any(leaf.device.type == "meta" for leaf in here):
        raise RuntimeError(f"{function} was given a tensor on the device meta that has no values")
    wanted = kwargs.get("device")
    indexing = function is torch.ops.aten.index.Tensor  # accelerators take indices from the CPU
    if there and here and function not in _MOVES and not indexing:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {function} found two devices")
    plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, There) else leaf, (args, kwargs))
    if wanted is not None:
        plain[1]["device"] = torch.device("cpu")
    plain[1].pop("pin_memory", None)
    out = function(*plain[0], **plain[1])
    if function is torch.ops.aten.copy_.default:
        return args[0]
    if wanted is not None:
        stays = _is_there(wanted)
    else:
        stays = bool(there)
    if not stays:
        return out
    kept = {id(leaf.inner): leaf for leaf in there}  # in-place operations give back what they were given
    return tree_map(lambda leaf: kept.get(id(leaf), There(leaf)) if isinstance(leaf, torch.Tensor) else leaf, out)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def there(x: Any) -> Any:
    """Tensors of a tree on the other device, with the same values."""
    return tree_map(lambda leaf: There(leaf.detach().clone()) if isinstance(leaf, torch.Tensor) else leaf, x)


@contextlib.contextmanager
def other_device():
    """Inside, `device=DEVICE` makes tensors and generators on the other device, and moves tensors there."""

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu"):
            made = super().__new__(cls)
            if _is_there(device):
                _generators[id(made)] = made
            return made

    with _Calls(), _Factories(), unittest.mock.patch.object(torch, "Generator", Generator):
        yield DEVICE
    _generators.clear()
