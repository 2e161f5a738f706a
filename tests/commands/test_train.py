"""`latentia train FAMILY`: the shipped training scripts, run and copied without the repository."""

import json
import runpy
import signal
import sys
from pathlib import Path

import pytest
from children import EXAMPLES, ended, enter, example, ranks
from safetensors.torch import load_file

from latentia.commands.main import main
from latentia.commands.train import families, train
from latentia.errors import UsageError

STEPS = 6
FLAGS = (
    *("--dataset_name", "digits", "--max_train_samples", "48", "--eval_num_samples", "0", "--latent_dim", "2"),
    *("--hidden_sizes", "8", "--max_train_steps", f"{STEPS}", "--checkpointing_steps", "2", "--train_batch_size", "8"),
)


def command(log: str, env: dict[str, str], argv: list[str]) -> None:
    """`latentia ARGV` in a process of its own."""
    enter(log, env)
    sys.argv = ["latentia", *argv]
    runpy.run_module("latentia", run_name="__main__", alter_sys=True)


def flags(folder: Path, *more: str) -> list[str]:
    return [*FLAGS, *more, "--output_dir", str(folder)]


def exported(folder: Path) -> bytes:
    return (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def by_script(context, tmp_path_factory):
    """The folder that the script leaves when it is run as a program."""
    folder = tmp_path_factory.mktemp("script")
    child = context.Process(target=example, args=(str(folder / "log"), {}, "train_vae.py", flags(folder / "run")))
    child.start()
    child.join(120)
    assert child.exitcode == 0, (folder / "log").read_text()
    return folder / "run"


def test_every_script_is_a_family_with_a_summary(capsys):
    scripts = {path.stem.removeprefix("train_") for path in EXAMPLES.glob("train_*.py")}
    main(["train"])
    out = capsys.readouterr().out
    assert {*families()} == scripts and "vae" in scripts
    assert all(summary.startswith("Train") and summary in out for summary in families().values())


def test_an_unknown_family_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "vqvea", "--max_train_steps", "3"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and 'Did you mean "vqvae"?' in err and all(name in err for name in families())
    with pytest.raises(SystemExit) as exit:  # flags, but no family
        main(["train", "--max_train_steps", "3"])
    assert exit.value.code == 2


def test_the_help_of_a_family_is_that_of_its_script(capsys):
    argv = list(sys.argv)
    with pytest.raises(SystemExit) as exit:
        main(["train", "vae", "--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0 and "usage: latentia train vae " in out and "--latent_dim" in out and sys.argv == argv


def test_training_equals_the_script_and_records_how_to_repeat_it(start, by_script, tmp_path):
    code, text = ended(start(command, ["train", "vae", *flags(tmp_path / "run")]))
    assert code == 0, text
    assert exported(tmp_path / "run") == exported(by_script)
    words = json.loads((tmp_path / "run" / "run_summary.json").read_text())["command"]
    assert words[:3] == ["latentia", "train", "vae"] and words[3 : 3 + len(FLAGS)] == [*FLAGS]
    assert "latentia train vae --dataset_name digits" in (tmp_path / "run" / "README.md").read_text()
    code, text = ended(start(command, ["train", "vae", *flags(tmp_path / "run")]))
    assert code == 0 and "Nothing to do" in text


def test_a_killed_run_resumes_to_the_same_bytes(start, by_script, tmp_path):
    argv = ["train", "vae", *flags(tmp_path / "run")]
    code, _ = ended(start(command, argv, env={"LATENTIA_FAILPOINT": "after-rename"}))
    assert code == -signal.SIGKILL and (tmp_path / "run" / "checkpoints" / "checkpoint-2").exists()
    code, text = ended(start(command, argv))
    assert code == 0, text
    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())
    assert summary["restarts"] == 1 and exported(tmp_path / "run") == exported(by_script)


def test_exit_codes_and_configuration_files_equal_the_script(start, tmp_path):
    (tmp_path / "run.yaml").write_text("dataset_name: digits\nlearning_raet: 1\n")
    code, text = ended(start(command, ["train", "vae", "--config", str(tmp_path / "run.yaml")]))
    assert code == 2 and 'unknown key "learning_raet"' in text
    code, text = ended(start(command, ["train", "vae", "--train_data_dir", str(tmp_path / "none")]))
    assert code == 4, text


def test_two_processes_equal_one(start, by_script, tmp_path):
    argv = ["train", "vae", *flags(tmp_path / "run", "--train_batch_size", "4")]
    for child in ranks(start, command, argv):
        code, text = ended(child)
        assert code == 0, text
    name = "vae/diffusion_pytorch_model.safetensors"
    one, two = (load_file(folder / name) for folder in (by_script, tmp_path / "run"))
    assert all((two[key] - one[key]).abs().max() < 1e-5 for key in one)


def test_an_ejected_script_runs_elsewhere(start, by_script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "--eject", "vae"])
    assert (tmp_path / "train_vae.py").read_text() == (EXAMPLES / "train_vae.py").read_text()
    assert "train_vae.py" in capsys.readouterr().out
    code, text = ended(start(example, str(tmp_path / "train_vae.py"), flags(tmp_path / "run")))
    assert code == 0 and exported(tmp_path / "run") == exported(by_script), text
    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())
    assert summary["command"][:2] == ["python", "train_vae.py"] and "commit" not in summary["lineage"]
    main(["train", "--eject", "gan", "--output", "mine.py"])
    main(["train", "vae", "--eject", "--output", "after.py"])  # in the order of the usage line
    assert (tmp_path / "after.py").read_text() == (tmp_path / "train_vae.py").read_text()
    with pytest.raises(UsageError, match="eject takes no flags of the script; got --latent_dim 2"):
        train("vae", "--eject", "--latent_dim", "2")
    assert "GAN" in (tmp_path / "mine.py").read_text()


def test_an_ejected_script_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_vae.py").write_text("mine")
    with pytest.raises(UsageError, match=r"output must not exist; train_vae\.py does"):
        train("vae", eject=True)
    with pytest.raises(UsageError, match="cannot be written"):
        train("vae", eject=True, output=tmp_path / "no" / "folder.py")
    with pytest.raises(UsageError, match="family is missing"):
        train(eject=True)
    assert (tmp_path / "train_vae.py").read_text() == "mine"


def test_errors_of_the_library_name_flags(start, tmp_path):
    argv = ["train", "vae", *flags(tmp_path / "run", "--block_out_channels", "0")]
    code, text = ended(start(command, argv))
    assert code == 2 and "error: --block_out_channels must" in text
