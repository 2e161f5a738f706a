"""Trial of tokenizers and image processors in a child process before they are loaded, remembered by content."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from latentia.errors import CheckpointError
from latentia.files.cache import cache_folder, key_of
from latentia.files.logs import get_logger
from latentia.files.reading import open_file
from latentia.foreign import check_foreign_files
from latentia.hub.child import run_limited

logger = get_logger(__name__)

MEMORY = 2**30  # bytes, and BYTES more for each byte of the files
BYTES = 64  # twice of what vocabularies of 5 to 30 MB take
SECONDS = 60
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".ot")
_WAY = "If you trust it, load that part with transformers and pass it to the pipeline as an argument."
# Content that needs no trial: the tokenizer of pretrained/emoji.
KNOWN = frozenset({"4c9b705e91a07a9d34268dc3d65dfdeb"})


def content_of(name: str, folder: Path) -> tuple[str, int]:
    """Hash and bytes of the files that `name` may read in `folder`: all but weights.

    Example:
        >>> content_of("CLIPTokenizer", Path("/nowhere/at/all"))[1]
        0
    """
    files = [*folder.glob("*"), *folder.glob("additional_chat_templates/*")]
    digest, size = hashlib.blake2b(name.encode(), digest_size=16), 0
    for path in sorted(path for path in files if path.is_file() and path.suffix not in _WEIGHTS):
        with open_file(path) as file:
            of_one = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"\0{path.relative_to(folder)}\0{of_one}".encode(errors="surrogateescape"))
        size += path.stat().st_size
    return digest.hexdigest(), size


def try_parts(parts: Iterable[tuple[str, Path]]) -> None:
    """Check files of tokenizers and image processors by loading them in one child process with limits.

    What was accepted is remembered in the cache folder, by its content and the versions of the libraries.

    Args:
        parts: the class in transformers and the folder of each.

    Raises:
        CheckpointError: naming the folder that does not load, or takes too much time or memory.
    """
    parts = list(parts)
    if not parts:  # without the extra "text" there are no such libraries
        return
    todo, memory = {}, MEMORY
    versions = [version(library) for library in ("transformers", "tokenizers")]
    for name, folder in parts:
        check_foreign_files(folder)
        content, size = content_of(name, folder)
        mark = cache_folder() / "tried" / key_of([content, *versions])
        if content not in KNOWN and not mark.exists():
            todo[mark] = (name, folder)
            memory = max(memory, MEMORY + BYTES * size)
    if not todo:
        return
    arguments = [text for name, folder in todo.values() for text in (name, str(folder.resolve()))]
    job = Path(__file__).with_name("trial_job.py")
    answer, late, code = run_limited(job, arguments, memory=memory, seconds=SECONDS)
    said = answer or [""] * len(todo)
    if answer is None:
        why = f"took more than {SECONDS} s" if late else f"ended with code {code}, or needs more than {memory} bytes"
        where = " or ".join(str(folder) for _, folder in todo.values())
        raise CheckpointError(f"{where} is refused: loading it in a process with limits {why}. {_WAY}")
    for (name, folder), wrong in zip(todo.values(), said):
        if wrong:
            raise CheckpointError(f"{folder} cannot be loaded as {name}: {wrong}. {_WAY}")
    for mark in todo:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:  # then it is tried again the next time
            logger.info("%s cannot be written: %s", mark, error)
