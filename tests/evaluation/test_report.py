"""The report: each metric on real digits and on broken generators, the real-data scores, and what is refused."""

import doctest
import json
import math

import numpy as np
import pytest
import torch

import latentia.evaluation.report.page
import latentia.evaluation.report.plots
import latentia.evaluation.report.report
import latentia.evaluation.samples
from latentia.data import load_images
from latentia.errors import DataError, NumericsError, UsageError
from latentia.evaluation import (
    METRICS,
    Predictions,
    Sample,
    frechet_distance,
    load_extractor,
    measure,
    score,
    uint8_batches,
)
from latentia.evaluation.metrics import Metric, Pair
from latentia.evaluation.report.report import SPLITS
from latentia.evaluation.report.table import _bits


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def real(extractor, digits):
    return measure(uint8_batches(digits.images), extractor, digits.labels)


def values(report):
    return {key: found.value for key, found in report.scores.items()}


def test_held_out_images_get_the_real_data_score(extractor, real):
    order = torch.randperm(1797, generator=generator())
    unseen, rest = real[order[:300]], real[order[300:]]
    near = score(unseen, rest, extractor)
    assert set(near.scores) == set(METRICS)
    for key, found in near.scores.items():
        spread = max(found.real_high - found.real, 0.02 * abs(found.real), 0.06)
        assert abs(found.value - found.real) < 3.5 * spread, (key, found)
        assert found.low is None or found.low <= found.value <= found.high, key
        assert math.isfinite(found.value) and math.isfinite(found.real), key
    noise = torch.rand(300, 1, 8, 8, generator=generator()) * 2 - 1
    far = score(noise, rest, extractor, labels=torch.arange(300) % 10)
    assert set(far.scores) == set(METRICS)
    for key, found in far.scores.items():
        assert found.real == near[key].real, key  # same n, reference and seed
        worse = {"lower": 1, "higher": -1}.get(found.better)
        if worse and key != "missing_classes":
            assert worse * (found.value - near[key].value) > 0, key
    assert far["fd"].value > 50 * far["fd"].real and far["kid"].value > 100
    assert far["two_sample"].value > 0.97 > near["two_sample"].value
    assert far["recall"].value < 0.1 < 0.6 < near["precision"].value
    assert far["inception_score"].value < 2 < near["inception_score"].value
    assert far["sharpness"].value > 1.2 * near["sharpness"].value
    assert far["train_on_synthetic"].value < 0.4 < 0.8 < near["train_on_synthetic"].value
    assert far["label_agreement"].value < 0.3 and near["label_agreement"].value > 0.97


def test_copies_of_the_reference_are_seen_as_copies(extractor, real):
    chosen = torch.randperm(1797, generator=generator(2))[:300]
    copies = score(real[chosen], real, extractor, metrics=["authenticity", "nearest_distance"])
    for key in ("authenticity", "nearest_distance"):
        found = copies[key]
        assert found.value < found.real_low, (key, found)


def test_blurred_digits_lose_sharpness_and_recall(extractor, digits, real):
    images = digits.images[:300].float() / 127.5 - 1
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    report = score(blurred, real, extractor, metrics=["sharpness", "precision", "fd"])
    assert report["sharpness"].high < 0.6 * report["sharpness"].real
    assert report["fd"].value > 10 * report["fd"].real


def test_the_real_data_score_is_that_of_disjoint_halves(extractor):
    """Gaussian features, sorted by class: a score that let held-out images into the reference would come out lower."""
    features, logits = randn(600, 12), 1e4 * torch.eye(10).repeat_interleave(60, 0)
    made = Predictions(randn(300, 12, seed=1), logits[::2])
    report = score(made, Predictions(features, logits), extractor, metrics=["fd", "inception_score"])
    halves = [features[torch.randperm(600, generator=generator(seed))].split(300) for seed in range(30)]
    assert report["fd"].real == pytest.approx(np.mean([frechet_distance(*pair) for pair in halves]), rel=0.08)
    assert report["fd"].value == pytest.approx(report["fd"].real, rel=0.25)
    assert report["inception_score"].real == pytest.approx(report["inception_score"].value, abs=0.3)


def test_value_and_real_data_score_are_one_function(extractor, monkeypatch):
    """The sample against each reference, and the held-out images against the same reference."""
    seen = []

    def spy(pair: Pair) -> float:
        seen.append((pair.sample.features[:, 0].tolist(), pair.reference.features[:, 0].tolist()))
        return float(len(seen) % 2)  # 1 for the sample, 0 for the held-out images, as they come in turn

    monkeypatch.setitem(METRICS, "spy", Metric("Spy", "lower", spy))
    features = torch.arange(10.0)[:, None]
    report = score(Sample(100 + features[:4], None), Sample(features, None), extractor, metrics=["spy"])
    assert len(seen) == 2 * SPLITS
    for made, held_out in zip(seen[::2], seen[1::2]):
        assert made[0] == [100, 101, 102, 103] and made[1] == held_out[1]
        assert sorted(held_out[0] + held_out[1]) == list(range(10)) and len(held_out[0]) == 4
    assert len({tuple(held_out[0]) for held_out in seen[1::2]}) > 1
    assert report["spy"].value == 1 and report["spy"].real == 0 and report["spy"].low is None


def test_a_missing_class_is_named_and_raises_the_distance(extractor, real):
    order = torch.randperm(1797, generator=generator(1))
    keys = ["fd", "inception_score", "class_divergence", "missing_classes", "coverage"]
    complete = score(real[order[:500]], real, extractor, metrics=keys)
    order = order[real.logits.argmax(1)[order] != 3]
    missing = score(real[order[:500]], real, extractor, metrics=keys)
    assert missing["fd"].value > max(complete["fd"].value, missing["fd"].real) + 2
    assert missing["inception_score"].value < complete["inception_score"].value - 0.3
    assert missing["class_divergence"].value > 10 * complete["class_divergence"].value
    assert missing["missing_classes"].value == 1 and complete["missing_classes"].value == 0
    assert missing["coverage"].value < complete["coverage"].value
    assert missing.class_counts[3] == 0 < 30 < complete.class_counts[3]
    assert sum(missing.class_counts) == 500 and sum(missing.real_class_counts) == 1797


def test_one_image_repeated_is_found_out_and_said(extractor, real):
    report = score(real[torch.zeros(300, dtype=torch.long)], real, extractor)
    found = values(report)
    assert found["fd"] > 50 and found["inception_score"] == pytest.approx(1, abs=1e-9)
    assert found["vendi"] == pytest.approx(1, abs=1e-6) and found["missing_classes"] == 9
    assert found["coverage"] < 0.05 and found["marginal_entropy"] < 0.5
    assert any("299 of 300 images repeat" in note for note in report.notes)


@pytest.mark.parametrize("n, low", [(2, True), (64, True), (127, True), (128, False)])
def test_few_images_are_labelled(extractor, real, n, low):
    keys = ["fd", "inception_score", "vendi"]
    report = score(real[torch.arange(n)], real, extractor, metrics=keys)
    with pytest.raises(UsageError, match="needs at least 6 images"):
        score(real[torch.arange(2)], real, extractor, metrics=["recall"])
    assert report.low_sample is low and all(map(math.isfinite, values(report).values()))
    assert (f"n={n}, low-sample" in report.text()) is low
    assert any("mostly bias" in note for note in report.notes) is low
    assert ("mostly bias" in report.table()) is low


def test_constant_images_give_numbers_and_a_note(extractor, real):
    report = score(torch.zeros(150, 1, 8, 8), real, extractor)
    assert all(map(math.isfinite, values(report).values())) and report["sharpness"].value == 0
    assert any("149 of 150" in note for note in report.notes)


def test_the_report_is_plain_json_and_a_function_of_the_seed(extractor, real, digits):
    generated, keys = digits.images[:100].float() / 127.5 - 1, ["fd", "kid", "two_sample", "sharpness"]
    report = score(generated, real, extractor, seed=3, metrics=keys)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert score(iter(generated.split(100)), real, extractor, seed=3, metrics=keys) == report
    assert score(generated, real, extractor, seed=4, metrics=keys)["fd"].real != report["fd"].real
    assert report.extractor == "digits" and report.extractor_sha256[:8] in report.text()
    assert report.feature_dim == 64 and report.n == 100 and report.n_real == 1797
    table = report.table()
    assert all(found.title in table for found in report.scores.values()) and "1697 of 1797" in table
    card = report.for_card()
    assert [m["name"] for m in card] == [METRICS[key].title for key in keys] and card[0]["real"] == report["fd"].real


def test_metrics_that_do_not_apply_are_left_out(extractor, real):
    plain = score(Sample(real.features[:50], None), Sample(real.features, None), extractor)
    assert "fd" in plain.scores and not {"inception_score", "sharpness", "label_agreement"} & set(plain.scores)
    assert plain.class_counts is None and plain.real_class_counts is None
    with pytest.raises(UsageError, match=r'"inception_score" needs logits of both sides'):
        score(Sample(real.features[:50], None), real, extractor, metrics=["inception_score"])


def test_score_refuses_what_it_cannot_measure(extractor, real, digits):
    images = digits.images.float() / 127.5 - 1
    with pytest.raises(UsageError, match="at least 2"):
        score(images[:1], real, extractor)
    with pytest.raises(UsageError, match=r"2 \* 60 = 120.*images\[:50\]"):
        score(images[:60], images[:100], extractor)
    with pytest.raises(UsageError, match="empty"):
        score([], real, extractor)
    with pytest.raises(UsageError, match=r'Got "recal".*Did you mean "recall"'):
        score(images[:60], real, extractor, metrics=["fd", "recal"])
    with pytest.raises(UsageError, match=r"one class per image, 60. Got 3"):
        score(images[:60], real, extractor, labels=[1, 2, 3])
    with pytest.raises(DataError, match="NaN"):
        score(images[:10] * math.nan, real, extractor)
    broken = Predictions(real.features.clone(), real.logits)
    broken.features[5, 2] = math.nan
    with pytest.raises(NumericsError, match="1 of 1797"):
        score(images[:10], broken, extractor)
    with pytest.raises(UsageError, match=r"channels|C, H, W"):
        score(images[:10].expand(-1, 3, -1, -1), real, extractor)
    report = score(images[:10], real, extractor, metrics=["fd"])
    with pytest.raises(UsageError, match="fd"):
        report["fid"]


@pytest.mark.parametrize(
    "module",
    [
        latentia.evaluation.report.report,
        latentia.evaluation.report.page,
        latentia.evaluation.report.plots,
        latentia.evaluation.samples,
    ],
)
def test_documented_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_bits_of_other_values_than_bytes_are_marked():
    kinds = {"exact": "2", "lower bound": "≤ 2", "lower bound, dynamic binarisation": "≤ 2 (binarised)"}
    for kind, text in kinds.items():
        assert _bits([{"kind": f"{kind}, held-out", "bits_per_dimension": 2.0}]).text == text
