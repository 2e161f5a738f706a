"""Networks whose weights are spread over the processes (FSDP2 of torch), and whole again where that is needed.

A checkpoint holds whole tensors under the names of an unsharded run, so it fits any number of processes, sharded or
not. Pictures, scores and the export are made by the main process alone, with an ordinary network.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from latentia.errors import UsageError


class ShardingAccelerator(Accelerator):
    """accelerate's, which shards on CPUs too, and networks in the channels-last format, where that is asked for.

    Raises:
        UsageError: FSDP of version 1 was asked for, a second network is to be sharded, or a network has no block of a
            class in `fsdp_transformer_layer_cls_to_wrap`.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            if self.distributed_type == DistributedType.MULTI_CPU:  # accelerate would not shard, without a word
                PartialState._shared_state["distributed_type"] = DistributedType.FSDP
                self.state.distributed_type = DistributedType.FSDP
                self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
                if self.mixed_precision != "no":
                    self.state.fsdp_plugin.set_mixed_precision(self.mixed_precision)
            if self.distributed_type == DistributedType.FSDP and not self.is_fsdp2:
                raise UsageError("fsdp_version must be 2; got 1. Use `accelerate launch --fsdp_version 2`.")

    def prepare(self, *things: Any, **options: Any) -> Any:
        if self.is_fsdp2:
            networks = [thing for thing in things if isinstance(thing, nn.Module)]
            if len(self._models) + len(networks) > 1:
                raise UsageError(
                    "FSDP shards a run of one network, and this one trains several. Start it without FSDP."
                )
            for network in networks:
                _check_wrapped_classes(network, self.state.fsdp_plugin.transformer_cls_names_to_wrap or [])
                _contiguous(network)
        return super().prepare(*things, **options)


def _check_wrapped_classes(network: nn.Module, wrapped: Iterable[str]) -> None:
    present = {type(module).__name__ for module in network.modules()}
    missing = [name for name in wrapped if name not in present]
    if missing:
        blocks = sorted(name for name in present if name.endswith("Block"))
        raise UsageError(
            "fsdp_transformer_layer_cls_to_wrap must name classes of blocks that the network has; got "
            f"{', '.join(missing)} for {type(network).__name__}, which has {', '.join(blocks) or 'no blocks'}. "
            "FSDP shards a run of one network. Name other classes, or start it without FSDP."
        )


def shard(accelerator: Accelerator, network: nn.Module) -> None:
    """Spread a network that is not trained itself as `accelerator.prepare` spreads those that are."""
    if accelerator.is_fsdp2 and not isinstance(network, FSDPModule):
        fsdp2_prepare_model(accelerator, _contiguous(network))


def joined(tree: Any, keep: bool) -> Any:
    """A state dict with whole tensors for sharded ones, on the CPU; all processes call it, and `keep` is for one."""
    if isinstance(tree, DTensor):
        whole = tree.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: joined(value, keep) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [joined(value, keep) for value in tree]
    return tree


def spread(tree: Any, like: Any) -> Any:
    """The inverse of `joined`, for this process: tensors are cut as the sharded ones at their place in `like` are."""
    if isinstance(tree, Mapping) and isinstance(like, Mapping):
        return {key: spread(value, like.get(key)) for key, value in tree.items()}
    if isinstance(tree, Tensor) and isinstance(like, DTensor) and tree.shape == like.shape:
        return distribute_tensor(tree, like.device_mesh, like.placements, src_data_rank=None)
    return tree


def make_whole(networks: Iterable[nn.Module], keep: bool = True) -> list[tuple[nn.Module, type, dict]]:
    """Turn sharded networks into ordinary ones in place; all processes call it.

    Args:
        networks: sharded ones; others stay as they are.
        keep: whether this process gets the weights; otherwise they lie on the meta device.

    Returns:
        Each with the class and the state that it had.
    """
    sharded: list[tuple[nn.Module, type, dict]] = []
    for network in networks:
        if isinstance(network, FSDPModule):
            whole = _plain(network, keep)
            sharded.append((network, type(network), network.__dict__))
            _become(network, type(whole), whole.__dict__)
    return sharded


@contextmanager
def whole(accelerator: Accelerator, networks: Iterable[nn.Module]) -> Iterator[None]:
    """`make_whole` for the time being, on the main process."""
    sharded = make_whole(networks, accelerator.is_main_process)
    try:
        yield
    finally:
        for network, kind, state in sharded:
            _become(network, kind, state)


def _become(network: Any, kind: type, state: dict) -> None:
    network.__class__, network.__dict__ = kind, state


def _contiguous(network: Any) -> nn.Module:
    """The network with weights in plain memory order, which is what can be sharded."""
    return network.to(memory_format=torch.contiguous_format)


def _plain(module: nn.Module, keep: bool) -> nn.Module:
    """A copy of a module tree with whole weights, of the classes that it had before, without the hooks of sharding."""
    kind = type(module)
    sharded = isinstance(module, FSDPModule)
    copy: Any = object.__new__(next(c for c in kind.__mro__ if not issubclass(c, FSDPModule)) if sharded else kind)
    copy.__dict__ = dict(module.__dict__)
    for name, value in module.__dict__.items():
        if isinstance(value, OrderedDict) and name.endswith("_hooks"):
            copy.__dict__[name] = OrderedDict()
    copy.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(_full(p, keep), requires_grad=p.requires_grad)
        for name, p in module._parameters.items()
    }
    copy.__dict__["_buffers"] = dict(module._buffers)
    copy.__dict__["_modules"] = {
        name: None if child is None else _plain(child, keep) for name, child in module._modules.items()
    }
    return copy


def _full(parameter: Tensor, keep: bool) -> Tensor:
    value = parameter.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
        return value if keep else torch.empty_like(value, device="meta")
    return value
