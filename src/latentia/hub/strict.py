"""Proving that a saved pipeline or network loads, every weight in its place, whichever library its parts are of."""

import json
from pathlib import Path
from typing import Any

from latentia.errors import CheckpointError, LatentiaError
from latentia.hub.load import INDEX_NAME, component_class, read_index


def load_strictly(folder: Path) -> str:
    """Loads what is saved in `folder`, and says what it is.

    diffusers leaves a weight that is missing at random and only warns, and so does transformers; here each component
    is loaded by itself and must come whole.

    Args:
        folder: a saved pipeline (model_index.json), network (config.json) or scheduler (scheduler_config.json).

    Returns:
        What was loaded, as in "a DDPMPipeline: scheduler DDPMScheduler, unet UNet2D, 1.3 M weights".

    Raises:
        CheckpointError: it does not load, or weights are missing or do not fit.

    Example:
        >>> load_strictly(Path("/nowhere"))
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere holds neither model_index.json nor config.json ...
    """
    if (folder / INDEX_NAME).is_file():
        return _pipeline(folder)
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).is_file():
            kind = saved_class(folder / name)
            loaded = load_component(kind, folder)
            return f"a {kind.__name__}{_weights([loaded])}"
    raise CheckpointError(
        f"{folder} holds neither {INDEX_NAME} nor config.json, so nothing is saved in it that could be loaded."
    )


def saved_class(config: Path) -> type:
    """The class that a network's or scheduler's configuration file names, by the rules of model_index.json.

    Raises:
        CheckpointError: the file is no JSON object, or names no class that is loaded.
    """
    import latentia

    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read as JSON: {error}. Save or fetch it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{config} must hold a JSON object, got {type(values).__name__}.")
    name, library = values.get("_class_name"), "diffusers"
    if name is None and isinstance(values.get("architectures"), list) and len(values["architectures"]) == 1:
        name, library = values["architectures"][0], "transformers"
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or name.startswith("_"):
        raise CheckpointError(
            f"_class_name in {config} must be the name of a class of latentia or diffusers, got {str(name)[:200]!r}."
        )
    return component_class("latentia" if name in latentia.__all__ else library, name, str(config))


def load_component(kind: Any, folder: Path) -> Any:
    """What `kind` saved in `folder`, with every weight in its place.

    Raises:
        CheckpointError: it does not load, or weights are missing or of another shape.
    """
    import diffusers

    import latentia

    library = kind.__module__.partition(".")[0]
    options: dict[str, Any] = {}
    if issubclass(kind, diffusers.ModelMixin) or (library == "transformers" and hasattr(kind, "can_generate")):
        options["use_safetensors"] = True
        if not issubclass(kind, latentia.ModelMixin):  # which is strict itself
            options["output_loading_info"] = True
    try:
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
    import latentia

    index, parts = read_index(folder), {}
    for component, value in index.items():
        if isinstance(value, list) and value[0] is not None:
            kind = component_class(value[0], value[1], str(folder / INDEX_NAME))
            if not (folder / component).is_dir():
                raise CheckpointError(f"{folder} has no folder {component}, which its {INDEX_NAME} names.")
            parts[component] = load_component(kind, folder / component)
    pipe = latentia.DiffusionPipeline.from_pretrained(folder, **parts)
    names = ", ".join(f"{name} {type(part).__name__}" for name, part in parts.items())
    return f"a {type(pipe).__name__}: {names}{_weights(parts.values())}"


def _weights(parts: Any) -> str:
    counts = [sum(p.numel() for p in part.parameters()) for part in parts if hasattr(part, "parameters")]
    return f", {sum(counts) / 1e6:.3g} M weights" if counts else ""
