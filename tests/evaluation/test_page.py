"""The page of an evaluation or comparison: order, folds, ties and levels, meanings, links, no scripts."""

import datetime
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import latentia
from latentia import compare, evaluate
from latentia.commands.main import main
from latentia.data import load_images
from latentia.errors import UsageError
from latentia.evaluation import METRICS, image_grid, plot_class_histogram
from latentia.evaluation.report import page as page_module
from latentia.evaluation.report.page import HEADLINES
from latentia.evaluation.report.style import scroll_hint
from latentia.evaluation.report.table import FACTS, Cell, _levelled, _ranked, columns, table

VOID = {"meta", "img", "br", "link", "wbr"}


class Page(HTMLParser):
    """Elements of a page, each with its open ancestors; an AssertionError where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        assert self.open == ["html"] or not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.found.append((tag, values, [*self.open]))
        if tag not in VOID:
            self.open.append(f"{tag}.{values['class']}" if tag == "details" else tag)

    def handle_endtag(self, tag):
        assert self.open.pop().split(".")[0] == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [(values, parents) for name, values, parents in self.found if name == tag]


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def compared(digits):
    return compare(["pca", "kde"], digits, n=60)


@pytest.fixture(scope="module")
def folder(compared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    compared.command = "latentia compare pca kde --data 'my <digits>'"
    compared.save(folder, "Two & two")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "index.html").read_text())


def test_every_row_has_a_group_and_a_meaning(compared):
    for name, item in {**METRICS, **FACTS}.items():
        assert item.title and item.meaning.endswith("."), name
    assert all(metric.group != "Other" for metric in METRICS.values())
    assert sum(metric.headline for metric in [*METRICS.values(), *FACTS.values()]) == HEADLINES
    assert all(row.group and row.meaning for row in table([found.to_dict() for found in compared]))


def test_real_images_come_first(page, folder):
    sources = [values["src"] for values, _ in page.all("img")]
    assert sources[:3] == ["0/real_preview.png", "0/samples_preview.png", "1/samples_preview.png"]
    assert all((folder / source).is_file() for source in sources)
    heads = re.search(r"<thead>.*?</thead>", (folder / "index.html").read_text())[0]
    assert heads.index("Real images") < heads.index(">pca<") < heads.index(">kde<")
    with Image.open(folder / "0" / "real_preview.png") as real:
        assert real.size == (4 * 66 + 2, 4 * 66 + 2)


def test_all_but_five_rows_are_folded(page, compared):
    rows = [parents for values, parents in page.all("th") if values["scope"] == "row"]
    assert [("details.group" in parents) for parents in rows] == [False] * HEADLINES + [True] * (len(rows) - HEADLINES)
    assert len(rows) == len(table([found.to_dict() for found in compared]))
    folds = [values for values, _ in page.all("details") if values["class"] == "group"]
    assert len(folds) >= 5 and all("open" not in values for values in folds)
    meanings = [values["title"] for values, parents in page.all("summary") if "details.term" in parents]
    assert len(meanings) == len(rows) and all(meaning in page.text for meaning in meanings)


def test_date_command_and_data_are_said(page):
    for text in (datetime.date.today().isoformat(), "--data 'my <digits>'", "digits", "1797 images", "60 of each"):
        assert text in page.text, text
    assert "Two & two" in page.text


def test_a_page_needs_nothing_from_outside(folder, page):
    text = (folder / "index.html").read_text()
    assert not page.all("script") and not page.all("link") and "@import" not in text and "url(" not in text
    assert "http" not in text and "src=" in text
    for part in ("prefers-color-scheme: dark", "width=device-width", "overflow-x: auto", "position: sticky"):
        assert part in text, part


def test_a_page_is_a_function_of_results_and_date(folder, compared):
    before = (folder / "index.html").read_bytes()
    page_module.write_page([found.to_dict() for found in compared], folder, "Two & two", compared.command)
    assert (folder / "index.html").read_bytes() == before


def test_one_run_has_a_page_of_the_same_parts(tmp_path, capsys):
    main(["evaluate", "kde", "--data", "digits", "--n", "40", "--metrics", "fd", "kid", "--output_dir", str(tmp_path)])
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    sources = [values["src"] for values, _ in page.all("img")]
    assert sources[:2] == ["real_preview.png", "samples_preview.png"] and "neighbours.png" in sources
    assert all((tmp_path / source).is_file() for source in sources)
    assert "latentia evaluate kde --data digits --n 40" in page.text and "Frechet distance" in page.text
    assert all("open" in values for values, _ in page.all("details") if values["class"] == "figures")


def test_a_source_is_linked_to_its_card(digits, tmp_path):
    saved = tmp_path / "runs" / "a b"
    for name in ("a b", "plain"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(digits.images[i, 0].numpy()).save(tmp_path / "runs" / name / f"{i}.png")
    (saved / "README.md").write_text("# a card")
    found = compare([str(saved), str(saved.with_name("plain"))], digits, n=20, metrics=["kid"])
    (path,) = found.save(tmp_path / "page")
    links = [values["href"] for values, _ in Page(path.read_text()).all("a")]
    assert "../runs/a%20b/README.md" in links and "../runs/plain" in links and "1/index.html" in links


def test_ties_are_marked_where_intervals_overlap():
    def ranks(*cells, better="lower", real=0.0):
        return [cell.rank for cell in _ranked([Cell("", "", *cell) for cell in cells], better, real)]

    assert ranks((1, 0.5, 1.5), (2, 1.4, 2.6), (9, 8, 10)) == ["tied", "tied", ""]
    assert ranks((1, 0.5, 1.3), (2, 1.4, 2.6), (9, 8, 10)) == ["best", "", ""]
    assert ranks((1, 0.5, 1.3), (2, 1.4, 2.6), (9, 8, 10), better="higher") == ["", "", "best"]
    assert ranks((0.8, 0.7, 0.9), (1.2, 1.1, 1.3), (3, 2, 4), better="real", real=1.0) == ["tied", "tied", ""]
    assert ranks((1, 0, 3), (2, 1, 3)) == ["", ""]  # nothing tells them apart
    assert ranks((0,), (0,), (4,)) == ["tied", "tied", ""] and ranks((1,)) == [""] and ranks((), (1,)) == ["", ""]


def test_levels_say_how_far_from_real():
    real = Cell("", "", 1.0, 0.9, 1.1)

    def level(value, low, high, better="lower"):
        return _levelled(Cell("", "", value, low, high), real, better).level

    assert level(1.3, 1.05, 1.5) == "as real" and level(1.3, 1.2, 1.5) == "near" and level(2.5, 2, 3) == "far"
    assert level(0.5, 0.4, 0.6) == "beyond" and level(0.5, 0.4, 0.6, "real") == "near"
    assert level(0.5, 0.4, 0.6, "higher") == "near" and level(1.5, 1.4, 1.6, "higher") == "beyond"
    assert _levelled(Cell("", "", 1.0), Cell(""), "lower").level == ""


def test_level_and_rank_are_not_by_colour_alone(page, folder):
    text = (folder / "index.html").read_text()
    shapes = {
        level: set(re.findall(r"class=(ring|full) ", "".join(re.findall(rf'<td class="{level}.*?</td>', text))))
        for level in ("near", "far")
    }
    assert shapes["far"] == {"ring"} and shapes["near"] == {"ring", "full"}
    assert {values["aria-label"] for values, parents in page.all("svg") if "aria-label" in values and "td" in parents}


def test_the_hint_appears_where_columns_do_not_fit():
    widths = [float(re.search(r"max-width: ([\d.]+)rem", scroll_hint(columns))[1]) for columns in (2, 3, 5, 9)]
    assert widths == sorted(widths) and 16 * widths[0] < 360 < 1100 < 16 * widths[3] < 1280


def test_notebooks_show_a_small_table(compared):
    for shown in (compared, compared[0], compared[0].report):
        text = shown._repr_html_()
        assert len(text) < 8000 and "tensor" not in text and "Frechet distance" in text and Page(text)
    assert "tensor" not in repr(compared[0]) and "tensor" not in repr(compared)
    compared[0].source, name = "<i>", compared[0].source
    assert "<i>" not in compared._repr_html_()
    compared[0].source = name


def test_several_runs_share_a_column_and_a_picture(digits, tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", digits.images[60 * i : 60 * i + 60, 0].numpy())
    found = compare([f"x={tmp_path}/0.npy,{tmp_path}/1.npy", "pca"], digits, n=50, metrics=["fd", "precision"])
    (path,) = found.save(tmp_path / "page")
    page = Page(path.read_text())
    assert len([1 for values, _ in page.all("figure") if values.get("class") == "card"]) == 3
    assert {"0/index.html", "1/index.html", "2/index.html"} <= {values["href"] for values, _ in page.all("a")}
    assert [*columns([one.to_dict() for one in found])] == ["x", "pca"]


def test_labels_below_images_are_cut_to_fit():
    images = torch.zeros(6, 1, 8, 8)
    plain, labelled = image_grid(images, columns=3), image_grid(images, columns=3, tile_labels=["a"] * 6)
    assert labelled.width == plain.width and labelled.height == plain.height + 2 * 18
    long = image_grid(images, columns=3, tile_labels=["a very long caption that never ends"] * 6)
    assert long.width < 3 * 110 and long.height == labelled.height
    with pytest.raises(UsageError, match=r"`tile_labels` must hold one text for each of 6. Got 1"):
        image_grid(images, tile_labels=["a"])


@pytest.mark.parametrize("names", [None, [*"0123456789"], [f"category {i}" for i in range(10)]])
def test_the_legend_does_not_cover_bars(tmp_path, names, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, out, **_: (self.draw_without_rendering(), kept.append(self)))
    plot_class_histogram([9] * 10, [9] * 10, tmp_path / "x.png", names)
    (figure,) = kept
    (legend,), (panel,) = figure.legends, figure.axes
    assert panel.get_legend() is None
    assert not legend.get_window_extent().overlaps(panel.get_window_extent())
    turned = {label.get_rotation() for label in panel.get_xticklabels()}
    assert turned == ({30.0} if names and len(names[0]) > 4 else {0.0})


def test_samples_of_classes_are_named(digits, tmp_path, monkeypatch):
    torch.manual_seed(0)
    unet = latentia.UNet2D(
        sample_size=8,
        in_channels=1,
        num_class_embeds=10,
        block_out_channels=(8,),
        attention_head_dim=8,
        layers_per_block=1,
    )
    pipe = latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler(), label_names=[*"0123456789"])
    found = evaluate(pipe, digits, n=20, metrics=["fd"], num_inference_steps=2)
    found.save(tmp_path)
    with Image.open(tmp_path / "samples.png") as image:
        assert image.height == 4 + 4 * (64 + 4 + 18)  # 5 columns, 4 rows, each with a label
