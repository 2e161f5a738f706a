"""The evaluation room: closed forms, independent oracles, and what the shipped extractors say about real digits."""

import doctest
import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import latentia.evaluation.features.classifier
import latentia.evaluation.features.loading
import latentia.evaluation.report.grids
import latentia.models.classifier
from latentia.errors import CheckpointError, DataError, UsageError
from latentia.evaluation import (
    extractor_for,
    image_grid,
    image_strip,
    load_extractor,
    plot_curves,
    predict,
    uint8_batches,
)
from latentia.evaluation.features.classifier import SHIPPED, WEIGHTS
from latentia.models.classifier import DigitClassifier

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits")


@pytest.fixture(scope="module")
def digits():
    """All digits, (1797, 1, 8, 8) in [-1, 1], their labels, and the indices that the classifier did not see."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    held_out = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)[1]
    return images, torch.from_numpy(labels), torch.from_numpy(held_out)


@pytest.fixture(scope="module")
def real(extractor, digits):
    return predict(digits[0], extractor)


# ------------------------------------------------------------------------------------------------------- extractors


def test_the_digits_extractor_reaches_its_stated_accuracies(extractor, real, digits):
    _, labels, held_out = digits
    stated = json.loads((WEIGHTS / "digits/evaluation.json").read_text())
    right = real.logits.argmax(1) == labels
    seen = torch.ones(len(labels), dtype=torch.bool)
    seen[held_out] = False
    assert right[held_out].double().mean().item() == pytest.approx(stated["test_accuracy"], abs=1e-9)
    assert right[seen].double().mean().item() == pytest.approx(stated["train_accuracy"], abs=1e-9)
    assert stated["test_accuracy"] >= 0.98
    assert torch.linalg.matrix_rank(real.features.double().T.cov()) == 64


@pytest.mark.parametrize("name, floor", [("digits", 0.98), ("mnist", 0.993)])
def test_shipped_extractors_are_small_checked_and_found_by_shape(name, floor):
    shipped = extractor_for(SHIPPED[name])
    weights = WEIGHTS / name / WEIGHTS_FILE
    stated = json.loads((WEIGHTS / name / "evaluation.json").read_text())
    assert shipped.name == name and shipped.image_shape == SHIPPED[name]
    assert shipped.sha256 == stated["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert stated["test_accuracy"] >= floor
    assert weights.stat().st_size < 1_000_000
    features, logits = shipped(torch.zeros(2, *SHIPPED[name]) - 1)
    assert features.shape == (2, 64) and logits.shape == (2, 10) and features.dtype == torch.float32


def test_no_extractor_is_made_up_for_other_shapes():
    assert extractor_for((3, 64, 64)) is None


def test_batches_and_autocast_do_not_change_the_numbers(digits):
    images = digits[0][:50]
    whole, parts = load_extractor("digits"), load_extractor("digits")
    parts.batch_size = 7
    expected = whole(images)
    assert torch.allclose(parts(images).features, expected.features, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whole(images).features, expected.features)
    assert torch.allclose(whole(images.double()).features, expected.features)
    assert not any(p.requires_grad for p in whole.model.parameters()) and not whole.model.training


def test_an_own_folder_loads_and_an_altered_one_is_refused(tmp_path, digits):
    own = tmp_path / "own"
    model = DigitClassifier(sample_size=8, block_out_channels=(4,), feature_dim=5).eval()
    model.save_pretrained(own)
    loaded = load_extractor(own)
    images = digits[0][:4]
    assert loaded.name == "own" and torch.equal(loaded(images).features, model(images).features)

    altered = tmp_path / "altered"
    shutil.copytree(WEIGHTS / "digits", altered)
    assert load_extractor(altered).sha256 == load_extractor("digits").sha256
    data = bytearray((altered / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (altered / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match="was altered"):
        load_extractor(altered)


def test_a_shipped_extractor_without_its_statement_is_refused(tmp_path, monkeypatch):
    shutil.copytree(WEIGHTS / "digits", tmp_path / "digits")
    (tmp_path / "digits/evaluation.json").unlink()
    for module in (latentia.evaluation.features.classifier, latentia.evaluation.features.loading):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="sha256"):
        load_extractor("digits")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


DAMAGE = {
    "another class": (lambda folder: edit_config(folder, _class_name="UNet2D"), "must describe a DigitClassifier"),
    "another width": (lambda folder: edit_config(folder, feature_dim=6), "to_"),
    "a missing tensor": (lambda folder: edit_weights(folder, lambda t: t.pop("to_logits.weight")), "to_logits.weight"),
    "a tensor too many": (lambda folder: edit_weights(folder, lambda t: t.update(extra=torch.zeros(1))), "extra"),
    "half a file": (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"\0" * 200), "cannot be read"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "holds no"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused(tmp_path, kind):
    DigitClassifier(sample_size=8, block_out_channels=(4,), feature_dim=5).save_pretrained(tmp_path)
    spoil, text = DAMAGE[kind]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_extractor(tmp_path)
    assert tmp_path.name in str(caught.value)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match='Did you mean "digits"'):
        load_extractor("digit")
    with pytest.raises(UsageError, match="sample_size"):
        DigitClassifier(sample_size=8, block_out_channels=(4, 4, 4, 4))


GOOD = torch.linspace(-1, 1, 512).reshape(8, 1, 8, 8)
BAD_IMAGES = {
    "bytes": (((GOOD + 1) * 127.5).to(torch.uint8), UsageError, "uint8_batches"),
    "[0, 1]": ((GOOD + 1) / 2, UsageError, "looks like"),
    "[0, 255]": ((GOOD + 1) * 127.5, UsageError, "127.5"),
    "overshoot": (GOOD * 1.1, UsageError, "clamp"),
    "size": (torch.zeros(2, 1, 28, 28), UsageError, r"\(1, 8, 8\).*\(1, 28, 28\)"),
    "channels": (torch.zeros(2, 3, 8, 8), UsageError, r"\(1, 8, 8\).*\(3, 8, 8\)"),
    "no batch axis": (torch.zeros(1, 8, 8), UsageError, "at least one"),
    "empty": (torch.zeros(0, 1, 8, 8), UsageError, "at least one"),
    "array": (np.zeros((2, 1, 8, 8)), UsageError, "ndarray"),
    "NaN": (torch.where(GOOD > 0.99, math.nan, GOOD), DataError, "1 of 8"),
    "infinity": (torch.where(GOOD > 0.99, math.inf, GOOD), DataError, "1 of 8"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_unfit_images_are_refused_with_the_reason(extractor, kind):
    images, error, text = BAD_IMAGES[kind]
    with pytest.raises(error, match=text):
        extractor(images)


def test_constant_images_are_unusual_but_allowed(extractor):
    for value in (-1.0, 0.0, 0.5, 1.0):
        assert extractor(torch.full((8, 1, 8, 8), value)).features.isfinite().all()


def test_a_last_batch_of_one_bright_image_is_accepted(extractor):
    assert len(predict([GOOD, GOOD[-1:]], extractor).features) == 9


def test_bytes_are_converted_in_batches_to_the_whole_range(extractor):
    ramp = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    batches = list(uint8_batches(ramp, 3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert torch.cat(batches).flatten().tolist() == pytest.approx([i / 127.5 - 1 for i in range(256)], abs=1e-6)
    streamed, whole = predict(uint8_batches(ramp, 3), extractor), predict(ramp / 127.5 - 1, extractor)
    assert torch.allclose(streamed.features, whole.features, atol=1e-4)
    with pytest.raises(UsageError, match="uint8"):
        uint8_batches(ramp.float())


# ----------------------------------------------------------------------------------------------------------- images


def test_a_grid_holds_every_image_enlarged_in_reading_order():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 1, 8, 8)
    pixels = np.asarray(image_grid(images, columns=3, padding=4))
    assert pixels.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    centres = [pixels[4 + 68 * (i // 3) + 32, 4 + 68 * (i % 3) + 32, 0] for i in range(6)]
    assert centres == [0, 51, 102, 153, 204, 255]
    assert (pixels[:4] == 255).all() and (pixels[:, :4] == 255).all()


def test_enlarging_repeats_pixels_and_never_shrinks():
    image = torch.rand(1, 3, 5, 9, generator=generator()) * 2 - 1
    plain = np.asarray(image_grid(image, padding=0, tile=9))
    enlarged = np.asarray(image_grid(image, padding=0, tile=30))
    assert plain.shape == (5, 9, 3) and (enlarged == plain.repeat(3, 0).repeat(3, 1)).all()
    assert (plain == ((image[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()).all()
    assert image_grid(torch.zeros(1, 1, 100, 100), padding=0, tile=64).size == (100, 100)


def test_labels_stay_outside_the_tiles_and_make_room():
    images = -torch.ones(4, 1, 8, 8)
    plain, labelled = (
        image_grid(images),
        image_grid(images, row_labels=["a", "b"], column_labels=["one", "a long column label"]),
    )
    assert labelled.width > plain.width + 60 and labelled.height > plain.height
    dark = (np.asarray(labelled) == 0).all(2)
    assert dark.sum() == 4 * 64 * 64  # the labels' ink is not quite black


def test_a_strip_has_a_row_per_image_and_a_column_per_time():
    batches = [torch.full((2, 1, 8, 8), value) for value in (-3.0, -0.2, 3.0)]  # beyond [-1, 1] as noise is
    batches = [batch * torch.tensor([1.0, -1.0])[:, None, None, None] for batch in batches]
    pixels = np.asarray(image_strip(batches, times=[999, 500, 0]))
    centres = [[pixels[20 + 4 + 32 + 68 * row, 4 + 32 + 68 * column, 0] for column in range(3)] for row in range(2)]
    assert centres == [[0, 102, 255], [255, 153, 0]]


def test_grids_refuse_unfit_input():
    good = torch.zeros(4, 1, 8, 8)
    for bad in (good.byte(), good[0], good[:, :, 0], good.expand(4, 2, 8, 8), good[:0], "images"):
        with pytest.raises(UsageError, match="images"):
            image_grid(bad)
    with pytest.raises(DataError, match="finite"):
        image_grid(good / 0)
    with pytest.raises(UsageError, match="row_labels"):
        image_grid(good, row_labels=["a"])
    with pytest.raises(UsageError, match="columns"):
        image_grid(good, columns=0)
    with pytest.raises(UsageError, match="times"):
        image_strip([good], times=[1, 2])
    with pytest.raises(UsageError, match="equal shape"):
        image_strip([good, good[:2]], times=[1, 2])


def drawn(monkeypatch, *args, **kwargs):
    """What `curves` put on each panel: [(x, raw, smoothed)]."""
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig

    def spy(figure, *a, **k):
        for panel in figure.axes:
            raw, smooth = panel.lines
            found.append((raw.get_xdata().tolist(), raw.get_ydata().tolist(), smooth.get_ydata().tolist()))
        found.append([panel.get_ylabel() for panel in figure.axes] + [figure.axes[-1].get_xlabel()])
        save(figure, *a, **k)

    monkeypatch.setattr(Figure, "savefig", spy)
    assert plot_curves(*args, **kwargs).is_file()
    return found


def test_curves_draw_each_key_over_images_seen(tmp_path, monkeypatch):
    rows = [{"images": 64 * i, "loss": float(i % 2)} for i in range(100)]
    rows += [{"images": 640, "loss": 9.0}, {"images": 6400, "fd": 5.0}]  # a replayed row, an evaluation
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"ima'  # killed while writing
    (tmp_path / "metrics.jsonl").write_text(text)
    loss, fd, labels = drawn(monkeypatch, tmp_path / "metrics.jsonl", ["loss", "fd"], tmp_path / "curves.png")
    assert loss[0] == [64 * i for i in range(100)] and loss[1][10] == 9.0
    assert np.std(loss[2][30:]) < 0.3 * np.std(loss[1][30:])
    assert loss[2][60] == pytest.approx(0.5)  # mean of 4 values 0, 1, 0, 1
    assert fd == ([6400], [5.0], [5.0]) and labels == ["loss", "fd", "images seen"]
    with Image.open(tmp_path / "curves.png") as plot:
        assert plot.format == "PNG" and min(plot.size) > 500


def test_running_mean_leaves_a_constant_constant_up_to_both_ends(tmp_path, monkeypatch):
    rows = [{"images": i, "loss": 2.0} for i in range(200)]
    rows[17]["loss"] = math.nan
    curve, _ = drawn(monkeypatch, rows, ["loss"], tmp_path / "c.png")
    assert curve[2] == pytest.approx([2.0] * 200)


def test_curves_say_what_is_missing(tmp_path):
    rows = [{"images": 1, "loss": 1.0}]
    with pytest.raises(DataError, match='Did you mean "loss"'):
        plot_curves(rows, ["los"], tmp_path / "c.png")
    (tmp_path / "m.jsonl").write_text('{"images": 1,\n{"images": 2, "loss": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        plot_curves(tmp_path / "m.jsonl", ["loss"], tmp_path / "c.png")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="none"):
        plot_curves(tmp_path / "empty.jsonl", ["loss"], tmp_path / "c.png")


# --------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    "module",
    [
        latentia.evaluation.report.grids,
        latentia.models.classifier,
    ],
)
def test_documented_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
