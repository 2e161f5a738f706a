"""CLIP: a text encoder and an image encoder of transformers, and a tokenizer trained on captions."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from latentia.errors import Rate, Size, UsageError, check_arguments

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2048, max_tokens: int = 32) -> Any:
    """A byte-level BPE tokenizer of the words of `captions`, lower-cased, between CLIP's two special tokens.

    It starts from all 256 bytes, so no text is unknown to it. The same captions give the same tokenizer.

    Args:
        captions: texts to learn the merges from; at least one that is not empty.
        vocab_size: tokens at most, at least 258. Default 2048.
        max_tokens: of one text, both special ones counted. Default 32.

    Returns:
        transformers' `PreTrainedTokenizerFast`, which pads with its end token as CLIP's does.

    Raises:
        UsageError: no captions, or a vocabulary that is too small.

    Neural Machine Translation of Rare Words with Subword Units (Sennrich et al., 2015, 1508.07909), section 3.2.

    Example:
        >>> tokenizer = train_tokenizer(["a red heart", "a red bus"], vocab_size=300)
        >>> tokenizer.decode(tokenizer("A RED 🦩")["input_ids"])
        '<|startoftext|> a red 🦩<|endoftext|>'
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    captions = [caption for caption in captions if caption.strip()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if not captions:
        raise UsageError("captions must hold at least one text that is not empty.")
    if vocab_size < len(alphabet) + 2:
        raise UsageError(f"vocab_size must be at least {len(alphabet) + 2}, the bytes and two more; got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=max_tokens
    )


@check_arguments
def clip_towers(
    tokenizer: Any,
    image_size: int,
    in_channels: int = 3,
    *,
    width: Size = 128,
    text_layers: Size = 3,
    image_layers: Size = 4,
    patch_size: Size | None = None,
    projection_dim: Size = 128,
    dropout: Rate = 0.0,
) -> tuple[Any, Any]:
    """A text encoder for a tokenizer, and the image encoder that it is trained with; both with random weights.

    Args:
        tokenizer: from `train_tokenizer`.
        image_size: height and width in pixels.
        in_channels: of the images. Default 3.
        width: of both, a multiple of 32. Default 128.
        text_layers, image_layers: transformer blocks of each. Default 3 and 4.
        patch_size: side of the patches of the image encoder, which divides `image_size`; `None` (default): the
            one that makes 8 x 8 of them.
        projection_dim: of the space where texts and images meet. Default 128.
        dropout: of the attention of both. Default 0.

    Returns:
        (`CLIPTextModelWithProjection`, `CLIPVisionModelWithProjection`), in training mode.

    Raises:
        UsageError: sizes that do not divide.

    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021, 2103.00020), sec. 2.4.

    Example:
        >>> text, image = clip_towers(train_tokenizer(["a red heart"], 300), 32)
        >>> import torch
        >>> image(pixel_values=torch.zeros(2, 3, 32, 32)).image_embeds.shape
        torch.Size([2, 128])
    """
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    patch = patch_size or max(1, image_size // 8)
    if width < 32 or width % 32 or image_size % patch:
        raise UsageError(
            f"width must be a multiple of 32 and patch_size must divide image_size; got width {width}, patch_size "
            f"{patch} and image_size {image_size}."
        )
    common: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32,
        "projection_dim": projection_dim, "attention_dropout": dropout, "hidden_act": "gelu",
    }  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        num_hidden_layers=text_layers,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # where the text's vector is read
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )
    vision = CLIPVisionConfig(
        image_size=image_size, patch_size=patch, num_channels=in_channels, num_hidden_layers=image_layers, **common
    )
    return CLIPTextModelWithProjection(text), CLIPVisionModelWithProjection(vision)


class ContrastivePair(nn.Module):
    """Text encoder, image encoder and the scale of their logits, as the one network that a phase trains.

    Args:
        text_encoder, image_encoder: from `clip_towers`.

    Example:
        >>> pair = ContrastivePair(*clip_towers(train_tokenizer(["a red heart"], 300), 32))
        >>> images, texts, logit_scale = pair(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 3, 32, 32))
        >>> images.shape, texts.shape
        (torch.Size([2, 128]), torch.Size([2, 128]))
    """

    def __init__(self, text_encoder: nn.Module, image_encoder: nn.Module):
        super().__init__()
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of images and of texts, (B, D) each, and the logarithm of the scale.

        Args:
            input_ids: tokens of the texts, (B, L).
            pixel_values: images (B, C, H, W) in [-1, 1].
        """
        images = self.image_encoder(pixel_values=pixel_values).image_embeds
        return images, self.text_encoder(input_ids=input_ids).text_embeds, self.logit_scale
