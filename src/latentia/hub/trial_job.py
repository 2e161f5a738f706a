"""Load tokenizers and image processors of transformers from untrusted files: a job for `limits.py`."""

import string
import sys

TEXTS = ["", "a photo of a cat", string.printable, "\u00e4 \u4e2d \u0416 \U0001f600"]


def prepare() -> None:
    """Import transformers without torch, which no tokenizer needs and which takes seconds."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # what Python takes for a module that is not there
    import transformers  # noqa: F401


def answer(*pairs: str) -> list[str]:
    """For each class and folder what is wrong, or "" if it loads."""
    return [attempt(name, folder) for name, folder in zip(pairs[::2], pairs[1::2])]


def attempt(name: str, folder: str) -> str:
    """Load one part and, if it is a tokenizer, use it."""
    import transformers

    try:
        part = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        if isinstance(part, transformers.PreTrainedTokenizerBase):
            most = part.model_max_length
            if isinstance(most, bool) or not isinstance(most, int | float) or not most >= 1:
                return f"model_max_length must be a number of at least 1; got {str(most)[:100]}"
            for ids in part(TEXTS)["input_ids"]:
                part.decode(ids)
    except BaseException as error:  # a panic of Rust is no Exception
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""
