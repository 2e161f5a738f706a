"""Cards of others: a cost that is linear in their length, and bounds of their size."""

import json
import time

import pytest
from huggingface_hub import RepoFile

import latentia
from latentia import VAE, VAEPipeline
from latentia.errors import CheckpointError, UsageError
from latentia.hub.blocks import block, put_block, read_blocks
from latentia.hub.card import MAX_CARD, MAX_METADATA, SECRET_VALUE, read_card
from latentia.hub.files import card_images
from latentia.hub.folder_card import folder_card
from latentia.hub.pull import _wanted

LONG = 600_000
START = "<!-- latentia:use 00000000 -->\n"


@pytest.mark.parametrize(
    "text",
    ["![" * LONG, "![a](" * LONG, "![](a" * LONG, "[" * LONG, "![a]" * LONG, START * (LONG // 30),
     "<!-- latentia:" + "a" * LONG,
     START * 20_000 + "\n<!-- /latentia:uses -->\n" * 20_000, "\n<!-- /latentia:use -->\n" * 40_000 + START * 20_000,
     "a" * LONG, "a:" * LONG, "a://b:c" * LONG, "hf_" * LONG, "\n" * LONG, "a " * LONG, "`" * LONG],
    ids=range(16),
)  # fmt: skip
def test_expressions_have_a_linear_cost_on_any_text(text):
    started = time.process_time()
    card_images(text)
    read_blocks(text)
    put_block(text, "use", ["new"], before="limits")
    SECRET_VALUE.search(text)
    assert time.process_time() - started < 10


def test_sections_are_those_of_the_first_end_of_their_name():
    one, two = block("use", ["a", "<!-- /latentia:training -->"]), block("training", ["b"])
    edited = two.replace("b\n", "c\n").replace("training", "limits")
    text = f"head\n{START}open\n{one}\n{two}between\n{edited}end"
    assert read_blocks(f"{one}{two}{edited}") == {
        "use": "a\n<!-- /latentia:training -->", "training": "b", "limits": None,
    }  # fmt: skip
    assert read_blocks(text)["use"] is None  # it begins at the start that stands first
    assert put_block(f"x\n{one}{two}", "training", ["new"]) == (f"x\n{one}{block('training', ['new'])}", True)
    assert put_block(edited, "limits", ["new"]) == (edited, False)


def test_cards_have_bounds(tmp_path):
    path = tmp_path / "README.md"
    for text, words in [
        ("a" * (MAX_CARD + 1), f"at most {MAX_CARD} are read"),
        ("---\nlicense: mit\nx: " + "a" * MAX_METADATA + "\n---\n", f"at most {MAX_METADATA} are read"),
        ("---\na: &a [1]\nb: *a\n---\n", "alias"),
        ("---\na: " + "[" * 90_000 + "\n---\n", "nested more than 32 deep"),
        ("---\n" + "- " * 45_000 + "\n---\n", "nested more than 32 deep"),
        ("---\n- 1\n---\n", "cannot be read"),
        ("---\ntags: [[1]]\n---\n", "tags must be a list of texts"),
        ("---\npipeline_tag: [x]\n---\n", "pipeline_tag must be a text"),
        ("---\nmodel-index:\n- name: a\n  results: []\n- name: b\n  results: []\n---\n", "model-index holds 2 models"),
    ]:
        path.write_text(text)
        started = time.process_time()
        with pytest.raises(UsageError, match=words):
            read_card(path)
        assert time.process_time() - started < 20
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="must be text in UTF-8"):
        read_card(path)


def test_one_text_is_a_list_of_one(tmp_path):
    (tmp_path / "README.md").write_text("---\ndatasets: digits\n---\n")
    assert read_card(tmp_path / "README.md").data.datasets == ["digits"]


@pytest.mark.parametrize("value", [3, "x", [1], {"a": 1}, True, [{"a": 1}], [[1]], 1.5, [None]], ids=str)
def test_a_summary_of_other_types_is_an_error_with_its_key(tmp_path, value):
    unet = latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8)
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "training_config.json").write_text('{"dataset_name": "digits"}')
    for key in ("family", "hardware", "score", "data", "lineage", "training_seconds", "epochs", "command", "limits"):
        (tmp_path / "run_summary.json").write_text(json.dumps({key: value}))
        try:
            folder_card(tmp_path)
        except UsageError as error:
            assert f"{key} in {tmp_path / 'run_summary.json'}" in str(error)


def test_sizes_are_asked_before_a_file_is_fetched():
    """The index and the card are fetched before the disk is looked at."""
    for name in ("model_index.json", "config.json"):
        listed = {name: RepoFile(path=name, size=10**12, oid="0")}
        with pytest.raises(CheckpointError, match=f"{name} of me/x has 1000000000000 bytes; at most 1000000 are read"):
            _wanted("me/x", listed, pytest.fail)


@pytest.mark.parametrize("name", ["README.md", "run_summary.json", "training_config.json"])
def test_a_link_puts_no_file_of_this_machine_into_a_card(name, tmp_path):
    VAEPipeline(VAE(sample_size=8, latent_dim=2, hidden_sizes=(8,))).save_pretrained(tmp_path / "cloned")
    secret = tmp_path / "secret"
    secret.write_text("password" if name == "README.md" else '{"hardware": "password", "dataset_name": "password"}')
    (tmp_path / "cloned" / name).symlink_to(secret)
    with pytest.raises(UsageError, match="symbolic link out of its folder"):
        folder_card(tmp_path / "cloned", write=True, dataset="digits")
    assert "password" in secret.read_text()
