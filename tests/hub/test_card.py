"""Cards of folders: what they hold, what they lack, and that nothing a person wrote is lost."""

import json
import re
import shutil

import pytest
import torch
from helpers import NASTY, card, perturbed
from huggingface_hub import ModelCard
from PIL import Image
from pipeline_list import PIPELINES, autoencoder_kl_pipeline, vqvae_pipeline

import latentia
from latentia.commands.main import main
from latentia.errors import CheckpointError, LatentiaError, UsageError
from latentia.hub.blocks import put_block, read_blocks
from latentia.hub.card import add_results
from latentia.hub.folder_card import folder_card, merge_cards, missing_parts, update_card
from latentia.hub.usage import pipeline_usage

NUMBERS = {"title": "Frechet distance", "value": 12.5, "low": 10.0, "high": 15.0, "real": 2.0}
RUN = {
    "training_config.json": {
        "dataset_name": "digits", "train_data_dir": None, "hub_license": "mit", "hub_model_id": None, "seed": 3,
        "learning_rate": 2e-4,
    },
    "run_summary.json": {
        "status": "done", "steps": 10, "training_seconds": 90.0, "family": "diffusion",
        "pipeline_tag": "unconditional-image-generation", "limits": ["Only zeros."], "hardware": "2 CPU threads (x)",
        "command": ["python", "/home/alice/train_ddpm.py", "--output_dir", "/home/alice/runs/a", "--api_key", "s3cret",
                    "--proxy=https://me:s3cret@host", "--dataset_name", "digits"],
        "lineage": {"torch": "2.13.0", "commit": "866f060"}, "data": {"images": 1797},
        "score": {"scores": {"fd": NUMBERS}, "n": 500, "extractor": "digits", "extractor_sha256": "ab" * 32},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A pipeline as save_pretrained leaves it."""
    root = tmp_path_factory.mktemp("cards") / "mine"
    unet = perturbed(latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8))
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler()).save_pretrained(root)
    return root


@pytest.fixture
def folder(bare, tmp_path):
    return shutil.copytree(bare, tmp_path / "mine")


@pytest.fixture
def run(folder):
    """The same as a run leaves it."""
    for name, values in RUN.items():
        (folder / name).write_text(json.dumps(values))
    (folder / "samples").mkdir()
    Image.new("L", (8, 8)).save(folder / "samples" / "grid.png")
    return folder


def test_the_name_of_a_folder_is_no_data_set_on_the_hub(run):
    config = {**RUN["training_config.json"], "dataset_name": None, "train_data_dir": "/home/alice/photos"}
    (run / "training_config.json").write_text(json.dumps(config))
    card = ModelCard(folder_card(run).content)
    assert card.data.datasets is None and "trained on photos" in card.text
    assert ModelCard(folder_card(run, dataset="me/photos").content).data.datasets == ["me/photos"]


def test_the_card_of_a_run_has_all_that_a_reader_needs(run, capsys):
    main(["card", str(run)])
    printed = capsys.readouterr().out
    assert not (run / "README.md").exists() and "lacks" not in printed
    main(["card", str(run), "--write", "--repo_id", "me/mine"])
    text = (run / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.datasets) == ("latentia", "mit", ["digits"])
    assert data.pipeline_tag == "unconditional-image-generation" and data.tags == ["diffusers", "latentia", "diffusion"]
    [result] = data.eval_results
    assert result.metric_value == 12.5 and result.metric_args["extractor_sha256"] == "ab" * 32
    for said in (
        "| Frechet distance | 12.5 | 2 | 500 | digits abababab | digits |",
        'from_pretrained("me/mine")',
        "![Samples](samples/grid.png)",
        "python train_ddpm.py --output_dir a --dataset_name digits",
        "2 CPU threads \\(x\\) in 1.5 minutes, seed 3, ",
        "torch 2.13.0, commit 866f060",
        "- Only zeros.",
        "| data.images | 1797 |",
    ):
        assert said in text, said
    assert "s3cret" not in text and "alice" not in text
    assert missing_parts(text, run) == []


def test_what_a_card_lacks_is_said_with_the_way_to_it(folder, run, capsys):
    (run / "run_summary.json").unlink()
    (run / "training_config.json").unlink()
    shutil.rmtree(run / "samples")
    with pytest.raises(SystemExit) as exit:
        main(["card", str(folder)])
    assert exit.value.code == 2 and "--dataset is missing" in capsys.readouterr().err
    main(["card", str(folder), "--dataset", "me/pets"])
    printed = capsys.readouterr().out
    assert "The card lacks a licence" in printed and "license:" not in printed  # nobody chose one
    main(["card", str(folder), "--dataset", "me/pets", "--license", "mit", "--write"])
    out = capsys.readouterr().out
    for what in ("numbers with n", "an image of samples", "the recipe", "command, seed"):
        assert f"The card lacks {what}" in out, what
    assert (
        "latentia evaluate" in out and "licence" not in out and "## Training" not in (folder / "README.md").read_text()
    )
    full = card(command=["python", "x.py"], lineage={"torch": "2"}, metrics=[])
    assert [line for line in missing_parts(str(full), folder) if "numbers" not in line] == []
    half = card(metrics=[{"name": "FID", "value": 1.0, "n": 10}], lineage={"torch": "2"}, command=["x"])
    assert len(missing_parts(str(half), folder)) == 1  # a number without its extractor


def saved_card(pipe, folder, **summary):
    """The card of a pipeline that is saved as a run leaves it."""
    pipe.save_pretrained(folder)
    (folder / "run_summary.json").write_text(json.dumps({**RUN["run_summary.json"], "limits": [], **summary}))
    return folder_card(folder, dataset="pets", write=True).content


def size_of(file):
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize("entry", PIPELINES, ids=lambda entry: entry.name)
def test_the_code_on_a_card_runs_as_printed(entry, tmp_path, monkeypatch):
    pipe = entry.build()
    text = saved_card(pipe, tmp_path / "path/to/this/folder")
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("image.png")  # any image at all
    Image.new("L", (40, 30), "white").save("mask.png")
    names = {}
    exec(compile(program, "card", "exec"), names)
    if entry.ask:
        assert size_of("sample.png") == (names["image"].size if "image" in names else entry.image[:0:-1])
        assert not (tmp_path / "again.png").exists()
    else:
        assert names["vector"].shape == (1, *entry.latent) and names["probabilities"].shape == (1, 2)
    classes = getattr(pipe.config, "label_names", None)
    assert ("conditioned on 3 classes: cat, dog, owl." in text) == bool(classes)
    assert ("prompt=" in program) == pipe.is_text_conditional or not entry.ask


def test_what_an_autoencoder_gives_is_called_reconstructions(tmp_path, monkeypatch):
    for name in ("grid", "reconstructions"):
        path = tmp_path / f"path/to/this/folder/samples/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    pipe = latentia.AutoencoderKLPipeline(autoencoder_kl_pipeline().vae)
    text = saved_card(pipe, tmp_path / "path/to/this/folder")
    assert "![Reconstructions](samples/grid.png)" in text and "![Samples]" not in text
    assert "Frechet distance of reconstructions | 12.5" in text and "It makes images" not in text
    assert ModelCard(text).data.eval_results[0].metric_name == "Frechet distance of reconstructions"
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("image.png")
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], {})
    assert size_of("again.png") == (16, 16)

    folder = shutil.copytree(tmp_path / "path/to/this/folder/samples", tmp_path / "other/samples").parent
    text = saved_card(vqvae_pipeline(), folder)
    assert "![Samples of a prior that takes the codes of an image as independent](samples/grid.png)" in text
    assert "(samples/reconstructions.png)" in text and "of reconstructions" not in text


@pytest.mark.parametrize(("names", "asked"), [(["```", "b"], "class_labels=0"), (['a"b', "c"], "class_labels=0")])
def test_names_of_classes_cannot_break_the_code(names, asked):
    pipe = latentia.VAEPipeline(latentia.VAE(sample_size=8, latent_dim=2, num_class_embeds=2), None, names)
    usage = pipeline_usage(type(pipe), pipe.config, [pipe.vae.config])
    assert asked in usage.code[0] and list(usage.classes) == names


def test_of_many_classes_a_part_is_shown_in_order():
    pipe = latentia.VAEPipeline(latentia.VAE(sample_size=8, latent_dim=2, num_class_embeds=100), None)
    text = card(usage=pipeline_usage(type(pipe), pipe.config, [pipe.vae.config])).text
    assert "conditioned on 100 classes: 0, 1, 2, 3, " in text and "18, 19 and 80 more." in text


HANDMADE = "\n## My story\n\nI | wrote <b>this</b> ---\n\n## Evaluation by eye\n\nGood.\n"


def test_nothing_that_a_person_wrote_is_lost(run):
    folder_card(run, write=True)
    path = run / "README.md"
    text = path.read_text().replace("license: mit\n", "license: mit\nlanguage: en\nmy_key:\n  nested: [1, 2]\n")
    text = text.replace("<!-- /latentia:evaluation -->\n", "<!-- /latentia:evaluation -->\n\nA note on the numbers.\n")
    text = text.replace("tags:\n", "tags:\n- mine\n").replace("\n<!-- latentia:use", HANDMADE + "\n<!-- latentia:use")
    path.write_text(text)
    (run / "run_summary.json").write_text(json.dumps({**RUN["run_summary.json"], "training_seconds": 180.0}))
    found = folder_card(run, license="apache-2.0", write=True)
    new = path.read_text()
    assert HANDMADE in new and "A note on the numbers." in new and found.remarks == []
    assert "in 3 minutes" in new and "in 1.5 minutes" not in new
    data = ModelCard(new).data.to_dict()
    assert data["language"] == "en" and data["my_key"] == {"nested": [1, 2]} and data["license"] == "apache-2.0"
    assert set(data["tags"]) == {"mine", "diffusers", "latentia", "diffusion"}
    folder_card(run, write=True)
    assert path.read_text() == new  # again: nothing changes, nothing doubles
    add_results(path, [{"type": "fd", "name": "Frechet distance", "value": 3.0, "n": 9}], dataset="digits", seed=0)
    assert HANDMADE in path.read_text() and "A note on the numbers." in path.read_text()
    (run / "training_config.json").unlink()
    (run / "run_summary.json").unlink()
    before = path.read_text()
    folder_card(run, write=True)  # and what only the run knew stays when its files are gone
    assert path.read_text() == before and "Only zeros." in before
    (run / "run_summary.json").write_text(json.dumps(RUN["run_summary.json"]))
    folder_card(run, write=True)  # the run's older number does not come back
    assert "| 3 |" in path.read_text() and "12.5" not in path.read_text()


def test_results_of_another_data_set_stay(run):
    folder_card(run, write=True)
    path, metric = run / "README.md", {"type": "fd", "name": "Frechet distance", "n": 9}
    for value, dataset in ((3.0, "digits"), (7.0, "emoji"), (4.0, "digits")):
        add_results(path, [metric | {"value": value}], dataset=dataset, seed=0)
    found = [(r.dataset_name, r.metric_value) for r in ModelCard.load(path).data.eval_results if r.metric_type == "fd"]
    assert sorted(found) == [("digits", 4.0), ("emoji", 7.0)]


@pytest.mark.parametrize("part", ["summary", "use", "training", "evaluation", "limits"])
def test_a_part_that_was_changed_by_hand_stays(run, part, capsys):
    folder_card(run, write=True)
    path = run / "README.md"
    mark = f"<!-- /latentia:{part} -->"
    path.write_text(path.read_text().replace(mark, f"My own line in {part}.\n{mark}"))
    before = path.read_text()
    main(["card", str(run), "--write"])
    assert f"The part {part} was changed by hand" in capsys.readouterr().out and path.read_text() == before
    if part == "evaluation":
        metric = {"type": "fd", "name": "Frechet distance", "value": 3.0, "n": 9}
        assert not add_results(path, [metric], dataset="digits", seed=0)
        assert ModelCard.load(path).data.eval_results[0].metric_value == 3.0
        assert path.read_text().split("\n---\n")[1] == before.split("\n---\n")[1]


def test_a_card_that_a_person_made_alone_keeps_every_word(run):
    for text in ("# Mine\n\nAll by hand.\n", "---\nlicense: cc0-1.0\n---\n# Mine\n\n## Use\n\nAll by hand.\n", ""):
        (run / "README.md").write_text(text)
        folder_card(run, write=True)
        new = (run / "README.md").read_text()
        assert text.split("---\n")[-1].strip() in new and "## Training" in new
        assert ("license: cc0-1.0" in new) == ("cc0" in text)
    (run / "README.md").write_text("---\nlicense: [\n---\n# Mine\n")
    with pytest.raises(UsageError, match=r"README\.md cannot be read"):
        folder_card(run)
    assert "license: [" in (run / "README.md").read_text()


def test_training_anew_replaces_the_numbers_and_keeps_the_words():
    old = ModelCard(str(card()).replace("\n<!-- latentia:use", HANDMADE + "\n<!-- latentia:use"))
    new = card(metrics=[{"name": "KID", "value": 0.5, "n": 1000}], minutes=99.0)
    text, kept = merge_cards(old, new, keep_results=False)
    assert kept == [] and HANDMADE in text and "99 minutes" in text and "3.25" not in text
    assert [r.metric_name for r in ModelCard(text).data.eval_results] == ["KID"]


def test_an_unreadable_card_is_put_aside_at_the_end_of_a_run(tmp_path):
    path, new = tmp_path / "README.md", card()
    assert update_card(path, new) == (new, [])
    path.write_text("---\nlicense: [\n---\n# Mine\n")
    found, [remark] = update_card(path, new)
    [aside] = tmp_path.iterdir()
    assert found is new and aside.name in remark and aside.read_text() == "---\nlicense: [\n---\n# Mine\n"
    path.write_text(str(new).replace("\n<!-- /latentia:limits", "\nMine.\n<!-- /latentia:limits"))
    found, [remark] = update_card(path, card(minutes=99.0))
    assert "Mine." in str(found) and "99 minutes" in str(found) and "part limits" in remark


def test_hostile_words_cannot_forge_the_marks(run):
    summary = {
        **RUN["run_summary.json"],
        "limits": [NASTY],
        "hardware": NASTY,
        "command": [NASTY, "```\n<!-- /latentia:"],
    }
    summary["limits"].append("<!-- /latentia:limits -->\n<!-- latentia:use 00000000 -->")
    (run / "run_summary.json").write_text(json.dumps(summary))
    found = folder_card(run, name=NASTY, dataset=NASTY, license=NASTY)
    assert list(read_blocks(found.content)) == ["summary", "use", "training", "evaluation", "limits"]
    assert None not in read_blocks(found.content).values()
    outside = re.sub(r"(?s)(`{3,})text\n.*?\n\1", "", ModelCard(found.content).text)  # a code block shows what it holds
    assert "<img" not in outside and outside.count("\n## ") == 4
    assert ModelCard(found.content).data.license == NASTY


def test_parts_go_where_they_belong():
    text, written = put_block("Hello.\n", "use", ["a", "b"])
    assert written and read_blocks(text) == {"use": "a\nb"}
    text, _ = put_block(text, "summary", ["first"], before="use")
    assert list(read_blocks(text)) == ["summary", "use"] and text.startswith("Hello.\n")
    again, written = put_block(text.replace("first", "mine"), "summary", ["second"])
    assert not written and "mine" in again and "second" not in again


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="model_index"):
        folder_card(tmp_path)


def test_the_card_of_a_real_run_lacks_nothing(tmp_path):
    """What the examples pass on, read back from what a run leaves."""
    import sys

    sys.path.insert(0, "examples")
    try:
        import train_ddpm
    finally:
        sys.path.remove("examples")
    from latentia.runs.command_line import parse_arguments

    flags = ["--dataset_name", "digits", "--max_train_steps", "2", "--train_batch_size", "8", "--output_dir"]
    flags += [
        str(tmp_path / "run"),
        "--block_out_channels",
        "8",
        "--attention_head_dim",
        "8",
        "--eval_num_samples",
        "20",
    ]
    flags += ["--num_inference_steps", "2", "--eval_metrics", "kid", "--max_train_samples", "60"]
    torch.manual_seed(0)
    assert train_ddpm.main(parse_arguments(train_ddpm.Arguments, flags, description="")) == 0
    text = (tmp_path / "run" / "README.md").read_text()
    assert [part[: len("The card lacks a licence")] for part in missing_parts(text, tmp_path / "run")] == [
        "The card lacks a licence"
    ]
    assert re.search(r" in [\d.e-]+ (s|minutes), 0.3 epochs, seed 0", text)  # 2 steps of 8 of 60 images
    assert folder_card(tmp_path / "run").content == text
    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["epochs"]) == ("finished", 0, 0.3)


WRONG = ("x", 7, [1], {"a": 1}, [["a"]], True)


@pytest.mark.parametrize("file", ["training_config.json", "run_summary.json", "model_index.json", "unet/config.json"])
def test_values_of_others_are_errors_of_ours(file, run):
    """A folder may come from anyone; no value in it is a traceback."""
    text = (run / file).read_text()
    keys = {*json.loads(text), "label_names", "num_class_embeds", "hub_model_id", "tokenizer"}
    for key in sorted(keys):
        for value in WRONG:
            (run / file).write_text(json.dumps(json.loads(text) | {key: value}))
            try:
                assert folder_card(run).text()
            except LatentiaError as error:
                assert str(run) in str(error) or "must be" in str(error), error


@pytest.mark.parametrize("value", ["5", "hello", "{a: 1}", "[1, [2]]", ".nan", "2020-01-01", "!!binary aGVsbG8="])
def test_metadata_of_others_are_errors_of_ours(value, run):
    for key in ("datasets", "tags", "metrics", "license", "model_name", "pipeline_tag", "model-index"):
        (run / "README.md").write_text(f"---\n{key}: {value}\n---\n# A model\n")
        try:
            assert folder_card(run).text()
        except LatentiaError as error:
            assert "README.md" in str(error)
