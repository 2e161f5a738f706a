"""What a loss may ask of a network that is wrapped for several processes."""

from typing import Any

from torch import nn


def unwrap(network: Any) -> Any:
    """The network itself, which DistributedDataParallel keeps as its `module`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(layer) is layer and unwrap(nn.DataParallel(layer)) is layer
        True
    """
    return getattr(network, "module", network)


def config_of(network: Any) -> Any:
    """The configuration of a network that may be wrapped; `None` of a function that is called as a network.

    Example:
        >>> from latentia import MLPGenerator
        >>> config_of(MLPGenerator(latent_dim=3)).latent_dim
        3
    """
    return getattr(unwrap(network), "config", None)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the samples of a batch depend on each other in training.

    Example:
        >>> has_batch_norm(nn.Sequential(nn.BatchNorm1d(2)))
        True
    """
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
