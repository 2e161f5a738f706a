"""Convert untrusted pickles of weights to safetensors: a job for `limits.py`.

The only place where a pickle is read, with `torch.load(weights_only=True)`, which runs no arbitrary code, and after
limits on memory, time and disk are set. It imports nothing of latentia, so that a pickle can reach nothing but torch.
"""

import re


def prepare() -> None:
    """Import torch before the limits are set."""
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)


def select(loaded, key: str, is_tensor) -> tuple[dict, list[str], str]:
    """Select the weights in a loaded file: names to tensors, the names left out, and the entry they came from.

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


def rewrite(source: str, output: str, key: str, memory: int) -> dict:
    """Read `source`, write its weights to `output`, and name what is left out."""
    import torch
    from safetensors.torch import save_file

    loaded = torch.load(source, map_location="cpu", weights_only=True)
    tensors, left, entry = select(loaded, key, lambda value: isinstance(value, torch.Tensor))
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{name} is not a plain tensor ({value.layout}, {value.dtype}, {value.device})")
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


def explain(error: BaseException) -> str:
    """Explain why a file was refused, without torch's advice to trust it."""
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it names {named[1]}, which is code and not data"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "alloc" in text:
        return f"it needs more memory than the limit ({text[:200]}). See max_memory_gb"
    if "TorchScript" in text:
        return "it is a TorchScript archive, which holds a program"
    if "Weights only load failed" in text or "weights_only" in text:
        return "it holds more than weights, or it is damaged"
    return text[:300]


def answer(key: str, memory: str, *paths: str) -> list[dict]:
    """Rewrite each source as its output: for each what was written, or why it was refused, which ends the list."""
    answers = []
    for source, output in zip(paths[::2], paths[1::2]):
        try:
            answers.append(rewrite(source, output, key, int(memory)))
        except Exception as refused:
            answers.append({"refused": explain(refused)})
            break
    return answers
