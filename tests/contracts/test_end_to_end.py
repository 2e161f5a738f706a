"""From a data set on a Hub to a model on the Hub to samples from it, each with its own interpreter and caches."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, environment_at, image_dataset, point_client_at, running_hub
from PIL import Image

from latentia.commands.main import main

SCRIPT = Path(__file__).parents[2] / "examples" / "train_ddpm.py"
SMALL = """--max_train_steps 4 --train_batch_size 8 --block_out_channels 32 --checkpointing_steps 2 --logging_steps 1
    --eval_num_samples 8 --num_inference_steps 2""".split()


def run(hub, home, *words, code=0, **more):
    """Runs a Python command that talks to `hub`, and returns what it printed."""
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_at(hub, home, **more), timeout=200)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def hub():
    with running_hub() as server:
        server.commit = server.put("datasets/user/set", image_dataset())
        yield server


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """The main job: a data set from the Hub, training, export, push. The folder, and what was printed."""
    root = tmp_path_factory.mktemp("job")
    flags = [
        "--dataset_name",
        "user/set",
        "--push_to_hub",
        "--hub_model_id",
        "me/ddpm",
        "--hub_license",
        "mit",
        "--no_hub_private_repo",
    ]
    flags += ["--report_to", "tensorboard"] if has_tensorboard() else []
    done = run(hub, root / "home", SCRIPT, *flags, *SMALL, "--output_dir", root / "out", HF_TOKEN=TOKEN)
    return root / "out", done.stdout


def has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None


def test_a_data_set_of_the_hub_is_trained_on_and_pushed(hub, trained):
    folder, printed = trained
    assert f"Pushed to {hub.endpoint}/me/ddpm" in printed
    assert json.loads((folder / "run_summary.json").read_text())["steps"] == 4
    asked = {path for _, path in hub.requests if path.startswith("/datasets/user/set/resolve/")}
    assert asked and all(f"/resolve/{hub.commit}/" in path for path in asked)


def test_what_was_uploaded_is_the_export_and_nothing_else(hub, trained):
    folder, _ = trained
    _, tree = hub.find("me/ddpm", "main")
    assert sorted(tree) == [
        "README.md",
        "model_index.json",
        "samples/grid.png",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert all(content == (folder / name).read_bytes() for name, content in tree.items())
    assert (folder / "metrics.jsonl").is_file() and list(folder.glob("checkpoints/checkpoint-*/manifest.json"))
    assert not has_tensorboard() or list((folder / "logs").rglob("*tfevents*"))
    sent = b"".join(hub.bodies)
    for secret in (TOKEN, str(folder.parent), "tfevents", "manifest"):
        assert secret.encode() not in sent, secret
    everything = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in everything if TOKEN.encode() in path.read_bytes()]


def test_the_card_says_what_the_hub_reads(hub, trained):
    card = hub.find("me/ddpm", "main")[1]["README.md"].decode()
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    assert data["library_name"] == "latentia" and data["license"] == "mit" and data["datasets"] == ["user/set"]
    assert data["pipeline_tag"] == "unconditional-image-generation"
    [model] = data["model-index"]
    [result] = model["results"]
    assert model["name"] == "me/ddpm" and result["dataset"]["name"] == "user/set"
    assert {metric["type"] for metric in result["metrics"]} == {"fd", "kid"}  # its classes are not those of digits
    assert all(metric["value"] == metric["value"] and metric["args"]["n_samples"] == 8 for metric in result["metrics"])
    assert 'from_pretrained("me/ddpm")' in card and "samples/grid.png" in card


FRESH = """
import sys
import latentia, torch
options = dict(batch_size=3, num_inference_steps=2, output_type="pt")
images = []
for source in ("me/ddpm", sys.argv[1]):
    pipe = latentia.DiffusionPipeline.from_pretrained(source)
    assert type(pipe) is latentia.UnconditionalDiffusionPipeline and type(pipe.unet) is latentia.UNet2D, pipe
    images.append(pipe(generator=torch.Generator().manual_seed(5), **options).images)
assert images[0].shape == (3, 1, 8, 8) and torch.equal(*images) and images[0].std() > 0
from latentia.commands.main import main
main(["generate", "me/ddpm", "--num_images", "2", "--num_inference_steps", "2", "--output_dir", sys.argv[2]])
"""


def test_a_fresh_interpreter_and_the_command_sample_from_the_hub(hub, trained, tmp_path):
    folder, _ = trained
    done = run(hub, tmp_path / "home", "-c", FRESH, folder, tmp_path / "generated")
    assert "2 images" in done.stdout
    paths = sorted((tmp_path / "generated").glob("0*.png"))
    assert len(paths) == 2
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (8, 8) and json.loads(picture.text["latentia"])["pipeline"] == "me/ddpm"


def test_a_refused_push_leaves_the_export_and_the_command(hub, tmp_path, monkeypatch, capsys):
    hub.fail("POST /api/repos/create", 401, times=10**6)
    out = tmp_path / "out"
    words = ["--dataset_name", "digits", "--max_train_samples", "40", "--push_to_hub", "--hub_model_id", "me/late"]
    done = run(hub, tmp_path / "home", SCRIPT, *words, *SMALL, "--output_dir", out, code=6, HF_TOKEN=TOKEN)
    assert "hf auth login" in done.stderr and "Traceback" not in done.stderr
    [command] = re.findall(r"latentia push .*", done.stderr)
    assert shlex.split(command) == ["latentia", "push", str(out), "me/late"]
    assert "me/late" not in hub.repos
    assert json.loads((out / "run_summary.json").read_text())["steps"] == 4

    hub.faults.clear()  # the user has logged in
    point_client_at(hub, monkeypatch, str(tmp_path / "cache"))
    main(shlex.split(command)[1:])
    assert f"{hub.endpoint}/me/late" in capsys.readouterr().out
    tree = hub.find("me/late", "main")[1]
    assert {"README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= set(tree)
    assert all(content == (out / name).read_bytes() for name, content in tree.items())
