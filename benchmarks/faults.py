"""What the promises of `docs/guarantees.md` cost and how often they were put to the test.

    python benchmarks/faults.py --parts cost verification corruptions
    python benchmarks/faults.py --parts kills --kills 100

Parts: `cost`, what a checkpoint costs in training with defaults; `verification`, seconds to check a gigabyte, and those
of SHA-256 alone; `corruptions`, files of a checkpoint flipped, cut, grown, emptied and deleted, and how many of
these were seen; `kills`, every family killed at random moments and started again, with the end compared bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lecture_diffusion import environment

from latentia.errors import CheckpointError
from latentia.training.checkpoint import load_checkpoint, rotate, save_checkpoint, verify_checkpoint

HERE = Path(__file__).resolve().parent
RUNS = {  # the default networks, on pictures of 28 x 28 where a folder is given
    "diffusion": "train_ddpm.py",
    "GAN": "train_gan.py",
    "VAE": "train_vae.py",
}
KINDS = ("flip", "cut", "grow", "empty", "delete")


def trained(script: str, folder: Path, data: list[str], steps: int) -> tuple[Path, float]:
    """The last checkpoint of a run with defaults, and the seconds of one of its steps."""
    command = [sys.executable, str(HERE.parent / "examples" / script), *data, "--max_train_steps", str(steps)]
    command += ["--output_dir", str(folder), "--eval_num_samples", "0", "--logging_steps", "1"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    config = json.loads((folder / "training_config.json").read_text())
    rate = json.loads((folder / "run_summary.json").read_text())["images_per_second"]
    return folder / "checkpoints" / f"checkpoint-{steps}", config["train_batch_size"] / rate


def cost(args, folder: Path) -> dict:
    data = ["--train_data_dir", args.train_data_dir] if args.train_data_dir else ["--dataset_name", "digits"]
    found = {}
    for name, script in RUNS.items():
        path, step_seconds = trained(script, folder / name, data, args.steps)
        state, manifest = load_checkpoint(path)
        info = {key: manifest[key] for key in ("progress", "config", "world_size", "versions")}
        times = []
        for step in range(args.rounds):
            started = time.perf_counter()
            save_checkpoint(folder / "saved", step, state, info, "cost")
            rotate(folder / "saved", 3, "cost")
            times.append(time.perf_counter() - started)
        shutil.rmtree(folder / "saved")
        save = statistics.median(times)
        found[name] = {
            "MB": sum(file.stat().st_size for file in path.iterdir()) / 1e6,
            "ms of a save, median": 1e3 * save,
            "ms of a step": 1e3 * step_seconds,
            "percent of training, one in 500 steps": 100 * save / (500 * step_seconds),
        }
    return {"data": args.train_data_dir or "digits", "target percent": 1, "families": found}


def verification(args, folder: Path) -> dict:
    size = 2**30
    save_checkpoint(folder, 1, {"net": {"weight": torch.randn(size // 4)}}, {}, "verification")
    path, times, floor = folder / "checkpoint-1", [], []
    data = memoryview(bytearray(os.urandom(2**20)) * 256)
    for _ in range(3):
        started = time.perf_counter()
        verify_checkpoint(path)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
        hashlib.sha256(data)
        floor.append((time.perf_counter() - started) * size / len(data))
    shutil.rmtree(path)
    return {"seconds for 1 GiB": min(times), "SHA-256 of as much in memory": min(floor)}


def corruptions(args, folder: Path) -> dict:
    """Every kind on every file, so many times each with another seed; the checkpoint is put back in between."""
    data = ["--dataset_name", "digits"]
    path, _ = trained("train_gan.py", folder / "run", data, 2)
    verify_checkpoint(path)
    chance, tried, missed = random.Random(0), dict.fromkeys(KINDS, 0), []
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for kind in KINDS:
            for _ in range(args.corruptions if kind in ("flip", "cut", "grow") else 1):
                if kind == "delete":
                    file.unlink()
                else:
                    file.write_bytes(corrupted(whole, kind, chance))
                tried[kind] += 1
                try:
                    verify_checkpoint(path)
                    missed.append(f"{kind} {file.name}")
                except CheckpointError:
                    pass
                file.write_bytes(whole)
    verify_checkpoint(path)
    return {"files": len(list(path.iterdir())), "tried": tried, "sum": sum(tried.values()), "missed": missed}


def corrupted(whole: bytes, kind: str, chance: random.Random) -> bytes:
    at = chance.randrange(len(whole))
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
    return {"cut": whole[:at], "grow": whole + chance.randbytes(chance.randint(1, 100)), "empty": b""}[kind]


def kills(args, folder: Path) -> dict:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "nightly",
        "tests/contracts/test_families.py",
        "-k",
        "killed_many_times",
    ]
    command += ["-rA", "--timeout", "7200"]
    env = {**os.environ, "LATENTIA_KILLS": str(args.kills), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True)
    passed = re.findall(r"^PASSED .*\[(\w+)\]", done.stdout, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) .*\[(\w+)\]", done.stdout, re.MULTILINE)
    if not passed and not failed:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return {"of each family": args.kills, "bit-equal": passed, "not": failed}


PARTS = {"cost": cost, "verification": verification, "corruptions": corruptions, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["cost", "verification", "corruptions"])
    parser.add_argument("--train_data_dir", help="pictures for cost; not given: the embedded digits")
    parser.add_argument("--steps", type=int, default=40, help="of the runs for cost")
    parser.add_argument("--rounds", type=int, default=15, help="saves for cost")
    parser.add_argument("--corruptions", type=int, default=200, help="flips, cuts and additions of each file")
    parser.add_argument("--kills", type=int, default=100, help="of each family")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "faults.json")
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = PARTS[part](args, Path(folder))
        about = {"command": f"python benchmarks/faults.py {' '.join(sys.argv[1:])}".strip(), **environment()}
        found[part] = {**result, "seconds": round(time.perf_counter() - started, 1), **about}
        print(part, json.dumps(result, indent=1), flush=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
