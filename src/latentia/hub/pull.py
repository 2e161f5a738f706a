"""Download of a saved pipeline or network from the Hub: files of one commit, hashes checked, no pickles, no code."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from latentia.errors import CheckpointError, HubError, UsageError
from latentia.files.reading import MAX_JSON, open_file, read_text
from latentia.files.writing import write_atomically
from latentia.functional.settings import check_types
from latentia.hub.card import MAX_CARD
from latentia.hub.check import check_loads, saved_class
from latentia.hub.client import explain_error, retry
from latentia.hub.files import CARD_NAME, card_images, check_is_new, component_files, may_hold
from latentia.hub.load import INDEX_NAME, read_index


@dataclass(frozen=True)
class Pulled:
    """Result of a download.

    Args:
        repo_id: "user/name".
        folder: the local folder.
        commit: of all files.
        files: their names.
        size: in bytes, of all files.
        loaded: description of the pipeline or network.
        left: files of the repository that were not downloaded, as they do not belong to an export.
    """

    repo_id: str
    folder: Path
    commit: str
    files: list[str]
    size: int
    loaded: str
    left: list[str]

    def text(self) -> str:
        """Commit, contents, and the files that were left on the Hub."""
        size = f"{len(self.files)} files, {self.size / 1e6:.1f} MB"
        lines = [
            f"{self.repo_id} at commit {self.commit}",
            f"{self.folder}: {self.loaded}; {size}, all hashes and weights checked",
        ]
        if self.left:
            more = f" and {len(self.left) - 5} more" if len(self.left) > 5 else ""
            lines.append(f"Left on the Hub, not part of an export: {', '.join(self.left[:5])}{more}")
        return "\n".join(lines)


@check_types
def pull(repo_id: str, folder: str | Path, *, revision: str | None = None) -> Pulled:
    """Download a saved pipeline or network from the Hub, completely or not at all, and check that it loads.

    The revision is resolved to one commit, of which all files are. Only files that a push would upload are
    downloaded: no pickles, no code. Sizes and hashes are compared with the Hub's, and no weight may be missing. The
    folder appears only when all checks have passed. For private and gated repositories log in with `hf auth login`,
    or set HF_TOKEN.

    Args:
        repo_id: "user/name".
        folder: local folder, new or empty.
        revision: branch, tag or commit; the main branch if not given.

    Returns:
        Folder, commit, files and their size.

    Raises:
        UsageError: `folder` is not empty, `repo_id` is not the name of a repository, or the disk is too small.
        HubError: the repository cannot be downloaded after three attempts.
        CheckpointError: it is not a saved pipeline or network, or does not load.

    Example:
        >>> pull("me/digits", "outputs/digits")  # doctest: +SKIP
        Pulled(repo_id='me/digits', ...)
    """
    target = Path(folder)
    check_is_new(target, "folder")
    with write_atomically(target) as staging:
        return replace(fetch(repo_id, staging, revision=revision), folder=target)


def fetch(repo_id: str, folder: Path, *, revision: str | None = None) -> Pulled:
    """Download into a temporary folder; after an error its contents must not be used."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f'"{repo_id}" is neither a folder nor the name of a Hub repository ("user/name").') from error
    api, asked = HfApi(library_name="latentia"), revision or "main"
    with _explain_errors(repo_id, asked, folder):
        commit = str(retry(lambda: api.model_info(repo_id, revision=revision)).sha)
    with _explain_errors(repo_id, f"{asked}, commit {commit}", folder):
        entries = retry(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)))
        listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        def get(name: str) -> Path:
            path = Path(retry(lambda: hf_hub_download(repo_id, name, revision=commit, local_dir=folder)))
            _check_hash(path, listed[name])
            return path

        folder.mkdir(parents=True, exist_ok=True)
        wanted = _wanted(f"{repo_id} at commit {commit}", listed, get)
        size, free = sum(listed[name].size for name in wanted), shutil.disk_usage(folder).free
        if size > free:
            raise UsageError(
                f"{repo_id} has {size / 1e6:.0f} MB to fetch, but there are {free / 1e6:.0f} MB free at "
                f"{folder.parent}. Choose another disk."
            )
        for name in sorted(wanted):
            get(name)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of the Hub client on its downloads
        loaded = check_loads(folder)
    return Pulled(
        repo_id, folder, commit, sorted(wanted), size, loaded, sorted(set(listed) - wanted - {".gitattributes"})
    )


def _wanted(where: str, listed: dict[str, RepoFile], get) -> set[str]:
    """The files of an export, chosen by the index and the card, which are fetched first if they are not too large.

    A card that is too large stays on the Hub.
    """
    for name in {INDEX_NAME, "config.json"} & set(listed):
        if listed[name].size > MAX_JSON:
            raise CheckpointError(f"{name} of {where} has {listed[name].size} bytes; at most {MAX_JSON} are read.")
    wanted = {name for name in {CARD_NAME} & set(listed) if listed[name].size <= MAX_CARD}
    if INDEX_NAME in listed:
        index = read_index(get(INDEX_NAME).parent)
        wanted |= {INDEX_NAME, *component_files(index, listed, where)}
    elif "config.json" in listed:
        library = saved_class(get("config.json")).__module__.partition(".")[0]
        wanted |= {name for name in listed if "/" not in name and may_hold(library, name)}
    else:
        raise CheckpointError(
            f"{where} has neither {INDEX_NAME} nor config.json, so it is no pipeline or network of diffusers' format."
        )
    if CARD_NAME in wanted:
        text = read_text(get(CARD_NAME), MAX_CARD, replace=True)
        wanted |= card_images(text) & set(listed)
    return wanted


def _check_hash(path: Path, entry: RepoFile) -> None:
    content = hashlib.sha256() if entry.lfs else hashlib.sha1(b"blob %d\0" % entry.size)  # git's name of a file
    with open_file(path, error=HubError) as file:
        while part := file.read(2**20):
            content.update(part)
    if path.stat().st_size != entry.size or content.hexdigest() != (entry.lfs.sha256 if entry.lfs else entry.blob_id):
        raise HubError(
            f"{entry.path} was downloaded with {path.stat().st_size} bytes that differ from what the Hub lists "
            f"({entry.size} bytes). Try again."
        )


@contextmanager
def _explain_errors(repo_id: str, revision: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (UsageError, HubError):
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{repo_id} ({revision}): {str(error).replace(str(folder), repo_id)}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise HubError(
            f"{repo_id} ({revision}) cannot be fetched from the Hub: {explain_error(error, repo_id, write=False)}"
        ) from error
