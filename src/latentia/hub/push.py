"""Pushing an export to the Hub: the pipeline, its card and the pictures of the card, and nothing else."""

import os
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from latentia.errors import CheckpointError, HubError, LatentiaError, UsageError
from latentia.hub.card import SECRET_VALUE
from latentia.hub.load import INDEX_NAME, pipeline_class, read_index

# What a component's folder may hold. Anything else there, an optimizer's state for one, stays at home.
_NETWORK_FILES = (
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.safetensors.index.json",
)
_TRANSFORMERS_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model")
_CARD_PICTURE = re.compile(r"!\[[^\]]*\]\(([^()\s]+)\)")
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
_WAITS = (2.0, 6.0)  # seconds before the second and the third attempt


def export_files(folder: str | Path) -> list[str]:
    """The files of `folder` that make up the export, as sorted relative paths.

    Args:
        folder: a saved pipeline with its card, perhaps amid checkpoints and logs of the run that made it.

    Returns:
        model_index.json, README.md, the files of the components that the index names, and the card's pictures.

    Raises:
        CheckpointError: the folder is no saved pipeline, or a component or the card is missing.

    Example:
        >>> export_files("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere has no model_index.json, so it is no saved pipeline. ...
    """
    root = Path(folder)
    index = read_index(root)
    files = {INDEX_NAME}
    for component, value in index.items():
        if not isinstance(value, list) or value[0] is None:
            continue
        patterns = _TRANSFORMERS_FILES if value[0] == "transformers" else _NETWORK_FILES
        found = {path for pattern in patterns for path in (root / component).glob(pattern) if path.is_file()}
        if not found:
            raise CheckpointError(
                f"{root} names the component {component} in {INDEX_NAME} but has no files of it. Save the pipeline "
                "again with save_pretrained."
            )
        files |= {path.relative_to(root).as_posix() for path in found}
    card = root / "README.md"
    if not card.is_file():
        raise CheckpointError(
            f"{root} has no README.md. Write a card first: latentia.model_card(...).save({str(card)!r})."
        )
    for name in _CARD_PICTURE.findall(card.read_text(encoding="utf-8")):
        path = root / name
        inside = path.resolve().is_relative_to(root.resolve())
        if inside and path.is_file() and path.suffix.lower() in _PICTURE_SUFFIXES:
            files.add(Path(name).as_posix())
    return sorted({*files, "README.md"})


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads the export in `folder` to the Hub, in one commit, after proving that it loads.

    Checkpoints, optimizer state, logs and training state are never uploaded, wherever they lie. There is no token
    argument: log in with `hf auth login`, or set HF_TOKEN.

    Args:
        folder: a saved pipeline with its card; the output folder of a training run is one.
        repo_id: "user/name". The repository is made if there is none.
        private: whether a repository that is made here is private.
        create_pr: whether to open a pull request instead of committing.
        revision: the branch to commit to, "main" by default.
        commit_message: of the commit.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        CheckpointError: the folder is no export that loads.
        UsageError: `repo_id` is no name of a repository, or a file holds what looks like an access token.
        HubError: the Hub refused, or could not be reached after three attempts. The folder is as complete as before.

    Example:
        >>> push_to_hub("runs/digits", "me/digits")  # doctest: +SKIP
        'https://huggingface.co/me/digits'
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f'repo_id must be "user/name", got {repo_id!r}: {error}') from error
    root = Path(folder)
    files = export_files(root)
    _check_secrets(root, files)
    _check_loads(root, files)
    api = HfApi(library_name="latentia")
    for wait in (*_WAITS, None):
        try:
            home = api.create_repo(repo_id, private=private, exist_ok=True)
            # Made afresh for each attempt, because a commit leaves marks on them.
            additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=root / name) for name in files]
            commit = api.create_commit(
                home.repo_id,
                additions,
                commit_message=commit_message or "Upload with latentia",
                revision=revision,
                create_pr=create_pr,
            )
            return str(commit.pr_url) if create_pr else str(home)
        except Exception as error:  # whatever the client raises, the folder is complete and the user wants the command
            # A pull request may have been opened before the answer was lost, and a second one would be a nuisance.
            if wait is None or create_pr or not _may_pass(error):
                command = ["latentia", "push", str(root), repo_id]
                command += ["--private"] * private + ["--create_pr"] * create_pr
                command += [] if revision is None else ["--revision", revision]
                size = sum((root / name).stat().st_size for name in files) / 1e6
                raise HubError(
                    f"{repo_id} was not updated: {_reason(error)}\nThe export in {root} is complete: {len(files)} "
                    f"files, {size:.1f} MB, card included. Run again: {shlex.join(command)}"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _check_secrets(root: Path, files: list[str]) -> None:
    token = get_token()
    for name in files:
        if name.endswith((".safetensors", *_PICTURE_SUFFIXES)):
            continue
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        if (token and token in text) or SECRET_VALUE.search(text):
            raise UsageError(
                f"{root / name} holds what looks like an access token or a password, and it would become public. "
                "Remove it from the file; if it was ever shared, revoke it."
            )


def _check_loads(root: Path, files: list[str]) -> None:
    """Loads the pipeline from exactly the files that will be uploaded."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in files:
            link = Path(scratch, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link((root / name).resolve(), link)
            except OSError:  # another file system
                shutil.copyfile(root / name, link)
        kind: Any = pipeline_class(read_index(scratch), str(root / INDEX_NAME))
        try:
            kind.from_pretrained(scratch, use_safetensors=True)
        except (LatentiaError, OSError, ValueError, TypeError) as error:
            text = str(error).replace(scratch, str(root))
            raise CheckpointError(f"{root} is no export that loads, so it was not pushed: {text}") from error


def _may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed a little later."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, (HTTPError, ConnectionError)):  # no connection, or it broke
            return True
        error = error.__cause__
    return False


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    text = str(error) if cause is None or cause is error else f"{error} {cause}"
    token = get_token()
    text = text.replace(token, "[token]") if token else text
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status in (401, 403):
        text += "\nLog in with `hf auth login`, or set HF_TOKEN, with a token that may write to this repository."
    return text
