"""What calls in several threads share: torch's own generator, tokenizers, and the mode of networks."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from latentia.errors import DataError

GLOBAL_RNG = threading.Lock()  # held while torch's own generator is seeded or drawn from
_TOKENIZING, _USES_LOCK = threading.Lock(), threading.Lock()
_USES: dict[nn.Module, tuple[int, bool]] = {}  # networks in use: how often, and whether they were in training mode


def tokenize(tokenizer, texts: Sequence[str], **options: Any) -> Any:
    """What `tokenizer(texts, **options)` gives, one thread at a time, as it keeps padding and truncation of a call.

    Example:
        >>> from latentia.models.clip import train_tokenizer
        >>> tokenize(train_tokenizer(["a red heart"], vocab_size=300), ["red"], add_special_tokens=False)["input_ids"]
        [[265]]

    Raises:
        DataError: the tokenizer fails on the texts, such as on half a surrogate pair, which is no character.
    """
    with _TOKENIZING:
        try:
            return tokenizer(texts, **options)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise DataError(f"tokenizer cannot take {str(list(texts))[:200]}: {error}") from error


@contextmanager
def evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Networks in evaluation mode, until the last thread is done: in training, an image depends on its batch."""
    modules = [network for network in networks if isinstance(network, nn.Module)]
    with _USES_LOCK:
        for network in modules:
            count, training = _USES.get(network, (0, network.training))
            _USES[network] = count + 1, training
            if network.training:
                network.eval()
    try:
        yield
    finally:
        with _USES_LOCK:
            for network in modules:
                count, training = _USES.pop(network)
                if count > 1:
                    _USES[network] = count - 1, training
                elif training:
                    network.train()
