"""Check that a checkpoint, a run, a saved pipeline or a network is complete: hashes, and every weight in its place."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from latentia.errors import CheckpointError, HubError, UsageError
from latentia.functional.settings import check_types
from latentia.hub.check import check_loads
from latentia.hub.load import INDEX_NAME
from latentia.hub.pull import fetch
from latentia.training.checkpoint import numbered, verify_checkpoint


@dataclass(frozen=True)
class Verified:
    """What was found complete.

    Args:
        lines: one for each part: what it is and what was checked.
    """

    lines: list[str]

    def text(self) -> str:
        """The lines."""
        return "\n".join(self.lines)


@check_types
def verify(path: str, revision: str | None = None) -> Verified:
    """Check that a checkpoint, a run, a saved pipeline or a network is complete: hashes, and every weight in its place.

    The exit code is 5, and the file is named, if it is not.

    Args:
        path: a checkpoint, the output folder of a run (its checkpoints and its pipeline), a saved pipeline or network,
            or "user/name" on the Hub, which is fetched into a folder that is deleted again.
        revision: of a repository on the Hub: branch, tag or commit.

    Returns:
        What was checked.

    Raises:
        CheckpointError: something is missing or damaged; the message names the file.
        HubError: the repository cannot be fetched.
        UsageError: `revision` with a folder, or neither a folder nor the name of a repository.

    Example:
        >>> verify("/nowhere/at/all")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere/at/all is not there.
    """
    folder = Path(path)
    if not folder.exists():
        if folder.is_absolute() or path.startswith("."):
            raise CheckpointError(f"{path} is not there. Give a folder, or a repository on the Hub (user/name).")
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found = fetch(path, Path(scratch, "fetched"), revision=revision)
        except HubError as error:
            raise HubError(f"There is no folder {path} here. {error}") from error
        line = (
            f"{path} at commit {found.commit}: {found.loaded}; {len(found.files)} files, {found.size / 1e6:.1f} MB, "
            "each with the size and hash that the Hub lists, every weight in place"
        )
        return Verified([line])
    if revision is not None:
        raise UsageError(f"revision is for repositories on the Hub, and {path} is a folder. Leave it out.")
    if folder.is_file():
        raise CheckpointError(
            f"{path} is a file. Give its folder: weights are checked against the configuration beside them."
        )
    lines = []
    checkpoints = [checkpoint for _, checkpoint in numbered(folder / "checkpoints")]
    for checkpoint in [*checkpoints, *([folder] if (folder / "manifest.json").exists() else [])]:
        manifest = verify_checkpoint(checkpoint)
        size = sum(file["size"] for file in manifest["files"].values()) / 1e6
        lines.append(
            f"{checkpoint}: a checkpoint, whole, step {manifest['step']}; {len(manifest['files'])} files, "
            f"{size:.1f} MB, each with the size and SHA-256 of its manifest"
        )
    if any(os.path.lexists(folder / name) for name in (INDEX_NAME, "config.json", "scheduler_config.json")):
        lines.append(f"{folder}: {check_loads(folder)}; it loads, every weight in place (no hashes are kept here)")
    if not lines:
        raise CheckpointError(
            f"{folder} is neither a checkpoint, nor a saved pipeline or network, nor the folder of a run."
        )
    return Verified(lines)
