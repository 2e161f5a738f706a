"""torch.compile in a run: of the blocks of a network one by one, and never for samples; and the layout of weights."""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from latentia.training.loop import Hook
from latentia.training.progress import Progress


def can_compile(args: Any, accelerator: Accelerator) -> bool:
    """Whether the networks of a run are compiled: `--compile` asks for it and there is a compiler, or it is said."""
    if not args.optimization.compile:
        return False
    cpu = accelerator.device.type == "cpu"
    named = os.environ.get("CXX" if cpu else "CC")
    names = [named] if named else (["clang++"] if sys.platform == "darwin" else ["g++"]) if cpu else ["gcc", "clang"]
    if any(map(shutil.which, names)):
        return True
    language, variable = ("C++", "CXX") if cpu else ("C", "CC")
    accelerator.print(
        f"--compile needs a {language} compiler, and this machine has no {' or '.join(names)}: the networks are not "
        f"compiled. Install one, or name it in the environment variable {variable}."
    )
    return False


def compile_network(network: nn.Module) -> None:
    """Compile a network for training. Where it is made of equal blocks, each of these: the first step comes earlier."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks()  # type: ignore[operator]  # of diffusers' ModelMixin
    else:
        network.compile()


def uncompiled(active: bool) -> AbstractContextManager[None]:
    """A context in which compiled networks run as they are, if `active`: samples have batches of other sizes, and a
    compilation for each would take longer than they do.
    """
    return torch.compiler.set_stance("force_eager") if active else nullcontext()


def uncompiled_hook(hook: Hook) -> Hook:
    """The same hook, in which compiled networks run as they are."""

    def call(progress: Progress) -> Mapping[str, float | str] | None:
        with uncompiled(True):
            return hook.call(progress)

    return replace(hook, call=call)


def fast_layout(network: nn.Module, args: Any, device: torch.device) -> nn.Module:
    """The network with its weights in the memory format that is fastest for convolutions between group norms.

    Channels last on CPUs, and where the norms are compiled; on GPUs otherwise not, as their group norm has no kernel
    for it and copies.
    """
    if device.type == "cpu" or args.optimization.compile:
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
