"""Strict loading: check that a saved pipeline or network loads and that no weight is missing or of another shape."""

import os
from pathlib import Path
from typing import Any

import torch

from latentia.errors import CheckpointError, LatentiaError
from latentia.hub.load import INDEX_NAME, check_components, component_class
from latentia.registration import public, public_names
from latentia.safety import LOADING, read_json


def check_loads(folder: Path) -> str:
    """Load what is saved in `folder` and check that every weight is there; describe it.

    diffusers and transformers initialise a missing weight at random and only warn. Here each of their networks is
    loaded once more by itself, and a missing weight is an error.

    Args:
        folder: a saved pipeline (model_index.json), network (config.json) or scheduler (scheduler_config.json).

    Returns:
        A description, such as "DDPMPipeline: scheduler DDPMScheduler, unet UNet2D, 1.3 M weights".

    Raises:
        CheckpointError: it does not load, or weights are missing or do not fit.

    Example:
        >>> check_loads(Path("/nowhere"))
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere holds neither model_index.json nor config.json ...
    """
    if os.path.lexists(folder / INDEX_NAME):
        return _pipeline(folder)
    for name in ("config.json", "scheduler_config.json"):
        if os.path.lexists(folder / name):
            kind = saved_class(folder / name)
            check_components({"": kind}, folder)
            loaded = load_component(kind, folder)
            return f"{kind.__name__}{_weights([loaded])}"
    raise CheckpointError(
        f"{folder} holds neither {INDEX_NAME} nor config.json, so it is not a saved pipeline or network."
    )


def saved_class(config: Path) -> type:
    """Find the class that the configuration of a network or scheduler names, by the rules of model_index.json.

    Raises:
        CheckpointError: the file is not a JSON object, or names a class that is not allowed.
    """
    values = read_json(config)
    name, library = values.get("_class_name"), "diffusers"
    if name is None and isinstance(values.get("architectures"), list) and len(values["architectures"]) == 1:
        name, library = values["architectures"][0], "transformers"
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or name.startswith("_"):
        raise CheckpointError(
            f"_class_name in {config} must be the name of a class of latentia or diffusers, got {str(name)[:200]!r}."
        )
    return component_class("latentia" if name in public_names() else library, name, str(config))


def load_component(kind: Any, folder: Path) -> Any:
    """Load a component and check that every weight is there.

    Raises:
        CheckpointError: it does not load, or weights are missing or of another shape.
    """
    options: dict[str, Any] = {}
    if issubclass(kind, torch.nn.Module):
        options["use_safetensors"] = True
        if not issubclass(kind, public("ModelMixin")):  # which is strict itself
            options["output_loading_info"] = True
    try:
        with LOADING:
            loaded = kind.from_pretrained(str(folder), local_files_only=True, **options)
    except LatentiaError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{kind.__name__} cannot be loaded from {folder}: {error}") from error
    if "output_loading_info" in options:
        loaded, info = loaded
        for what in ("missing_keys", "mismatched_keys"):
            if keys := sorted(map(str, info[what])):
                raise CheckpointError(
                    f"The weights in {folder} do not fit {kind.__name__}: {len(keys)} {what.replace('_', ' ')}, such "
                    f"as {', '.join(keys[:3])}. Check that config.json and the weights belong together."
                )
    return loaded


def _pipeline(folder: Path) -> str:
    pipe = public("DiffusionPipeline").from_pretrained(folder)  # with all of its checks
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    said = ", ".join(f"{name} {type(part).__name__}" for name, part in parts.items()) + _weights(parts.values())
    saved = {name: type(part) for name, part in parts.items() if (folder / name).is_dir()}
    title = type(pipe).__name__
    del pipe, parts
    for name, kind in saved.items():
        if not issubclass(kind, public("ModelMixin")) and issubclass(kind, torch.nn.Module):
            load_component(kind, folder / name)  # again, since the pipeline's loader only warns of missing weights
    return f"{title}: {said}"


def _weights(parts: Any) -> str:
    networks = [part for part in parts if isinstance(part, torch.nn.Module)]
    for network in networks:
        for name, weight in network.named_parameters():
            if weight.is_floating_point() and not weight.is_meta and not weight.float().isfinite().all():
                raise CheckpointError(
                    f"{type(network).__name__} has weights in {name} that are not finite. Fetch or train it again."
                )
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    return f", {sum(counts) / 1e6:.3g} M weights" if counts else ""
