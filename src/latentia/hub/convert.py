"""Conversion of pickled weights to safetensors, in a separate process with limits, without running arbitrary code."""

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from safetensors import SafetensorError, safe_open

from latentia.errors import CheckpointError, Range, UsageError, check_arguments, format_number
from latentia.files.reading import check_link
from latentia.files.writing import write_atomically, write_text
from latentia.functional.settings import check_types
from latentia.hub.check import check_loads, saved_class
from latentia.hub.child import run_limited
from latentia.hub.files import CARD_NAME, check_is_new, may_hold
from latentia.hub.load import INDEX_NAME, components, read_index

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_WEIGHTS = re.compile(r"optimizer|scheduler|scaler|random_states|training_args|rng", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Args:
        lines: names, shapes and bytes of the weights, and the path of the output.
    """

    lines: list[str]

    def text(self) -> str:
        """The lines."""
        return "\n".join(self.lines)


@check_types
@check_arguments
def convert(
    source: str | Path,
    output: str | Path,
    *,
    key: str | None = None,
    max_memory_gb: Annotated[float, Range(0, closed="neither", most=1e6)] | None = None,
    max_seconds: Annotated[float, Range(0, closed="neither", most=1e8)] = 600,
) -> Converted:
    """Convert pickled weights (.bin, .pt, .pth, .ckpt) to safetensors, without running arbitrary code in them.

    A file is read with `torch.load(weights_only=True)` in a process without credentials in its environment, with
    limits on memory, time and output. Weights that share memory are written separately. In a folder of diffusers'
    format, a network or a whole pipeline, the weights of each component are converted, the other files of an export are
    copied, and the result must load without a missing weight. If anything is refused, no output is left.

    Args:
        source: a file of weights; or a folder of diffusers' format, a network or a whole pipeline, with such weights.
        output: the .safetensors file, or the folder, which must be new or empty.
        key: the entry of the file that holds the weights, such as state_dict, if there are several; only for a file.
        max_memory_gb: limit for reading, torch itself not counted; default: three times the largest file plus 1 GB.
        max_seconds: limit of processor time for reading. Default 600.

    Returns:
        The weights and the path of the output.

    Raises:
        CheckpointError: a file holds code, is damaged, or exceeds a limit; no output is left.
        UsageError: an argument is wrong, or this system cannot limit a process.

    Example:
        >>> convert("old.bin", "old.zip")
        Traceback (most recent call last):
        latentia.errors.UsageError: source old.bin does not exist.
    """
    source, target = Path(source), Path(output)
    if not source.exists():
        raise UsageError(f"source {source} does not exist.")
    bounds = (max_memory_gb, max_seconds)
    if source.is_file():
        if target.suffix != ".safetensors":
            raise UsageError(f"output must end in .safetensors for a file; got {target}.")
        if os.path.lexists(target):
            raise UsageError(f"output {target} exists. Choose another name.")
        with write_atomically(target) as staging:
            lines = _read({source: staging}, key or "", *bounds)
        return Converted([*lines, f"Written: {target}"])
    if key is not None:
        raise UsageError("key selects an entry of a file; source is a folder. Leave key out.")
    check_is_new(target, "output")
    with write_atomically(target) as staging:
        staging.mkdir()
        files = _plan(source, staging)
        if not files:
            raise UsageError(f"{source} has no pickled weights ({', '.join(PICKLED)}) to convert.")
        lines = _read(files, "", *bounds)
        _write_shard_indexes(files)
        try:
            loaded = check_loads(staging)
        except CheckpointError as error:
            raise CheckpointError(f"{source} was converted, but {str(error).replace(str(staging), 'it')}") from error
    return Converted([*lines, f"Written: {target}, {loaded}; it loads, no weight is missing"])


def _plan(source: Path, target: Path) -> dict[Path, Path]:
    """Copy the files that need no conversion, and map each file of weights to its output."""
    if not (source / INDEX_NAME).is_file():
        if not (source / "config.json").is_file():
            raise CheckpointError(
                f"{source} has neither {INDEX_NAME} nor config.json, so it is not a network or pipeline of diffusers' "
                "format. Give the file of weights as source."
            )
        return _plan_component(source, target, saved_class(source / "config.json").__module__.partition(".")[0])
    files: dict[Path, Path] = {}
    for component, (library, _) in components(read_index(source)).items():
        if not (source / component).is_dir():
            raise CheckpointError(f"{source} has no folder {component}, which its {INDEX_NAME} names.")
        check_link(source / component, source)
        (target / component).mkdir()
        files |= _plan_component(source / component, target / component, library)
    for name in {INDEX_NAME, CARD_NAME} & set(os.listdir(source)):
        check_link(source / name, source)
        shutil.copyfile(source / name, target / name)
    return files


def _plan_component(source: Path, target: Path, library: str) -> dict[Path, Path]:
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    for name in names:
        if may_hold(library, name) and not name.endswith(".bin.index.json"):
            check_link(source / name, source)
            shutil.copyfile(source / name, target / name)
    old = [name for name in names if name.endswith(PICKLED) and not _NOT_WEIGHTS.search(name)]
    if not old or any(name.endswith(".safetensors") for name in names):
        return {}
    if len({_SHARD.sub("", Path(name).stem) for name in old}) > 1:
        raise CheckpointError(
            f"{source} holds several weights: {', '.join(old)}. Convert the file that is wanted by itself, or move the "
            "others away."
        )
    for name in old:
        check_link(source / name, source)
    stem = "model" if library == "transformers" else "diffusion_pytorch_model"
    shards = {name: (_SHARD.search(Path(name).stem) or [""])[0] for name in old}
    return {source / name: target / f"{stem}{shard}.safetensors" for name, shard in shards.items()}


def _write_shard_indexes(files: dict[Path, Path]) -> None:
    """Write the index of each network whose weights are several files."""
    for folder in {path.parent for path in files.values()}:
        parts = {path.name: _header(path) for path in files.values() if path.parent == folder}
        if len(parts) > 1:
            index = {
                "metadata": {"total_size": sum(size for part in parts.values() for _, _, size in part)},
                "weight_map": {tensor: name for name, part in parts.items() for tensor, _, _ in part},
            }
            stem = _SHARD.sub("", Path(min(parts)).stem)
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            write_text(folder / f"{stem}.safetensors.index.json", text)


def _read(files: dict[Path, Path], key: str, max_memory_gb: float | None, max_seconds: float) -> list[str]:
    """Convert the files in one process with limits, and describe the result."""
    try:
        import resource  # noqa: F401
    except ImportError as error:
        raise UsageError("latentia convert needs a system that can limit a process: Linux or macOS.") from error
    largest = max(path.stat().st_size for path in files)
    memory = int(3 * largest + 1e9 if max_memory_gb is None else max_memory_gb * 1e9)
    paths = [str(path.resolve()) for pair in files.items() for path in pair]
    job = Path(__file__).with_name("unpickle.py")
    answers, late, code = run_limited(job, [key, str(memory), *paths], memory=memory, seconds=max_seconds)
    names = ", ".join(map(str, files))
    if late:
        raise CheckpointError(
            f"{names} is refused: reading it took more than {format_number(max_seconds)} s; see max_seconds."
        )
    if answers is None:
        raise CheckpointError(
            f"{names} is refused: its reader ended with code {code}. It may be damaged, or ask for more than "
            f"{memory / 1e9:.1f} GB; see max_memory_gb."
        )
    lines = []
    for (source, target), answer in zip(files.items(), answers):
        if "refused" in answer:
            raise CheckpointError(f"{source} is refused: {_shown(answer['refused'])}.")
        header = _header(target)
        lines += [f"{_shown(name)}  {shape}  {size} bytes" for name, shape, size in header]
        lines.append(f"{source.name}: {len(header)} tensors, {sum(size for _, _, size in header)} bytes")
        if answer["entry"]:
            lines.append(f"  taken from its entry {_shown(answer['entry'])}")
        if answer["left"]:
            more = f" and {len(answer['left']) - 10} more" if len(answer["left"]) > 10 else ""
            lines.append(f"  left out, no weights: {', '.join(map(_shown, answer['left'][:10]))}{more}")
        lines += [f"  shared one memory, now each by itself: {', '.join(map(_shown, one))}" for one in answer["shared"]]
    return lines


def _header(path: Path) -> list[tuple[str, list[int], int]]:
    """Name, shape and bytes of each tensor."""
    try:
        return _read_header(path)
    except SafetensorError as error:  # of a name that the format has for itself
        raise CheckpointError(f"The weights cannot be kept as safetensors: {error}. Rename them.") from error


def _read_header(path: Path) -> list[tuple[str, list[int], int]]:
    with safe_open(path, "pt") as file:
        tensors = ((name, file.get_slice(name)) for name in file.keys())
        widths = re.compile(r"\d+")
        return [
            (
                name,
                part.get_shape(),
                math.prod(part.get_shape()) * int((widths.findall(part.get_dtype()) or [8])[0]) // 8,
            )
            for name, part in tensors
        ]


def _shown(text: str) -> str:
    """Escape control characters, as names in an untrusted file may hold sequences for the terminal."""
    return text.encode("unicode_escape").decode()
