"""Whether what lies in a folder or on the Hub is whole: hashes where there are some, and every weight in its place."""

import tempfile
from pathlib import Path

from latentia.errors import CheckpointError, HubError, UsageError
from latentia.hub.check import check_loads
from latentia.hub.load import INDEX_NAME
from latentia.hub.pull import fetch
from latentia.training.checkpoint import verify_checkpoint


def verify(path: str, revision: str | None = None) -> list[str]:
    """Checks all that can be checked about `path`.

    Args:
        path: a checkpoint, the folder of a run (its checkpoints and its pipeline), a saved pipeline or network, or
            "user/name" on the Hub, which is fetched into a folder that is deleted again.
        revision: of a repository on the Hub: branch, tag or commit.

    Returns:
        A line for each thing that is whole: what it is and what was checked.

    Raises:
        CheckpointError: something is not whole; the message names the file.
        HubError: the repository cannot be had.
        UsageError: `revision` with a folder, or neither folder nor name of a repository.

    Example:
        >>> verify("/nowhere/at/all")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere/at/all is neither a checkpoint nor anything else: it is not there.
    """
    folder = Path(path)
    if not folder.exists():
        if folder.is_absolute() or path.startswith("."):
            raise CheckpointError(f"{path} is neither a checkpoint nor anything else: it is not there.")
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found = fetch(path, Path(scratch, "fetched"), revision=revision)
        except HubError as error:
            raise HubError(f"There is no folder {path} here. {error}") from error
        return [
            f"{path} at commit {found.commit}: {found.loaded}; {len(found.files)} files, {found.size / 1e6:.1f} MB, "
            "each with the size and hash that the Hub lists, every weight in place"
        ]
    if revision is not None:
        raise UsageError(f"--revision is for repositories on the Hub, and {path} is here. Leave it out.")
    if folder.is_file():
        raise CheckpointError(
            f"{path} is a file. Give its folder: weights are judged with the configuration beside them."
        )
    lines = []
    checkpoints = sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda found: (len(found.name), found.name))
    for checkpoint in [*checkpoints, *([folder] if (folder / "manifest.json").exists() else [])]:
        manifest = verify_checkpoint(checkpoint)
        size = sum(file["size"] for file in manifest["files"].values()) / 1e6
        lines.append(
            f"{checkpoint}: a checkpoint, whole, step {manifest['step']}; {len(manifest['files'])} files, "
            f"{size:.1f} MB, each with the size and SHA-256 of its manifest"
        )
    if any((folder / name).exists() for name in (INDEX_NAME, "config.json", "scheduler_config.json")):
        lines.append(f"{folder}: {check_loads(folder)}; it loads, every weight in place (no hashes are kept here)")
    if not lines:
        raise CheckpointError(
            f"{folder} is neither a checkpoint, nor a saved pipeline or network, nor the folder of a run."
        )
    return lines
