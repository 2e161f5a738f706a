"""Fine-tuning: networks that start from the weights of a saved pipeline, `--init_from`."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from latentia.errors import UsageError
from latentia.pipelines.base import DiffusionPipeline


def load_initial_weights(module: nn.Module, source: str) -> list[str]:
    """Copy into a network the weights of the components of a saved pipeline that are of its class, or of its parts'.

    Args:
        module: the network, or a module that holds several.
        source: folder or Hub id of a pipeline, such as the `output_dir` of a run.

    Returns:
        The names of the components that were copied; none if the pipeline has no network of these classes.

    Raises:
        UsageError: a component of the class is there, and its weights have other names or shapes.
        CheckpointError, HubError: the pipeline cannot be loaded.

    Example:
        >>> import tempfile
        >>> from latentia import VAE, VAEPipeline
        >>> saved, vae = tempfile.mkdtemp(), VAE(sample_size=8, latent_dim=2)
        >>> VAEPipeline(VAE(sample_size=8, latent_dim=2)).save_pretrained(saved)
        >>> load_initial_weights(vae, saved)
        ['vae']
    """
    components = {
        name: part
        for name, part in DiffusionPipeline.from_pretrained(source).components.items()
        if isinstance(part, nn.Module)
    }
    copied = []
    for name, part in components.items():
        for own in module.modules():
            if type(own) is type(part):
                _copy(own, part, f"{name} of {source}")
                copied.append(name)
                break
    return copied


def _copy(own: Any, saved: Any, where: str) -> None:
    mine, theirs = own.state_dict(), saved.state_dict()
    if {key: value.shape for key, value in mine.items()} != {key: value.shape for key, value in theirs.items()}:
        different = "; ".join(_differences(own, saved)) or "its weights have other shapes"
        raise UsageError(
            f"init_from must name weights that fit: the {type(own).__name__} of this run is built otherwise than the "
            f"{where}: {different}. Give the flags and data that it was trained with."
        )
    own.load_state_dict(theirs)


def _differences(own: Any, saved: Any) -> Iterator[str]:
    mine, theirs = dict(getattr(own, "config", {})), dict(getattr(saved, "config", {}))
    for key in sorted(mine.keys() & theirs.keys()):
        if not key.startswith("_") and _plain(mine[key]) != _plain(theirs[key]):
            yield f"{key} is {mine[key]} here and {theirs[key]} there"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
