"""The command `latentia`: what each subcommand does, and how it refuses nonsense."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import perturbed
from huggingface_hub import constants
from PIL import Image

import latentia
from latentia import DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D, commands
from latentia.commands.main import main
from latentia.commands.output import check_output
from latentia.errors import UsageError
from latentia.runs.arguments import check_ranges


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    unet = perturbed(UNet2D(sample_size=8, in_channels=1, num_class_embeds=10, **config))
    folder = tmp_path_factory.mktemp("saved")
    UnconditionalDiffusionPipeline(unet, DDIMScheduler(), label_names=list("abcdefghij")).save_pretrained(folder)
    return folder


def stops(capsys, code, *argv):
    """What a command that ends with `code` prints."""
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in argv])
    assert exit.value.code == code
    return capsys.readouterr()


def fails(capsys, code, *argv) -> str:
    return stops(capsys, code, *argv).err


def test_ctrl_c_and_a_closed_pipe_end_without_a_traceback(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(commands), "votes", interrupted)
    assert stops(capsys, 130, "votes").err == "Stopped.\n"
    program = "import time; from latentia.commands.main import main; time.sleep(1); main(['--version'])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 141


def test_help_is_instant_because_nothing_heavy_is_imported():
    program = (
        "import sys; from latentia.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: code = e.code\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'transformers', 'datasets', 'tyro'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(commands.__all__) > 12 and all(f"  {name} " in done.stdout for name in commands.__all__)


def test_generate_writes_pictures_that_carry_their_recipe(saved, tmp_path, capsys):
    argv = ["generate", saved, "--num_images", "3", "--class_labels", "2", "j", "--num_inference_steps", "3"]
    for out in ("a", "b"):
        main([*map(str, argv), "--output_dir", str(tmp_path / out)])
    assert "3 images" in capsys.readouterr().out
    images = [Image.open(tmp_path / "a" / f"{i:05d}.png") for i in range(3)]
    recipes = [json.loads(image.text["latentia"]) for image in images]
    assert [r["class_label"] for r in recipes] == [2, "j", 2] and [r["index"] for r in recipes] == [0, 1, 2]
    assert recipes[0]["seed"] == 0 and recipes[0]["num_inference_steps"] == 3
    pixels = [image.tobytes() for image in images]
    assert len(set(pixels)) == 3
    assert pixels == [Image.open(tmp_path / "b" / f"{i:05d}.png").tobytes() for i in range(3)]
    main([*map(str, argv), "--sampler", "dpm-solver++", "--output_dir", str(tmp_path / "c")])
    assert Image.open(tmp_path / "c" / "00000.png").tobytes() != pixels[0]


def test_a_class_of_five_thousand_digits_is_refused(saved, tmp_path, capsys):
    error = fails(capsys, 2, "generate", saved, "--class_labels", "9" * 5000, "--output_dir", tmp_path / "out")
    assert "--class_labels must be one of" in error


def test_a_name_that_is_a_number_is_a_name(tmp_path, capsys):
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    unet = UNet2D(sample_size=8, in_channels=1, num_class_embeds=3, **config)
    UnconditionalDiffusionPipeline(unet, DDIMScheduler(), label_names=["1", "2", "x"]).save_pretrained(
        tmp_path / "saved"
    )
    argv = ["generate", tmp_path / "saved", "--class_labels", "1", "2", "0", "--num_images", "3"]
    main([*map(str, argv), "--num_inference_steps", "1", "--output_dir", str(tmp_path / "out")])
    recipes = []
    for file in sorted((tmp_path / "out").glob("0000?.png")):
        with Image.open(file) as image:
            recipes.append(json.loads(image.text["latentia"]))
    assert [recipe["class_label"] for recipe in recipes] == ["1", "2", 0]


def test_data_says_what_a_set_holds(capsys):
    main(["data", "digits"])
    out = capsys.readouterr().out
    assert "1797 images of shape (1, 8, 8)" in out


def test_names_of_files_cannot_command_a_terminal(tmp_path, capsys):
    """A class folder of others may be named by the codes that set a title or clear the screen."""
    for name in ("plain", "odd\x1b]0;title\x07"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "set" / name / "a.png")
    main(["data", str(tmp_path / "set")])
    out = capsys.readouterr().out
    assert "odd\\x1b]0;title\\x07" in out and "\x1b" not in out and "\x07" not in out


def test_doctor_shows_no_password_of_an_address(capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    (handler,), logged = logging.getLogger("huggingface_hub").handlers, io.StringIO()
    monkeypatch.setattr(handler, "stream", logged)  # which the library opened before the test
    with pytest.raises(SystemExit):
        main(["doctor", "--hub", "--max_seconds", "2"])
    printed = capsys.readouterr()
    assert "http://***@127.0.0.1:9" in printed.out and "secret" not in printed.out + printed.err + logged.getvalue()
    assert "http://***@127.0.0.1:9" in logged.getvalue()  # of a retry


def test_verify_knows_pipelines_checkpoints_and_runs(saved, tmp_path, capsys):
    from latentia.training.checkpoint import save_checkpoint

    main(["verify", str(saved)])
    assert "every weight in place" in capsys.readouterr().out
    path = save_checkpoint(tmp_path / "checkpoints", 7, {"net": {"w": torch.ones(3)}}, {}, "run")
    for folder in (path, tmp_path):
        main(["verify", str(folder)])
        assert "whole, step 7" in capsys.readouterr().out
    weights = path / "net.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "net.safetensors" in fails(capsys, 5, "verify", tmp_path)
    assert "is not there" in fails(capsys, 5, "verify", tmp_path / "nothing")


def test_verify_names_weights_that_are_not_finite(tmp_path, capsys):
    network = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), layers_per_block=1)
    with torch.no_grad():
        network.conv_in.bias[0] = float("nan")
    network.save_pretrained(tmp_path / "unet")
    UnconditionalDiffusionPipeline(network, DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    for folder in ("unet", "pipe"):
        error = fails(capsys, 5, "verify", str(tmp_path / folder))
        assert "UNet2D has weights in conv_in.bias that are not finite" in error


def test_doctor_prints_versions_and_never_a_token(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanarycanary")
    main(["doctor"])
    out = capsys.readouterr().out
    assert torch.__version__ in out and latentia.__version__ in out and "logged in" in out and "canary" not in out


def test_doctor_says_what_would_stop_a_run(tmp_path, capsys, monkeypatch):
    main(["doctor", "--output_dir", str(tmp_path / "not" / "yet")])
    out = capsys.readouterr().out
    assert f"{tmp_path}/not/yet, writable" in out and not (tmp_path / "not").exists()
    assert "accelerate      config:" in out and "determinism" in out and "huggingface.co" not in out
    (tmp_path / "file").write_text("")
    assert "cannot be made" in stops(capsys, 2, "doctor", "--output_dir", tmp_path / "file" / "run").out
    full = tmp_path / "proc"
    full.symlink_to("/proc")  # which nobody can write into, not even root
    assert "cannot be written" in stops(capsys, 2, "doctor", "--output_dir", full).out
    wanted = ["torch<1", "nothing_of_this_name", 'ruff<0; extra == "x"']
    monkeypatch.setattr(sys.modules["latentia.commands.doctor"], "requires", lambda _: wanted)
    said = stops(capsys, 2, "doctor").out
    assert "torch<1" in said and "nothing_of_this_name is not installed" in said and "ruff" not in said


def test_doctor_asks_the_hub_only_if_told_and_not_for_long(capsys, monkeypatch, tmp_path):
    import socket

    from hub_server import point_client_at, running_hub

    from latentia.commands import doctor

    with running_hub() as hub:
        point_client_at(hub, monkeypatch, str(tmp_path))
        main(["doctor"])
        assert hub.requests == []
        main(["doctor", "--hub"])
        assert hub.requests and "answers" in capsys.readouterr().out
        hub.fail("GET /api/whoami", 401, times=100)
        assert "did not answer as it should" in stops(capsys, 2, "doctor", "--hub").out
    with socket.socket() as silent:  # takes the question and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hub.endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point_client_at(hub, monkeypatch, str(tmp_path))
        assert doctor(hub=True, max_seconds=0.2).problems == [
            "The Hub did not answer within 0.2 s: check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ]


def test_doctor_knows_the_versions_that_were_tested():
    from pathlib import Path

    from latentia.commands.doctor import TESTED

    lines = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text().splitlines()
    assert TESTED == {name: tested for name, tested in (line.split("==") for line in lines) if name in TESTED}


def test_nonsense_is_refused_with_a_way_out(saved, tmp_path, capsys):
    assert "user/name" in fails(capsys, 2, "generate", tmp_path / "nothing here")
    assert "0 to 9" in fails(capsys, 2, "generate", saved, "--class_labels", "12")
    assert "num_images must be at least 1" in fails(capsys, 2, "generate", saved, "--num_images", "0")
    assert "num_inference_steps" in fails(capsys, 2, "generate", saved, "--num_inference_steps", "5000")
    assert 'Did you mean "num_images"?' in fails(capsys, 2, "generate", saved, "--num_image", "3")
    assert "generate" in fails(capsys, 2, "generat")
    assert "(3, 32, 32)" in fails(capsys, 2, "evaluate", saved, "--data", "emoji")
    assert "model_index.json" in fails(capsys, 5, "push", tmp_path, "me/thing")


@pytest.mark.parametrize("place, code", [("> /dev/full", 2), (">&-", 0), ("2>&-", 0), ("| true", 0)])
def test_output_that_cannot_be_written_is_no_traceback(place, code):
    command = f"{sys.executable} -m latentia --help {place}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.returncode == code and "Traceback" not in found.stderr
    assert ("No space left on device: the output" in found.stderr) == (code == 2)


@pytest.mark.parametrize("words", [["verify"], ["data"], ["generate"], ["card"], ["evaluate"], ["votes", "a"]])
@pytest.mark.parametrize("path", ["a" * 300, "~no-such-user/photos"])
def test_paths_that_no_system_has_are_errors(words, path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, path])
    assert ended.value.code in (2, 4, 5) and "error: " in capsys.readouterr().err


def test_a_current_folder_that_was_deleted_is_an_error(tmp_path):
    """In a process of its own: torch would end it at its import, with words about a library of Intel."""
    command = f"cd {tmp_path} && rmdir {tmp_path} && {sys.executable} -m latentia doctor"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "") and "current folder was deleted" in found.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda path: commands.data("digits", cache_dir=path),
        lambda path: commands.data("digits", preview=path),
        lambda path: commands.pull("user/name", path),
        lambda path: commands.convert("a.bin", path),
        lambda path: commands.train("vae", eject=True, output=path),
        lambda path: check_output(path, "generate"),
        lambda path: check_ranges(SimpleNamespace(output=SimpleNamespace(output_dir=path))),
    ],
)
def test_a_path_with_a_zero_character_is_refused_by_name(call):
    for path in ("a\0b.png", Path("a\0.safetensors")):
        with pytest.raises(UsageError, match=r"\A(cache_dir|preview|folder|output(_dir)?) must hold no zero"):
            call(path)


def test_a_long_prompt_is_not_taken_for_a_folder(saved):
    assert "num_inference_steps" in sys.modules["latentia.commands.generate"].options(
        ["--prompt", "a" * 300, str(saved)]
    )


def test_a_disk_that_is_full_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "latentia.files.writing.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space", "x"))
    )
    with pytest.raises(SystemExit, match="2"):
        main(["sheet", "pca", "--data", "digits", "--trials", "2", "--output_dir", str(tmp_path)])
    assert "No space" in capsys.readouterr().err
