"""Surroundings out of the ordinary: the locale C, a home that cannot be written, another hash seed, no Hub."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import EXAMPLES, ONE_CORE, ended, example
from PIL import Image

SMALL = [
    *("--dataset_name", "digits", "--max_train_samples", "40", "--block_out_channels", "4", "32", "--patch_size", "2"),
    *("--max_train_steps", "3", "--checkpointing_steps", "2", "--train_batch_size", "8", "--eval_num_samples", "0"),
    *("--num_inference_steps", "1"),
]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.fault
def test_odd_surroundings_change_no_bit(start, tmp_path):
    """C as the locale, a home that cannot be written, temporary files on another file system, Python's
    hashes of another seed, names that are not ASCII."""
    code, text = ended(start(example, "train_ddpm.py", [*SMALL, "--output_dir", str(tmp_path / "plain")]))
    assert code == 0, text
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "Zahlen größer 空"
    places = [place for place in ("/dev/shm", "/tmp") if os.access(place, os.W_OK)]
    elsewhere = next((p for p in places if os.stat(p).st_dev != os.stat(tmp_path).st_dev), "/tmp")
    odd = {
        **{"LC_ALL": "C", "LANG": "C", "PYTHONHASHSEED": "77"},
        **{"HOME": str(tmp_path / "file" / "home"), "TMPDIR": elsewhere},
        **ONE_CORE,
    }
    left_out = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "LATENTIA_FAILPOINT")
    env = {key: value for key, value in os.environ.items() if key not in left_out} | odd
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / "train_ddpm.py"), *SMALL, "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert weights(folder) == weights(tmp_path / "plain")
    with Image.open(folder / "loss.png") as curves:
        assert min(curves.size) > 200 and len(curves.getcolors(10**6)) > 20
    told = json.loads((folder / "training_config.json").read_text(encoding="utf-8"))
    assert told["output_dir"] == str(folder)
    assert not (tmp_path / "file" / "home").exists()
    # Without a place for the cache it says so, and how to name one.
    command = [*SMALL, "--output_dir", str(tmp_path / "refused")]
    code, text = ended(start(example, "train_ddpm.py", command, env={"LATENTIA_CACHE": "", "HOME": odd["HOME"]}))
    assert code == 4 and "set LATENTIA_CACHE to a folder" in text and "Traceback" not in text, text


def is_ready(log: str, env: dict[str, str]) -> None:
    sys.exit(0 if getattr(sys.modules.get("preload"), "READY", False) else 1)


def test_children_start_from_a_process_that_imported_everything(start):
    """A server that fails to import something goes on without a word, and each child takes seconds longer."""
    assert ended(start(is_ready))[0] == 0
