"""What is checked before the first step of a run, and what a run leaves when its images or scores fail."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from children import ended, example
from PIL import Image

import latentia
from latentia.data import PlaneData, load_images
from latentia.errors import UsageError
from latentia.evaluation import image_grid
from latentia.runs import validation
from latentia.runs.start import _use_all_cores
from latentia.training import progress
from latentia.training.loop import Hook, Phase, train

TINY = "--dataset_name digits --latent_dim 2 --hidden_sizes 8 --max_train_steps 2 --eval_num_samples 0".split()
DENSE = ("--latent_dim", "2", "--hidden_sizes", "8")
FAMILIES = {
    "ddpm": ("--block_out_channels", "8", "--attention_head_dim", "8", "--num_inference_steps", "2"),
    "vae": DENSE,
    "vqvae": ("--block_out_channels", "4", "--codebook_size", "6", "--latent_channels", "3"),
    "gan": ("--latent_dim", "2", "--block_out_channels", "4"),
    "autoencoder": (*DENSE, "--prior_components", "2"),
}


@pytest.fixture
def vae(start, tmp_path):
    """Run train_vae.py with flags: exit code, output, folder."""

    def vae(*flags, env=()):
        argv = [*TINY, *map(str, flags), "--output_dir", str(tmp_path / "run")]
        return *ended(start(example, "train_vae.py", argv, env=dict(env))), tmp_path / "run"

    return vae


@pytest.mark.parametrize(
    "flags, rule",
    [
        (("--train_batch_size", -1), "--train_batch_size must be at least 1; got -1."),
        (("--learning_rate", "nan"), "--learning_rate must be positive and finite; got nan."),
        (("--adam_beta1", 1), "--adam_beta1 must be in [0, 1); got 1.0."),
        (("--ema_decay", 1.5), "--ema_decay must be in [0, 1); got 1.5."),
        (("--checkpointing_steps", 0), "--checkpointing_steps must be at least 1; got 0."),
        (("--eval_num_samples", -5), "--eval_num_samples must be at least 0; got -5."),
        (("--resolution", 0), "--resolution must be at least 1; got 0."),
        (("--report_to", "tensorbord"), "--report_to must be one of"),
        (("--report_to", "comet_ml"), "needs the package comet_ml, which is not installed: pip install comet_ml."),
    ],
)
def test_values_out_of_range_are_refused(vae, flags, rule):
    code, text, folder = vae(*flags)
    assert code == 2 and rule in text and "Traceback" not in text and not folder.exists(), text


def test_class_dropout_is_a_share():
    from latentia import DDPMScheduler, UNet2D
    from latentia.losses.diffusion import diffusion_loss
    from latentia.rng import Rng

    unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), num_class_embeds=2)
    batch = {"x": torch.zeros(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(UsageError, match=r"class_dropout must be in \[0, 1\]; got 1.5"):
        diffusion_loss(unet, DDPMScheduler(), batch, Rng(0, 0, 2, 0, 2), class_dropout=1.5)


@pytest.fixture(scope="module")
def see_through(tmp_path_factory):
    """Images with four channels."""
    folder, rng = tmp_path_factory.mktemp("rgba"), np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA").save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_four_channels_train_to_the_end(family, see_through, start, tmp_path):
    argv = [
        "--train_data_dir",
        str(see_through),
        "--channels",
        "4",
        "--max_train_steps",
        "2",
        "--train_batch_size",
        "8",
    ]
    argv += [*FAMILIES[family], "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(example, f"train_{family}.py", argv))
    assert code == 0, text
    assert (tmp_path / "run" / "model_index.json").exists() and (tmp_path / "run" / "samples" / "grid.png").exists()


def test_a_grid_lays_images_on_white_by_their_opacity():
    red = torch.tensor([1.0, -1.0, -1.0])
    images = torch.stack([torch.cat([red, opacity]) for opacity in torch.tensor([[1.0], [0.0], [-1.0]])])
    grid = image_grid(images[:, :, None, None].expand(-1, -1, 4, 4), columns=3, padding=0, tile=4)
    assert [grid.getpixel((4 * i, 0)) for i in range(3)] == [(255, 0, 0), (255, 128, 128), (255, 255, 255)]


def broken(log, env, script, argv, moment):
    """The example with grids that fail, from the first one or from that of the last step on."""
    from latentia.runs import validation

    drawn, real = [], validation.image_grid

    def image_grid(images, tile_labels):
        drawn.append(len(images))
        if moment == "first" or len(images) > 8:
            raise UsageError("images cannot be drawn today.")
        return real(images, tile_labels=tile_labels)

    validation.image_grid = image_grid
    example(log, env, script, argv)


def test_images_are_tried_before_the_first_step(start, tmp_path):
    argv = [*TINY, "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(broken, "train_vae.py", argv, "first"))
    assert code == 2 and "images cannot be drawn today" in text
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_outlast_images_that_fail(start, tmp_path):
    """The last checkpoint is written before the last images; the same command then finishes the run."""
    argv = [*TINY, "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(broken, "train_vae.py", argv, "last"))
    assert code == 2 and "images cannot be drawn today" in text
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2").is_dir()
    code, text = ended(start(example, "train_vae.py", argv))
    assert code == 0 and "checkpoint-2: step 2 of 2" in text, text
    assert (tmp_path / "run" / "model_index.json").exists() and (tmp_path / "run" / "samples" / "grid.png").exists()


def test_grids_go_to_the_tracker(vae):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, text, folder = vae("--report_to", "tensorboard", "--validation_steps", 1)
    assert code == 0, text
    events = next((folder / "logs").rglob("events*")).parent
    found = EventAccumulator(str(events)).Reload()
    assert {"samples/ema", "samples/raw"} <= {*found.Tags()["images"]}
    assert [image.step for image in found.Images("samples/ema")] == [1, 2]


def test_a_resumed_run_says_where_it_goes_on(vae):
    assert vae()[0] == 0
    code, text, _ = vae("--max_train_steps", 3)
    assert code == 0 and "checkpoint-2: step 2 of 3" in text and "3/3" in text


class Launcher:
    """The parent of a process, as psutil shows it."""

    def __init__(self, env, words):
        self.environ, self.cmdline = lambda: env, lambda: words


@pytest.mark.parametrize(
    "child, parent, words, all_cores",
    [
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {}, ["accelerate", "launch"], True),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, {}, ["torchrun"], True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {"OMP_NUM_THREADS": "1"}, ["accelerate", "launch"], False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {}, ["accelerate", "launch", "--num_cpu_threads_per_process=1"], False),
        ({}, {}, ["bash"], False),  # OMP_NUM_THREADS=1 python train_vae.py
    ],
)
def test_a_launcher_leaves_no_core_idle(monkeypatch, child, parent, words, all_cores):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (child | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(psutil, "Process", lambda pid: Launcher(parent, words) if pid == os.getppid() else None)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(8)}, raising=False)
    _use_all_cores()
    assert chosen == ([8 // int(child.get("LOCAL_WORLD_SIZE", 1))] if all_cores else [])


def test_a_run_without_a_bar_ends_as_others(monkeypatch, tmp_path):
    """TQDM_DISABLE is read when tqdm is imported; the bar then lacks attributes."""
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, disable=True))
    weights, data = torch.nn.Linear(2, 1), PlaneData("ring")
    accelerator = Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(weights, torch.optim.SGD(weights.parameters(), 0.1))
    seen = []
    phase = Phase("network", lambda batch, rng: {"loss": network(batch["x"]).square().mean()}, network, optimizer)
    hook = Hook(1, lambda at: seen.append(at.step) or {"warning": "so"})
    train(accelerator, [phase], data, output_dir=tmp_path, max_steps=3, batch_size=4, hooks=[hook])
    assert seen == [1, 2, 3]


def test_the_bar_counts_steps(vae):
    code, text, folder = vae()
    assert code == 0 and "2/2" in text and "steps" in text and "validate" in text
    assert json.loads((folder / "run_summary.json").read_text())["steps"] == 2


def test_grids_say_what_their_images_are(monkeypatch):
    drawn = []
    monkeypatch.setattr(validation, "image_grid", lambda images, tile_labels=None: drawn.append(tile_labels))
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    unet, data = latentia.UNet2D(sample_size=8, in_channels=1, num_class_embeds=3, **config), load_images("digits")
    for names, expected in ((["cat", "dog", "bird"], ["cat", "dog", "bird", "cat"]), (None, ["0", "1", "2", "0"])):
        pipe = latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler(), label_names=names)
        validation.draw_grid(validation.sampler(lambda _, pipe=pipe: pipe, unet, data, num_inference_steps=1)(4, 0))
        assert drawn.pop() == expected
    vae = latentia.VAE(sample_size=8, latent_dim=2)
    validation.draw_grid(validation.sampler(latentia.VAEPipeline, vae, data)(4, 0))
    assert drawn.pop() is None
    validation.draw_grid(validation.reconstructor(latentia.VAEPipeline, vae, data)(4, 0))
    assert drawn.pop() == ["original", "decoded"] * 2


def test_a_warm_up_that_is_most_of_the_run_is_said(vae):
    assert "The learning rate rises for most of the 2 steps. A tenth is usual: --lr_warmup_steps 1" in vae()[1]
    assert "The learning rate rises" not in vae("--max_train_steps", 4, "--lr_warmup_steps", 2)[1]


def test_files_of_others_in_the_folder_are_refused_or_stay(vae, tmp_path):
    (tmp_path / "run" / "vae").mkdir(parents=True)
    (tmp_path / "run" / "vae" / "notes.txt").write_text("mine")
    code, text, folder = vae()
    assert code == 2 and "holds vae, which no run wrote there" in text and not (folder / "checkpoints").exists()
    (folder / "vae").rename(tmp_path / "vae")
    assert vae()[0] == 0
    for name in ("vae/notes.txt", "samples/notes.txt", "checkpoints/notes.txt", "notes.txt"):
        (folder / name).write_text("mine")
    (folder / "vae" / "old.safetensors").write_text("mine")
    for flags in (["--max_train_steps", 3], ["--overwrite_output_dir"]):  # a new export, and a new start
        code, text, folder = vae(*flags)
        assert code == 0, text
        for name in ("vae/notes.txt", "samples/notes.txt", "checkpoints/notes.txt", "notes.txt", "vae/old.safetensors"):
            assert (folder / name).read_text() == "mine"
    assert [path.name for path in folder.glob("checkpoints/checkpoint-*")] == ["checkpoint-2"]


def test_a_name_that_is_no_utf8_reaches_the_export(start, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/run_\xe9")
    code, text = ended(start(example, "train_vae.py", [*TINY, "--output_dir", folder]))
    assert code == 0 and "Traceback" not in text, text
    assert "run_\\udce9" in Path(folder, "README.md").read_text(encoding="utf-8")


def full(log, env, argv):
    """The example whose export finds no room."""
    from latentia.runs import export

    def plot_curves(*_, **__):
        raise OSError(28, "No space left on device")

    export.plot_curves = plot_curves
    example(log, env, "train_vae.py", argv)


def test_a_full_disk_in_the_export_is_said_and_mended(start, tmp_path):
    argv = [*TINY, "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(full, argv))
    assert code == 5 and "No space left on device" in text and "start the same command again" in text, text
    code, text = ended(start(example, "train_vae.py", argv))
    assert code == 0 and (tmp_path / "run" / "model_index.json").exists(), text
