"""Texts of users in figures: no formulas of matplotlib, no names that a legend leaves out, any number of classes."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from latentia.commands.embed import Embedding
from latentia.evaluation import plot_class_histogram, plot_curves, plot_precision_recall
from latentia.evaluation.report.grids import plain_label

NAMES = ["$x^$", "_a", "\\$y$", "a\nb\tc", "x" * 5000, "${}$ $_$", "\\", "日本", "\x07"]


@pytest.fixture
def drawn(monkeypatch):
    """The texts that are drawn, without those that lost the marks of a formula."""
    found, set_text = [], Text.set_text
    monkeypatch.setattr(Text, "set_text", lambda self, text: found.append(str(text)) or set_text(self, text))
    return found


@pytest.mark.filterwarnings("ignore:Glyph")
def test_class_names_are_no_formulas(tmp_path, drawn):
    plot_class_histogram([1] * 9, [1] * 9, tmp_path / "classes.png", NAMES)
    assert {plain_label(name, 24) for name in NAMES} <= {*drawn}
    with Image.open(tmp_path / "classes.png") as image:
        assert image.width < 3000
    for name in NAMES:
        text, formula = Text()._preprocess_math(plain_label(name))
        assert not formula and text.strip().startswith(name.split("\n")[0][:50].strip("\x07"))


def test_any_number_of_classes_is_drawn(tmp_path):
    plot_class_histogram([1] * 1500, [1] * 1500, tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as image:
        assert image.width == 120 * 120


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_sources_and_keys_are_no_formulas(tmp_path, drawn):
    scores = dict.fromkeys(("recall", "precision", "coverage", "density"), SimpleNamespace(value=0.5, real=0.9))
    reports = {name: SimpleNamespace(scores=scores) for name in NAMES}
    plot_precision_recall(reports, tmp_path / "pr.png")
    rows = [{"step": i, name: float(i)} for i in range(3) for name in NAMES]
    plot_curves(rows, NAMES, tmp_path / "curves.png", x="step", title="$x^$")
    assert {plain_label(name) for name in NAMES} <= {*drawn}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_labels_of_an_embedding_are_no_formulas(tmp_path, drawn):
    n = len(NAMES)
    places = {"PCA": torch.randn(n, 2)}
    found = Embedding(
        torch.randn(n, 3), torch.arange(n), NAMES, torch.arange(n), places, {"PCA": {}}, {"source": "$x^$"}
    )
    found._draw("PCA", places["PCA"], tmp_path / "pca.png")
    assert {plain_label(name) for name in NAMES} <= {*drawn}
