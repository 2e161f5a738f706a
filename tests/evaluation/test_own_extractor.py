"""The extractor of one's own images: it orders damage by its strength, and noise without structure wins nothing."""

import pytest
import torch
from torch.nn import functional as F

from latentia.commands.measurement import find_extractor, measure_real
from latentia.data import ImageData, load_images
from latentia.errors import UsageError
from latentia.evaluation import (
    frechet_distance,
    load_extractor,
    measure,
    noise_floor,
    noise_images,
    own_extractor,
    predict,
    score,
    uint8_batches,
)
from latentia.evaluation.features.base import Predictions
from latentia.functional.pixels import from_uint8


@pytest.fixture(scope="module")
def digits():
    """Digits in random order: 1200 to train on, 597 that the extractor never saw."""
    data = load_images("digits")
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    parts = (rows[:1200], rows[1200:])
    return [ImageData(data.images[part], data.labels[part], data.label_names) for part in parts]


@pytest.fixture(scope="module")
def extractor(digits, tmp_path_factory):
    return own_extractor(digits[0], steps=250, cache_dir=tmp_path_factory.mktemp("cache"))


def distance(extractor, digits, images):
    real = predict(uint8_batches(digits[0].images), extractor).features
    return frechet_distance(predict(images, extractor).features, real)


def test_distances_grow_with_blur_noise_and_missing_classes(digits, extractor):
    unseen, labels = from_uint8(digits[1].images), digits[1].labels
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(unseen.shape, generator=generator)
    smooth = F.avg_pool2d(F.pad(unseen, (1, 1, 1, 1), mode="replicate"), 3, 1)
    ways = {
        "blur": [unseen.lerp(smooth, amount) for amount in (0, 0.3, 0.6, 1)],
        "noise": [(unseen + amount * noise).clamp(-1, 1) for amount in (0, 0.2, 0.4, 0.8)],
        "missing": [unseen[labels >= first] for first in (0, 3, 6, 8)],
    }
    for name, stages in ways.items():
        found = [distance(extractor, digits, stage) for stage in stages]
        assert found == sorted(found) and found[-1] > 5 * found[0], (name, found)


def test_unseen_real_images_are_nearly_as_near_as_seen_ones(digits, extractor):
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(2))
    seen, rest = digits[0].images[order[:500]], digits[0].images[order[500:]]
    real = predict(uint8_batches(rest), extractor).features
    near = [
        frechet_distance(predict(uint8_batches(x), extractor).features, real) for x in (seen, digits[1].images[:500])
    ]
    assert near[1] < 1.5 * near[0]


def test_unstructured_noise_wins_neither_precision_nor_density(digits, extractor):
    real = measure(uint8_batches(digits[0].images), extractor)
    floor = noise_floor(digits[0].images, real, extractor, 300)
    for kind in ("uniform noise", "shuffled pixels"):
        assert floor.scores[kind]["precision"] < 0.15 and floor.scores[kind]["density"] < 0.1, kind
    # Smooth noise with the covariance of the images is near them: that is what the floor beside each model is for.
    assert floor.scores["Gaussian"]["fd"] < 0.5 * floor.scores["positions at random"]["fd"]
    report = score(uint8_batches(digits[1].images[:300]), real, extractor, metrics=["fd", "precision", "density"])
    assert not floor.notes(report) and report["precision"].value > 0.8
    worst = score(map(from_uint8, noise_images("uniform noise", digits[0].images, 300, 9)), real, extractor)
    assert {note.split(" in ")[1].split(" (")[0] for note in floor.notes(worst)} == {
        "Frechet distance", "Precision", "Density",
    }  # fmt: skip


def test_noise_is_as_many_as_the_samples_and_made_in_parts(digits, extractor, monkeypatch):
    """Scores depend on the number of images, and thousands of large ones would not fit into memory at once."""
    images, made = digits[0].images, []
    parts = [*noise_images("positions at random", images, 250)]
    assert [len(part) for part in parts] == [100, 100, 50] and parts[0].shape[1:] == images.shape[1:]
    assert set(images[:, 0, 4, 4].tolist()) >= set(torch.cat(parts)[:, 0, 4, 4].tolist())
    real = measure(uint8_batches(images), extractor)
    monkeypatch.setattr(extractor, "model", lambda x, model=extractor.model: made.append(len(x)) or model(x))
    monkeypatch.setattr(type(extractor), "__call__", lambda self, x: Predictions(self.model(x), None))
    floor = noise_floor(images, real, extractor, 1100)
    assert floor.n == 1100 and sum(made) == 4 * 1100 and max(made) == 100
    with pytest.raises(UsageError, match=r'kind must be one of uniform noise, .*; got "uniform"'):
        noise_images("uniform", images, 3)


def test_noise_is_measured_only_for_metrics_that_it_concerns(digits, extractor):
    assert measure_real(digits[1], extractor, 50, 0, ["kid", "recall"]).noise is None
    assert measure_real(digits[1], extractor, 50, 0, ["precision"]).noise.n == 50


def test_weights_are_those_of_data_and_seed_and_are_kept(digits, tmp_path):
    one = own_extractor(digits[1], steps=3, cache_dir=tmp_path)
    (file,) = (tmp_path / "extractors").glob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert own_extractor(digits[1], steps=3, cache_dir=tmp_path).sha256 == one.sha256
    assert file.stat().st_mtime_ns == written
    torch.manual_seed(7)
    again = own_extractor(digits[1], steps=3, cache_dir=tmp_path / "again")
    assert again.sha256 == one.sha256 and torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(7))
    others = [
        own_extractor(digits[0], steps=3, cache_dir=tmp_path),
        own_extractor(digits[1], seed=1, steps=3, cache_dir=tmp_path),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 3
    with pytest.raises(UsageError, match="at least 16 images"):
        own_extractor(ImageData(digits[0].images[:9]), cache_dir=tmp_path)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 90, 40), (4, 32, 32)])
def test_images_of_any_shape_are_taken(shape, tmp_path):
    data = ImageData(torch.randint(256, (20, *shape), dtype=torch.uint8))
    found = own_extractor(data, steps=2, cache_dir=tmp_path)(from_uint8(data.images))
    assert found.features.shape == (20, 64) and found.logits is None and found.features.isfinite().all()


def test_a_classifier_of_other_classes_is_marked(digits):
    photos = ImageData(digits[0].images, digits[0].labels, [*"abcdefghij"])
    found, (warning,) = find_extractor("digits", photos)
    assert "BORROWED" in warning and "borrowed" in found.name and found(from_uint8(photos.images[:4])).logits is None
    assert found.sha256 == load_extractor("digits").sha256
    fitting, notes = find_extractor(None, digits[0])
    assert fitting.name == "digits" and not notes
