"""Reads old weights and writes safetensors: run as a script, in a process that is there for nothing else.

    python -P unpickle.py KEY MEMORY_BYTES SECONDS SOURCE OUTPUT [SOURCE OUTPUT ...]

The only place where a pickle is read, by torch's reader for data alone, and only after this process has given up
memory, time and disk beyond its bounds. It prints a JSON list: for each file what was written, or why it was refused,
and then it reads no further. It imports nothing of latentia, so that nothing but torch can be reached.
"""

import json
import re
import resource
import sys
import time


def select(loaded, key: str, is_tensor) -> tuple[dict, list[str], str]:
    """The mapping of names to tensors in what a file holds, the names of what is left out, and the entry it came from.

    Example:
        >>> select({"epoch": 3, "state_dict": {"w": 1.0}}, "", lambda value: isinstance(value, float))
        ({'w': 1.0}, ['epoch'], 'state_dict')
    """

    def tensors_of(value) -> dict:
        named = value.items() if isinstance(value, dict) else ()
        return {name: one for name, one in named if isinstance(name, str) and is_tensor(one)}

    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__} instead of a mapping of names to tensors")
    nested = {str(name): found for name, value in loaded.items() if (found := tensors_of(value))}
    own = {"": found} if (found := tensors_of(loaded)) else {}
    candidates = own or nested
    if key:
        candidates = {key: nested[key]} if key in nested else {}
    if len(candidates) != 1:
        there = ", ".join(sorted(nested)) or "none"
        asked = f'it has no weights under "{key}"' if key else "it is not clear which of its entries are the weights"
        raise ValueError(f"{asked}; entries with weights: {there}. Name one as `key`")
    ((entry, tensors),) = candidates.items()
    whole = loaded[entry] if entry else loaded
    left = [str(name) for name in whole if name not in tensors]
    left += [str(name) for name in loaded if entry and str(name) != entry]
    return tensors, left, entry


def give_up(memory: int, seconds: int) -> None:
    """From here on this process has so many more bytes of memory and of each file, and seconds of the processor."""
    import psutil

    until = int(time.process_time()) + seconds  # also when nobody waits any more
    room = psutil.Process().memory_info().vms + memory
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rewrite(source: str, output: str, key: str, memory: int) -> dict:
    """Reads `source` and writes `output`; what is not in its weights is left out and named."""
    import torch
    from safetensors.torch import save_file

    loaded = torch.load(source, map_location="cpu", weights_only=True)
    tensors, left, entry = select(loaded, key, lambda value: isinstance(value, torch.Tensor))
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{name} is no plain tensor ({value.layout}, {value.dtype}, {value.device})")
    if (total := sum(value.numel() * value.element_size() for value in tensors.values())) > memory:
        raise MemoryError(f"its tensors take {total} bytes")
    seen: dict[int, list[str]] = {}
    for name, value in tensors.items():
        if value.numel():
            seen.setdefault(value.untyped_storage().data_ptr(), []).append(name)
    shared = [names for names in seen.values() if len(names) > 1]
    copied = {name for names in shared for name in names}
    for name, value in tensors.items():
        value = value.detach().as_subclass(torch.Tensor)
        alone = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
        tensors[name] = value if alone and name not in copied else value.clone(memory_format=torch.contiguous_format)
    save_file(tensors, output, metadata={"format": "pt"})
    return {"entry": entry, "left": left, "shared": shared}


def explained(error: BaseException) -> str:
    """Why the file was refused, without the advice of others to trust it."""
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it names {named[1]}, which is no data but something to be run"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "alloc" in text:
        return f"it asks for more memory than it may have ({text[:200]}). See max_memory_gb"
    if "TorchScript" in text:
        return "it is a TorchScript archive, which holds a program"
    if "Weights only load failed" in text or "weights_only" in text:
        return "it is no file of weights alone, or it is damaged"
    return text[:300]


def main(key: str, memory: str, seconds: str, *paths: str) -> None:
    import safetensors.torch  # noqa: F401  all that is needed is here before memory is given up
    import torch

    torch.set_num_threads(1)
    give_up(int(memory), int(seconds))
    answers = []
    for source, output in zip(paths[::2], paths[1::2]):
        try:
            answers.append(rewrite(source, output, key, int(memory)))
        except Exception as refused:
            answers.append({"refused": explained(refused)})
            break
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
