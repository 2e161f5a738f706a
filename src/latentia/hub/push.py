"""Upload of an export to the Hub: the pipeline, its card and the images of the card, and nothing else."""

import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from latentia.errors import CheckpointError, HubError, LatentiaError, UsageError
from latentia.files.reading import check_link, read_text
from latentia.functional.settings import check_types
from latentia.hub.blocks import put_block, read_blocks
from latentia.hub.card import MAX_CARD, SECRET_VALUE, read_card, use_lines
from latentia.hub.check import check_loads
from latentia.hub.client import explain_error, is_transient, retry
from latentia.hub.files import CARD_NAME, IMAGE_SUFFIXES, card_images, component_files, is_inside
from latentia.hub.load import INDEX_NAME, components, pipeline_class, read_index
from latentia.hub.usage import saved_usage

LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "other")  # those most in use


def check_license(license: str | None, argument: str = "license") -> None:
    """Refuse to publish without a word on the licence.

    Args:
        license: the Hub's identifier, "none", or None.
        argument: its name, for the message.

    Raises:
        UsageError: it is None.

    Example:
        >>> check_license("mit")
        >>> check_license(None)
        Traceback (most recent call last):
        latentia.errors.UsageError: license is missing: ...
    """
    if not license:
        raise UsageError(
            f"{argument} is missing: in a public repository others must know what they may do with the model. Name "
            f"one, such as {', '.join(LICENSES)} (https://huggingface.co/docs/hub/repositories-licenses lists all; the "
            f'terms of the data matter), or "none" to publish without a licence, which allows nothing.'
        )


def export_files(folder: str | Path) -> list[str]:
    """List the files of `folder` that belong to the export, as sorted relative paths.

    Args:
        folder: a saved pipeline with its card; it may also hold checkpoints and logs of a run.

    Returns:
        model_index.json, README.md, the files of the components that the index names, and the card's images.

    Raises:
        CheckpointError: the folder is not a saved pipeline, a component or the card is missing, or a file is a symbolic
            link out of the folder.

    Example:
        >>> export_files("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere has no model_index.json, so it is no saved pipeline. ...
    """
    root = Path(folder)
    index = read_index(root)
    names = [
        f"{component}/{path.name}"
        for component in components(index)
        if (root / component).is_dir()
        for path in (root / component).iterdir()
        if path.is_file()
    ]
    files = {INDEX_NAME, CARD_NAME, *component_files(index, names, str(root))}
    card = root / CARD_NAME
    if not card.is_file():
        raise CheckpointError(f"{root} has no README.md. Write a card first: latentia card {root} --write")
    for name in files:
        check_link(root / name, root)
    for name in card_images(read_text(card, MAX_CARD)):
        if (root / name).is_file() and is_inside(root / name, root):
            files.add(name)
    return sorted(files)


@check_types
def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    diffusers_code: bool = False,
) -> str:
    """Upload a saved pipeline and its card to the Hub, in one commit, after checking that it loads.

    Checkpoints, optimizer state, logs and training state are never uploaded. The uploaded card names the repository in
    its section "Use"; the folder is not changed. There is no token argument: log in with
    `hf auth login`, or set HF_TOKEN.

    Args:
        folder: a saved pipeline with its card; the output folder of a training run is one.
        repo_id: "user/name". The repository is created if it does not exist.
        private: create the repository as private, which is the default; an existing one stays as it is.
        license: the Hub's identifier of the licence, such as "apache-2.0", for the uploaded card; "none": publish
            without one. None (default): that of the card. A public repository needs one of the three.
        create_pr: open a pull request instead of committing.
        revision: the branch to commit to; "main" if not given.
        commit_message: of the commit; "Upload with latentia" if not given.
        diffusers_code: upload a pipeline.py of a few lines too, by which a program that knows diffusers
            alone loads the repository once it has its files: `DiffusionPipeline.from_pretrained(folder,
            custom_pipeline="pipeline", trust_remote_code=True)`. latentia must be installed there. Code in `folder` is
            never uploaded, and latentia's own loaders never run code of a repository.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        CheckpointError: the folder is not an export, or does not load.
        UsageError: `repo_id` is not the name of a repository, a file seems to hold an access token, or the repository
            is public and neither `license` nor the card says anything of the licence.
        HubError: the Hub refused, or could not be reached after three attempts. The folder is not changed.

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
    stated = license or read_card(root / CARD_NAME).data.to_dict().get("license")
    if not private:
        check_license(stated)
    made = {CARD_NAME: _card(root, repo_id, diffusers_code, license)}
    if diffusers_code:
        made["pipeline.py"] = diffusers_pipeline(read_index(root), str(root))
    api = HfApi(library_name="latentia")

    def upload() -> str:
        home = api.create_repo(repo_id, private=private, exist_ok=True)
        if not stated and not api.repo_info(home.repo_id).private:  # it was there before, and is public
            check_license(stated)
        # Made afresh for each attempt, because a commit leaves marks on them.
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=made[name].encode() if name in made else root / name)
            for name in sorted({*files, *made})
        ]
        commit = api.create_commit(
            home.repo_id,
            additions,
            commit_message=commit_message or "Upload with latentia",
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.pr_url) if create_pr else str(home)

    try:
        # A pull request may have been opened before the answer was lost, so a retry could open a second one.
        return retry(upload, lambda error: not create_pr and is_transient(error))
    except UsageError:
        raise
    except Exception as error:  # whatever the client raises, the folder is complete and the user wants the command
        command = ["latentia", "push", str(root), repo_id]
        command += ["--no_private"] * (not private) + ["--create_pr"] * create_pr
        command += [] if license is None else ["--license", license]
        command += ["--diffusers_code"] * diffusers_code
        command += [] if revision is None else ["--revision", revision]
        size = sum((root / name).stat().st_size for name in files) / 1e6
        raise HubError(
            f"{repo_id} was not updated: {explain_error(error, repo_id, write=True)}\n"
            f"The export in {root} is complete: {len(files)} files, {size:.1f} MB, card included. "
            f"Run again: {shlex.join(command)}"
        ) from error


def diffusers_pipeline(index: dict[str, Any], where: str) -> str:
    """Make the pipeline.py by which diffusers alone finds the class of a saved pipeline.

    Example:
        >>> print(diffusers_pipeline({"_class_name": "GANPipeline"}, "here"))  # doctest: +ELLIPSIS
        \"\"\"Lets diffusers load a folder with the files of this repository: ...
        from latentia import GANPipeline as Pipeline...
    """
    kind = pipeline_class(index, where)
    # diffusers takes the one class of this file that is not its own, and runs a second such file in the same module:
    # so that the class always has the same name there.
    code = f"from latentia import {kind.__name__} as Pipeline  # noqa: F401"
    if not kind.__module__.startswith("latentia."):
        code = (
            f"import diffusers\n\nimport latentia  # noqa: F401\n\n\nclass Pipeline(diffusers.{kind.__name__}):\n"
            f'    """diffusers\' own, around networks of latentia."""\n\n\nPipeline.__name__ = "{kind.__name__}"'
        )
    return (
        '"""Lets diffusers load a folder with the files of this repository: custom_pipeline="pipeline".\n\n'
        'It needs latentia to be installed, and names its class; there is nothing else in here.\n"""\n\n'
        f"{code}\n"
    )


def _card(root: Path, repo_id: str, diffusers_code: bool, license: str | None) -> str:
    """Make the card for the upload: its section "Use" names the repository, unless it was edited by hand."""
    card = read_card(root / CARD_NAME)
    content = card.content
    if "use" in read_blocks(card.text):
        text, _ = put_block(card.text, "use", use_lines(saved_usage(root), repo_id, diffusers_code))
        content = content.replace(card.text, text)
    if license is None:
        return content
    made = ModelCard(content)
    made.data["license"] = None if license == "none" else license
    return str(made)


def _check_secrets(root: Path, files: list[str]) -> None:
    token = get_token()
    for name in files:
        if name.endswith((".safetensors", *IMAGE_SUFFIXES)):
            continue
        text = read_text(root / name, replace=True)
        if (token and token in text) or SECRET_VALUE.search(text):
            raise UsageError(
                f"{root / name} holds what looks like an access token or a password, and it would become public. "
                "Remove it from the file; if it was ever shared, revoke it."
            )


def _check_loads(root: Path, files: list[str]) -> None:
    """Check that the pipeline loads from exactly the files that will be uploaded."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in files:
            link = Path(scratch, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link((root / name).resolve(), link)
            except OSError:  # another file system
                shutil.copyfile(root / name, link)
        try:
            check_loads(Path(scratch))
        except LatentiaError as error:
            text = str(error).replace(scratch, str(root))
            raise CheckpointError(f"{root} does not load, so it was not pushed: {text}") from error
