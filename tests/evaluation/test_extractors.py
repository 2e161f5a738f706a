"""Extractors with weights from elsewhere, how they see an image, and the cache of what they said."""

import doctest
import hashlib
import json
import logging
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hub_server import point_client_at, running_hub
from PIL import Image
from safetensors.torch import load_file, save_file

import latentia.evaluation.features.base
import latentia.evaluation.features.cache
import latentia.evaluation.features.classifier
import latentia.evaluation.features.loading
import latentia.evaluation.features.preprocessing
from latentia import InceptionV3
from latentia.data import load_images
from latentia.errors import CheckpointError, DataError, HubError, NumericsError, UsageError
from latentia.evaluation import (
    Predictions,
    cached_predict,
    extractor_for,
    inception_extractor,
    load_extractor,
    predict,
    transformers_extractor,
    uint8_batches,
)
from latentia.evaluation.features.classifier import SHIPPED, WEIGHTS
from latentia.evaluation.features.preprocessing import Preprocessing, read_preprocessing
from latentia.evaluation.features.pretrained import _RESIZE

MODEL = "model.safetensors"


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sha256(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def resized_by_pil(image, size, resample):
    """One channel at a time as floats, (C, H, W) in [-1, 1] to [0, 255]."""
    channels = [Image.fromarray(((plane + 1) * 127.5).numpy(), mode="F") for plane in image]
    return torch.stack([torch.from_numpy(np.array(c.resize(size[::-1], resample))) for c in channels]).clamp(0, 255)


# --------------------------------------------------------------------------------------------------------- shipped


def test_the_emoji_extractor_knows_what_it_claims_to_know():
    extractor = extractor_for((3, 32, 32))
    stated = json.loads((WEIGHTS / "emoji/evaluation.json").read_text())
    test = load_images("emoji", split="test")
    assert extractor.name == "emoji" and extractor.class_names == test.label_names == stated["class_names"]
    assert extractor.sha256 == stated["sha256"] and (WEIGHTS / "emoji" / WEIGHTS_FILE).stat().st_size < 600_000
    hits = []
    for style in ("noto", "twemoji"):
        data = load_images("emoji", split="test", image_column=style)
        hits.append(predict(uint8_batches(data.images), extractor).logits.argmax(1) == data.labels)
    assert torch.cat(hits).double().mean().item() == pytest.approx(stated["test_accuracy"], abs=0.01)
    assert stated["test_accuracy"] > 0.7 > max(torch.bincount(test.labels)) / len(test)


WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_extractors_say_all_that_the_contract_asks(name):
    extractor = load_extractor(name)
    assert extractor.preprocessing == "none" and len(extractor.class_names) == 10
    assert len(extractor.sha256) == 64 and extractor.image_shape == SHIPPED[name]


class Flat:
    """An extractor without classes, as a user writes it."""

    name, sha256, image_shape, preprocessing, class_names = "flat", "0" * 64, None, "none", None
    calls = 0

    def __call__(self, images):
        self.calls += 1
        return images.flatten(1), None


def test_an_extractor_may_know_no_classes():
    images = random_images(7, 1, 4, 4)
    found = predict(images.split(3), Flat())
    assert torch.equal(found.features, images.flatten(1)) and found.logits is None
    assert predict(found, Flat()) is found
    with pytest.raises(NumericsError, match="1 of 7"):
        predict(Predictions(torch.where(torch.arange(7)[:, None] == 2, math.nan, found.features), None), Flat())


# ------------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (299, 299), (400, 330), (512, 64)])
def test_clean_is_what_pil_makes_of_float_channels(size):
    """Enlarging, leaving and shrinking: interpolation with antialias is PIL's filter to the precision of floats."""
    images = random_images(2, 3, *size)
    given = _RESIZE["clean"](images)
    for image, found in zip(images, given):
        expected = (resized_by_pil(image, (299, 299), Image.Resampling.BICUBIC) - 128) / 128
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert given.min() >= -1 and given.max() <= 127 / 128


def test_legacy_resize_is_bilinear_without_antialias():
    images = random_images(2, 3, 600, 32)
    expected = F.interpolate((images + 1) / 2, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    torch.testing.assert_close(_RESIZE["legacy"](images), expected, rtol=0, atol=1e-6)
    # By hand: an output pixel lies at (i + 1/2) s - 1/2 between two input pixels, without regard to the others.
    row, s = images[0, 0, :, 16], 600 / 299
    where = (torch.arange(299) + 0.5) * s - 0.5
    low = where.floor().long()
    between = row[low] + (where - low) * (row[low + 1] - row[low])
    flat = images[:1].clone()
    flat[0, 0] = row[:, None]
    torch.testing.assert_close(_RESIZE["legacy"](flat)[0, 0, :, 0], between, rtol=0, atol=1e-4)
    assert (_RESIZE["legacy"](images) - _RESIZE["clean"](images)).abs().max() > 0.1


PREPARATIONS = {
    "dinov2": (
        {
            "size": {"shortest_edge": 20},
            "crop_size": {"height": 14, "width": 14},
            "resample": 3,
            "do_center_crop": True,
        },
        (20, 30),
        14,
        Image.Resampling.BICUBIC,
    ),
    "vit": ({"size": {"height": 14, "width": 14}, "resample": 2}, (14, 14), None, Image.Resampling.BILINEAR),
    "old clip": (
        {"size": 20, "crop_size": 14, "resample": 3, "do_center_crop": True},
        (20, 30),
        14,
        Image.Resampling.BICUBIC,
    ),
    "old vit": ({"size": 14, "resample": 2}, (14, 14), None, Image.Resampling.BILINEAR),
}
NORMAL = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_the_read_preprocessing_a_model_is_read_from_its_file(tmp_path, name):
    asked, size, crop, resample = PREPARATIONS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**asked, **NORMAL}))
    images = random_images(2, 3, 48, 72)
    found = read_preprocessing(tmp_path)(images)
    for image, given in zip(images, found):
        expected = resized_by_pil(image, size, resample) / 255
        if crop:
            top, left = ((side - crop) // 2 for side in size)
            expected = expected[:, top : top + crop, left : left + crop]
        mean, std = (torch.tensor(NORMAL[key])[:, None, None] for key in ("image_mean", "image_std"))
        torch.testing.assert_close(given, (expected - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 1},
        {"resample": None},
        {"size": {"longest_edge": 20}},
        {"rescale_factor": 1.0},
        {"do_rescale": False},
        {"image_mean": None},
        {"crop_size": 30, "do_center_crop": True},
    ],
)
def test_a_preprocessing_that_is_not_done_here_is_refused(tmp_path, change):
    asked = {"size": {"shortest_edge": 20}, "resample": 3, **NORMAL, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(asked))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_preprocessing(tmp_path)


def test_a_preprocessing_says_in_words_all_that_changes_numbers():
    plain = Preprocessing((8, 8), "bilinear", True, (0.5,), (0.5,))
    others = [
        Preprocessing((9, 8), "bilinear", True, (0.5,), (0.5,)),
        Preprocessing(8, "bilinear", True, (0.5,), (0.5,)),
        Preprocessing((8, 8), "bicubic", True, (0.5,), (0.5,)),
        Preprocessing((8, 8), "bilinear", False, (0.5,), (0.5,)),
        Preprocessing((8, 8), "bilinear", True, (0.4,), (0.5,)),
        Preprocessing((8, 8), "bilinear", True, (0.5,), (0.4,)),
        Preprocessing((8, 8), "bilinear", True, (0.5,), (0.5,), crop=(7, 7)),
        Preprocessing(None, "bilinear", True, (0.5,), (0.5,)),
    ]
    assert len({str(one) for one in [plain, *others]}) == 9
    assert str(plain) == "resize to (8, 8) bilinear antialiased, mean 0.5, std 0.5"


# --------------------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights as the usual file has them: no counters, no metadata."""
    torch.manual_seed(0)
    network = InceptionV3().eval().requires_grad_(False)
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, file)
    return network, file


@pytest.mark.parametrize("resize", ["clean", "legacy"])
def test_inception_is_the_network_behind_its_preprocessing(inception, resize):
    network, file = inception
    extractor = inception_extractor(file, sha256(file).upper(), resize)
    images = random_images(2, 3, 40, 32)
    features, logits = extractor(images)
    expected = network(_RESIZE[resize](images))
    torch.testing.assert_close(features, expected.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected.logits - network.fc.bias, rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert extractor.sha256 == sha256(file) and extractor.preprocessing == str(_RESIZE[resize])
    assert extractor.name == {"clean": "inception", "legacy": "inception-legacy"}[resize]
    by_name = load_extractor(f"{extractor.name}:{file}")
    assert by_name.preprocessing == extractor.preprocessing and by_name.sha256 == extractor.sha256


def test_inception_takes_grey_images_but_no_four_channels(inception):
    extractor = inception_extractor(inception[1])
    grey = random_images(3, 1, 28, 28)
    extractor.batch_size = 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor(grey).features
    extractor.batch_size = 3
    torch.testing.assert_close(found, extractor(grey.expand(-1, 3, -1, -1)).features, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"1 or 3 channels.*Got 4.*alpha"):
        extractor(random_images(2, 4, 28, 28))
    with pytest.raises(UsageError, match="uint8_batches"):
        extractor(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        extractor(torch.rand(9, 3, 28, 28))


def test_inception_loads_from_a_folder_with_its_stated_hash(inception, tmp_path):
    network = inception[0]
    network.save_pretrained(tmp_path)
    extractor = load_extractor(tmp_path)
    assert extractor.name == "inception" and extractor.sha256 == sha256(tmp_path / WEIGHTS_FILE)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in extractor.model.state_dict().items())
    (tmp_path / "evaluation.json").write_text(json.dumps({"sha256": "ab" * 32}))
    with pytest.raises(CheckpointError, match="abab.*" + extractor.sha256):
        load_extractor(tmp_path)


def test_wrong_inception_weights_are_refused(inception, tmp_path):
    file = inception[1]
    with pytest.raises(CheckpointError, match=f"{'0' * 64}.*{sha256(file)}"):
        inception_extractor(file, "0" * 64)
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        inception_extractor(file, "abc")
    with pytest.raises(UsageError, match='Did you mean "legacy"'):
        inception_extractor(file, resize="legaci")
    tensors = load_file(file)
    spoilt = tmp_path / "spoilt.safetensors"
    for change, words in (
        ({"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, "1000.*model zoos"),
        ({"AuxLogits.fc.bias": torch.zeros(3)}, "AuxLogits.fc.bias too many"),
        ({"fc.bias": None}, "no fc.bias"),
        ({"fc.bias": torch.zeros(1008).half()}, "float16 instead of .*float32"),
        ({"fc.bias": torch.full((1008,), math.nan)}, "finite"),
    ):
        save_file({k: v for k, v in {**tensors, **change}.items() if v is not None}, spoilt)
        with pytest.raises(CheckpointError, match=words):
            inception_extractor(spoilt)
    spoilt.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        inception_extractor(spoilt)
    pickled = tmp_path / "pt_inception.pth"
    pickled.write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"save_file.*6726825d"):
        inception_extractor(pickled)
    with pytest.raises(CheckpointError, match=r"It has none"):
        inception_extractor(WEIGHTS)
    with pytest.raises(UsageError, match="neither"):
        inception_extractor(tmp_path / "nowhere.safetensors")


def test_inception_comes_from_the_hub_at_a_commit(inception, tmp_path, monkeypatch):
    file = inception[1]
    with running_hub() as hub:
        commit = hub.put("user/inception", {"inception.safetensors": file.read_bytes(), "evil.pth": b"\x80"})
        hub.put("user/inception", {"inception.safetensors": b"later"})
        point_client_at(hub, monkeypatch, str(tmp_path))
        extractor = inception_extractor("user/inception", sha256(file), revision=commit)
        assert extractor.revision == commit and extractor.sha256 == sha256(file)
        assert not any("evil" in path for _, path in hub.requests)
        with pytest.raises(HubError, match="user/nothing is no file or folder here"):
            load_extractor("inception:user/nothing")
    with pytest.raises(UsageError, match="`revision` is for the Hub"):
        inception_extractor(file, revision=commit)


# ------------------------------------------------------------------------------------------------------ transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28}
ASKED = {"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True, "resample": 3, **NORMAL}
MAKES = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, patch_size=14)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL, patch_size=14)),
    "vit classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, patch_size=14)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={
                **SMALL,
                "vocab_size": 9,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "image_size": None,
                "max_position_embeddings": 5,
            },
            vision_config={**SMALL, "patch_size": 14},
            projection_dim=12,
        )
    ),
    "clip tower": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL, patch_size=14)),
    "clip tower projected": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**SMALL, patch_size=14, projection_dim=12)
    ),
}


def made(kind, folder):
    torch.manual_seed(0)
    model = MAKES[kind]().eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(ASKED))
    return model


def embedding(kind, model, x):
    """What the model's own documentation calls the image's representation."""
    if kind == "clip":
        found = model.get_image_features(pixel_values=x)
        return getattr(found, "pooler_output", found)
    if kind == "clip tower projected":
        return model(x).image_embeds
    if kind == "vit classifier":
        return model.vit(x).last_hidden_state[:, 0]  # its pooler was never trained
    return model(x).pooler_output


@pytest.mark.parametrize("kind", MAKES)
def test_a_model_of_transformers_gives_its_pooled_output(tmp_path, kind):
    model = made(kind, tmp_path)
    images = random_images(3, 3, 32, 40)
    extractor = load_extractor(tmp_path)
    features, logits = extractor(images)
    with torch.no_grad():
        expected = embedding(kind, model, read_preprocessing(tmp_path)(images))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert logits is None and features.std(0).max() > 1e-4
    assert extractor.name == tmp_path.name and extractor.sha256 == sha256(tmp_path / MODEL)
    assert "crop to (28, 28)" in extractor.preprocessing and extractor.class_names is None
    assert torch.equal(extractor(images).features, transformers_extractor(tmp_path)(images).features)


def test_a_model_in_parts_has_a_hash_of_all_of_them(tmp_path):
    model = made("dinov2", tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    (tmp_path / "parts/preprocessor_config.json").write_text(json.dumps(ASKED))
    whole, parts = transformers_extractor(tmp_path / "whole"), transformers_extractor(tmp_path / "parts")
    images = random_images(2, 1, 32, 32)
    assert torch.equal(whole(images).features, parts(images).features)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 1
    assert parts.sha256 == hashlib.sha256("\n".join(map(sha256, files)).encode()).hexdigest()
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"names model-.* which is not there"):
        transformers_extractor(tmp_path / "parts")


def without_key(folder):
    tensors = load_file(folder / MODEL)
    tensors.pop(sorted(tensors)[5])
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})


DAMAGE = {
    "no weights": (lambda f: (f / MODEL).rename(f / "pytorch_model.bin"), "run arbitrary code"),
    "half a file": (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:999]), "cannot be read as safetensors"),
    "a missing tensor": (without_key, "must agree"),
    "no preprocessing": (lambda f: (f / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
    "no JSON": (lambda f: (f / "preprocessor_config.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_of_transformers_is_refused(tmp_path, kind):
    made("dinov2", tmp_path)
    spoil, words = DAMAGE[kind]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        transformers_extractor(tmp_path)


def test_what_is_no_vision_model_is_refused(tmp_path):
    made("dinov2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "siglip", "vision_config": {}}))
    with pytest.raises(CheckpointError, match=r"must hold a vision model of the kinds clip, .*; got 'siglip'"):
        transformers_extractor(tmp_path)
    levit = {"model_type": "levit", "image_size": 4096}  # which takes gigabytes of lists to be built
    (tmp_path / "config.json").write_text(json.dumps(levit))
    with pytest.raises(CheckpointError, match=r"a vision model of the kinds .* got 'levit'"):
        transformers_extractor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}))
    with pytest.raises(CheckpointError, match="nothing"):
        transformers_extractor(tmp_path)
    text = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    text.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"a vision model of the kinds .* got 'bert'"):
        transformers_extractor(tmp_path)


def test_without_transformers_the_way_to_it_is_said(tmp_path, monkeypatch):
    made("vit", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install latentia\[text\]"):
        transformers_extractor(tmp_path)


def test_a_model_comes_from_the_hub_without_its_pickles_and_code(tmp_path, monkeypatch):
    made("dinov2", tmp_path / "own")
    files = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    with running_hub() as hub:
        commit = hub.put("user/dino", {**files, "pytorch_model.bin": b"\x80", "modeling_x.py": b"raise SystemExit"})
        point_client_at(hub, monkeypatch, str(tmp_path / "cache"))
        extractor = load_extractor("user/dino")
        assert (extractor.name, extractor.revision) == ("user/dino", commit)
        assert extractor.sha256 == sha256(tmp_path / "own" / MODEL)
        assert not any(path.endswith((".bin", ".py")) for _, path in hub.requests)
        with pytest.raises(HubError, match="user/nothing"):
            load_extractor("user/nothing")
        with pytest.raises(HubError, match="user/dino"):
            transformers_extractor("user/dino", revision="nowhere")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    for name, near in (("emojy", "emoji"), ("incepton:weights", "inception"), ("mnits", "mnist")):
        with pytest.raises(UsageError, match=f'Did you mean "{near}"'):
            load_extractor(name)
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match=r"config\.json"):
        load_extractor(tmp_path / "a")


# ------------------------------------------------------------------------------------------------------------- cache


def test_the_cache_computes_once_and_gives_the_same(tmp_path):
    images, flat, digits = random_images(9, 1, 8, 8), Flat(), load_extractor("digits")
    assert torch.equal(cached_predict(images, flat, "a", tmp_path).features, images.flatten(1))
    assert cached_predict(images, flat, "a", tmp_path).logits is None and flat.calls == 1
    first, second = (cached_predict(iter(images.split(4)), digits, "a", tmp_path, count=9) for _ in range(2))
    assert torch.equal(first.features, second.features) and torch.equal(first.logits, second.logits)
    assert torch.equal(first.logits, cached_predict(images, digits, "a", tmp_path).logits)
    files = sorted(path.suffix for path in (tmp_path / "features").iterdir())
    assert files.count(".safetensors") == 2 and ".tmp" not in files


def test_whatever_changes_the_features_changes_the_file(tmp_path):
    images, flat = random_images(4, 1, 8, 8), Flat()
    cached_predict(images, flat, "a", tmp_path)
    for change in (
        {"name": "other"},
        {"sha256": "1" * 64},
        {"preprocessing": "crop"},
        {"images": images[:3]},
        {"images": images.reshape(4, 1, 4, 16)},
        {"images": images.double()},
        {"fingerprint": "b"},
    ):
        other = Flat()
        for key in change.keys() & {"name", "sha256", "preprocessing"}:
            setattr(other, key, change[key])
        cached_predict(change.get("images", images), other, change.get("fingerprint", "a"), tmp_path)
        assert other.calls == 1, change
    assert len(list(tmp_path.glob("features/*.safetensors"))) == 8


def test_a_file_of_another_extractor_or_data_set_is_refused(tmp_path):
    images, other = random_images(4, 1, 8, 8), Flat()
    other.sha256 = "1" * 64
    cached_predict(images, Flat(), "first data", tmp_path)
    (mine,) = tmp_path.glob("features/*.safetensors")
    cached_predict(images, other, "second data", tmp_path)
    (theirs,) = set(tmp_path.glob("features/*.safetensors")) - {mine}
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(DataError) as caught:
        cached_predict(images, Flat(), "first data", tmp_path)
    for words in ("1" * 64, "0" * 64, "first data", "second data", mine.name):
        assert words in str(caught.value)


@pytest.mark.parametrize("how", ["half", "a bit", "rubbish"])
def test_a_damaged_file_is_made_again_and_the_log_says_so(tmp_path, caplog, how):
    images = random_images(4, 1, 8, 8)
    expected = cached_predict(images, Flat(), "a", tmp_path).features.clone()  # not the mapped file
    (file,) = tmp_path.glob("features/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes({"half": data[: len(data) // 2], "a bit": data, "rubbish": b"rubbish"}[how])
    flat = Flat()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached_predict(images, flat, "a", tmp_path).features, expected)
    assert flat.calls == 1 and "is damaged" in caplog.text
    assert cached_predict(images, flat, "a", tmp_path) and flat.calls == 1


def test_two_at_a_time_compute_once(tmp_path):
    images, flat, results = random_images(4, 1, 8, 8), Flat(), []
    inside = threading.Event()

    class Slow(Flat):
        def __call__(self, images):
            inside.wait(0.2)
            return flat(images)

    def work():
        results.append(cached_predict(images, Slow(), "a", tmp_path))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flat.calls == 1 and all(torch.equal(r.features, results[0].features) for r in results)


def test_the_cache_refuses_what_it_cannot_keep(tmp_path, monkeypatch):
    images = random_images(4, 1, 8, 8)
    with pytest.raises(UsageError, match="fingerprint"):
        cached_predict(images, Flat(), "", tmp_path)
    with pytest.raises(UsageError, match="no name, sha256, preprocessing"):
        cached_predict(images, lambda images: (images, None), "a", tmp_path)
    with pytest.raises(UsageError, match="`count`"):
        cached_predict([images], Flat(), "a", tmp_path)
    with pytest.raises(UsageError, match=r"4\. Got 5"):
        cached_predict([images], Flat(), "a", tmp_path, count=5)
    with pytest.raises(UsageError, match=r"4\. Got 5"):
        cached_predict(images, Flat(), "a", tmp_path, count=5)
    with pytest.raises(UsageError, match="empty"):
        cached_predict([], Flat(), "a", tmp_path, count=0)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cache_dir"):
        cached_predict(images, Flat(), "a", tmp_path / "file")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(DataError, match="full"):
        cached_predict(images, Flat(), "a", tmp_path / "new")
    assert [path.suffix for path in (tmp_path / "new/features").iterdir()] == [".lock"]


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path))
    cached_predict(random_images(2, 1, 8, 8), Flat(), "a")
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 1
    monkeypatch.delenv("LATENTIA_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cached_predict(random_images(2, 1, 8, 8), Flat(), "a")
    assert len(list((tmp_path / "home/latentia/features").glob("*.safetensors"))) == 1


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("name", ["base", "classifier", "loading", "preprocessing", "cache"])
def test_documented_examples_run(name):
    module = getattr(latentia.evaluation.features, name)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0
