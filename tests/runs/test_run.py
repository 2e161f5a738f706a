"""The object of a run: what scripts rely on, and what it refuses before the first step."""

from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from latentia import VAE, UNet2D, VAEPipeline
from latentia.errors import DataError, UsageError
from latentia.losses.variational import elbo_loss
from latentia.runs.arguments import ClassArguments, RunArguments
from latentia.runs.command_line import parse_arguments
from latentia.runs.run import Run

DIGITS = ("--dataset_name", "digits", "--max_train_samples", "32", "--train_batch_size", "8", "--eval_num_samples", "0")


@dataclass(frozen=True)
class Arguments(RunArguments):
    condition: ClassArguments = ClassArguments()


def start(folder, *argv, source=DIGITS, steps=3) -> Run:
    words = [*source, "--max_train_steps", f"{steps}", "--output_dir", f"{folder}", *map(str, argv)]
    return Run(parse_arguments(Arguments, words, description=""), family="vae")


def vae(run: Run, **options):
    return run.prepare(
        "vae", VAE(**run.image, latent_dim=2, hidden_sizes=(4,), num_class_embeds=run.num_classes), **options
    )


def test_image_and_classes_come_from_the_data(tmp_path):
    run = start(tmp_path, "--class_conditional")
    assert run.image == {"sample_size": (8, 8), "in_channels": 1} and run.num_classes == 10
    assert run.label_names == [str(i) for i in range(10)] and start(tmp_path / "other").label_names is None
    run.inputs = type("Latents", (), {"shape": (4, 2, 3)})()
    assert run.image == {"sample_size": (2, 3), "in_channels": 4} and run.num_classes == 10


def test_final_weights_are_the_average_if_there_is_one(tmp_path):
    run = start(tmp_path)
    averaged, raw = vae(run), vae(run, ema=False)
    assert averaged.final is averaged.ema.module and raw.final is raw.module
    assert vae(start(tmp_path, "--no_use_ema")).final is not None


def test_phases_of_one_network_share_its_optimizer(tmp_path):
    run = start(tmp_path)
    prepared = vae(run, learning_rate=0.25)
    first, second = prepared.phase(None), prepared.phase(None, "penalty", every=4, max_grad_norm=None)
    assert (first.name, first.ema, first.every) == ("vae", prepared.ema, 1)
    assert (second.name, second.ema, second.every, second.max_grad_norm) == ("penalty", None, 4, None)
    assert first.optimizer is second.optimizer and first.optimizer.param_groups[0]["lr"] == 0.25
    assert first.learning_rate(1) == second.learning_rate(1)


def test_initial_weights_follow_the_seed(tmp_path):
    def weights(*argv):
        run = start(tmp_path, *argv)
        torch.rand(3)  # what else was random
        run.seed()
        return torch.cat([p.flatten() for p in vae(run).module.parameters()])

    assert torch.equal(weights(), weights()) and not torch.equal(weights(), weights("--seed", 1))


def test_training_exports_a_pipeline_and_resumes(tmp_path, capsys):
    def train(steps):
        run = start(tmp_path, steps=steps)
        network = vae(run)
        return run.train([network.phase(lambda batch, rng: elbo_loss(network.network, batch, rng))], VAEPipeline)

    assert train(2) == 0 and VAEPipeline.from_pretrained(tmp_path).vae.config.latent_dim == 2
    assert train(2) == 0 and "Nothing to do" in capsys.readouterr().out
    assert train(4) == 0 and (tmp_path / "samples" / "grid.png").exists()


def test_gradient_checkpointing_needs_blocks(tmp_path):
    run = start(tmp_path, "--gradient_checkpointing")
    network = vae(run)
    with pytest.raises(UsageError, match="gradient_checkpointing must be left out: VAE"):
        run.fit([network.phase(lambda batch, rng: elbo_loss(network.network, batch, rng))])
    run = start(tmp_path / "unet", "--gradient_checkpointing")
    unet = run.prepare("unet", UNet2D(**run.image, block_out_channels=(32,)))
    assert unet.module.is_gradient_checkpointing and run.checkpointed


def test_refused_before_the_first_step(tmp_path):
    with pytest.raises(DataError, match="32"):
        start(tmp_path, "--train_batch_size", 64)
    with pytest.raises(UsageError, match="max_train_steps must be at least 1; got 0"):
        start(tmp_path, steps=0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        start(tmp_path / "file")
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    run = start(
        tmp_path / "run", "--class_conditional", source=("--train_data_dir", f"{folder}", "--train_batch_size", "4")
    )
    with pytest.raises(UsageError, match="label_column"):
        run.num_classes  # noqa: B018
