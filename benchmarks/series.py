"""Time series and sounds: scores of `latentia train series` and `latentia train sound` beside real data and baselines.

    python benchmarks/series.py
    python benchmarks/series.py --parts vowels

`series`: sines_ar2, v-prediction, beside the AR(2) process of the Yule-Walker equations, whose spectrum in closed form
is compared too; `flow`: the same by flow matching. `tones` and `vowels`: class accuracy of generated clips, beside real
clips that went through log-mel frames and Griffin-Lim, with the error of their frames. `series_codes` and `tone_codes`:
a VQ-VAE and a transformer over its codes, so many steps each, beside held-out signals that the VQ-VAE reconstructs.
`autoencoders`: a convolutional and a recurrent one of 16 latents, beside as many principal components: the share of the
variance of held-out series that is not reconstructed, the scores of samples of a Gaussian mixture of the latents, and
the AUROC of AR(2) series by the error of autoencoders that are trained on the series of sines alone. A fifth of the
data is held out by each run and is the real-data score. Settings are the defaults of the scripts, but for the number of
steps and the sizes of VQ-VAEs and autoencoders; none was chosen by these scores. Seconds are of the processor, on one
thread, with the start. Figures are drawn into docs/images.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia import DiffusionPipeline, LogMel
from latentia.commands.evaluate import evaluate
from latentia.data import load_sounds
from latentia.data.series import load_series
from latentia.evaluation.anomalies import ranking_scores
from latentia.evaluation.report.curves import draw_second_order, draw_series
from latentia.evaluation.report.spectrograms import draw_spectrograms
from latentia.evaluation.series_metrics import autocorrelation, spectrum
from latentia.files.writing import write_image
from latentia.functional.autoregression import ar2_spectrum, fit_ar2
from latentia.runs.series import set_of
from latentia.runs.sounds import set_of as set_of_sounds

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "docs" / "images"
QUIET = "--eval_num_samples 0 --checkpointing_steps 100000 --class_conditional"
PARTS = {  # part -> family, flags, baseline
    "series": ("series", "--dataset_name sines_ar2", "ar2"),
    "flow": ("series", "--dataset_name sines_ar2 --prediction_type flow", "ar2"),
    "tones": ("sound", "--dataset_name tones", "griffin_lim"),
    "vowels": ("sound", "--dataset_name vowels", "griffin_lim"),
}
CODES = {  # part -> data, flags of the VQ-VAE and of the transformer
    "series_codes": ("sines_ar2", "--block_out_channels 32 64 --codebook_size 256", "--width 128 --layers 2"),
    "tone_codes": ("tones", "--block_out_channels 128 --codebook_size 256", "--width 128 --layers 2"),
}
AUTOENCODERS = {
    "autoencoder": "--latent_dim 16 --block_out_channels 32 64",
    "recurrent_autoencoder": "--latent_dim 16 --learning_rate 2e-3",
}


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def train(family: str, flags: str, steps: int, folder: Path) -> float:
    """Run the script; processor seconds."""
    quiet = QUIET if family in ("series", "sound", "vq_prior") else QUIET.replace(" --class_conditional", "")
    words = [*flags.split(), *quiet.split(), "--max_train_steps", str(steps), "--output_dir", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "latentia", "train", family, *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def closed_form() -> float:
    """Spectrum error of the AR(2) fit in closed form, against the series that are trained on."""
    known = set_of(load_series("sines_ar2").parts()[0])
    real = known.scaled(*known.centres())
    a1, a2, noise = fit_ar2(torch.from_numpy(autocorrelation(real, 2)[:, 1:3]))[0]
    found = spectrum(real)[0]
    density = ar2_spectrum(a1, a2, noise, torch.linspace(0, 0.5, len(found), dtype=torch.float64)).numpy()
    return float(0.5 * np.abs(density / density.sum() - found).sum())


def frames_error(name: str) -> float:
    """Mean absolute difference in decibels of the log-mel frames of held-out clips before and after Griffin-Lim."""
    known, held_out = load_sounds(name).parts()
    codec = LogMel.fit(torch.from_numpy(known.waves), known.sampling_rate)
    before = codec.encode(torch.from_numpy(held_out.waves))
    deviation = codec.scale.view(torch.float64)[1].float()[:, None]
    again = codec.encode(codec.decode(before))
    return float(((again - before) * deviation).abs().mean()) * 20 / float(np.log(10))


def measure(part: str, steps: int, inference_steps: int) -> dict[str, Any]:
    family, flags, baseline = PARTS[part]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / part
        seconds = train(family, flags, steps, folder)
        started = time.process_time()
        ours: Any = evaluate(str(folder), num_inference_steps=inference_steps)
        scoring = time.process_time() - started
    beside: Any = evaluate(baseline, flags.split()[1])
    row: dict[str, Any] = {
        "flags": f"{flags} {QUIET}", "steps": steps, "num_inference_steps": inference_steps,
        "training_seconds": round(seconds, 1), "sampling_and_scoring_seconds": round(scoring, 1), "n": ours.report.n,
    }  # fmt: skip
    for key, score in ours.report.scores.items():
        row[key] = {"generated": score.value, "real": score.real, baseline: beside.report[key].value}
    if family == "series":
        row["spectrum"]["ar2 closed form"] = closed_form()
        sides = {"real": set_of(ours.real), "generated": set_of(ours.made), "AR(2)": set_of(beside.made)}
        if part == "series":
            write_image(IMAGES / "series.png", draw_series(sides, ["value"], 5))
            write_image(IMAGES / "series-spectra.png", draw_second_order(sides, ["value"]))
    else:
        row["griffin_lim_error_decibels"] = frames_error(part)
        sounds = {"real": set_of_sounds(ours.real), "generated": set_of_sounds(ours.made)}
        write_image(IMAGES / f"{part}.png", draw_spectrograms(sounds, ours.real.label_names))
    return row


def measure_codes(part: str, steps: int) -> dict[str, Any]:
    """A VQ-VAE and a transformer over its codes; and held-out signals through the VQ-VAE alone."""
    name, of_vqvae, of_prior = CODES[part]
    with tempfile.TemporaryDirectory() as place:
        vqvae, prior = Path(place) / "vqvae", Path(place) / "prior"
        seconds = train("vqvae", f"--dataset_name {name} {of_vqvae}", steps, vqvae)
        more = train("vq_prior", f"--dataset_name {name} --vqvae {vqvae} {of_prior}", steps, prior)
        ours: Any = evaluate(str(prior))
        pipe: Any = DiffusionPipeline.from_pretrained(vqvae)
        data = load_sounds(name) if part == "tone_codes" else load_series(name)
        held_out = data.parts()[1]
        again = pipe.decode(pipe.encode(held_out), output_type=pipe.modality)
        again = replace(again, labels=held_out.labels, label_names=held_out.label_names)
        beside: Any = evaluate(again, data)
    row: dict[str, Any] = {
        "flags": [of_vqvae, of_prior], "steps": steps, "codes": list(pipe.vqvae.code_shape),
        "training_seconds": [round(seconds, 1), round(more, 1)], "n": ours.report.n,
    }  # fmt: skip
    for key, score in ours.report.scores.items():
        row[key] = {"generated": score.value, "real": score.real, "reconstructed": beside.report[key].value}
    return row


def measure_autoencoders(steps: int) -> dict[str, Any]:
    """Autoencoders of series and principal components: reconstruction, samples and anomalies."""
    known, held_out = load_series("sines_ar2").parts()
    assert known.labels is not None
    sines = known.take(known.labels == 0)

    def components(train: Any, x: Any) -> np.ndarray:
        """Squared error of each series by 16 principal components."""
        a, b = train.values[:, 0], x.values[:, 0]
        axes = np.linalg.svd(a - a.mean(0), full_matrices=False)[2][:16]
        centred = b - a.mean(0)
        return np.square(centred - centred @ axes.T @ axes).sum(1)

    def auroc(errors: Any) -> float:
        return ranking_scores(torch.as_tensor(errors), torch.from_numpy(held_out.labels == 1))["AUROC"]

    centred = held_out.values[:, 0] - known.values[:, 0].mean()
    row: dict[str, Any] = {
        "flags": AUTOENCODERS, "steps": steps,
        "pca": {"unexplained": components(known, held_out).sum() / np.square(centred).sum(),
                "auroc": auroc(components(sines, held_out))},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        sines.frame().drop(columns="label").to_csv(Path(place) / "sines.csv", index=False)
        for family, flags in AUTOENCODERS.items():
            whole, normal = Path(place) / family, Path(place) / f"{family}-sines"
            seconds = train(family, f"--dataset_name sines_ar2 {flags}", steps, whole)
            train(family, f"--train_data_dir {place}/sines.csv --held_out_share 0 {flags}", steps, normal)
            ours: Any = evaluate(str(whole))
            pipe, of_sines = (DiffusionPipeline.from_pretrained(folder) for folder in (whole, normal))
            variance = float((pipe.codec.scale.view(torch.float64)[1] ** 2).sum())
            error = float(pipe.anomaly_score(held_out).double().sum()) * variance
            row[family] = {
                "training_seconds": round(seconds, 1), "unexplained": error / float(np.square(centred).sum()),
                "auroc": auroc(of_sines.anomaly_score(held_out)),
                **{key: {"generated": score.value, "real": score.real} for key, score in ours.report.scores.items()},
            }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*PARTS, *CODES, "autoencoders"]
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "series.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    for part in args.parts:
        if part == "autoencoders":
            row = measure_autoencoders(args.steps)
        elif part in CODES:
            row = measure_codes(part, args.steps)
        else:
            row = measure(part, args.steps, args.num_inference_steps)
        about = {
            "command": " ".join(["python", *sys.argv]), "commit": head(), "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS"),
            "latentia": version("latentia"),
        }  # fmt: skip
        found[part] = {**row, **about}
        args.output.write_text(json.dumps(found, indent=2) + "\n")
        print(part, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
