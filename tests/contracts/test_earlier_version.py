"""Folders that latentia 0.1 saved are refused with the version and a way out: never a half load, never a traceback."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save, save_file

import latentia
from latentia.commands.main import main
from latentia.errors import CheckpointError
from latentia.training.ownership import MARK

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSIONS = {"latentia": "0.1.0.dev0", "python": "3.11.7"}


def network(folder, name, config, shapes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.36.0", **config}))
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / WEIGHTS, {"format": "pt"})


def vae(folder):
    """Its setting `decoder` is `likelihood` today, and its weights `heads` are `posterior`."""
    config = {
        "sample_size": [8, 8], "in_channels": 1, "latent_dim": [2], "hidden_sizes": [4], "block_out_channels": [],
        "activation": "silu", "decoder": "bernoulli", "observation_std": None, "num_class_embeds": None,
    }  # fmt: skip
    shapes = {
        "down.1.weight": (4, 64), "down.1.bias": (4,), "heads.weight": (4, 4), "heads.bias": (4,),
        "up.0.weight": (4, 2), "up.0.bias": (4,), "out.weight": (64, 4), "out.bias": (64,),
    }  # fmt: skip
    network(folder, "VAE", config, shapes)


def vqvae(folder):
    """Its settings have the names of today, and its weights have not."""
    config = {"sample_size": [8, 8], "in_channels": 1, "block_out_channels": [4, 4], "layers_per_block": 1}
    config |= {"codebook_size": 6, "latent_channels": 3, "quantizer": "vq", "levels": None}
    today = latentia.VQVAE(**config).state_dict()
    names = {"quant_conv": "to_latents", "quantize": "bottleneck", "post_quant_conv": "from_latents"}
    shapes = {}
    for key, value in today.items():
        part, _, rest = key.partition(".")
        shapes[f"{names.get(part, part)}.{rest}"] = value.shape
    network(folder, "VQVAE", config, shapes)


def run_folder(folder, component, build):
    """What a training run of version 0.1 left: a pipeline, a checkpoint and its flags."""
    build(folder / component)
    kind = {"vae": "VAE", "vqvae": "VQVAE"}[component]
    index = {"_class_name": f"{kind}Pipeline", "_diffusers_version": "0.36.0", component: ["latentia", kind]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "training_config.json").write_text(json.dumps({"decoder": "bernoulli", "dataset_name": "digits"}))
    saved = folder / "checkpoints" / "checkpoint-2"
    saved.mkdir(parents=True)
    files = {f"{component}.model.safetensors": save({"heads.weight": torch.zeros(4, 4)})}
    files[f"{component}.model.json"] = b"{}"
    for name, content in files.items():
        (saved / name).write_bytes(content)
    manifest = {
        "format": 1, "step": 2, "run_id": "0123456789ab", "versions": VERSIONS, "config": {"decoder": "bernoulli"},
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }  # fmt: skip
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (saved / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


@pytest.fixture(params=[("vae", vae), ("vqvae", vqvae)], ids=["settings", "weights"])
def old(request, tmp_path):
    return run_folder(tmp_path / "old", *request.param)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *words):
    """The error of a command, one line, which must be all that it prints beside the progress bar of diffusers."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main([*map(str, words)])
    said = capsys.readouterr()
    assert exit.value.code == 5 and "Traceback" not in said.out + said.err and "Written" not in said.out
    *bars, error = said.err.splitlines()
    assert error.startswith("error: ") and all("Loading pipeline components" in bar for bar in bars if bar)
    return error


def test_loaders_refuse_it(old):
    kind = latentia.VAE if (old / "vae").exists() else latentia.VQVAE
    pipeline = latentia.VAEPipeline if (old / "vae").exists() else latentia.VQVAEPipeline
    (component,) = (path.parent for path in old.glob("*/config.json"))
    for load, place in (
        (kind.from_pretrained, component),
        (pipeline.from_pretrained, old),
        (latentia.DiffusionPipeline.from_pretrained, old),
    ):
        with pytest.raises(CheckpointError, match=r"saved by latentia 0\.1, .* Train it again, or load it with"):
            load(place)


def test_commands_refuse_it(old, tmp_path, capsys):
    before, out = contents(old), tmp_path / "out"
    for words in (
        ("generate", old, "--output_dir", out),
        ("evaluate", old, "--data", "digits", "--n", 16, "--output_dir", out),
        ("verify", next(old.glob("*/config.json")).parent),
    ):
        assert "saved by latentia 0.1, " in (said := refused(capsys, *words)) and "Train it again" in said, words
    assert "by latentia 0.1.0.dev0, in checkpoint format 1" in refused(capsys, "verify", old)
    assert contents(old) == before and not out.exists()


@pytest.mark.parametrize("resume", ["auto", "latest", "checkpoints/checkpoint-2"])
def test_a_run_does_not_resume_from_it(tmp_path, capsys, resume):
    old = run_folder(tmp_path / "old", "vae", vae)
    before = contents(old)
    value = str(old / resume) if "/" in resume else resume
    small = ("--hidden_sizes", 4, "--latent_dim", 2, "--max_train_steps", 4, "--train_batch_size", 8)
    words = ("train", "vae", "--dataset_name", "digits", *small, "--output_dir", old, "--resume_from_checkpoint", value)
    said = refused(capsys, *words)
    assert "by latentia 0.1.0.dev0, in checkpoint format 1; this version reads format 2" in said
    assert "Train anew in another --output_dir" in said
    left = {path: content for path, content in contents(old).items() if path.name not in (".lock", MARK)}
    assert left == before  # beside the list of the names that a run claims


def test_its_flags_are_no_configuration_of_today(tmp_path, capsys):
    old = run_folder(tmp_path / "old", "vae", vae)
    with pytest.raises(SystemExit) as exit:
        main(["train", "vae", "--config", str(old / "training_config.json"), "--output_dir", str(tmp_path / "new")])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    assert 'training_config.json: unknown key "decoder"' in said and "latentia 0.1" in said
    assert not (tmp_path / "new").exists()
