"""What is installed is whole: the wheel, in a clean environment, away from the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from helpers import perturbed

from latentia import DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, **kwargs) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=280, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_outside_the_repository(tmp_path):
    torch.manual_seed(0)
    unet = perturbed(UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8))
    UnconditionalDiffusionPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "saved")

    source = tmp_path / "source"  # built from a copy, so that no build folder of the repository gets in
    wanted = ("src/", "pipelines/", "examples/", "setup.py", "pyproject", "README", "LICENSE")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file() and name.startswith(wanted):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "--no-deps --no-build-isolation --no-index --quiet".split()
    run(sys.executable, "-m", "pip", "wheel", *build, "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("latentia-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {n.removeprefix("src/") for n in names if n.startswith("src/latentia/") and not (ROOT / n).is_symlink()}
    package |= {f"latentia/{n}" for n in names if n.startswith(("pipelines/", "examples/")) and n.endswith(".py")}
    assert package - inside == set()

    # A new environment that sees this one's dependencies, but not the editable install, which needs its .pth file.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    zipfile.ZipFile(wheel).extractall(site)
    (Path(site) / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    program = (
        "import latentia, torch, sys\n"
        "assert latentia.__file__.startswith(sys.prefix), latentia.__file__\n"
        "pipe = latentia.DiffusionPipeline.from_pretrained('saved')\n"
        "pipe(2, num_inference_steps=2)\n"
        "from latentia.data import load_images\n"
        "from latentia.evaluation import load_extractor\n"
        "counts = [len(load_images(name)) for name in ('digits', 'emoji')]\n"
        "print(type(pipe).__name__, *counts, load_extractor('mnist').name)"
    )
    environment = {**os.environ, "LATENTIA_CACHE": str(tmp_path / "cache")}
    out = run(python, "-c", program, cwd=tmp_path, env=environment)
    assert out.split() == ["UnconditionalDiffusionPipeline", "1797", "1717", "mnist"]

    # Without the extras, as `pip install latentia` leaves it: every command that needs none of them runs.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare")
    bare = tmp_path / "bare" / "bin" / "python"
    place = Path(run(bare, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    zipfile.ZipFile(wheel).extractall(place)
    left_out = ("transformers", "tokenizers", "tensorboard", "peft", "latentia", "__editable__")
    for dependency in Path(torch.__file__).parents[1].iterdir():
        if not dependency.name.lower().startswith(left_out):
            (place / dependency.name).symlink_to(dependency)
    assert "absent" in run(bare, "-c", "import importlib.util as u; print(u.find_spec('transformers') or 'absent')")
    commands = (
        "generate saved --num_images 2 --num_inference_steps 2",
        "evaluate saved --data digits --n 20 --metrics kid --num_inference_steps 2",
        "verify saved",
        "train vae --dataset_name digits --max_train_steps 2 --latent_dim 2 --hidden_sizes 8 --output_dir vae",
    )
    program = (  # in one process, as starting takes seconds
        "import sys\nfrom latentia.commands.main import main\nfor command in sys.argv[1:]:\n    main(command.split())"
    )
    run(bare, "-c", program, *commands, cwd=tmp_path, env=environment)
    assert (tmp_path / "vae" / "run_summary.json").exists()

    # The training scripts come with it: listed, run by two processes, and copied to be changed.
    config = ROOT / "examples" / "accelerate" / "two_cpu_processes.yaml"
    launch = [python, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "latentia"]
    flags = [
        *("--dataset_name", "digits", "--max_train_samples", 48, "--eval_num_samples", 0, "--max_train_steps", 3),
        *("--train_batch_size", 4, "--latent_dim", 2, "--hidden_sizes", 8, "--output_dir", tmp_path / "run"),
    ]
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    out = run(*launch, "train", "vae", *flags, cwd=tmp_path, env=environment)
    summary = json.loads((tmp_path / "run" / "run_summary.json").read_text())
    assert "2 x cpu" in out and summary["command"][:3] == ["latentia", "train", "vae"]
    program = (
        "import runpy, sys\n"
        "from latentia.commands.main import main\n"
        "main(['train'])\n"
        "main(['train', '--eject', 'vae'])\n"
        "sys.argv = ['train_vae.py', '--help']\n"
        "runpy.run_path('train_vae.py', run_name='__main__')"
    )
    out = run(python, "-c", program, cwd=tmp_path, env=environment)
    assert all(Path(name).stem.removeprefix("train_") in out for name in names if name.startswith("examples/train_"))
    assert "--latent_dim" in out
