"""Loading untrusted files: checks against arbitrary code, pickles, symbolic links and unbounded memory.

Nothing is unpickled and no code of a repository is run. A network is first built on torch's meta device, where it
takes no memory, and building stops as soon as its configuration asks for more tensors or numbers than the weights file
beside it holds.
"""

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.modules import module as hooks

from latentia.errors import CheckpointError, HubError, UsageError
from latentia.files.reading import MAX_JSON, MAX_TEXT, check_link, open_file, read_object

LOADING = threading.RLock()  # loaders of accelerate and transformers replace methods of torch.nn for all threads
MAX_NUMBER = 2**20  # layers, channels, pixels, tokens, time steps
MAX_SIDE = 4096  # pixels
MAX_ITEMS = 4096  # of one list; DDPM's longest table of betas has 4000
MAX_DEPTH = 16
MAX_HEADER = 2**24  # bytes; more than 100 000 tensors
_SIDES = ("sample_size", "image_size", "resolution", "height", "width", "shortest_edge")
_LARGE = ("theta", "model_max_length", "_version")  # keys of numbers that size nothing
_LOADER_OPTIONS = {  # a file that could set these would choose what is imported, fetched, unpickled or read
    *("trust_remote_code", "custom_pipeline", "use_safetensors", "weights_only", "device_map", "quantization_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "use_kernels"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("fast_tokenizer_files", "gguf_file", "init_inputs", "merges", "merges_file", "tokenizer_object", "vocab"),
    *("vocab_file", "spm_file"),
}
_RESERVED = frozenset(dir(OrderedDict()))  # `items`, `__class__`, ...: what configurations of diffusers derive from
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "unigram.json")
_SUBFOLDER = re.compile(r"[A-Za-z0-9_\-]+(/[A-Za-z0-9_\-]+)*")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


class Weight(NamedTuple):
    """A tensor in a file, as its header describes it."""

    shape: tuple[int, ...]
    floating: bool


# ---------------------------------------------------------------------------------------------------------------- files


def check_subfolder(subfolder: str | None) -> str:
    """Check the name of a subfolder, so that it cannot lead out of its folder ("../x"); "" for None.

    Raises:
        UsageError: it is not plain names joined by "/".

    Example:
        >>> check_subfolder("../x")
        Traceback (most recent call last):
        latentia.errors.UsageError: subfolder must be names of letters, digits, _ and -, joined by /; got '../x'.
    """
    if subfolder and not (isinstance(subfolder, str) and _SUBFOLDER.fullmatch(subfolder)):
        raise UsageError(f"subfolder must be names of letters, digits, _ and -, joined by /; got {subfolder!r}.")
    return subfolder or ""


def check_repository(name: str, revision: str | None = None) -> None:
    """Raises a `UsageError` if `name`, which is no folder here, looks like a path rather than a name on the Hub.

    A path begins with `/`, `.` or `~`, holds `\\` or more than one `/`, or lies in a folder that is there: so that
    "outputs/nothing" is not asked for on the Hub beside a folder `outputs`, unless a `revision` says that it is there.

    Example:
        >>> check_repository("user/name")
        >>> check_repository("runs/ddpm/step-100")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.UsageError: "runs/ddpm/step-100" is neither a folder nor the name of a Hub repository ...
    """
    parent = Path(name).parent
    inside = revision is None and parent != Path(".") and parent.is_dir()
    if name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or inside:
        way = f' beside the others in "{parent}"; if a Hub repository is meant, give its revision' if inside else ""
        raise UsageError(
            f'"{name}" is neither a folder nor the name of a Hub repository ("user/name"): there is no such folder'
            f"{way or ' here'}."
        )


def fetch(name: str, patterns: list[str], **options: Any) -> Path:
    """Download the files of a Hub repository that match `patterns`, all of one commit.

    Args:
        name: "user/name".
        patterns: of paths in the repository.
        **options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`, as in huggingface_hub.

    Returns:
        The folder that holds them, named after the commit.

    Raises:
        HubError: the repository, its revision or one of its files cannot be downloaded.
        UsageError: `name` is not the name of a repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    check_repository(name, options.get("revision"))
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except HFValidationError as error:
        raise UsageError(f'"{name}" is neither a folder nor the name of a Hub repository ("user/name").') from error
    except (OSError, ValueError) as error:  # those of the Hub are OSErrors
        raise HubError(f"{name} is no file or folder here, and cannot be fetched from the Hub: {error}") from error


def check_files(folder: Path, most: int = MAX_JSON) -> None:
    """Reject symbolic links out of a component's folder, pipes and devices, and text files too large to be parsed.

    Args:
        folder: of the component.
        most: bytes of a text file; a vocabulary may have `MAX_TEXT`. Default 1 MB.

    Raises:
        CheckpointError: naming the file.
    """
    for path in sorted(folder.iterdir()):
        check_link(path, folder)
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for without end
            raise CheckpointError(
                f"{path} must be a regular file or a folder; it is a pipe, a device or a link to nothing."
            )
        bound = MAX_TEXT if path.name in _VOCABULARIES or path.suffix == ".model" else most
        if path.suffix in (".json", ".txt", ".jinja", ".model") and path.stat().st_size > bound:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {bound} are read.")


def read_json(path: Path, *, sizes: bool = True) -> dict[str, Any]:
    """Read an untrusted JSON object, with limits on its size, its depth and its numbers.

    Args:
        path: the file.
        sizes: whether its numbers are sizes of networks and tables, which `MAX_NUMBER` bounds. Default True.

    Raises:
        CheckpointError: it is missing, not a regular file, too large, nested too deep, not a JSON object, or holds a
            number that is not finite or larger than `MAX_NUMBER`.
    """
    found = read_object(path)
    check_values(found, str(path), sizes=sizes)
    return found


def check_values(found: Any, where: str, *, sizes: bool = True) -> None:
    """Reject numbers that are not finite or, with `sizes`, larger than `MAX_NUMBER`, long lists and deep nesting.

    Raises:
        CheckpointError: names the first key that breaks a rule.

    Example:
        >>> check_values({"layers": 10**9}, "config.json")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: layers in config.json must be at most 1048576; got 1000000000.
    """
    todo = [("", found, 0)]
    while todo:
        key, value, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{where} is nested more than {MAX_DEPTH} deep, at {key[:100]}.")
        if isinstance(value, Mapping):
            todo += [(str(name), inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            if len(value) > MAX_ITEMS and sizes:
                raise CheckpointError(
                    f"{key[:100]} in {where} has {len(value)} items; at most {MAX_ITEMS} are allowed."
                )
            todo += [(key, inner, depth + 1) for inner in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise CheckpointError(f"{key[:100]} in {where} must be finite, got {value}.")
            most = math.inf if not sizes or key.endswith(_LARGE) else MAX_SIDE if key in _SIDES else MAX_NUMBER
            if value > most:
                raise CheckpointError(f"{key[:100]} in {where} must be at most {most}; got {value}.")


def check_keys(config: Mapping[str, Any], where: str) -> None:
    """Reject settings with names of Python's own attributes, which diffusers would set on the configuration it makes.

    Raises:
        CheckpointError: names the first one.

    Example:
        >>> check_keys({"items": 1}, "config.json")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: config.json has 'items', which is no setting: ...
    """
    for key in config:
        if key in _RESERVED or key.startswith("_FrozenDict__"):
            raise CheckpointError(
                f"{where} has {key!r}, which is no setting: mappings of Python use that name. Delete the line."
            )


def check_loader_options(config: Any, where: str) -> None:
    """Reject loader options in a configuration, such as `trust_remote_code` or `custom_pipeline`, at any depth.

    Raises:
        CheckpointError: names the option.
    """
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            if flags := sorted(_LOADER_OPTIONS.intersection(key for key in value if value[key] is not None)):
                raise CheckpointError(
                    f"{where} sets {flags[0]}, which only the caller of a loader may set, never a file. Delete that "
                    "line if the network works without it, or load it with its own library."
                )
            todo += value.values()
        elif isinstance(value, list):
            todo += value


# -------------------------------------------------------------------------------------------------------------- weights


def read_weight_headers(folder: Path, stem: str, variant: str | None = None) -> dict[str, Weight]:
    """Read the headers of a saved network's safetensors files: name, shape and type of each weight, no values.

    Args:
        folder: holds `stem.safetensors`, or `stem.safetensors.index.json` and the files that it names.
        stem: "diffusion_pytorch_model", or "model" of transformers.
        variant: as in diffusers, "fp16" for `stem.fp16.safetensors`.

    Raises:
        CheckpointError: a file is missing, damaged, a pickle, or not a plain name in the same folder.
        UsageError: `variant` is not letters, digits, _ and -.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_\-]+", str(variant)):
        raise UsageError(f"variant must be letters, digits, _ and -; got {variant!r}.")
    whole = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    index = folder / (f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json")
    if not index.exists():
        if not (folder / whole).exists():
            _reject_pickles(folder, whole)
        return _header(folder / whole)
    parts = read_json(index, sizes=False).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"{index} must hold weight_map, the file of each weight.")
    names = {str(name) for name in parts.values()}
    if wrong := sorted(name for name in names if not _FILE.fullmatch(name)):
        raise CheckpointError(
            f"weight_map in {index} must hold names of .safetensors files in the same folder, got {wrong[0][:200]!r}."
        )
    if missing := sorted(name for name in names if not (folder / name).exists()):
        raise CheckpointError(f"{index} names {missing[0]}, which is not there. Fetch the folder again.")
    found: dict[str, Weight] = {}
    for name in sorted(names):
        found |= _header(folder / name)
    return found


def _reject_pickles(folder: Path, wanted: str) -> None:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if pickled:
        raise CheckpointError(
            f"{folder} holds its weights as {pickled[0]}, a pickle, which can run arbitrary code when it is loaded. "
            f"Convert it to {wanted} first, which runs none: latentia convert {folder} OUTPUT"
        )
    raise CheckpointError(f"{folder} holds no {wanted}.")


def _header(path: Path) -> dict[str, Weight]:
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path} is damaged: its header would have {length} bytes, more than {MAX_HEADER}.")
        with safe_open(path, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            return {k: Weight(tuple(s.get_shape()), s.get_dtype() in _FLOATS) for k, s in slices.items()}
    except (OSError, ValueError, MemoryError, SafetensorError) as error:  # it is mapped whole, whatever its size
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}. Save or fetch it again.") from error


# ------------------------------------------------------------------------------------------------------------- networks


def build_on_meta(
    build: Callable[[], torch.nn.Module], held: Mapping[str, Weight], where: str, *, factor: int = 1
) -> torch.nn.Module:
    """Build a network on the meta device, without memory, and stop as soon as it is larger than its weights file.

    Args:
        build: makes the network.
        held: the weights in the file, of `read_weight_headers`.
        where: the folder, for messages.
        factor: how many times as many tensors and numbers as the file holds may be asked for. Default 1; more where
            weights are shared, or where not all of them are saved.

    Raises:
        CheckpointError: it asks for more, or its configuration is invalid.
    """
    tensors, numbers = (factor * most for most in (len(held), sum(math.prod(weight.shape) for weight in held.values())))
    slack = 1024 + tensors // 4  # tables that are computed and not saved
    try:
        with LOADING, _limit_size(tensors + slack, numbers + max(2**20, numbers // 4), where), torch.device("meta"):
            return build()
    except CheckpointError:
        raise
    except Exception as error:  # a hostile configuration can make a constructor raise anything
        raise CheckpointError(f"The configuration in {where} is invalid: {error}") from error


@contextmanager
def _limit_size(most_tensors: int, most_numbers: int, where: str) -> Iterator[None]:
    thread, seen = threading.get_ident(), {"modules": 0, "tensors": 0, "numbers": 0}

    def count(what: str, number: int) -> None:
        seen[what] += number
        if seen["modules"] > 16 * most_tensors or seen["tensors"] > most_tensors or seen["numbers"] > most_numbers:
            raise CheckpointError(
                f"The configuration in {where} asks for more than the weights beside it hold: {seen['tensors']} "
                f"tensors with {seen['numbers']} numbers so far. Check that the two belong together."
            )

    def tensor(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
        if value is not None and threading.get_ident() == thread:
            count("numbers", value.numel())
            count("tensors", 1)

    def part(module: torch.nn.Module, name: str, value: torch.nn.Module | None) -> None:
        if threading.get_ident() == thread:
            count("modules", 1)

    handles = [
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
        hooks.register_module_module_registration_hook(part),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def differences(network: torch.nn.Module, held: Mapping[str, Weight]) -> dict[str, dict[str, str]]:
    """Compare the weights of a network with those in a file: kind of difference -> {key: description}.

    Example:
        >>> differences(torch.nn.Linear(2, 3), {"weight": Weight((3, 2), True), "bias": Weight((2,), True)})
        {'of another shape': {'bias': 'bias (2,) instead of (3,)'}}
    """
    wanted = {key: Weight(tuple(value.shape), value.is_floating_point()) for key, value in network.state_dict().items()}
    both = [key for key in wanted if key in held]
    found = {
        "missing": {key: key for key in wanted if key not in held},
        "not part of the network": {key: key for key in held if key not in wanted},
        "of another shape": {
            key: f"{key} {held[key].shape} instead of {wanted[key].shape}"
            for key in both
            if held[key].shape != wanted[key].shape
        },
        "of another type": {
            key: f"{key} {'floats' if held[key].floating else 'integers'}"
            for key in both
            if held[key].shape == wanted[key].shape and held[key].floating != wanted[key].floating
        },
    }
    return {what: keys for what, keys in found.items() if keys}
