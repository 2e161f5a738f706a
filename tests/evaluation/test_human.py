"""The blind sheet and its votes: nothing on the page tells the sides apart, and the interval covers as it says."""

import base64
import doctest
import io
import json
import math
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom, binomtest

import latentia.evaluation.report.human
import latentia.evaluation.report.sheet
from latentia.errors import DataError, UsageError
from latentia.evaluation import binomial_interval, read_votes, write_sheet

REAL, MODEL = "photograph", "counterfeit"
HEADER = "sheet,rater,trial,choice\n"


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def images():
    """Two sets that a test can tell apart: values below and above 0."""
    return rand(60, 1, 8, 8).abs().neg(), torch.where(rand(70, 1, 8, 8) > 0.9, -1.0, rand(70, 1, 8, 8, seed=1).abs())


@pytest.fixture(scope="module")
def sheet(images, tmp_path_factory):
    return write_sheet(*images, tmp_path_factory.mktemp("sheet"), names=(REAL, MODEL), trials=41, seed=3)


@pytest.fixture(scope="module")
def key(sheet):
    return json.loads(sheet.key.read_text())


class Page(HTMLParser):
    """The elements of a page, checking that every tag is closed where it was opened."""

    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(sheet):
    return Page(sheet.page.read_text(encoding="utf-8"))


def random_image(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return data, np.asarray(Image.open(io.BytesIO(data)))


# -------------------------------------------------------------------------------------------------------- the sheet


def test_the_key_says_which_image_is_on_which_side(page, key, images):
    shown = [random_image(attributes["src"])[1] for attributes in page.all("img")]
    assert len(shown) == 2 * 41 and len(key["trials"]) == 41
    for row, left, right in zip(key["trials"], shown[::2], shown[1::2]):
        for side, pixels in (("left", left), ("right", right)):
            source = images[0 if row[side] == REAL else 1][row[f"{side}_index"]]
            expected = ((source[0] + 1) * 127.5).round().byte().numpy().repeat(40, 0).repeat(40, 1)
            assert pixels.shape == (320, 320, 3) and (pixels == expected[..., None]).all()


def test_sides_are_balanced_and_no_image_is_shown_twice(key):
    left = [row["left"] for row in key["trials"]]
    assert abs(left.count(REAL) - left.count(MODEL)) == 1  # 41 trials
    assert all({row["left"], row["right"]} == {REAL, MODEL} for row in key["trials"])
    for kind in (REAL, MODEL):
        shown = [row[f"{side}_index"] for row in key["trials"] for side in ("left", "right") if row[side] == kind]
        assert len(set(shown)) == 41
        assert shown != sorted(shown)
    changes = sum(one != other for one, other in pairwise(left))
    assert 10 < changes < 31  # neither in blocks nor in turn


def test_an_odd_number_gives_the_extra_left_side_to_either_kind(images, tmp_path):
    counts = set()
    for seed in range(12):
        rows = json.loads(write_sheet(*images, tmp_path / str(seed), trials=3, seed=seed).key.read_text())["trials"]
        counts.add(sum(row["left"] == "model" for row in rows))
    assert counts == {1, 2}


def test_nothing_on_the_page_tells_the_sides_apart(sheet, page):
    texts = sheet.page.read_text(encoding="utf-8") + sheet.template.read_text()
    for secret in (REAL, MODEL, "seed", "index", "key.json", "names"):
        assert secret not in texts.replace("tabindex", "")
    for attributes in page.all("img"):
        data, _ = random_image(attributes["src"])
        position, chunks = 8, []
        while position < len(data):
            (length,) = struct.unpack(">I", data[position : position + 4])
            chunks.append(data[position + 4 : position + 8].decode())
            position += length + 12
        assert set(chunks) == {"IHDR", "IDAT", "IEND"}  # no text, time or profile
        assert set(attributes) == {"alt", "src"}
    # but for the images and the numbers, each side of each trial has the same markup
    lines = re.sub(r'src="[^"]*"', "", sheet.page.read_text(encoding="utf-8"))
    sides = re.findall(r'<button type="button" value="(?:left|right)">.*', lines)
    assert len(sides) == 82 and len({re.sub(r"\d+|[Ll]eft|[Rr]ight", "", side) for side in sides}) == 1


def test_the_page_stands_alone(sheet, page):
    text = sheet.page.read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "//cdn" not in text
    assert not page.all("link") and all("src" not in script for script in page.all("script"))
    policy = next(meta["content"] for meta in page.all("meta") if "Content-Security-Policy" in str(meta))
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "@" not in re.sub(r"data:image[^\"]*", "", text).replace("@media", "")  # every placeholder is filled


def test_the_page_can_be_used_by_keyboard_by_phone_and_on_paper(page, sheet):
    text = sheet.page.read_text(encoding="utf-8")
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert alts[:3] == ["Pair 1, left image", "Pair 1, right image", "Pair 2, left image"]
    assert page.all("html")[0]["lang"] == "en"
    assert any("width=device-width" in meta.get("content", "") for meta in page.all("meta"))
    labelled = {label["for"] for label in page.all("label")}
    fields = {attributes["id"] for tag in ("input", "textarea") for attributes in page.all(tag)}
    assert fields == labelled == {"rater", "text"}
    identifiers = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert set(re.findall(r'byId\("(\w+)"\)', text)) <= set(identifiers)
    for needed in ("ArrowLeft", "ArrowRight", ":focus-visible", "min-height: 48px", "@media print", "pixelated"):
        assert needed in text
    assert len(page.all("noscript")) == 1 and page.all("progress")[0]["max"] == "41"
    assert not any("button" in parents and tag in ("button", "a") for tag, _, parents in page.elements)
    assert [row["data-trial"] for row in page.all("li")] == [str(n) for n in range(1, 42)]


def test_a_question_is_shown_as_it_is_written(images, tmp_path):
    question = 'Which is <b>"real"</b> & not @SHEET@?'
    text = write_sheet(*images, tmp_path, trials=1, question=question).page.read_text(encoding="utf-8")
    assert Page(text).text["h1"] == question and "<b>" not in text


def test_large_and_coloured_images_are_kept_pixel_by_pixel(tmp_path):
    a, b = rand(1, 3, 20, 400), rand(1, 3, 20, 400, seed=1)
    text = write_sheet(a, b, tmp_path, trials=1).page.read_text(encoding="utf-8")
    pixels = random_image(Page(text).all("img")[0]["src"])[1]
    assert pixels.shape == (20, 400, 3)
    expected = [((source[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for source in (a, b)]
    assert any((pixels == one).all() for one in expected)
    assert "image-rendering: auto" in text and "2 * 400px" in text


def test_equal_arguments_write_equal_bytes_and_seeds_differ(images, sheet, tmp_path):
    again = write_sheet(*images, tmp_path / "again", names=(REAL, MODEL), trials=41, seed=3)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in sheet]
    write_sheet(*images, tmp_path / "again", names=(REAL, MODEL), trials=41, seed=3)  # the same sheet may stay
    other = write_sheet(*images, tmp_path / "other", names=(REAL, MODEL), trials=41, seed=4)
    assert other.page.read_bytes() != sheet.page.read_bytes()
    with pytest.raises(UsageError, match=r"another sheet.*key\.json"):
        write_sheet(*images, tmp_path / "again", trials=41, seed=4)


def test_unfit_arguments_are_refused_by_name(images, tmp_path):
    a, b = images
    bad = {
        "61 in `a` and 70": dict(trials=62, a=torch.cat([a, a[:1]])),
        "Got 0": dict(trials=0),
        "two different texts": dict(names=("x", "x")),
        r"`names` must be": dict(names=("", "x")),
        "the size gives them away": dict(b=rand(60, 1, 8, 9)),
        "`question`": dict(question="  "),
        "^`a` must be floats": dict(a=(a * 0).to(torch.uint8)),
        "^`b` must lie": dict(b=b * 3),
    }
    for text, change in bad.items():
        with pytest.raises(UsageError, match=text):
            write_sheet(**{"a": a, "b": b, "folder": tmp_path / "x", **change})
    with pytest.raises(DataError, match=r"^`b`.*finite"):
        write_sheet(a, b * math.nan, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# A document with just what the page's script uses. It plays a rater and prints what the page then says.
DOCUMENT = r"""
const html = require("fs").readFileSync(process.argv[1], "utf8");
const script = html.match(/<script>([^]*)<\/script>/)[1];
function element(value) {
  const classes = new Set(), on = {};
  return {value, on, classes, dataset: {}, hidden: false, blur() {}, focus() { globalThis.focused = value; },
    addEventListener: (name, action) => { on[name] = action; },
    classList: {add: (name) => classes.add(name), toggle: (name, yes) => classes[yes ? "add" : "delete"](name)}};
}
const ids = {}, kept = {}, doc = element();
let items, clock = 0;
Date.now = () => clock;
globalThis.localStorage = {getItem: (key) => key in kept ? kept[key] : null, setItem: (key, v) => { kept[key] = v; }};
globalThis.Blob = class { constructor(parts) { this.text = parts.join(""); } };
globalThis.URL = {createObjectURL: (blob) => "blob:" + blob.text};
globalThis.document = doc;
doc.getElementById = (id) => ids[id];
doc.querySelectorAll = () => items;
doc.querySelector = (path) =>
  items.find((item) => item.classes.has("now"))?.buttons.find((button) => path.includes(button.value));
function open(rater) {
  for (const [, id] of html.matchAll(/ id="(\w+)"/g)) ids[id] = element("");
  items = Array.from(html.matchAll(/<li data-trial="(\d+)"/g), ([, trial]) => {
    const buttons = [element("left"), element("right")];
    return Object.assign(element(), {dataset: {trial}, buttons, querySelectorAll: () => buttons});
  });
  doc.body = Object.assign(element(), {dataset: {sheet: html.match(/data-sheet="(\w+)"/)[1]}});
  eval(`(() => {${script}})()`);
  key("Left");  // before the start: no vote
  ids.rater.value = rater;
  ids.start.on.submit({preventDefault() {}});
}
function key(name, repeat = false) { doc.on.keydown({key: "Arrow" + name, repeat, preventDefault() {}}); }
const shown = () => items.filter((item) => item.classes.has("now")).map((item) => item.dataset.trial).join();
const say = (...words) => console.log(...words);

open("eva");
say(shown(), ids.where.textContent, ids.back.disabled);
clock += 300; key("Right"); key("Right");  // the second comes too soon
clock += 300; key("Left", true);  // held down
say(shown());
items[1].buttons[1].on.click({detail: 0});  // a button, by keyboard: the focus stays on that side
say(shown(), globalThis.focused);
clock += 300; key("Left"); ids.back.on.click({}); say(shown());
open("eva");  // a reload
say(shown());
clock += 300; key("Left");
clock += 300; key("Right");
say(shown() === "", ids.end.hidden, ids.bar.hidden, ids.save.download, ids.save.href === "blob:" + ids.text.value);
clock += 300; key("Right");  // after the end: no vote
say(ids.text.value);
open("bo");  // another rater on the same device starts anew
say(shown());
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the script of the page")
def test_the_script_stores_votes_over_a_reload(images, tmp_path):
    sheet = write_sheet(*images, tmp_path, trials=4)
    command = ["node", "-e", DOCUMENT, str(sheet.page)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    name = json.loads(sheet.key.read_text())["sheet"]
    assert lines[:6] == ["1 Pair 1 of 4 true", "2", "3 right", "3", "3", "true false true votes_eva.csv true"]
    choices = ["right", "right", "left", "right"]
    expected = [f"{name},eva,{trial},{choice}" for trial, choice in enumerate(choices, 1)]
    assert lines[6:] == [HEADER.strip(), *expected, "", "1"]
    (tmp_path / "votes.csv").write_text("\n".join(lines[6:11]) + "\n")
    assert read_votes(tmp_path / "votes.csv", tmp_path).n == 4


# -------------------------------------------------------------------------------------------------------- the votes


def votes_of(key, rater, fooled):
    """A CSV in which `rater` chooses the model's image in the trials of `fooled`."""
    rows = []
    for row in key["trials"]:
        model_side = "left" if row["left"] == key["names"][1] else "right"
        other = {"left": "right", "right": "left"}[model_side]
        choice = model_side if row["trial"] in fooled else other
        rows.append(f"{key['sheet']},{rater},{row['trial']},{choice}")
    return HEADER + "\n".join(rows) + "\n"


def test_votes_are_counted_for_the_model_and_per_rater(sheet, key, tmp_path):
    (tmp_path / "votes_eva.csv").write_text(votes_of(key, "eva", set(range(1, 11))))
    (tmp_path / "votes_bo.csv").write_text(votes_of(key, "bo", set(range(5, 36))), encoding="utf-8-sig")
    votes = read_votes([tmp_path / "votes_eva.csv", tmp_path / "votes_bo.csv"], sheet.key)
    assert (votes.n, votes.fooled, votes.rate) == (82, 41, 0.5) and votes.names == (REAL, MODEL)
    assert votes.p_value == pytest.approx(1)
    assert [(rater.rater, rater.n, rater.fooled) for rater in votes.raters] == [("bo", 41, 31), ("eva", 41, 10)]
    expected = binomtest(10, 41).proportion_ci(0.95, "exact")
    assert (votes.raters[1].low, votes.raters[1].high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert json.loads(json.dumps(votes.to_dict())) == votes.to_dict()
    assert f'"{MODEL}" chosen over "{REAL}" in 41 of 82 = 50.0%' in votes.text() and "eva: 10 of 41" in votes.text()
    alone = read_votes(str(tmp_path / "votes_eva.csv"), key, confidence=0.8)
    assert alone.n == 41 and alone.p_value == pytest.approx(binomtest(10, 41).pvalue)
    assert alone.high < votes.raters[1].high and alone.confidence == 0.8
    assert read_votes([tmp_path / "votes_eva.csv"], sheet.key.parent).fooled == 10


def test_choosing_always_left_is_seen_and_gives_one_half(sheet, key, tmp_path):
    rows = "\n".join(f"{key['sheet']},x,{n},left" for n in range(1, 42))
    (tmp_path / "v.csv").write_text(HEADER + rows)
    votes = read_votes(tmp_path / "v.csv", sheet.key)
    assert votes.left_rate == 1 and abs(votes.rate - 0.5) < 0.02


def test_the_template_is_filled_in_by_hand_and_read(sheet, key, tmp_path):
    template = sheet.template.read_text()
    assert template.startswith(HEADER) and template.count("\n") == 42
    filled = re.sub(r",,(\d+),", r",paper,\1,right", template)
    (tmp_path / "v.csv").write_text(filled)
    assert read_votes(tmp_path / "v.csv", sheet.key).n == 41
    (tmp_path / "w.csv").write_text(template)
    with pytest.raises(DataError, match="line 2 must hold"):
        read_votes(tmp_path / "w.csv", sheet.key)


def test_a_rater_may_leave_trials_out(sheet, key, tmp_path):
    lines = votes_of(key, "eva", {1, 2}).splitlines(keepends=True)
    (tmp_path / "v.csv").write_text("".join(lines[:6]) + "\n")
    assert read_votes(tmp_path / "v.csv", sheet.key).n == 5


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_the_fooling_rate_of_synthetic_raters_is_recovered(sheet, key, tmp_path, rate):
    generator, files, given = np.random.default_rng(0), [], 0
    for rater in range(20):
        fooled = {n for n in range(1, 42) if generator.random() < rate}
        given += len(fooled)
        files.append(tmp_path / f"{rater}.csv")
        files[-1].write_text(votes_of(key, f"r{rater}", fooled))
    votes = read_votes(files, sheet.key)
    assert votes.fooled == given and votes.n == 820 and len(votes.raters) == 20
    assert votes.low <= rate <= votes.high < votes.low + 0.08
    assert (votes.p_value < 1e-6) == (rate != 0.5)
    assert sum(rater.low <= rate <= rater.high for rater in votes.raters) >= 17


BAD_VOTES = {
    "another sheet": (3, lambda s: "ffff" + s[4:], r"line 3: `sheet` must be"),
    "an unknown trial": (4, lambda s: re.sub(r",\d+,", ",42,", s), r'line 4: `trial` .* 1 to 41. Got "42"'),
    "a word for a trial": (4, lambda s: re.sub(r",\d+,", ",one,", s), r'line 4: `trial` .* Got "one"'),
    "an unknown choice": (5, lambda s: re.sub("left|right", "Left", s), r'line 5: .*Got "Left". Did you mean "left"'),
    "no answer": (6, lambda s: re.sub("left|right", "", s), r"line 6 must hold .* left out with its whole row"),
    "no rater": (6, lambda s: s.replace("eva", " "), "line 6 must hold"),
    "a cell too few": (7, lambda s: s.rsplit(",", 1)[0], "line 7 must hold"),
    "a cell too many": (7, lambda s: s + ",1", "line 7 must hold"),
    "a vote given twice": (9, lambda s: re.sub(r",\d+,", ",1,", s), r'line 9: rater "eva" .* trial 1, in .*line 2'),
    "another header": (1, lambda s: "sheet;rater;trial;choice", "line 1 must be sheet,rater,trial,choice, with commas"),
}


@pytest.mark.parametrize("kind", BAD_VOTES)
def test_a_wrong_row_is_refused_by_file_and_line(sheet, key, tmp_path, kind):
    number, change, text = BAD_VOTES[kind]
    lines = votes_of(key, "eva", {1, 4}).splitlines()
    lines[number - 1] = change(lines[number - 1])
    (tmp_path / "votes_eva.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=text) as caught:
        read_votes(tmp_path / "votes_eva.csv", sheet.key)
    assert str(tmp_path / "votes_eva.csv") in str(caught.value)


def test_the_same_file_twice_is_refused_with_both_places(sheet, key, tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(votes_of(key, "eva", {1}))
    with pytest.raises(DataError, match=r"b\.csv, line 2: .*already voted.* in .*a\.csv, line 2"):
        read_votes([tmp_path / "a.csv", tmp_path / "b.csv"], sheet.key)


def test_files_that_hold_no_votes_or_no_key_are_refused(sheet, key, tmp_path):
    good = tmp_path / "good.csv"
    good.write_text(votes_of(key, "eva", {1}))
    for name, content, text in (
        ("empty.csv", "", "is empty"),
        ("header.csv", HEADER, "no votes"),
        ("bytes.csv", b"\xff\xfe\x00", "must be text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=re.escape(name) + ".*" + text):
            read_votes([good, tmp_path / name], sheet.key)
    with pytest.raises(DataError, match=r"holds no file absent\.csv"):
        read_votes(tmp_path / "absent.csv", sheet.key)
    with pytest.raises(DataError, match=r"holds no file key\.json"):
        read_votes(good, tmp_path)
    with pytest.raises(DataError, match=r"good\.csv.*cannot be read"):
        read_votes(good, good)
    with pytest.raises(DataError, match="`key` must hold"):
        read_votes(good, {"sheet": key["sheet"]})
    wrong = {**key, "trials": [{**row, "left": "else"} if row["trial"] == 2 else row for row in key["trials"]]}
    with pytest.raises(DataError, match=r"on the other. \['2'\]"):
        read_votes(good, wrong)
    with pytest.raises(UsageError, match="at least one"):
        read_votes([], sheet.key)
    with pytest.raises(UsageError, match=r"`confidence`.*Got 95"):
        read_votes(good, sheet.key, confidence=95)


# ----------------------------------------------------------------------------------------------------- the interval


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_the_interval_is_clopper_and_pearsons(n, confidence):
    for successes in range(n + 1):
        expected = binomtest(successes, n).proportion_ci(confidence, "exact")
        low, high = binomial_interval(successes, n, confidence)
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
        # its definition: at each end the outcome, or one further out, has probability (1 - confidence) / 2
        if successes > 0:
            assert binom.sf(successes - 1, n, low) == pytest.approx((1 - confidence) / 2, rel=1e-9)
        if successes < n:
            assert binom.cdf(successes, n, high) == pytest.approx((1 - confidence) / 2, rel=1e-9)


@pytest.mark.parametrize("n", [5, 40])
def test_the_interval_covers_every_rate(n):
    intervals = np.array([binomial_interval(k, n) for k in range(n + 1)])
    for rate in np.linspace(0, 1, 101):
        inside = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
        coverage = binom.pmf(np.arange(n + 1), n, rate)[inside].sum()  # exact, not simulated
        assert coverage >= 0.95 - 1e-12


def test_impossible_counts_are_refused():
    for successes, n in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(UsageError, match=f"Got {successes} of {n}"):
            binomial_interval(successes, n)


@pytest.mark.parametrize("module", [latentia.evaluation.report.human, latentia.evaluation.report.sheet])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted >= 1


@pytest.mark.parametrize("name", ["sheet.html", "votes_template.csv", "key.json"])
def test_what_was_written_into_a_sheet_is_not_lost(name, tmp_path):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_sheet(images, -images, tmp_path, trials=2)
    write_sheet(images, -images, tmp_path, trials=2)  # equal, so nothing is lost
    with open(tmp_path / name, "a") as file:
        file.write(" votes of a person")
    with pytest.raises(UsageError, match="nor votes"):
        write_sheet(images, -images, tmp_path, trials=2)
    assert (tmp_path / name).read_text().endswith("votes of a person")


@pytest.mark.parametrize("names", [[1, "a"], ["a", None], [["a"], ["b"]]])
def test_keys_of_others_are_errors_of_ours(names):
    key = {"sheet": "x", "names": names, "trials": [{"trial": 1, "left": names[0], "right": names[1]}]}
    with pytest.raises(DataError, match="must hold sheet, names and trials"):
        read_votes(["votes.csv"], key)


def test_a_vote_of_endless_length_is_named(tmp_path):
    path, key = tmp_path / "votes.csv", {"sheet": "x", "names": ["a", "b"], "trials": []}
    path.write_text("sheet,rater,trial,choice\nx," + "e" * 200_000 + ",1,left\n")
    with pytest.raises(DataError, match=r"line .* is not CSV"):
        read_votes(path, key)
