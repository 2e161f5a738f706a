"""A second device for machines that have only a CPU: tensors that are moved to `DEVICE` refuse to mix with others.

torch takes `cpu:0` for another device than `cpu`: `tensor.to("cpu:0")` makes a copy, in the same memory. Inside
`separate_device` the storage of that copy is marked, what is computed from it is marked as well, and an operation that
mixes marked and unmarked tensors raises an error, as it would on a GPU. Values are those of the CPU, so a whole
training can be run. As on a GPU, copies between devices are allowed, and so are numbers (tensors of 0 dimensions) and
indices that lie on the CPU.

`waits` holds where the program waited for the device, as long as `watched` is active: values were read, or memory was
copied in a way that ends when all that was queued before has been computed.
"""

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, DEVICE = torch.device("cpu"), torch.device("cpu", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}


class MixedDevices(RuntimeError):
    """Tensors of both devices met in one operation."""


def device_of(tensor: torch.Tensor) -> torch.device | None:
    """CPU, DEVICE, or None for what may meet tensors of both."""
    return getattr(tensor.untyped_storage(), "marked", CPU)


def mark(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    tensor.untyped_storage().marked = device
    return tensor


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


waits: list[str] = []
_watching = False


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Note meanwhile in `waits` where the program waits for the device."""
    global _watching
    before, _watching = _watching, True
    try:
        yield
    finally:
        _watching = before


def _wait(what: Any) -> None:
    if _watching:
        stack = traceback.extract_stack()
        if any(f.filename.endswith("clip_grad.py") for f in stack):
            return  # torch groups gradients by the device that it knows, and copies a factor to that
        frames = [f for f in stack if "latentia" in f.filename or "examples" in f.filename]
        waits.append(f"{what}: " + " < ".join(f"{f.filename[-30:]}:{f.lineno} {f.line}" for f in frames[:-4:-1]))


def _by_mask(func: Any, args: Any) -> bool:
    """Whether an index is a mask, whose true values must be counted; one that sets a single value is not counted."""
    masked = func in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1])
    return masked and (func is aten.index.Tensor or args[2].numel() != 1)


class _Operations(TorchDispatchMode):
    """Checks the tensors of every operation, also of those in a backward pass, and marks what comes out."""

    def __init__(self, functions: "_Functions"):
        super().__init__()
        self.functions = functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        on_device = any(device_of(x) == DEVICE for x in tensors)
        if on_device and func not in COPIES:
            others = [x for x in tensors if x.dim() > 0 and device_of(x) == CPU]
            if func in INDEXED and device_of(tensors[0]) == DEVICE:
                others = [x for x in others if x.is_floating_point()]
            if others:
                raise MixedDevices(f"{func} got " + ", ".join(f"{tuple(x.shape)} on {device_of(x)}" for x in tensors))
            if func in READS or _by_mask(func, args):
                _wait(func)
        if func is aten.copy_.default and len({device_of(x) for x in args[:2]} & {CPU, DEVICE}) == 2:
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
                _wait(func)
        out = func(*args, **kwargs)
        result: torch.device | None = DEVICE if on_device or kwargs.get("device") == DEVICE else CPU
        if func is aten.copy_.default:
            result = device_of(args[0])
        if (
            not on_device
            and all(device_of(x) is None for x in tensors)
            and (self.functions.on_device or torch._C._current_graph_task_id() >= 0)
        ):
            result = None  # made in C++ by autograd or by an operation on tensors of the device: it knows one CPU only
        if result != CPU:
            for tensor in tensors_in((out,)):
                mark(tensor, result)
        return out


class _Functions(TorchFunctionMode):
    """Answers on which device a tensor is, marks what is made on the device, and copies what goes to the CPU."""

    on_device = False  # whether a function runs that was given tensors of the device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.device:
            own = func(*args, **kwargs)
            return DEVICE if own == CPU and device_of(args[0]) == DEVICE else own
        if func in TO_NUMPY and device_of(args[0]) == DEVICE:
            raise MixedDevices(f"{func.__name__} of a tensor {tuple(args[0].shape)} on the device; it needs .cpu()")
        self.on_device = any(device_of(x) == DEVICE for x in tensors_in((args, kwargs)))
        if func is torch.Tensor.tolist and self.on_device:
            _wait(func.__name__)
        try:
            out = func(*args, **kwargs)
        finally:
            self.on_device = False
        if not isinstance(out, torch.Tensor):
            return out
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device | str)]
        if func in (torch.Tensor.to, torch.Tensor.type_as):
            given += [device_of(x) for x in args[1:] if isinstance(x, torch.Tensor)]
        made = func in FROM_PYTHON and (func is torch.Tensor.new_tensor or not isinstance(args[0], torch.Tensor))
        if made and (DEVICE in given or device_of(out) == DEVICE):
            _wait(func.__name__)
        to_or_from = DEVICE in given or CPU in given or "cpu" in given or func is torch.Tensor.cpu
        if to_or_from and args and isinstance(args[0], torch.Tensor) and not kwargs.get("non_blocking"):
            if (device_of(args[0]) == DEVICE) != (DEVICE in given) and device_of(args[0]) is not None:
                _wait(func.__name__)
        if DEVICE in given:
            return out if device_of(out) == DEVICE else mark(out.clone(), DEVICE)
        if device_of(out) == DEVICE and (func is torch.Tensor.cpu or CPU in given or "cpu" in given):
            return mark(out.clone(), CPU)
        return out


@contextlib.contextmanager
def separate_device() -> Iterator[torch.device]:
    """Tell apart tensors on `DEVICE` and on the CPU."""
    functions = _Functions()
    with functions, _Operations(functions):
        yield DEVICE
