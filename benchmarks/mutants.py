"""Known bugs, put back one by one into a copy of the package: each must turn tests red, or the tests guard nothing.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --names no_barrier loss_unchecked

Most of them have been in other libraries of this field. A bug is a name, a file and what is replaced there; beside it
stand the tests that are run, which are a part of the suite. They all pass on an unchanged copy first. The table goes to
`benchmarks/results/mutants.json`, each row with its commit; the exit code is 1 when a bug was not seen.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import latentia

HERE = Path(__file__).resolve().parent
LOOP, CHECKPOINT = "src/latentia/training/loop.py", "src/latentia/training/checkpoint.py"
STATE = "src/latentia/training/state.py"


@dataclass(frozen=True)
class Mutant:
    """`changes`: (what stands there, what is put in its place), each standing there exactly once."""

    name: str
    bug: str
    file: str
    changes: tuple[tuple[str, str], ...]
    tests: str


PHASES, NONFINITE = "src/latentia/training/phases.py", "src/latentia/training/nonfinite.py"
GUARD = """        if accelerator.scaler is None:
            self.guard.check("gradient", phase, norm)
"""
MUTANTS = [
    Mutant(
        "rotate_first",
        "old checkpoints are deleted before the new one is written",
        LOOP,
        (
            ("                path = ckpt.save_checkpoint(root, progress.step, trees, info, run_id)\n", ""),
            (
                "keep=frozenset({path, *([found] if found else [])}))",
                "keep=frozenset([found] if found else []))\n"
                "                ckpt.save_checkpoint(root, progress.step, trees, info, run_id)",
            ),
        ),
        "tests/training/test_training.py",
    ),
    Mutant(
        "no_barrier",
        "a process goes on while another still writes the checkpoint",
        LOOP,
        (
            (
                "found else [])}))\n            accelerator.wait_for_everyone()",
                "found else [])}))",
            ),
        ),
        "tests/contracts/test_faults.py -k before_the_checkpoint",
    ),
    Mutant(
        "average_forgets_its_age",
        "the counter of the average is not restored, so its warm-up begins again",
        "src/latentia/training/ema.py",
        (('        self.steps.copy_(state["steps"])\n', ""),),
        "tests/training/test_checkpoint.py tests/training/test_training.py",
    ),
    Mutant(
        "global_draws",
        "dropout draws from a generator whose state no checkpoint holds",
        PHASES,
        (("            seed_global(phase_seed, accelerator.device)\n", ""),),
        "tests/training/test_training.py",
    ),
    Mutant(
        "sorted_as_text",
        "checkpoint-1000 sorts before checkpoint-999",
        CHECKPOINT,
        (
            (
                "return sorted((int(match[1]), path) for match, path in matches if match)",
                "return sorted(((int(match[1]), path) for match, path in matches if match), key=lambda x: x[1].name)",
            ),
        ),
        "tests/training/test_checkpoint.py tests/training/test_training.py",
    ),
    Mutant(
        "written_in_place",
        "a checkpoint is written under its final name",
        CHECKPOINT,
        (
            (
                'staging, final = root / f".staging-{step}-{run_id}", root / f"checkpoint-{step}"',
                'staging = final = root / f"checkpoint-{step}"',
            ),
            ("        _commit(staging, final)\n", ""),
        ),
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "position_from_zero",
        "a resumed run shows the first images again",
        LOOP,
        (
            (
                "            progress.restarts += 1\n",
                "            progress.restarts += 1\n            progress.images = 0\n",
            ),
        ),
        "tests/training/test_training.py",
    ),
    Mutant(
        "checked_after_the_update",
        "a gradient that is not finite is noticed when the weights have it already",
        PHASES,
        ((GUARD, "        plain_optimizer(phase.optimizer).step()\n" + GUARD),),
        "tests/training/test_training.py -k finite",
    ),
    Mutant(
        "loss_unchecked",
        "a loss that is not finite is not noticed",
        PHASES,
        (('            self.guard.check("loss", phase, totals["loss"])\n', "            pass\n"),),
        "tests/training/test_training.py -k finite",
    ),
    Mutant(
        "each_for_itself",
        "one process stops for a loss that is not finite and the other does not know",
        NONFINITE,
        (
            (
                'several = kind == "loss" and self.accelerator.num_processes > 1',
                'several = kind == "loss" and self.accelerator.num_processes > 2',
            ),
        ),
        "tests/contracts/test_faults.py -k not_finite",
    ),
    Mutant(
        "flag_holds_nothing_back",
        "a value that is not finite is noticed on the device, and the optimizer steps all the same",
        NONFINITE,
        (("plain_optimizer(phase.optimizer).found_inf = self.found\n", "pass\n"),),
        "tests/training/test_nonfinite.py",
    ),
    Mutant(
        "steps_after_a_bad_one_count",
        "steps that were held back after one that was not finite are not made again",
        NONFINITE,
        (("        progress.images = bad.mark.progress.images + self.global_batch\n", ""),),
        "tests/training/test_nonfinite.py",
    ),
    Mutant(
        "saved_before_it_is_read",
        "a checkpoint or an image is made before the flags of the steps before it are read",
        LOOP,
        ((" or last or saved or asked or bool(due):", " or last or asked:"),),
        "tests/training/test_nonfinite.py",
    ),
    Mutant(
        "gate_at_download_only",
        "what a repository names is checked when it is fetched, not when it is loaded",
        "pipelines/base.py",
        (
            (
                "        kinds = {name: component_class(*pair, where) for name, pair in asked.items()}\n"
                '        check_components(kinds, Path(folder), kwargs.get("variant"))\n',
                "",
            ),
        ),
        "tests/contracts/test_registration.py tests/hub/test_hub.py",
    ),
    Mutant(
        "any_foreign_class",
        "a saved pipeline may name any class of diffusers and transformers",
        "src/latentia/foreign.py",
        (("    if name not in REVIEWED[library]:\n", "    if False:\n"),),
        "tests/hub/test_trial.py -k off_the_list",
    ),
    Mutant(
        "trial_ignored",
        "a tokenizer is loaded although the child process refused it",
        "src/latentia/hub/trial.py",
        (("        if wrong:\n", "        if False:\n"),),
        "tests/hub/test_trial.py -k a_child_refuses",
    ),
    Mutant(
        "schedule_of_the_first",
        "both players learn at the rate of the first",
        PHASES,
        (
            (
                "                factor = phase.learning_rate(progress.step)\n",
                "                factor = self.phases[0].learning_rate(progress.step)\n",
            ),
        ),
        "tests/training/test_training.py",
    ),
    Mutant(
        "hashes_unchecked",
        "a flipped bit in a checkpoint is trained on",
        CHECKPOINT,
        (('        if _sha256(file) != expected["sha256"]:\n', "        if False:\n"),),
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "not_on_the_disk",
        "a checkpoint gets its name before the disk has its files",
        CHECKPOINT,
        (("        sync(staging)\n", ""),),
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "one_optimizer_saved",
        "the discriminator's optimizer is not in the checkpoint",
        STATE,
        (
            (
                "        if phase.optimizer is not None:\n",
                "        if phase.optimizer is not None and phase is phases[-1]:\n",
            ),
        ),
        "tests/training/test_training.py",
    ),
    Mutant(
        "no_lock",
        "two runs write into one folder",
        STATE,
        (("        stack.enter_context(FileLock(path).acquire(timeout=0))\n", "        pass\n"),),
        "tests/training/test_training.py -k folder",
    ),
    Mutant(
        "deaf_while_sampling",
        "a signal amid sampling waits until all samples are drawn",
        LOOP,
        ((", stop.polled():\n", ":\n"),),
        "tests/training/test_training.py -k signal",
    ),
    Mutant(
        "equal_noise",
        "all processes draw the same noise",
        PHASES,
        (
            (
                "self.global_batch, offset, self.batch_size, device)",
                "self.global_batch, 0, self.batch_size, device)",
            ),
        ),
        "tests/contracts/test_faults.py -k equal_one",
    ),
    Mutant(
        "pickles",
        "weights that can run code are read if the caller asks for them",
        "src/latentia/models/modeling.py",
        (
            (
                '        if kwargs.pop("use_safetensors", True) is False:\n',
                '        if kwargs.pop("use_safetensors", 0):\n',
            ),
        ),
        "tests/contracts/test_registration.py -k pickle",
    ),
    Mutant(
        "half_loaded",
        "a network whose file lacks weights is loaded with random ones",
        "src/latentia/models/modeling.py",
        (("        if unfit and strict:\n", "        if False:\n"),),
        "tests/contracts/test_networks.py tests/contracts/test_registration.py",
    ),
    Mutant(
        "everything_pushed",
        "a push takes optimizers and checkpoints along",
        "src/latentia/hub/push.py",
        (
            (
                "    return sorted(files)\n",
                '    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())\n',
            ),
        ),
        "tests/hub/test_hub.py",
    ),
    Mutant(
        "output_not_rebuilt",
        "an output has a second field without a default, so accelerate cannot convert it in mixed precision",
        "src/latentia/models/vae.py",
        (("    location: Tensor = UNSET\n", "    location: Tensor\n"),),
        "tests/contracts/test_precision.py -k vae-bf16",
    ),
    Mutant(
        "left_on_the_cpu",
        "random numbers are made on the CPU, wherever the network is",
        "src/latentia/rng.py",
        (("self.device = start, count, torch.device(device)", 'self.device = start, count, torch.device("cpu")'),),
        "tests/contracts/test_devices.py -k no_devices",
    ),
    Mutant(
        "numbers_of_the_first_process",
        "every process makes the random numbers of the first elements of the batch",
        "src/latentia/rng.py",
        (("        first = self.position + self.start\n", "        first = self.position\n"),),
        "tests/contracts/test_families.py -k two_processes_equal_one",
    ),
    Mutant(
        "forbidden_import",
        "a network imports an objective",
        "src/latentia/models/vae.py",
        (
            (
                "from latentia.functional.checks import check_latents\n",
                "import latentia.losses.variational\nfrom latentia.functional.checks import check_latents\n",
            ),
        ),
        "tests/contracts/test_architecture.py",
    ),
    Mutant(
        "unscaled_twice",
        "fp16: the gradient is divided by the scale once for each optimizer over the same parameters",
        PHASES,
        (("accelerator.unscale_gradients(phase.optimizer)", "accelerator.unscale_gradients()"),),
        "tests/training/test_training.py -k fp16",
    ),
    Mutant(
        "clipped_before_the_scale",
        "fp16: gradients are clipped while they are multiplied by the scale",
        PHASES,
        (
            ("        accelerator.unscale_gradients(phase.optimizer)\n", ""),
            (
                "        if isinstance(norm, DTensor):\n",
                "        accelerator.unscale_gradients(phase.optimizer)\n        if isinstance(norm, DTensor):\n",
            ),
        ),
        "tests/training/test_training.py -k fp16",
    ),
    Mutant(
        "error_with_n",
        "the standard error of the kernel distance divides the row sums by n instead of n - 1",
        "src/latentia/evaluation/kernel.py",
        (("rows_a / (n - 1), rows_b / (m - 1), cross_a", "rows_a / n, rows_b / m, cross_a"),),
        "tests/evaluation/test_metrics.py -k offset",
    ),
    Mutant(
        "small_streams_in_order",
        "a stream of fewer rows than its buffer is not shuffled",
        "src/latentia/data/streaming.py",
        (("            rng.shuffle(buffer)\n", ""),),
        "tests/data/test_data.py -k stream",
    ),
    Mutant(
        "results_of_others_deleted",
        "new results in a card delete those of another data set",
        "src/latentia/hub/card.py",
        (
            (
                "if (r.dataset_name, r.metric_type) not in replaced), *new]",
                "if r.metric_type not in {metric for _, metric in replaced}), *new]",
            ),
        ),
        "tests/hub/test_card.py",
    ),
    Mutant(
        "raw_weights_exported",
        "the raw weights are exported instead of their average",
        "src/latentia/runs/run.py",
        (("        return self.module if self.ema is None else self.ema.module\n", "        return self.module\n"),),
        "tests/contracts/test_families.py -k averaged",
    ),
    Mutant(
        "renamed_weight",
        "the name of a weight changes, so that saved networks no longer fit",
        "src/latentia/models/layers/attention.py",
        (("self.to_qkv = ", "self.qkv = "), ("self.to_qkv(", "self.qkv(")),
        "tests/pipelines/test_text_to_image.py -k ready_pipeline",
    ),
    Mutant(
        "fp16_without_a_word",
        "fp16 on a CPU trains in float32",
        "src/latentia/runs/start.py",
        (('accelerator.mixed_precision == "fp16" and accelerator.scaler is None', "False"),),
        "tests/contracts/test_precision.py -k refused",
    ),
    Mutant(
        "card_without_class",
        "the code on the card of a conditional model asks for no class",
        "src/latentia/hub/usage.py",
        (("    if classes:\n", "    if False:\n"),),
        "tests/hub/test_card.py -k runs_as_printed",
    ),
    Mutant(
        "published_by_accident",
        "a push makes a public repository unless it is asked for a private one",
        "src/latentia/hub/push.py",
        (("    private: bool = True,\n", "    private: bool = False,\n"),),
        "tests/hub/test_hub.py -k private_revision",
    ),
    Mutant(
        "deletes_unlisted",
        "starting anew deletes files that no run listed",
        "src/latentia/training/ownership.py",
        (("[*patterns, *map(glob.escape, (*files, *exported))]", '["*", "*/*"]'),),
        "tests/training/test_ownership.py -k spares",
    ),
    Mutant(
        "deletes_through_links",
        "starting anew deletes what symbolic links lead to",
        "src/latentia/training/ownership.py",
        (("fnmatchcase(path.name, parts[0]) and not path.is_symlink()", "fnmatchcase(path.name, parts[0])"),),
        "tests/training/test_ownership.py -k link",
    ),
    Mutant(
        "one_scheduler_for_all_calls",
        "calls in several threads step one scheduler",
        "pipelines/denoising.py",
        (("        self.scheduler = copy.deepcopy(copy.copy(self.shown))\n", "        self.scheduler = self.shown\n"),),
        "tests/pipelines/test_every_pipeline.py -k test_threads_get_what_calls_in_turn_get",
    ),
    Mutant(
        "images_chunked_by_number",
        "workers decode so many images at once, whatever their size",
        "src/latentia/data/build.py",
        ((" or self.bytes + size > _PART_BYTES", ""),),
        "tests/data/test_bounds.py -k parts_of_workers",
    ),
    Mutant(
        "written_through_links",
        "a file is opened for writing under a name at which a link may wait",
        "src/latentia/files/writing.py",
        (
            (
                '_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)',
                "_NEW = os.O_WRONLY | os.O_CREAT",
            ),
        ),
        "tests/files",
    ),
    Mutant(
        "devices_are_read",
        "a file is read without asking whether it is a regular one",
        "src/latentia/files/reading.py",
        (("    if not stat.S_ISREG(about.st_mode):", "    if stat.S_ISDIR(about.st_mode):"),),
        "tests/files",
    ),
    Mutant(
        "logit_not_counted",
        "the log-determinant of the logit of the pixels is left out of a flow's likelihood",
        "src/latentia/functional/flows.py",
        (
            (
                "return p.log() - torch.log1p(-p), math.log(scale) - p.log() - torch.log1p(-p)",
                "return p.log() - torch.log1p(-p), torch.zeros_like(p)",
            ),
        ),
        "tests/functional/test_flows.py",
    ),
    Mutant(
        "not_dequantised",
        "a flow is trained on the middles of the bytes' intervals, where its density may become infinite",
        "src/latentia/losses/likelihood.py",
        (('= draw("dequantize", x.shape[1:]).to(x.dtype)', '= 0 * draw("dequantize", x.shape[1:]).to(x.dtype) + 0.5'),),
        "tests/models/test_flow.py -k dequantised_images",
    ),
    Mutant(
        "split_not_counted",
        "the density of the latents that a stage of a flow hands out lacks its scale",
        "src/latentia/models/flow.py",
        (
            (
                "                log_det = log_det + change\n                x, latents = x.chunk(2, 1)",
                "                x, latents = x.chunk(2, 1)",
            ),
        ),
        "tests/models/test_flow.py -k inverse_and_determinant",
    ),
    Mutant(
        "divergence_with_the_wrong_sign",
        "the log-density along an ODE loses the divergence that it must gain",
        "src/latentia/functional/continuous_flow.py",
        (("found = integral - 0.5 *", "found = -integral - 0.5 *"),),
        "tests/functional/test_continuous_flow.py",
    ),
    Mutant(
        "coupling_moves_labels",
        "optimal transport permutes the images of a batch and not their labels, instead of the noise",
        "src/latentia/losses/flow_matching.py",
        (("eps = coupled_noise(x0, eps, rng, coupling_size)", "x0 = coupled_noise(eps, x0, rng, coupling_size)"),),
        "tests/losses/test_flow_matching.py -k noise_is_permuted",
    ),
    Mutant(
        "chain_shrinks",
        "the chain of a Diffusion-GAN shrinks while the discriminator is overconfident",
        "src/latentia/losses/augmentation.py",
        (("(overfitting - self.target).sign()", "(self.target - overfitting).sign()"),),
        "tests/losses/test_diffusion_augmentation.py",
    ),
    Mutant(
        "times_not_given",
        "the discriminator of a Diffusion-GAN sees diffused samples without their times",
        "src/latentia/losses/discrimination.py",
        (('    return {"timesteps": timesteps}\n', "    return {}\n"),),
        "tests/losses/test_diffusion_augmentation.py",
    ),
    Mutant(
        "encoder_gets_gamma",
        "the weight of the decoder's reconstruction reaches the encoder of a VAE-GAN too",
        "src/latentia/losses/vae_gan.py",
        ((", decoder_gradient=1 / gamma)", ")"),),
        "tests/losses/test_vae_gan.py",
    ),
    Mutant(
        "encoder_gets_gan",
        "the encoder of a VAE-GAN learns from the adversarial loss",
        "src/latentia/losses/vae_gan.py",
        (("torch.cat([out.z.detach(), ", "torch.cat([out.z, "),),
        "tests/losses/test_vae_gan.py",
    ),
    Mutant(
        "decoder_without_gamma",
        "the decoder of a VAE-GAN gets the reconstruction without its weight",
        "src/latentia/losses/vae_gan.py",
        (('"loss": kl + gamma * likelihood + adversarial', '"loss": kl + likelihood + adversarial'),),
        "tests/losses/test_vae_gan.py",
    ),
    Mutant(
        "discriminator_without_samples",
        "the discriminator of a VAE-GAN sees reconstructions and no samples of the prior",
        "src/latentia/losses/vae_gan.py",
        (
            (
                "discriminator_loss(real, fake, objective).mean() / 2 for fake in fakes)",
                "discriminator_loss(real, fake, objective).mean() for fake in fakes[:1])",
            ),
        ),
        "tests/losses/test_vae_gan.py",
    ),
]


def copied(folder: Path) -> Path:
    """The committed tree, importable in place of the installed package."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=HERE.parent, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


def run(tree: Path, tests: str, limit: float) -> tuple[bool, float, str]:
    """Whether the tests pass, how long they took, and the last line or the first that failed."""
    paths, _, chosen = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", *paths.split()]
    command += ["-k", chosen] if chosen else []
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    started = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False, time.perf_counter() - started, f"did not end in {limit:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode > 1:  # pytest's own: nothing collected, or it could not start
        raise RuntimeError(f"{' '.join(command)} could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = next((line for line in lines if line.startswith("FAILED")), lines[-1])
    return done.returncode == 0, time.perf_counter() - started, failed.removeprefix("FAILED ").split(" - ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=[m.name for m in MUTANTS], help="not given: all")
    parser.add_argument("--limit", type=float, default=900, help="seconds for the tests of one")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "mutants.json")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.names or m.name in args.names]
    rows, commit = [], subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=HERE, text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for tests in dict.fromkeys(m.tests for m in chosen):
            passed, seconds, word = run(tree, tests, args.limit)
            print(f"unchanged  {seconds:5.0f} s  {tests}: {word}", flush=True)
            if not passed:
                sys.exit(f"{tests} must pass on an unchanged copy, or a red test says nothing.")
        for mutant in chosen:
            path = tree / mutant.file
            kept = path.with_suffix(".kept")
            shutil.copy2(path, kept)
            text = path.read_text()
            for old, new in mutant.changes:
                if text.count(old) != 1:
                    sys.exit(f"{mutant.name}: {old!r} stands {text.count(old)} times in {mutant.file}, not once.")
                text = text.replace(old, new)
            path.write_text(text)
            passed, seconds, word = run(tree, mutant.tests, args.limit)
            shutil.move(kept, path)
            rows.append({"name": mutant.name, "bug": mutant.bug, "file": mutant.file, "killed": not passed,
                         "by": None if passed else word, "seconds": round(seconds, 1), "commit": commit})  # fmt: skip
            print(f"{'MISSED' if passed else 'killed'}  {seconds:5.0f} s  {mutant.name}: {word}", flush=True)
    killed = sum(row["killed"] for row in rows)
    print(f"\n{killed} of {len(rows)} killed")
    if args.output.exists():  # of a part, beside the others of earlier commits
        earlier = json.loads(args.output.read_text())["mutants"]
        rows += [row for row in earlier if row["name"] not in {fresh["name"] for fresh in rows}]
    order = [mutant.name for mutant in MUTANTS]
    rows = sorted((row for row in rows if row["name"] in order), key=lambda row: order.index(row["name"]))
    about = {
        "command": "python benchmarks/mutants.py", "killed": sum(row["killed"] for row in rows), "of": len(rows),
        "latentia": latentia.__version__, "torch": torch.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(),
    }  # fmt: skip
    args.output.write_text(json.dumps({**about, "mutants": rows}, indent=1) + "\n")
    sys.exit(killed < len(rows))


if __name__ == "__main__":
    main()
