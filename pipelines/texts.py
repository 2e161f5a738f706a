"""Text encoders that condition a generator, called alike: texts to hidden states and to vectors."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentia.errors import CheckpointError, DataError, UsageError
from latentia.files.reading import user_path
from latentia.foreign import TEXT_ENCODERS, foreign_class
from latentia.hub.load import check_components
from latentia.pipelines.latents import digest_of
from latentia.pipelines.threads import tokenize
from latentia.safety import LOADING, fetch, read_json

logger = logging.getLogger(__name__)

MAX_TOKENS = 77  # what CLIP takes, and Stable Diffusion with it
_CHUNK = 16  # texts at once, one of them the empty one
_HUB_FILES = [
    *("tokenizer/*", "text_encoder/config.json", "text_encoder/model.safetensors*", "text_encoder/model-*.safetensors"),
    *("config.json", "model.safetensors*", "model-*.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "*.bpe.model"),
]


def load_text_encoder(source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None):
    """The tokenizer and the text encoder of a saved pipeline, or of a folder that holds nothing but a text model.

    Args:
        source: folder or Hub id of a pipeline with `tokenizer/` and `text_encoder/`, as Stable Diffusion or
            examples/train_text_encoder.py leaves it; or of one model of transformers with its tokenizer: CLIP, whole or
            its text half, T5, or an encoder like BERT, those of sentence-transformers too.
        revision: branch, tag or commit on the Hub; `None` (default): main.
        cache_dir: where the files from the Hub are kept; `None` (default): in the Hub's cache.

    Returns:
        (tokenizer, text encoder), the encoder in float32 and evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, weights are missing, or they are pickled.
        HubError: the repository cannot be had.
        UsageError: no such folder or repository, or it holds no text encoder.
    """
    folder = _folder(source, revision, cache_dir)
    place = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not (place / "config.json").is_file():
        raise UsageError(
            f"{source} must hold a text encoder: config.json of a model of transformers, or the folders tokenizer/ and "
            "text_encoder/. examples/train_text_encoder.py leaves such a one."
        )
    saved, settings = read_json(place / "config.json"), words / "tokenizer_config.json"
    named = read_json(settings, sizes=False) if settings.exists() else {}
    model_type = str(saved.get("model_type"))
    if model_type not in TEXT_ENCODERS:
        raise CheckpointError(
            f"{place} must hold a text encoder of the kinds {', '.join(TEXT_ENCODERS)}; got {model_type!r}. Load "
            "others with transformers and pass tokenizer and text_encoder to the pipeline."
        )
    encoder_class, tokenizer_class = TEXT_ENCODERS[model_type]
    if saved.get("architectures") == ["CLIPTextModel"]:
        encoder_class = "CLIPTextModel"
    tokenizer_class = str(named.get("tokenizer_class") or saved.get("tokenizer_class") or tokenizer_class)
    kind, words_kind = (foreign_class("transformers", name, str(source)) for name in (encoder_class, tokenizer_class))
    check_components({"text_encoder": kind, "tokenizer": words_kind}, folder)
    try:
        options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        with LOADING:
            encoder, info = kind.from_pretrained(place, local_files_only=True, **options)
        tokenizer = words_kind.from_pretrained(words, local_files_only=True)
    except Exception as error:  # each of the layers below has errors of its own
        raise CheckpointError(f"{source} cannot be loaded as a tokenizer and a text encoder: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if len(missing) < len(info["missing_keys"]):  # many encoders come without a pooler, and it is not used here
        encoder.pooler = None
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(map(str, info["mismatched_keys"]))
        raise CheckpointError(
            f"The weights in {place} do not fit {type(encoder).__name__}: {len(wrong)} missing or of another shape "
            f"({', '.join(wrong[:3])}). Check that config.json and the weights belong together."
        )
    encoder.config._name_or_path = tokenizer.name_or_path = ""  # else a folder of this machine ends up in saved files
    check_text_encoder(tokenizer, encoder)
    return tokenizer, encoder.eval()


def _folder(source: str | Path, revision: str | None, cache_dir: str | Path | None) -> Path:
    folder = user_path(source)
    return folder if folder.is_dir() else fetch(str(source), _HUB_FILES, revision=revision, cache_dir=cache_dir)


def check_text_encoder(tokenizer, text_encoder) -> None:
    """UsageError unless the two are a tokenizer and an encoder of transformers that fit each other."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(f"tokenizer must be one of transformers; got {type(tokenizer).__name__}.")
    if tokenizer.pad_token_id is None:
        raise UsageError(
            "tokenizer must have a pad_token, as texts are padded to one length; set tokenizer.pad_token, for example "
            "to its eos_token."
        )
    if not isinstance(text_encoder, PreTrainedModel):
        raise UsageError(
            f"text_encoder must be one of transformers, such as CLIPTextModel, T5EncoderModel or BertModel; got "
            f"{type(text_encoder).__name__}. load_text_encoder(folder) gives one with its tokenizer."
        )
    name = type(text_encoder).__name__
    whole = text_encoder.config.is_encoder_decoder and "Encoder" not in name
    if whole or text_encoder.can_generate() or text_encoder.main_input_name != "input_ids" or name == "CLIPModel":
        raise UsageError(
            f"text_encoder must turn texts into hidden states and nothing else; got {name}. Load its folder with "
            "load_text_encoder, which takes the text half."
        )
    known: Any = text_encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise UsageError(
            f"tokenizer must fit text_encoder, which knows {known} tokens; it has {len(tokenizer)}. Take the two from "
            "one folder."
        )


def max_tokens(tokenizer, text_encoder) -> int:
    """The most tokens that the encoder takes, special ones counted, and `MAX_TOKENS` at most."""
    positions = getattr(text_encoder.config, "max_position_embeddings", None) or MAX_TOKENS
    return min(positions, tokenizer.model_max_length, MAX_TOKENS)


def embed_texts(
    tokenizer, text_encoder, texts: str | Sequence[str], *, max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Hidden states of texts: what cross-attention looks at.

    Texts are padded to one length and encoded in chunks of one size, so a text gives the same bytes whatever stands
    beside it. CLIP sees its padding, as in Stable Diffusion (its attention is causal, so no word does); others do not.

    Args:
        tokenizer, text_encoder: from `load_text_encoder`.
        texts: one, or B. "" is the unconditional text of classifier-free guidance.
        max_length: L, tokens of each text with the special ones; what is longer is cut off, and a warning says what.
            `None` (default): what the encoder takes, 77 at most.

    Returns:
        Hidden states of the last layer (B, L, D), float32, and the mask (B, L), True for tokens and False for padding.

    Raises:
        DataError: hidden states that are not finite.
        UsageError: a tokenizer and encoder that are none, something that is no text, or `max_length` out of range.

    Example:
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> hidden, mask = embed_texts(tokenizer, clip_towers(tokenizer, 32)[0].eval(), ["red", ""], max_length=8)
        >>> hidden.shape, mask.sum(1).tolist()
        (torch.Size([2, 8, 128]), [3, 2])
    """
    hidden, mask, _ = _encoded(tokenizer, text_encoder, texts, max_length)
    return hidden, mask


def pool_texts(tokenizer, text_encoder, texts: str | Sequence[str], *, max_length: int | None = None) -> Tensor:
    """One vector of each text, (B, D), float32, not normalised; arguments as for `embed_texts`.

    CLIP's own, projected if the encoder has a projection; of others the mean of the hidden states of a text's tokens.

    Sentence-BERT (Reimers and Gurevych, 2019, 1908.10084), section 3.

    Example:
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> pool_texts(tokenizer, clip_towers(tokenizer, 32)[0].eval(), "red").shape
        torch.Size([1, 128])
    """
    return _encoded(tokenizer, text_encoder, texts, max_length)[2]


@torch.no_grad()
def _encoded(tokenizer, text_encoder, texts, max_length) -> tuple[Tensor, Tensor, Tensor]:
    check_text_encoder(tokenizer, text_encoder)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"texts must be at least one text; got {texts[:3]}.")
    most = max_tokens(tokenizer, text_encoder)
    length = most if max_length is None else max_length
    if text_encoder.training:
        raise UsageError("text_encoder must be in evaluation mode, as dropout changes its output; call .eval().")
    positions = getattr(text_encoder.config, "max_position_embeddings", None)
    least = tokenizer.num_special_tokens_to_add() + 1
    if length < least or (positions is not None and length > positions):
        raise UsageError(
            f"max_length must be from {least} to {positions or 'any number'}, the tokens that "
            f"{type(text_encoder).__name__} takes; got {length}."
        )
    warn_of_cuts(tokenizer, texts, length)
    clip = _is_clip(text_encoder)
    parts = []
    for start in range(0, len(texts), _CHUNK - 1):
        chunk = texts[start : start + _CHUNK - 1]
        # The empty text at the end makes each chunk one with padding: without any, another kernel would be taken.
        asked = [*chunk, *[""] * (_CHUNK - len(chunk))]
        tokens = tokenize(
            tokenizer, asked, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        ids, mask = (tokens[key].to(text_encoder.device) for key in ("input_ids", "attention_mask"))
        out = text_encoder(input_ids=ids) if clip else text_encoder(input_ids=ids, attention_mask=mask)
        hidden = out.last_hidden_state.float()
        if clip:
            pooled = (out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output).float()
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        parts.append((hidden[: len(chunk)], mask[: len(chunk)].bool(), pooled[: len(chunk)]))
    hidden, mask, pooled = (torch.cat(column) for column in zip(*parts))
    if not torch.isfinite(hidden).all():
        raise DataError("text_encoder gives hidden states that are not finite. Load it in float32, and look at it.")
    return hidden, mask, pooled


def _is_clip(text_encoder) -> bool:
    return text_encoder.config.model_type == "clip_text_model"


def warn_of_cuts(tokenizer, texts: list[str], length: int) -> None:
    """A word about each text that is too long."""
    room = length - tokenizer.num_special_tokens_to_add()
    ids = tokenize(tokenizer, texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    cut = {text: own for text, own in zip(texts, ids) if len(own) > room}
    for text, own in list(cut.items())[:3]:
        logger.warning(
            '"%s" has %d tokens and the encoder takes %d beside its special ones; cut off: "%s"',
            *(text, len(own), room, tokenizer.decode(own[room:]).strip()),
        )
    if len(cut) > 3:
        logger.warning("and %d more texts were cut off.", len(cut) - 3)


def text_fingerprint(tokenizer, text_encoder) -> str:
    """32 hexadecimal digits of a text encoder: class, configuration, every weight, and the tokenizer.

    Example:
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> text_encoder = clip_towers(tokenizer, 32)[0].eval()
        >>> before = text_fingerprint(tokenizer, text_encoder)
        >>> tokenizer.pad_token = "!"
        >>> before == text_fingerprint(tokenizer, text_encoder)
        False
    """
    about = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
    config = {key: value for key, value in text_encoder.config.to_dict().items() if key not in about}
    return digest_of(text_encoder, [config, _tokenizer_state(tokenizer)])


def _tokenizer_state(tokenizer) -> Any:
    state: list[Any] = [tokenizer.model_max_length, tokenizer.special_tokens_map, sorted(tokenizer.get_vocab().items())]
    if getattr(tokenizer, "is_fast", False):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        state.append({key: backend[key] for key in backend if key not in ("truncation", "padding")})  # of the last call
    return state
