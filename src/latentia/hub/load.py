"""Checks of model_index.json: a saved pipeline may name public classes of three libraries, and no arbitrary code.

`model_index.json` is untrusted, and importing a module runs it. So every name is checked before anything is imported
or any path is joined, and code in a repository is never run.
"""

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch

from latentia.errors import CheckpointError, did_you_mean
from latentia.registration import public, public_names
from latentia.safety import check_files, check_link, check_loader_options, check_network, read_json

INDEX_NAME = "model_index.json"
_BASES = {  # of the components of each library; a pipeline in a pipeline would bring an index of its own
    "latentia": ("ModelMixin", "SchedulerMixin"),
    "diffusers": ("ModelMixin", "SchedulerMixin"),
    "transformers": (
        *("PreTrainedModel", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "PreTrainedTokenizerBase"),
        *("FeatureExtractionMixin", "ImageProcessingMixin", "ProcessorMixin"),
    ),
}
LIBRARIES = tuple(_BASES)
_NOT_NEEDED = {"safety_checker", "feature_extractor", "image_encoder"}
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OWN_KEYS = {"_class_name", "_diffusers_version", "_name_or_path", "_module"}


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """Read and check `folder/model_index.json`.

    Args:
        folder: a saved pipeline.

    Raises:
        CheckpointError: the file is missing, is not JSON, or names something that is not loaded.

    Example:
        >>> read_index("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere has no model_index.json, so it is no saved pipeline. ...
    """
    path = Path(folder, INDEX_NAME)
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {INDEX_NAME}, so it is no saved pipeline. Give the folder that save_pretrained or a "
            "training run wrote, not one of its parts."
        )
    check_link(path, path.parent)
    index = read_json(path)
    check_loader_options(index, str(path))
    check_index(index, str(path))
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The library and class of each component that a pipeline has, by its name; settings are left out.

    Args:
        index: model_index.json, or the configuration of a pipeline.

    Example:
        >>> components({"_class_name": "A", "unet": ["latentia", "UNet2D"], "prior": [None, None], "levels": []})
        {'unet': ('latentia', 'UNet2D')}
    """
    pairs = {name: tuple(value) for name, value in index.items() if isinstance(value, list | tuple)}
    return {name: value for name, value in pairs.items() if len(value) == 2 and all(isinstance(v, str) for v in value)}


def check_index(index: dict[str, Any], where: str) -> None:
    """Reject component, library and class names in `index` that are not allowed; imports nothing.

    Args:
        index: the parsed model_index.json.
        where: its path, for messages.

    Raises:
        CheckpointError: a component, library or class name is not allowed.
    """
    _check_name(index.get("_class_name"), _CLASS, "_class_name", where)
    for component, value in index.items():
        if component in _OWN_KEYS:
            if isinstance(value, (list, dict)):
                raise CheckpointError(f"{component} in {where} must be plain text, got {value!r}.")
        elif isinstance(value, list):
            _check_name(component, _COMPONENT, "a component's name", where)
            if value == [None, None]:  # an optional component that is not there
                continue
            if len(value) != 2 or value[0] not in LIBRARIES:
                raise CheckpointError(
                    f"{component} in {where} must be [library, class] with a library of {', '.join(LIBRARIES)}, got "
                    f"{str(value)[:200]}. Importing anything else would run its code. A setting that is a list cannot "
                    'be kept in this file, where every list is a component: keep a mapping, {"0": ..., "1": ...}.'
                )
            name = value[1]
            _check_name(name, _CLASS, f"the class of {component}", where)


def _check_name(name: Any, rule: re.Pattern[str], what: str, where: str) -> None:
    if not isinstance(name, str) or not rule.fullmatch(name):
        raise CheckpointError(f"{what} in {where} must match {rule.pattern}, got {name!r}.")


def component_class(library: str, name: str, where: str) -> type:
    """The public, loadable class `name` of `library`, both already checked by `check_index`.

    Raises:
        CheckpointError: the library has no such class, or is not installed.
    """

    def find(key: str) -> Any:
        return public(key) if library == "latentia" else getattr(import_module(library), key, None)

    try:
        found = find(name)
    except ImportError as error:
        raise CheckpointError(
            f"{where} needs {name} of {library}, which cannot be imported: {error}. Install {library} and try again."
        ) from error
    bases = tuple(base for base in map(find, _BASES[library]) if base)
    if not isinstance(found, type) or not issubclass(found, bases):
        hint = did_you_mean(name, getattr(import_module(library), "__all__", []))
        raise CheckpointError(
            f"{where} names the class {name} of {library}, which is not a network, scheduler or tokenizer there.{hint} "
            f"Perhaps it was saved with another version of {library}."
        )
    return found


def pipeline_class(index: dict[str, Any], where: str) -> type:
    """The pipeline that `index` names: latentia's, or diffusers' own of that name.

    Raises:
        CheckpointError: neither library has such a pipeline.
    """
    name = index["_class_name"]
    found = public(name) or getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        pipelines = [known for known in public_names() + dir(diffusers) if known.endswith("Pipeline")]
        raise CheckpointError(
            f"{where} names the pipeline {name}, which neither latentia nor diffusers has."
            f"{did_you_mean(name, pipelines)} If it is a class of your own, load it with that: "
            f"{name}.from_pretrained(...). Or perhaps it was saved with another version."
        )
    if found._load_connected_pipes:
        raise CheckpointError(
            f"{where} names the pipeline {name}, which downloads further repositories that its card names. Load "
            "those pipelines one by one."
        )
    return found


def left_without(kind: Any, names: Iterable[str]) -> list[str]:
    """The components that a pipeline class has no place for, of those that its images depend on."""
    return sorted({*names} - {*inspect.signature(kind.__init__).parameters} - _NOT_NEEDED)


def check_kept(kind: Any, index: dict[str, Any], where: str) -> None:
    """Refuses a pipeline class that would leave out a component of the saved pipeline.

    diffusers drops such a component with a warning, and without its autoencoder a latent diffusion gives latents for
    images. What judges finished images or reads prompts made of images may be missing.

    Raises:
        CheckpointError: naming the components, and the class that was saved.
    """
    lost = left_without(kind, components(index))
    if lost:
        raise CheckpointError(
            f"{where} holds a {index['_class_name']} with {', '.join(lost)}, for which {kind.__name__} has no place: "
            "its images would be wrong. Load it with latentia.DiffusionPipeline, which takes the class that was saved."
        )


def check_component(kind: Any, root: Path, name: str, variant: str | None = None) -> None:
    """Check the untrusted files of a component of diffusers or transformers; networks of latentia check their own.

    Args:
        kind: its class, from `component_class`.
        root: the folder of the pipeline.
        name: of the component, and of the folder that holds it, if there is one.
        variant: of the weights, such as "fp16", where there are such.

    Raises:
        CheckpointError: a file is missing, a symbolic link out of the folder, too large, or sets an option of a
            loader; the network asks for more than its weights hold.
    """
    folder = root / name if (root / name).is_dir() else root
    check_link(folder, root)
    if issubclass(kind, public("ModelMixin")):
        return
    check_files(folder)
    if issubclass(kind, diffusers.SchedulerMixin):
        check_loader_options(read_json(folder / kind.config_name), str(folder / kind.config_name))
    elif issubclass(kind, diffusers.ModelMixin):
        config = read_json(folder / kind.config_name)
        check_network(folder, config, "diffusion_pytorch_model", lambda: kind.from_config(config), variant)
    elif issubclass(kind, torch.nn.Module):  # of transformers
        config = read_json(folder / "config.json")
        model: Any = kind
        check_network(folder, config, "model", lambda: model(model.config_class.from_pretrained(folder)), variant)
