"""An autoregressive prior of codes: a transformer over a condition and the codes of an image, one vocabulary."""

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from latentia.errors import Range, Rate, Size, UsageError, check_arguments


@check_arguments
def code_transformer(
    codebook_size: Annotated[int, Range(2, most=2**20)],
    code_shape: tuple[int, ...],
    *,
    num_classes: Size | None = None,
    tokenizer: Any = None,
    width: Size = 128,
    layers: Size = 4,
    dropout: Rate = 0.0,
) -> Any:
    r"""A new causal transformer for \(p(c \mid y) = \prod_i p(c_i \mid c_{<i}, y)\), codes c in raster order.

    Its input is the class or the words of y, then a token that begins the image, then the codes. Of its one vocabulary
    the first K tokens are the codes, token K begins the image, and the others are the classes or the words. Each
    position has an embedding of its own, as all images have one size.

    Args:
        codebook_size: K of the `VQVAE`, `vqvae.quantize.codebook_size`.
        code_shape: height and width of its grid of codes, or the codes of a sequence, `vqvae.code_shape`.
        num_classes: number of classes of the condition; `None` (default): none.
        tokenizer: of the texts of the condition, from `train_tokenizer`; `None` (default): no texts. Each text takes
            `tokenizer.model_max_length` positions, padding included.
        width: of the embeddings, a multiple of 32, which is the width of a head. Default 128.
        layers: transformer blocks. Default 4.
        dropout: rate, of embeddings, attention and residuals. Default 0.

    Returns:
        transformers' `GPT2LMHeadModel`, in training mode; its configuration holds K, the shape and the classes.

    Raises:
        UsageError: classes and texts at once, or numbers out of range.

    Zero-Shot Text-to-Image Generation (Ramesh et al., 2021, 2102.12092), section 2.2.

    Example:
        >>> transformer = code_transformer(512, (7, 7), num_classes=10, width=32, layers=1)
        >>> transformer.config.vocab_size, transformer.config.n_positions
        (523, 51)
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if num_classes is not None and tokenizer is not None:
        raise UsageError(
            f"num_classes must be None beside a tokenizer, as an image has one condition; got {num_classes}."
        )
    if width < 32 or width % 32:
        raise UsageError(f"width must be a multiple of 32, the width of a head; got {width}.")
    words = len(tokenizer) if tokenizer is not None else num_classes or 0
    # What a sampler needs beside GPT-2's own settings; the configuration keeps it.
    own: dict[str, Any] = {
        "codebook_size": codebook_size, "code_shape": list(code_shape), "num_class_embeds": num_classes,
    }  # fmt: skip
    config = GPT2Config(
        vocab_size=codebook_size + 1 + words,
        n_positions=condition_length(num_classes, tokenizer) + 1 + math.prod(code_shape),
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        activation_function="gelu",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=codebook_size,
        eos_token_id=None,
        tie_word_embeddings=False,
        **own,
    )
    return GPT2LMHeadModel(config)


def condition_length(num_classes: int | None, tokenizer: Any) -> int:
    """Positions of the condition in the sequence: those of a text, one for a class, or none.

    Example:
        >>> condition_length(10, None)
        1
    """
    return tokenizer.model_max_length if tokenizer is not None else int(num_classes is not None)


def code_prefix(codebook_size: int, condition: Tensor | None, count: int) -> Tensor:
    """The tokens before the codes of `count` images: the condition and the token that begins an image.

    Args:
        codebook_size: K.
        condition: class indices (B, 1) or the tokenizer's tokens (B, L); `None`: none.
        count: B.

    Returns:
        int64 (B, L + 1).

    Example:
        >>> code_prefix(512, torch.tensor([[3], [0]]), 2)
        tensor([[516, 512],
                [513, 512]])
    """
    if condition is None:
        return torch.full((count, 1), codebook_size)
    begin = torch.full_like(condition[:, :1], codebook_size)
    return torch.cat([condition + codebook_size + 1, begin], 1)
