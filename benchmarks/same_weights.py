"""Compare the weights that every training script of two checkouts gives for equal flags, to the last bit.

    python benchmarks/same_weights.py --old ../latentia-before --old_python ../latentia-before/.venv/bin/python

Each script runs for a few steps in both checkouts with the same flags. All safetensors files of the run's folder
(checkpoints with optimizer moments, averages, the exported pipeline) must hold the same tensors; names of tensors may
differ. The table goes to `benchmarks/results/same_weights.json`; the exit code is 1 when a tensor differs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parents[1]
COMMON = (
    "--max_train_steps 6 --checkpointing_steps 3 --train_batch_size 8 --lr_warmup_steps 2 --adam_epsilon 1e-3 "
    "--max_train_samples 48"
)
DIGITS, EMOJI = "--dataset_name digits", "--dataset_name emoji"
UNET = "--block_out_channels 4 32 --num_inference_steps 1"
GAN = "--latent_dim 4 --block_out_channels 4 --generator_norm none"
# Name -> script and flags; {name} is the folder of an earlier run of the same checkout.
KINDS = {
    "ddpm": ("ddpm", f"{DIGITS} {UNET} --class_conditional --dropout 0.1"),
    "ddpm_variance": ("ddpm", f"{DIGITS} {UNET} --learned_variance --time_sampling uniform --no_use_ema"),
    "ddpm_accumulated": ("ddpm", f"{DIGITS} {UNET} --gradient_accumulation_steps 2 --gradient_checkpointing"),
    "autoencoder": ("autoencoder", f"{DIGITS} --latent_dim 3 --hidden_sizes 8 --prior_components 2"),
    "autoencoder_layers": ("autoencoder", f"{DIGITS} --latent_dim 3 --hidden_sizes 8 --layerwise_steps 4"),
    "autoencoder_sparse": (
        "autoencoder",
        f"{DIGITS} --latent_dim 5 --block_out_channels 4 --latent_activation sigmoid "
        "--sparsity kl --sparsity_weight 0.5 --corruption masking --corruption_strength 0.3",
    ),
    "vae": ("vae", f"{DIGITS} --latent_dim 2 --hidden_sizes 8"),
    "vae_layers": ("vae", f"{DIGITS} --latent_dim 3 2 --hidden_sizes 8 --upper_hidden_sizes 6 --capacity 2.0"),
    "vae_iwae": ("vae", f"{DIGITS} --latent_dim 2 --hidden_sizes 8 --importance_samples 3 --class_conditional"),
    "vae_gaussian": ("vae", f"{DIGITS} --latent_dim 2 --block_out_channels 4 --likelihood gaussian --free_bits 0.1"),
    "vqvae": ("vqvae", f"{DIGITS} --block_out_channels 4 --codebook_size 6 --latent_channels 3"),
    "vqvae_fsq": ("vqvae", f"{DIGITS} --block_out_channels 4 --quantizer fsq --levels 3 3 --latent_channels 2"),
    "autoencoder_kl": (
        "autoencoder_kl",
        f"{DIGITS} --block_out_channels 4 4 --norm_num_groups 2 --latent_channels 2 --discriminator_channels 4 4 "
        "--adversarial_start 0.3 --calibration_samples 16",
    ),
    "gan": ("gan", f"{DIGITS} {GAN}"),
    "gan_remedies": ("gan", f"{DIGITS} {GAN} --n_critic 2 --regularise_every 2 --augment ada --replay 16"),
    "gan_classes": ("gan", f"{DIGITS} {GAN} --class_conditional --objective hinge --instance_noise 0.1"),
    "gan_captions": ("gan", f"{EMOJI} {GAN} --caption --augment diff"),
    "gan_plane": ("gan_plane", "--hidden_sizes 8 --frame_steps 0"),
    "text_encoder": ("text_encoder", f"{EMOJI} --width 32 --text_layers 1 --image_layers 1 --projection_dim 8"),
    "latent_diffusion": ("latent_diffusion", f"{DIGITS} {UNET} --autoencoder {{vqvae}}"),
    "latent_flow": ("latent_diffusion", f"{DIGITS} {UNET} --autoencoder {{autoencoder_kl}} --prediction_type flow"),
    "text_to_image": (
        "text_to_image",
        f"{EMOJI} --text_encoder {{text_encoder}} --block_out_channels 8 8 --attention_head_dim 8 --patch_size 4 "
        "--num_inference_steps 1",
    ),
    "vq_prior": ("vq_prior", f"{DIGITS} --vqvae {{vqvae}} --width 32 --layers 1 --dropout 0 --class_conditional"),
}

RENAMED = {  # today's flag -> the old one
    "--latent_activation": "--code_activation",
    "--likelihood": "--decoder",
    "--corruption_strength": "--corruption_level",
}

# Runs each of a list of commands in a fork of one process that has imported the libraries.
DRIVER = """
import json, os, runpy, sys
import torch, diffusers, accelerate, transformers, pyarrow.parquet, sklearn.mixture, matplotlib.figure
import diffusers.models.autoencoders.autoencoder_kl
torch.set_num_threads(1)
for script, argv, log in json.load(sys.stdin):
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = [script, *argv]
        sys.path[0] = os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        sys.exit(f"{script} ends with {code}: {open(log).read()[-4000:]}")
    open(os.path.join(argv[-1], "done"), "w").close()
"""


def train(checkout: Path, python: str, work: Path, names: list[str], renamed: dict[str, str]) -> None:
    """Run the kinds, in their order, whose folders do not stand already."""
    commands = []
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        script, flags = KINDS[name]
        if not (work / name / "done").exists():
            common = COMMON if "--dataset_name" in flags else COMMON.split(" --max_train_samples")[0]
            if script != "gan_plane" and script != "text_encoder":
                common += " --eval_num_samples 0"
            words = f"{flags.format(**{other: work / other for other in KINDS})} {common}".split()
            argv = [*(renamed.get(word, word) for word in words), "--output_dir", str(work / name)]
            commands.append((str(checkout / "examples" / f"train_{script}.py"), argv, str(work / f"{name}.log")))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LATENTIA_CACHE": str(work / "cache"), "ACCELERATE_USE_CPU": "true"}
    subprocess.run([python, "-c", DRIVER], input=json.dumps(commands), text=True, env=env, check=True)


def contents(folder: Path) -> dict[str, list[str]]:
    """File -> a digest of each tensor in it, sorted; what stands under another name is the same."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(key).contiguous() for key in file.keys()]
        found[str(path.relative_to(folder))] = sorted(
            sha256(f"{t.dtype} {tuple(t.shape)}".encode() + t.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
            for t in (tensor.reshape(-1) if tensor.ndim == 0 else tensor for tensor in tensors)
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="the other checkout")
    parser.add_argument("--old_python", default=sys.executable, help="a Python in which that checkout is installed")
    parser.add_argument("--names", nargs="*", default=list(KINDS), help="kinds to run")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/same_weights"))
    args = parser.parse_args()
    sides = {"old": (args.old, args.old_python), "new": (HERE, sys.executable)}
    work = args.work_dir.resolve()
    for side, (checkout, python) in sides.items():
        train(checkout, python, work / side, args.names, RENAMED if side == "old" else {})
    rows = []
    for name in args.names:
        old, new = contents(work / "old" / name), contents(work / "new" / name)
        differ = sorted(file for file in {*old, *new} if old.get(file) != new.get(file))
        rows.append({"kind": name, "files": len(new), "tensors": sum(map(len, new.values())), "differ": differ})
        print(f"{name:20} {len(new):3} files, {rows[-1]['tensors']:5} tensors: {differ or 'equal'}", flush=True)
    commits = [
        subprocess.run(["git", "-C", str(at), "describe", "--always", "--dirty"], capture_output=True, text=True).stdout
        for at in (args.old, HERE)
    ]
    result = {
        "command": " ".join(["python", "benchmarks/same_weights.py", "--old", "OLD"]),
        "commits": [commit.strip() for commit in commits],
        "machine": platform.machine(),
        "torch": torch.__version__,
        "equal": sum(not row["differ"] for row in rows),
        "rows": rows,
    }
    if args.names == list(KINDS):
        path = HERE / "benchmarks" / "results" / "same_weights.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["differ"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
