"""Cards and pushes, against a Hub on the loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import NASTY, SHA, card, front_matter
from hub_server import TOKEN, point_client_at, running_hub
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image

import latentia
from latentia.commands.main import main
from latentia.errors import CheckpointError, HubError, UsageError
from latentia.hub.load import components
from latentia.hub.push import export_files, push_to_hub
from latentia.hub.usage import Usage, pipeline_usage

EXPORT = [
    "README.md",
    "model_index.json",
    "samples/grid.png",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a training run: an export amid everything that must stay at home."""
    root = tmp_path_factory.mktemp("runs") / "digits"
    torch.manual_seed(0)
    unet = latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), layers_per_block=1)
    diffusers.DDPMPipeline(unet=unet, scheduler=latentia.DDPMScheduler()).save_pretrained(root)
    card().save(root / "README.md")
    (root / "samples").mkdir()
    for name in ("grid.png", "step-000500.png"):
        Image.new("L", (8, 8)).save(root / "samples" / name)
    for name in (
        "checkpoints/checkpoint-5/optimizer.safetensors",
        "checkpoints/checkpoint-5/manifest.json",
        "checkpoint-6/unet/diffusion_pytorch_model.safetensors",
        "logs/events.out.tfevents",
        "metrics.jsonl",
        "training_config.json",
        "run_summary.json",
        ".env",
        "unet/optimizer.safetensors",
        "unet/random_states_0.pkl",
        "unet/training_state.json",
        "unet/diffusion_pytorch_model.bin",
        "scheduler/optimizer.bin",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"HF_TOKEN={TOKEN}")
    return root


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        point_client_at(server, monkeypatch, str(tmp_path / "cache"))
        naps = []
        monkeypatch.setattr("time.sleep", naps.append)
        server.naps = naps
        yield server


# Cards.


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    card().save(tmp_path / "README.md")
    data = front_matter((tmp_path / "README.md").read_text())
    assert data["library_name"] == "latentia"
    assert data["tags"] == ["diffusers", "latentia", "diffusion"]
    assert data["pipeline_tag"] == "unconditional-image-generation" and data["license"] == "apache-2.0"
    assert data["datasets"] == ["someone/digits"] and data["metrics"] == ["fid", "kid"]
    [model] = data["model-index"]
    assert model["name"] == "digits-ddpm"
    fid = model["results"][0]["metrics"][0]
    assert (fid["type"], fid["name"], fid["value"]) == ("fid", "FID", 3.25)
    assert fid["args"] == {
        "n_samples": 1000,
        "real": 1.5,
        "extractor": "digits",
        "extractor_sha256": SHA,
        "seed": 7,
        "latentia_version": latentia.__version__,
    }
    assert model["results"][0]["dataset"] == {"name": "someone/digits", "type": "someone/digits", "split": "test"}
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == data
    assert str(again) == (tmp_path / "README.md").read_text()


def test_the_text_says_how_to_load_train_and_judge():
    text = card(repo_id="me/digits", limits=["Only zeros."]).text
    assert 'latentia.DiffusionPipeline.from_pretrained("me/digits")' in text
    assert "![Samples](samples/grid.png)" in text
    assert re.search(r"\| learning\\_rate \| 0.0002 \|\n\| optim.name \| adam \|", text)
    assert "| FID | 3.25 | 1.5 | 1000 | digits abababab | someone/digits test |" in text
    assert "| KID | 0.01 |  | 1000 |  | someone/digits |" in text
    assert "2 CPU cores in 12 minutes, seed 7" in text and "- Only zeros." in text
    assert "![" not in card(grid=None).text
    compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "card", "exec")


def test_hostile_text_stays_text():
    nasty = card(
        name=NASTY,
        family=NASTY,
        dataset=NASTY,
        hardware=NASTY,
        recipe={NASTY: NASTY},
        metrics=[{"name": NASTY, "value": 1.0, "extractor": NASTY}],
        limits=[NASTY],
        license=NASTY,
    )
    data = front_matter(str(nasty))
    assert data["license"] == NASTY and data["tags"][2] == NASTY and "datasets" not in data
    assert data["model-index"][0]["name"] == NASTY
    assert "<img" not in nasty.text and not re.search(r"(?<!\\)\]\(http", nasty.text)
    assert re.findall(r"!\[[^\]]*\]\([^)]*\)", nasty.text) == ["![Samples](samples/grid.png)"]
    assert [line for line in nasty.text.splitlines() if line.startswith("#")] == [
        next(line for line in nasty.text.splitlines() if line.startswith("# ")),
        *("## Use", "## Training", "## Evaluation", "## Limits"),
    ]
    rows = [line for line in nasty.text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 7}


def test_secrets_and_folders_of_the_machine_are_left_out():
    recipe = {
        "hub_token": "s3cret1",
        "API_KEY": "s3cret2",
        "tracker": {"password": "s3cret3", "project": "open", "list": [{"client_secret": "s3cret4", "host": "h"}]},
        "note": TOKEN,
        "proxy": "https://me:s3cret5@example.org",
        "train_data_dir": "/home/alice/pictures",
        "output_dir": Path("/home/alice/runs/digits"),
    }
    text = str(card(recipe=recipe, dataset="/home/alice/pictures"))
    for secret in ("s3cret", TOKEN, "token", "API", "alice"):
        assert secret not in text, secret
    for kept in ("tracker.project | open", "tracker.list.0.host | h", "dir | pictures", "dir | digits"):
        assert kept in text, kept


def test_a_value_that_is_no_number_is_shown_but_not_ranked():
    broken = card(metrics=[{"name": "FID", "value": float("nan"), "n": 10}])
    assert "model-index" not in broken.data.to_dict() and "| FID | nan |" in broken.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline_class": "os.system"}, "pipeline_class"),
        ({"grid": "../x.png"}, "grid"),
        ({"grid": "/etc/x.png"}, "grid"),
        ({"grid": "x.txt"}, "grid"),
        ({"repo_id": 'a"); evil("'}, "repo_id"),
        ({"metrics": [{"name": "FID"}]}, '"value"'),
    ],
)
def test_what_would_break_a_card_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        card(**changes)


# Pushes.

FRESH = """
import sys
import latentia
pipe = latentia.DiffusionPipeline.from_pretrained("user/digits")
assert type(pipe).__name__ == "DDPMPipeline" and type(pipe.unet) is latentia.UNet2D, pipe
assert pipe.name_or_path == "user/digits"
import torch
from safetensors.torch import load_file
want = load_file(sys.argv[1])
assert all(torch.equal(value, want[key]) for key, value in pipe.unet.state_dict().items())
import diffusers
again = diffusers.DiffusionPipeline.from_pretrained("user/digits")
assert type(again.unet) is latentia.UNet2D
alone = latentia.UNet2D.from_pretrained("user/digits", subfolder="unet")
assert all(torch.equal(value, want[key]) for key, value in alone.state_dict().items())
"""


def test_a_push_is_fetched_again_in_a_fresh_interpreter(hub, trained, tmp_path):
    assert push_to_hub(trained, "user/digits", private=False) == f"{hub.endpoint}/user/digits"
    commit, tree = hub.find("user/digits", "main")
    assert sorted(tree) == EXPORT
    for name, content in tree.items():
        assert name == "README.md" or content == (trained / name).read_bytes(), name
    assert b'from_pretrained("user/digits")' in tree["README.md"]
    mine, theirs = (trained / "README.md").read_text().splitlines(), tree["README.md"].decode().splitlines()
    changed = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    assert len(changed) == 2 and all("from_pretrained" in a or "latentia:use" in a for a, _ in changed)
    sent = b"".join(hub.bodies)
    assert TOKEN.encode() not in sent and b"optimizer" not in sent and b"checkpoint" not in sent
    assert len(hub.repos["user/digits"]) == 2  # the empty repository and one commit
    assert hub.naps == []
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(trained / EXPORT[-1])]
    hub.requests.clear()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    fetched = {path for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert {path.split("/resolve/")[1].split("/", 1)[1] for path in fetched} >= {"model_index.json", EXPORT[-1]}
    assert (tmp_path / "home" / "hub" / "models--user--digits" / "snapshots" / commit).is_dir()


def test_pushing_again_changes_nothing(hub, trained):
    push_to_hub(trained, "user/digits")
    push_to_hub(trained, "user/digits")
    assert len(hub.repos["user/digits"]) == 2


def test_private_revision_and_pull_request(hub, trained):
    push_to_hub(trained, "user/open", private=False)
    push_to_hub(trained, "user/digits")  # nothing becomes public by accident
    assert hub.private == {"user/digits"}
    hub.refs["user/digits"]["v2"] = hub.refs["user/digits"]["main"]
    changed = shutil.copytree(trained, trained.parent / "changed", dirs_exist_ok=True)
    card(minutes=99.0).save(changed / "README.md")
    push_to_hub(changed, "user/digits", revision="v2", commit_message="Longer")
    assert b"99 minutes" in hub.find("user/digits", "v2")[1]["README.md"]
    assert b"99 minutes" not in hub.find("user/digits", "main")[1]["README.md"]
    url = push_to_hub(changed, "user/digits", create_pr=True)
    assert url == f"{hub.endpoint}/user/digits/discussions/1"
    assert b"99 minutes" not in hub.find("user/digits", "main")[1]["README.md"]


def test_settings_that_are_lists_are_no_components():
    config = {"vae": ("latentia", "VAE"), "prior": (None, None), "levels": [], "sizes": (8, 8), "name": "x"}
    assert components(config) == {"vae": ("latentia", "VAE")}
    assert pipeline_usage(latentia.VAEPipeline, config, []).code == Usage().code


def test_a_public_repository_needs_a_word_on_the_licence(hub, trained, capsys):
    silent = shutil.copytree(trained, trained.parent / "silent", dirs_exist_ok=True)
    card(license=None).save(silent / "README.md")
    assert "license" not in front_matter((silent / "README.md").read_text())
    with pytest.raises(SystemExit) as exit:
        main(["push", str(silent), "user/open", "--no_private"])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and "--license is missing" in said and "apache-2.0, mit" in said and '"none"' in said
    assert "user/open" not in hub.repos
    push_to_hub(silent, "user/open", private=False, license="mit")
    pushed = hub.find("user/open", "main")[1]["README.md"].decode()
    assert front_matter(pushed)["license"] == "mit" and "license" not in (silent / "README.md").read_text()
    with pytest.raises(UsageError, match="license is missing"):
        push_to_hub(silent, "user/open")  # it was there before, and is public
    assert hub.find("user/open", "main")[1]["README.md"].decode() == pushed
    push_to_hub(silent, "user/open", license="none")
    assert "license" not in front_matter(hub.find("user/open", "main")[1]["README.md"].decode())
    card(license="none").save(silent / "README.md")
    assert "license" not in front_matter((silent / "README.md").read_text())
    card(license="mit").save(silent / "README.md")
    push_to_hub(silent, "user/open", license="none")  # in place of the card's own
    assert "license" not in front_matter(hub.find("user/open", "main")[1]["README.md"].decode())
    push_to_hub(silent, "user/closed")
    assert "user/closed" in hub.private


def test_a_fault_that_passes_is_waited_for(hub, trained):
    hub.fail("POST .*/commit/", 503, times=2)
    push_to_hub(trained, "user/digits")
    assert sorted(hub.find("user/digits", "main")[1]) == EXPORT
    assert sum("/commit/" in path for _, path in hub.requests) == 3 and len(hub.naps) == 2


@pytest.mark.parametrize(
    "pattern",
    ["POST /api/repos/create", "POST .*/preupload/", "PUT /large/", "POST .*objects/batch", "POST .*/commit/"],
)
def test_a_fault_that_stays_ends_with_the_command_to_run_again(hub, trained, pattern):
    hub.fail(pattern, 500, first=2 if "large" in pattern else 1, times=10**6)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(HubError) as caught:
        push_to_hub(trained, "user/digits", private=False, license="mit", revision="a b")
    text = str(caught.value)
    assert f"latentia push {trained} user/digits --no_private --license mit --revision 'a b'" in text
    assert f"complete: {len(EXPORT)} files" in text and caught.value.exit_code == 6
    assert TOKEN not in text
    assert len(hub.naps) < 100 and sum(hub.naps) < 200
    assert hub.find("user/digits", "main") is None or hub.find("user/digits", "main")[1] == {}
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_pull_request_is_asked_for_once(hub, trained, capsys):
    """The first may have been opened before its answer was lost."""
    hub.fail("POST .*/commit/", 503, times=10**6)
    with pytest.raises(SystemExit) as exit:
        main(["push", str(trained), "user/digits", "--create_pr", "--diffusers_code"])
    said = capsys.readouterr().err
    assert exit.value.code == 6 and "user/digits --create_pr --diffusers_code" in said
    assert sum("/commit/" in path for _, path in hub.requests) == 1 and hub.naps == [] and TOKEN not in said
    hub.faults.clear()
    main(["push", str(trained), "user/digits", "--create_pr", "--diffusers_code"])
    assert hub.private == {"user/digits"} and hub.find("user/digits", "main")[1] == {}
    asked = hub.find("user/digits", "refs/pr/1")[1]
    assert sorted(asked) == sorted([*EXPORT, "pipeline.py"])
    assert not any(word in b"".join(asked.values()) for word in (b"HF_TOKEN", TOKEN.encode()))


@pytest.mark.parametrize("status", [401, 403])
def test_without_leave_it_stops_at_once_and_says_how_to_log_in(hub, trained, status):
    hub.fail("POST ", status, times=10**6)
    with pytest.raises(HubError, match=r"hf auth login(.|\n)*latentia push"):
        push_to_hub(trained, "user/digits")
    assert sum(method == "POST" for method, _ in hub.requests) == 1 and hub.naps == []


def test_not_logged_in_at_all(hub, trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(HubError, match="hf auth login"):
        push_to_hub(trained, "user/digits")


def test_no_connection(hub, trained, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="latentia push"):
        push_to_hub(trained, "user/digits")
    assert len(hub.naps) == 2
    with pytest.raises(UsageError, match="repo_id"):
        push_to_hub(trained, "not a name!")


def broken_copies():
    def without(name):
        return lambda root: (root / name).unlink()

    def truncated(root):
        path = root / EXPORT[-1]
        path.write_bytes(path.read_bytes()[:-9])

    def no_unet(root):
        shutil.rmtree(root / "unet")

    return {
        "no index": (without("model_index.json"), "model_index.json"),
        "no card": (without("README.md"), "README.md"),
        "no component": (no_unet, "unet"),
        "no weights": (without(EXPORT[-1]), "does not load"),
        "truncated weights": (truncated, "does not load"),
    }


@pytest.mark.parametrize("case", broken_copies())
def test_what_does_not_load_is_not_pushed(hub, trained, tmp_path, case):
    root = shutil.copytree(trained, tmp_path / "run")
    change, said = broken_copies()[case]
    change(root)
    with pytest.raises(CheckpointError, match=said):
        push_to_hub(root, "user/digits")
    assert hub.requests == []


@pytest.mark.parametrize("text", [f"made with {TOKEN}", "token hf_abcdefghijklmnopqrstuv", "s3://me:pass@host/x"])
def test_a_token_in_an_exported_file_stops_the_push(hub, trained, tmp_path, text):
    root = shutil.copytree(trained, tmp_path / "run")
    (root / "README.md").write_text((root / "README.md").read_text() + text)
    with pytest.raises(UsageError, match=r"README\.md holds what looks like an access token") as caught:
        push_to_hub(root, "user/digits")
    assert hub.requests == [] and TOKEN not in str(caught.value)


def test_pictures_outside_the_folder_stay_there(trained, tmp_path):
    root = shutil.copytree(trained, tmp_path / "run")
    Image.new("L", (4, 4)).save(tmp_path / "outside.png")
    (root / "escape.png").symlink_to(tmp_path / "outside.png")
    text = "![a](../outside.png) ![b](escape.png) ![c](metrics.jsonl) ![d](gone.png) ![e](https://x/y.png)"
    (root / "README.md").write_text((root / "README.md").read_text() + text)
    assert export_files(root) == EXPORT


@pytest.mark.parametrize("name", ["README.md", "unet/config.json"])
def test_a_link_cannot_publish_a_file_of_this_machine(hub, trained, tmp_path, name):
    root = shutil.copytree(trained, tmp_path / "run")
    (root / name).rename(tmp_path / "secret")
    (root / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link out of its folder"):
        push_to_hub(root, "user/digits")
    assert hub.requests == []


def test_what_the_cache_holds_may_be_pushed_again(hub, trained, tmp_path):
    push_to_hub(trained, "user/digits")
    folder = Path(snapshot_download("user/digits", cache_dir=tmp_path / "c"))
    assert (folder / "README.md").is_symlink()
    push_to_hub(folder, "user/again")
    assert sorted(hub.find("user/again", "main")[1]) == EXPORT


# Fetching.


def test_a_pipeline_with_named_classes_comes_back(hub, tmp_path):
    unet = latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), num_class_embeds=2)
    pipe = latentia.UnconditionalDiffusionPipeline(unet, latentia.DDPMScheduler(), label_names=["cat", "dog"])
    pipe.save_pretrained(tmp_path / "pets")
    card(pipeline_class="UnconditionalDiffusionPipeline", grid=None).save(tmp_path / "pets" / "README.md")
    push_to_hub(tmp_path / "pets", "user/pets")
    again = latentia.DiffusionPipeline.from_pretrained("user/pets", cache_dir=tmp_path / "c")
    assert type(again) is latentia.UnconditionalDiffusionPipeline
    assert again.config.label_names == pipe.config.label_names


def test_one_commit_is_fetched_even_if_the_branch_moves(hub, trained, tmp_path, monkeypatch):
    push_to_hub(trained, "user/digits")
    first = hub.refs["user/digits"]["main"]
    answer = type(hub).find

    def find_and_move(self, repo, revision):
        found = answer(self, repo, revision)
        if revision == "main":
            self.refs[repo]["main"] = evil
        return found

    evil = hub.put("user/digits", {"model_index.json": b'{"_class_name": "evil.Evil"}'})
    hub.refs["user/digits"]["main"] = first
    monkeypatch.setattr(type(hub), "find", find_and_move)
    pipe = latentia.DiffusionPipeline.from_pretrained("user/digits", cache_dir=tmp_path / "c")
    assert type(pipe.unet) is latentia.UNet2D and hub.refs["user/digits"]["main"] == evil
    with pytest.raises(CheckpointError, match=r"evil\.Evil"):
        latentia.DiffusionPipeline.from_pretrained("user/digits", cache_dir=tmp_path / "c")
    monkeypatch.undo()


def test_a_network_is_of_one_commit_even_if_the_branch_moves(hub, trained, tmp_path, monkeypatch):
    push_to_hub(trained, "user/digits")
    first = hub.refs["user/digits"]["main"]
    answer, asked = type(hub).find, []

    def find_and_move(self, repo, revision):
        asked.append(revision)
        found = answer(self, repo, revision)
        if revision == "main":
            self.refs[repo]["main"] = evil
        return found

    other = {name: b"[]" for name in EXPORT if name.endswith(".json")} | {EXPORT[-1]: b"evil"}
    evil = hub.put("user/digits", other)
    hub.refs["user/digits"]["main"] = first
    monkeypatch.setattr(type(hub), "find", find_and_move)
    place = {"revision": "main", "cache_dir": tmp_path / "c"}
    unet = latentia.UNet2D.from_pretrained("user/digits", subfolder="unet", **place)
    assert unet.config._name_or_path == "user/digits" and asked.count("main") == 1 and set(asked) == {"main", first}
    want = latentia.UNet2D.from_pretrained(trained / "unet").state_dict()
    assert all(torch.equal(value, want[key]) for key, value in unet.state_dict().items())
    fetched = {path for _, path in hub.requests if "/resolve/" in path}
    assert {path.split("/resolve/")[1].split("/", 1)[1] for path in fetched} == set(EXPORT[-2:])
    for kind, folder in ((latentia.UNet2D, "unet"), (latentia.DDIMScheduler, "scheduler")):
        hub.refs["user/digits"]["main"] = first
        kind.from_pretrained("user/digits", subfolder=folder, **place)
        with pytest.raises(CheckpointError):  # the branch has moved on, to what does not load
            kind.from_pretrained("user/digits", subfolder=folder, revision=evil, cache_dir=tmp_path / "d")
    monkeypatch.undo()


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}])
def test_a_network_in_several_files_comes_from_the_hub(hub, tmp_path, options):
    unet = latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), layers_per_block=1)
    unet.save_pretrained(tmp_path / "unet", max_shard_size="100KB", **options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "unet").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 2
    hub.put("user/shards", {**files, "optimizer.safetensors": b"x", "diffusion_pytorch_model.ema.safetensors": b"x"})
    again = latentia.UNet2D.from_pretrained("user/shards", cache_dir=tmp_path / "c", **options)
    assert all(torch.equal(value, unet.state_dict()[key]) for key, value in again.state_dict().items())
    fetched = {path.rsplit("/", 1)[1] for method, path in hub.requests if "/resolve/" in path}
    assert fetched == set(files)


@pytest.mark.parametrize("subfolder", ["../x", "..", "/etc", "unet/../..", "a//b", "unet/", ".", "un et", "a\\b", 7])
@pytest.mark.parametrize("kind", [latentia.UNet2D, latentia.DDPMScheduler])
def test_a_subfolder_is_plain_names(hub, trained, kind, subfolder):
    for name in (trained, "user/digits"):
        with pytest.raises(UsageError, match="subfolder must be names"):
            kind.from_pretrained(name, subfolder=subfolder)
    assert hub.requests == []


def test_a_network_alone_that_the_hub_has_not(hub, tmp_path):
    with pytest.raises(HubError, match="user/none"):
        latentia.UNet2D.from_pretrained("user/none", subfolder="unet", cache_dir=tmp_path)
    with pytest.raises(UsageError, match="neither a folder nor"):
        latentia.UNet2D.from_pretrained("no/such/folder")


def test_a_hostile_repository_is_refused_before_other_files(hub, tmp_path):
    index = {"_class_name": ["pipeline", "Evil"], "unet": ["evil", "Evil"]}
    files = {"model_index.json": json.dumps(index).encode(), "pipeline.py": b"raise SystemExit", "unet/evil.py": b"1/0"}
    hub.put("user/evil", files)
    with pytest.raises(CheckpointError, match="_class_name"):
        latentia.DiffusionPipeline.from_pretrained("user/evil", cache_dir=tmp_path / "c")
    assert not [path for _, path in hub.requests if path.endswith(".py")]


def test_pickles_on_the_hub_are_not_fetched(hub, trained, tmp_path):
    tree = {name: (trained / name).read_bytes() for name in EXPORT[:-1]}
    hub.put("user/old", {**tree, "unet/diffusion_pytorch_model.bin": b"\x80\x04."})
    with pytest.raises((HubError, CheckpointError), match="safetensors"):
        latentia.DiffusionPipeline.from_pretrained("user/old", cache_dir=tmp_path / "c")
    assert not [path for _, path in hub.requests if path.endswith(".bin")]


def test_what_the_hub_has_not_is_a_hub_error(hub, trained, tmp_path):
    for name, revision in (("user/none", None), ("user/digits", "v9")):
        if revision:
            push_to_hub(trained, name)
        with pytest.raises(HubError, match=name):
            latentia.DiffusionPipeline.from_pretrained(name, revision=revision, cache_dir=tmp_path / "c")
    with pytest.raises(HubError, match="user/digits"):
        latentia.DiffusionPipeline.from_pretrained("user/digits", local_files_only=True, cache_dir=tmp_path / "d")


def test_the_server_serves_a_plain_snapshot(hub, tmp_path):
    hub.put("user/plain", {"a.txt": b"1", "b/c.txt": b"2"})
    folder = Path(snapshot_download("user/plain", cache_dir=tmp_path / "c"))
    assert (folder / "b" / "c.txt").read_bytes() == b"2"
