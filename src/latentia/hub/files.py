"""Files of an export, the same in a push and in a pull."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from latentia.errors import CheckpointError, UsageError
from latentia.files.reading import check_link
from latentia.hub.load import INDEX_NAME, components

CARD_NAME = "README.md"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
# What a component's folder may hold. Anything else there, an optimizer's state for one, stays where it is.
_NETWORK_FILES = (
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.safetensors.index.json",
)
_TRANSFORMERS_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model")
_CARD_IMAGE = re.compile(r"!\[[^\]]*\]\(([^()\s]+)\)")


def may_hold(library: str, name: str) -> bool:
    """Whether the folder of a component of `library` may hold a file of this name.

    Example:
        >>> may_hold("latentia", "config.json"), may_hold("latentia", "optimizer.safetensors")
        (True, False)
    """
    patterns = _TRANSFORMERS_FILES if library == "transformers" else _NETWORK_FILES
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def component_files(index: Mapping[str, Any], names: Iterable[str], where: str) -> set[str]:
    """Select the files of the components that `index` names.

    Args:
        index: a model_index.json that `check_index` has passed.
        names: all files, as paths with "/" relative to the index.
        where: the folder or the repository, for messages.

    Raises:
        CheckpointError: a component has none.

    Example:
        >>> index = {"_class_name": "A", "unet": ["latentia", "UNet2D"]}
        >>> sorted(component_files(index, ["unet/config.json", "unet/a.pkl", "evil.py"], "here"))
        ['unet/config.json']
    """
    paths, files = [PurePosixPath(name) for name in names], set()
    for component, (library, _) in components(index).items():
        inside = [path for path in paths if str(path.parent) == component]
        found = {str(path) for path in inside if may_hold(library, path.name)}
        if not found:
            raise CheckpointError(
                f"{where} names the component {component} in {INDEX_NAME} but has no files of it. Save the pipeline "
                "again with save_pretrained."
            )
        files |= found
    return files


def card_images(text: str) -> set[str]:
    """Find the images that a card shows, if they lie in the folder of the card.

    Example:
        >>> card_images("![a](samples/grid.png) ![b](../x.png) ![c](https://x/y.png) ![d](run.sh)")
        {'samples/grid.png'}
    """
    paths = [PurePosixPath(name) for name in _CARD_IMAGE.findall(text) if "://" not in name]
    inside = [path for path in paths if not path.is_absolute() and not {"..", ".cache"} & set(path.parts)]
    return {str(path) for path in inside if path.suffix.lower() in IMAGE_SUFFIXES}


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path`, symbolic links resolved, is inside `root`."""
    try:
        check_link(path, root)
    except CheckpointError:
        return False
    return True


def check_is_new(target: Path, argument: str) -> None:
    """Reject an output folder that exists and is not empty.

    Args:
        target: the folder.
        argument: what it is called in messages.

    Raises:
        UsageError: `target` is a file, or a folder with something in it.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{argument} must be a new or an empty folder; {target} is a file or a symbolic link.")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{argument} must be a new or an empty folder; {target} is not empty. Choose another one.")
