"""Two towers: the pipeline, and the example that trains them."""

import json
from pathlib import Path

import pytest
import torch
from helpers import held, load_example, part_of
from PIL import Image

import latentia
from latentia import CLIPPipeline
from latentia.errors import UsageError
from latentia.models.clip import clip_towers, train_tokenizer
from latentia.pipelines.texts import embed_texts, load_text_encoder
from latentia.runs.command_line import parse_arguments


def pipeline(scale=20.0, **changes) -> CLIPPipeline:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red heart", "a green bus"], 300, 16)
    sizes = {"width": 32, "text_layers": 1, "image_layers": 1, "projection_dim": 16}
    text, image = clip_towers(tokenizer, 16, **sizes)
    parts = {"tokenizer": tokenizer, "text_encoder": text.eval(), "image_encoder": image.eval()} | changes
    return CLIPPipeline(**parts, scale=scale)


def images(n):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_words():
    pipe, x = pipeline(), images(5)
    a, b = pipe.encode(x), pipe.encode_text(["a red heart", "bus", ""])
    assert a.shape == (5, 16) and b.shape == (3, 16)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(b.norm(dim=1), torch.ones(3))
    assert torch.equal(pipe.similarity(x, ["a red heart", "bus", ""]), a @ b.T)
    torch.testing.assert_close(pipe(x, ["a red heart", "bus", ""]), (20 * a @ b.T).softmax(1))
    many = pipe.encode(images(70))
    assert torch.equal(many[:5], a) and torch.equal(pipe.encode(x[3:4]), a[3:4])
    assert pipe.encode(Image.new("RGB", (16, 16))).shape == (1, 16)
    for word in ("decode", "interpolate", "log_likelihood"):
        with pytest.raises(UsageError, match=f"no {word}"):
            getattr(pipe, word)(*[x] * (3 if word == "interpolate" else 1))
    with pytest.raises(UsageError, match="16 high"):
        pipe.encode(torch.zeros(1, 3, 8, 8))


def test_wrong_components_are_refused():
    with pytest.raises(UsageError, match="image_encoder must be"):
        pipeline(image_encoder=torch.nn.Linear(2, 2))
    other = clip_towers(train_tokenizer(["a"], 300, 16), 16, width=32, projection_dim=8)[1]
    with pytest.raises(UsageError, match="one projection_dim; got 16 and 8"):
        pipeline(image_encoder=other)
    with pytest.raises(UsageError, match=r"scale must be in \(0, 100\]"):
        pipeline(scale=101.0)
    for sizes in ({"width": 48}, {"patch_size": 5}):
        with pytest.raises(UsageError, match="must divide"):
            clip_towers(train_tokenizer(["a"], 300), 16, **sizes)


def test_a_saved_pipeline_is_the_same_and_holds_a_text_encoder(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    found = latentia.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(found) is CLIPPipeline and found.config.scale == 20.0
    texts, x = ["a red heart", "bus"], images(3)
    assert torch.equal(found(x, texts), pipe(x, texts))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["image_encoder"] == ["transformers", "CLIPVisionModelWithProjection"]
    half = load_text_encoder(tmp_path)
    wanted = embed_texts(pipe.tokenizer, pipe.text_encoder, texts)
    assert all(torch.equal(a, b) for a, b in zip(embed_texts(*half, texts), wanted))


# ------------------------------------------------------------ the example


def run(folder: Path, *argv) -> int:
    module = load_example("train_text_encoder")
    words = f"""--dataset_name emoji --max_train_samples 100 --width 32 --text_layers 1 --image_layers 1
        --projection_dim 16 --vocab_size 400 --max_train_steps 4 --train_batch_size 8 --checkpointing_steps 2
        --logging_steps 1 --output_dir {folder}""".split()
    return module.main(parse_arguments(module.Arguments, [*words, *map(str, argv)], description="", prog="train"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "run"
    assert run(folder) == 0
    return folder


def test_it_leaves_a_pipeline_a_picture_and_its_score(whole):
    pipe = latentia.DiffusionPipeline.from_pretrained(whole)
    assert pipe.encode_text("a red heart").shape == (1, 16) and 10 < pipe.config.scale < 20
    summary = json.loads((whole / "run_summary.json").read_text())
    score = summary["score"]
    assert score["pairs"] > 100 and 0 <= score["text_to_image_recall_10"] <= 1
    assert score["chance_recall_1"] == pytest.approx(1 / score["pairs"])
    with Image.open(whole / "samples" / "grid.png") as picture:
        assert picture.size[0] > 8 * 32
    assert "recall at 10" in (whole / "README.md").read_text()
    assert load_text_encoder(whole)[1].config.projection_dim == 16


def test_a_run_that_goes_on_is_bit_equal(whole, tmp_path):
    folder = part_of(whole, 2, tmp_path / "again")
    assert run(folder) == 0
    assert held(folder, 4) == held(whole, 4) and any("ema" in name for name in held(whole, 4))


def test_bad_flags_are_refused_before_the_first_step(tmp_path):
    for flags, rule in (
        (("--validation_split", "train", "--max_train_samples", 10_000), "--validation_split"),
        (("--dataset_name", "digits"), "--caption_column"),
    ):
        with pytest.raises(UsageError, match=rule):
            run(tmp_path, *flags)
    assert not (tmp_path / "checkpoints").exists()
