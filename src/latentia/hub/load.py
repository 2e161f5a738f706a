"""What a saved pipeline may name: components of three libraries, by public class name, and nothing else.

`model_index.json` comes with a repository, and importing a module runs it. So every name is checked here before
anything is imported or any path is joined, and no code that lies in a repository is ever run.
"""

import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from latentia.errors import CheckpointError, did_you_mean

LIBRARIES = ("latentia", "diffusers", "transformers")
INDEX_NAME = "model_index.json"
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OWN_KEYS = {"_class_name", "_diffusers_version", "_name_or_path", "_module"}


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """The checked contents of `folder/model_index.json`.

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
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {INDEX_NAME}, so it is no saved pipeline. Give the folder that save_pretrained or a "
            "training run wrote, not one of its parts."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Save or fetch the pipeline again.") from error
    check_index(index, str(path))
    return index


def check_index(index: Any, where: str) -> None:
    """Refuses any name in `index` that does not follow the rules; imports nothing.

    Args:
        index: the parsed model_index.json.
        where: its path, for messages.

    Raises:
        CheckpointError: a component, library or class name is not allowed.
    """
    if not isinstance(index, dict):
        raise CheckpointError(f"{where} must hold a JSON object, got {type(index).__name__}.")
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
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    try:
        module = import_module(library)
        found = getattr(module, name, None)
    except ImportError as error:
        raise CheckpointError(
            f"{where} needs {name} of {library}, which cannot be imported: {error}. Install {library} and try again."
        ) from error
    bases = tuple(base for base in (getattr(module, key, None) for key in LOADABLE_CLASSES[library]) if base)
    if not isinstance(found, type) or not issubclass(found, bases):
        hint = did_you_mean(name, getattr(module, "__all__", []))
        raise CheckpointError(
            f"{where} names the class {name} of {library}, which is no network, scheduler or tokenizer there.{hint} "
            f"Perhaps it was saved with another version of {library}."
        )
    return found


def pipeline_class(index: dict[str, Any], where: str) -> type:
    """The pipeline that `index` names: latentia's, or diffusers' own of that name.

    Raises:
        CheckpointError: neither library has such a pipeline.
    """
    import diffusers

    import latentia

    name = index["_class_name"]
    found = getattr(latentia, name) if name in latentia.__all__ else getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        pipelines = [known for known in dir(latentia) + dir(diffusers) if known.endswith("Pipeline")]
        raise CheckpointError(
            f"{where} names the pipeline {name}, which neither latentia nor diffusers has."
            f"{did_you_mean(name, pipelines)} Perhaps it was saved with another version."
        )
    return found
