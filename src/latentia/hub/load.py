"""Checks of model_index.json: a saved pipeline may name public classes of latentia and reviewed ones of two libraries.

`model_index.json` is untrusted, and importing a module runs it. So every name is checked before anything is imported
or any path is joined, and code in a repository is never run.
"""

import inspect
import os
import re
import typing
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from latentia.errors import CheckpointError, did_you_mean
from latentia.files.reading import check_link
from latentia.foreign import REVIEWED, check_foreign_files, check_network, foreign_class
from latentia.hub.trial import try_parts
from latentia.registration import public, public_names
from latentia.safety import check_keys, check_loader_options, read_json

INDEX_NAME = "model_index.json"
LIBRARIES = ("latentia", *REVIEWED)
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
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} has no {INDEX_NAME}, so it is no saved pipeline. Give the folder that save_pretrained or a "
            "training run wrote, not one of its parts."
        )
    check_link(path, path.parent)
    index = read_json(path)
    check_keys(index, str(path))
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


def component_class(library: str, name: str, where: str) -> Any:
    """The loadable class `name` of `library`, both already checked by `check_index`: public, or on the reviewed list.

    Raises:
        CheckpointError: the library has no such class, it is not reviewed, or the library is not installed.
    """
    if library != "latentia":
        return foreign_class(library, name, where)
    found = public(name)
    if not isinstance(found, type) or not issubclass(found, (public("ModelMixin"), public("SchedulerMixin"))):
        raise CheckpointError(
            f"{where} names the class {name} of latentia, which is not a network or scheduler there."
            f"{did_you_mean(name, public_names())} Perhaps it was saved with another version of latentia."
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
    """Refuses a component that is none, and a pipeline class that would leave out one of the saved pipeline.

    diffusers drops such a component with a warning, and without its autoencoder a latent diffusion gives latents for
    images. What judges finished images or reads prompts made of images may be missing.

    Raises:
        CheckpointError: naming the components, and the class that was saved; or what is no component.
    """
    for name, argument in inspect.signature(kind.__init__).parameters.items():
        is_component = argument.default is argument.empty or name in kind._optional_components
        if is_component and not isinstance(index.get(name, []), list):
            raise CheckpointError(f"{name} in {where} must be [library, class], got {str(index[name])[:200]!r}.")
    lost = left_without(kind, components(index))
    if lost:
        raise CheckpointError(
            f"{where} holds a {index['_class_name']} with {', '.join(lost)}, for which {kind.__name__} has no place: "
            "its images would be wrong. Load it with latentia.DiffusionPipeline, which takes the class that was saved."
        )


def check_components(kinds: Mapping[str, Any], root: Path, variant: str | None = None) -> None:
    """Check the untrusted files of components of diffusers or transformers; networks of latentia check their own.

    Networks are built without memory and compared with their weights, tokenizers and image processors are tried in one
    child process.

    Args:
        kinds: the class of each, from `component_class`, by its name, which is that of its folder, if there is one.
        root: the folder of the pipeline.
        variant: of the weights, such as "fp16", where there are such.

    Raises:
        CheckpointError: a file is missing, a symbolic link out of the folder, too large, or sets an option of a
            loader; the network asks for more than its weights hold, or a tokenizer does not load within limits.
    """
    parts = []
    for name, kind in kinds.items():
        folder = root / name if (root / name).is_dir() else root
        check_link(folder, root)
        if issubclass(kind, public("ModelMixin")):
            continue
        check_foreign_files(folder)
        if issubclass(kind, diffusers.SchedulerMixin):
            config, where = read_json(folder / kind.config_name), str(folder / kind.config_name)
            check_keys(config, where)
            check_loader_options(config, where)
            _check_numbers(kind, config, where)
        elif issubclass(kind, diffusers.ModelMixin):
            config = read_json(folder / kind.config_name)
            _check_numbers(kind, config, str(folder / kind.config_name))
            build = partial(kind.from_config, config)
            check_network(folder, config, "diffusion_pytorch_model", build, variant)
        elif issubclass(kind, torch.nn.Module):  # of transformers
            config = read_json(folder / "config.json")
            _check_tokens(kind, config, str(folder / "config.json"))
            check_network(folder, config, "model", partial(_build, kind, folder), variant)
        else:
            parts.append((kind.__name__, folder))
    try_parts(parts)


def _check_numbers(kind: Any, config: Mapping[str, Any], where: str) -> None:
    """Texts and mappings where a class of diffusers takes numbers alone would fail only when it is used."""
    for name, argument in inspect.signature(kind.__init__).parameters.items():
        kinds = {*(typing.get_args(argument.annotation) or (argument.annotation,))}
        if kinds <= {int, float, bool, type(None)} and isinstance(config.get(name), str | Mapping):
            raise CheckpointError(f"{name} in {where} must be a number; got {config[name]!r}.")


def _check_tokens(kind: Any, config: Mapping[str, Any], where: str) -> None:
    """CLIP looks for one token at the end of a text; of several it would fail only when it is used."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        if kind.__name__.startswith("CLIP") and not (value is None or type(value) is int):
            raise CheckpointError(f"{name} in {where} must be an integer or null; got {value!r}.")


def _build(kind: Any, folder: Path) -> torch.nn.Module:
    return kind(kind.config_class.from_pretrained(folder))
