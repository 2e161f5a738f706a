"""Fetching a saved pipeline or network from the Hub: one commit, what an export may hold, all or nothing."""

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
from latentia.hub.check import check_loads, saved_class
from latentia.hub.client import ask, reason
from latentia.hub.files import CARD_NAME, card_pictures, check_free, component_files, may_hold, staged
from latentia.hub.load import INDEX_NAME, read_index


@dataclass(frozen=True)
class Pulled:
    """What was fetched.

    Args:
        repo_id: "user/name".
        folder: where it is.
        commit: the one commit that all of it is of.
        files: names of the files.
        size: their bytes.
        loaded: what it is, with its parts.
        left: files of the repository that are no part of an export.
    """

    repo_id: str
    folder: Path
    commit: str
    files: list[str]
    size: int
    loaded: str
    left: list[str]

    def text(self) -> str:
        """Commit, contents, and what was left on the Hub."""
        size = f"{len(self.files)} files, {self.size / 1e6:.1f} MB"
        lines = [
            f"{self.repo_id} at commit {self.commit}",
            f"{self.folder}: {self.loaded}; {size}, every hash and weight right",
        ]
        if self.left:
            more = f" and {len(self.left) - 5} more" if len(self.left) > 5 else ""
            lines.append(f"Left on the Hub, as it is no part of an export: {', '.join(self.left[:5])}{more}")
        return "\n".join(lines)


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None) -> Pulled:
    """Fetch a saved pipeline or network from the Hub, all of it or nothing, and check that it loads.

    The revision is resolved to one commit, and everything comes from it. Only files that a push would upload are
    fetched: no pickles, no code. Sizes and hashes are compared with the Hub's, and every weight must be in its place.
    The folder is there only when all of this is done. For private and gated repositories log in with `hf auth login`,
    or set HF_TOKEN.

    Args:
        repo_id: "user/name".
        folder: where it goes; new or empty.
        revision: branch, tag or commit; the main branch if not given.

    Returns:
        What was fetched.

    Raises:
        UsageError: `folder` is not empty, `repo_id` is no name of a repository, or the disk is too small.
        HubError: the repository cannot be fetched after three attempts.
        CheckpointError: it is no saved pipeline or network, or one that does not load.

    Example:
        >>> pull("me/digits", "outputs/digits")  # doctest: +SKIP
        Pulled(repo_id='me/digits', ...)
    """
    target = Path(folder)
    check_free(target, "folder")
    with staged(target) as staging:
        return replace(fetch(repo_id, staging, revision=revision), folder=target)


def fetch(repo_id: str, folder: Path, *, revision: str | None = None) -> Pulled:
    """`pull` into a folder that is being made: what is in it after an error is not to be used."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f'"{repo_id}" is neither there nor the name of a Hub repository ("user/name").') from error
    api, asked = HfApi(library_name="latentia"), revision or "main"
    with _explained(repo_id, asked, folder):
        commit = str(ask(lambda: api.model_info(repo_id, revision=revision)).sha)
    with _explained(repo_id, f"{asked}, commit {commit}", folder):
        entries = ask(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)))
        listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        def get(name: str) -> Path:
            path = Path(ask(lambda: hf_hub_download(repo_id, name, revision=commit, local_dir=folder)))
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
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the client notes about its downloads
        loaded = check_loads(folder)
    return Pulled(
        repo_id, folder, commit, sorted(wanted), size, loaded, sorted(set(listed) - wanted - {".gitattributes"})
    )


def _wanted(where: str, listed: dict[str, RepoFile], get) -> set[str]:
    """The files of an export, chosen by the index and the card, which are fetched first."""
    wanted = {CARD_NAME} & set(listed)
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
        text = get(CARD_NAME).read_text(encoding="utf-8", errors="replace")
        wanted |= card_pictures(text) & set(listed)
    return wanted


def _check_hash(path: Path, entry: RepoFile) -> None:
    content = hashlib.sha256() if entry.lfs else hashlib.sha1(b"blob %d\0" % entry.size)  # git's name of a file
    with open(path, "rb") as file:
        while part := file.read(2**20):
            content.update(part)
    if path.stat().st_size != entry.size or content.hexdigest() != (entry.lfs.sha256 if entry.lfs else entry.blob_id):
        raise HubError(
            f"{entry.path} came with {path.stat().st_size} bytes of other content than the Hub lists ({entry.size} "
            "bytes). Try again."
        )


@contextmanager
def _explained(repo_id: str, revision: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (UsageError, HubError):
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{repo_id} ({revision}): {str(error).replace(str(folder), repo_id)}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise HubError(
            f"{repo_id} ({revision}) cannot be fetched from the Hub: {reason(error, repo_id, write=False)}"
        ) from error
