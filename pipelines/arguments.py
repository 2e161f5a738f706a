"""Arguments that most pipelines take: the number of images, their random generators, and noise drawn from these."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.settings import check_types
from latentia.pipelines.threads import GLOBAL_RNG

P = ParamSpec("P")
T = TypeVar("T")
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_call(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator of a pipeline's `__call__`: arguments are of their types, and the networks have values.

    Raises:
        UsageError: an argument of another type, or a pipeline on the device meta.
    """
    # Labels and times may be arrays, and their own checks name the classes and steps that there are.
    typed = check_types(function, without=("class_labels", "timesteps", "sigmas"))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        pipe: Any = args[0]
        if pipe._execution_device.type == "meta":
            raise UsageError("the pipeline must be on a device with memory; it is on meta, so load it again.")
        return typed(*args, **kwargs)

    return checked


def count_images(batch_size: int | None, exact: Mapping[str, Any] | None = None, **conditions: Any) -> int:
    """The number of images that a call asks for.

    Args:
        batch_size: as it was given; `None`: as many as something else is given for, else 1.
        exact: what is given for each image, such as {"latents": latents}; one is for one image. Values may be `None`.
        **conditions: what is given for each image or for all of them; one, or a text or a number, is for all.

    Raises:
        UsageError: numbers that do not agree, are less than 1 or no integers.

    Example:
        >>> count_images(None, class_labels=[0, 2, 1], prompt="a cat")
        3
    """
    several = {name: values for name, values in conditions.items() if _length(values) not in (None, 1)}
    for name, values in {**(exact or {}), **several}.items():
        count = _length(values)
        if count == 0:
            raise UsageError(f"{name} must hold at least one; got none. Leave {name} out for none.")
        if count is not None:
            batch_size = count if batch_size is None else batch_size
            if batch_size != count:
                raise UsageError(f"batch_size is {batch_size}, but {name} are given for {count} images.")
    batch_size = 1 if batch_size is None else batch_size
    check_range("batch_size", batch_size, 1, integer=True)
    return batch_size


def _length(values: Any) -> int | None:
    """How many values there are; None for no value, and for one that is not in a sequence."""
    if isinstance(values, Tensor | np.ndarray):
        return len(values) if values.ndim else None
    return len(values) if isinstance(values, Sequence) and not isinstance(values, str) else None


def image_generators(generator: Generators, batch_size: int) -> list[torch.Generator]:
    """One generator for each image, so that an image does not depend on how many are made beside it.

    Args:
        generator: one (`None`: torch's own), from which the seed of each image is drawn in turn, so that the first
            images of a large batch are those of a small one; or a list of `batch_size`, each of which gives its image
            as it would alone.
        batch_size: number of images.

    Raises:
        UsageError: a list of another length, or something that is no generator, such as a seed.

    Example:
        >>> few, many = (image_generators(torch.Generator().manual_seed(0), n) for n in (1, 3))
        >>> few[0].initial_seed() == many[0].initial_seed() != many[1].initial_seed()
        True
        >>> image_generators([torch.Generator().manual_seed(0)], 1)[0].initial_seed() == few[0].initial_seed()
        True
    """
    if isinstance(generator, Sequence) and not isinstance(generator, str):
        if len(generator) != batch_size:
            raise UsageError(f"generator must be one or a list of batch_size={batch_size}; got {len(generator)}.")
        return [image_generators(each, 1)[0] for each in generator]
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UsageError(
            f"generator must be a torch.Generator, or a list of one for each image; got {generator!r}. "
            "torch.Generator().manual_seed(0) makes one of the seed 0."
        )
    device = generator.device if generator is not None else torch.device("cpu")
    return [torch.Generator(device).manual_seed(draw_seed(generator)) for _ in range(batch_size)]


def draw_seed(generator: torch.Generator | None) -> int:
    """The next seed of a generator, from 0 to 2^63 - 1; None: torch's own.

    Example:
        >>> draw_seed(torch.Generator().manual_seed(0)) == draw_seed(torch.Generator().manual_seed(0))
        True
    """
    device = generator.device if generator is not None else torch.device("cpu")
    with GLOBAL_RNG if generator is None else nullcontext():
        return int(torch.empty(1, dtype=torch.int64, device=device).random_(generator=generator))


def dropout_seeds(generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """The seeds of dropout that stays on as noise, the next number of each generator: int64 (B,).

    Example:
        >>> dropout_seeds([torch.Generator().manual_seed(0)] * 2, torch.device("cpu")).shape
        torch.Size([2])
    """
    return torch.tensor([draw_seed(generator) for generator in generators], dtype=torch.int64, device=device)


def renamed(name: str, value: Any, alias: str, other: Any) -> Any:
    """The value of an argument that diffusers calls `alias`.

    Raises:
        UsageError: both are given.

    Example:
        >>> renamed("mask", None, "mask_image", 3)
        3
    """
    if value is not None and other is not None:
        raise UsageError(f"{name} and {alias} are two names of one argument; give one of them.")
    return other if value is None else value


def draw_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """N(0, I) of `shape` for each generator, (B, *shape).

    It is drawn in float32 for a network in half precision too, as torch gives other numbers for another type: so one
    seed means one image in every precision.

    Example:
        >>> draw_noise([torch.Generator().manual_seed(0)] * 2, (3,), torch.device("cpu"), torch.bfloat16).shape
        torch.Size([2, 3])
    """
    wide = torch.promote_types(dtype, torch.float32)
    return randn_tensor((len(generators), *shape), generator=list(generators), device=device, dtype=wide).to(dtype)


def draw_uniform(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of `shape` for each generator, (B, *shape), float32.

    Example:
        >>> draw_uniform([torch.Generator().manual_seed(0)] * 2, (3,), torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    return torch.stack([torch.rand(*shape, generator=g, device=g.device) for g in generators]).to(device)
