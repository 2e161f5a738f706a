"""--minutes: as many steps as fit, found by timing a few."""

import json
import time
import weakref
from dataclasses import replace

import pytest
from children import ended, example, ranks
from PIL import Image

from latentia import VAE, VAEPipeline
from latentia.losses.variational import elbo_loss
from latentia.runs.arguments import DataArguments, OptimizationArguments, OutputArguments, RunArguments
from latentia.runs.pace import Measured, expected_end, fitting
from latentia.runs.run import Run
from latentia.runs.start import load_data
from latentia.training import checkpoint

SHORT = "--dataset_name digits --latent_dim 2 --hidden_sizes 8 --eval_num_samples 0".split()


def paced(log, env, script, argv, seconds):
    """The example with steps of a known length."""
    real = VAE.forward

    def slow(*args, **options):
        time.sleep(seconds)
        return real(*args, **options)

    VAE.forward = slow
    example(log, env, script, argv)


def counted(log, env, script, argv, seconds):
    """As `paced`, and each process says how many steps its run has."""
    from latentia.runs import run

    real = run.train

    def train(*args, max_steps, **options):
        print("STEPS", max_steps, flush=True)
        return real(*args, max_steps=max_steps, **options)

    run.train = train
    paced(log, env, script, argv, seconds)


def config(folder):
    return json.loads((folder / "training_config.json").read_text())


def test_as_many_steps_as_fit(start, tmp_path):
    argv = [*SHORT, "--minutes", "0.1", "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(paced, "train_vae.py", argv, 0.1))
    assert code == 0 and "about 0.1 minutes, until" in text, text
    steps = config(tmp_path / "run")["max_train_steps"]
    assert 20 <= steps <= 60  # 6 s of steps that take .1 s and what else a step costs
    assert f"{steps} steps of 64" in text and f"{steps}/{steps}" in text
    # The same command again keeps the steps, however fast the machine is now.
    code, text = ended(start(example, "train_vae.py", argv))
    assert code == 0 and "Nothing to do" in text and config(tmp_path / "run")["max_train_steps"] == steps, text


def test_a_run_that_goes_on_says_what_is_left(tmp_path):
    optimization = OptimizationArguments(minutes=8.0, max_train_steps=400)
    args = RunArguments(output=OutputArguments(output_dir=str(tmp_path)), optimization=optimization)
    assert expected_end(args).startswith(", about 8 minutes, until ")
    (tmp_path / "checkpoints" / "checkpoint-300").mkdir(parents=True)
    assert expected_end(args).startswith(", about 2 minutes, until ")
    anew = replace(args, output=replace(args.output, resume_from_checkpoint="none"))
    assert expected_end(anew).startswith(", about 8 minutes, until ")
    (tmp_path / "checkpoints" / "checkpoint-400").mkdir()
    assert expected_end(args) == ""


def test_the_trial_leaves_no_network_and_no_checkpoint(tmp_path, monkeypatch):
    """Else its networks and optimizers would take memory during the whole run."""
    networks, folders = [], []

    def main(args):
        run = Run(args, family="vae")
        vae = run.prepare("vae", VAE(**run.image, latent_dim=2, hidden_sizes=(8,)))
        networks.append(weakref.ref(vae.module))
        folders.append(run.folder)
        return run.train([vae.phase(lambda batch, rng: elbo_loss(vae.network, batch, rng))], VAEPipeline)

    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *args: pytest.fail("a trial saved"))
    args = RunArguments(
        data=DataArguments(dataset_name="digits"),
        output=OutputArguments(output_dir=str(tmp_path / "run"), checkpointing_steps=1),
        optimization=OptimizationArguments(minutes=1.0),
    )
    assert fitting(args, main).optimization.max_train_steps > 50
    assert networks[0]() is None and not folders[0].exists() and not (tmp_path / "run").exists()


def test_what_is_not_taken_is_said_once(tmp_path, caplog):
    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("x")

    def main(args):
        load_data(args.data)
        raise Measured(1.0)

    args = RunArguments(
        data=DataArguments(train_data_dir=str(tmp_path)), optimization=OptimizationArguments(minutes=1.0)
    )
    args = replace(args, output=replace(args.output, output_dir=str(tmp_path / "run")))
    load_data(fitting(args, main).data)
    assert caplog.text.count("not taken") == 1


def test_two_processes_take_the_same_steps(start, tmp_path):
    argv = [*SHORT, "--minutes", "0.05", "--output_dir", str(tmp_path / "run")]
    found = []
    for child in ranks(start, counted, "train_vae.py", argv, 0.05):
        code, text = ended(child)
        assert code == 0, text
        found.append(int(text.rpartition("STEPS ")[2].split()[0]))
    assert found == [config(tmp_path / "run")["max_train_steps"]] * 2 and 5 <= found[0] <= 60


@pytest.mark.parametrize(
    "script, flags",
    [
        ("train_autoencoder.py", "--latent_dim 2 --hidden_sizes 8 --layerwise_steps 2 --prior_components 2"),
        ("train_gan.py", "--latent_dim 2 --block_out_channels 4"),
    ],
)
def test_scripts_of_several_parts_and_phases(script, flags, start, tmp_path):
    argv = ["--dataset_name", "digits", *flags.split(), "--eval_num_samples", "0", "--minutes", "0.01"]
    code, text = ended(start(example, script, [*argv, "--output_dir", str(tmp_path / "run")]))
    assert code == 0, text
    assert (tmp_path / "run" / "model_index.json").exists()


def test_minutes_and_steps_exclude_each_other(start, tmp_path):
    argv = [*SHORT, "--minutes", "1", "--max_train_steps", "5", "--output_dir", str(tmp_path / "run")]
    code, text = ended(start(example, "train_vae.py", argv))
    assert code == 2 and "--minutes and --max_train_steps exclude each other" in text
    code, text = ended(
        start(example, "train_vae.py", [*SHORT, "--minutes", "0", "--output_dir", str(tmp_path / "run")])
    )
    assert code == 2 and "--minutes must be positive; got 0.0." in text
