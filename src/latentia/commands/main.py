"""The command `latentia`. Heavy modules are imported by the command that needs them, so that `--help` is instant."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from latentia.commands.hub import card, convert, pull, push, verify
from latentia.errors import LatentiaError, UsageError

Source = Annotated[str, arg(metavar="FOLDER|USER/NAME")]
AnySource = Annotated[str, arg(metavar="FOLDER|USER/NAME|FILE|MODULE:FUNCTION|pca|kde")]


def generate(
    pipeline: Positional[Source],
    num_images: int = 8,
    prompt: tuple[str, ...] = (),
    negative_prompt: str | None = None,
    class_labels: tuple[str, ...] = (),
    image: Path | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    low_resolution: Path | None = None,
    guidance_scale: Annotated[float | None, arg(aliases=["--guidance"])] = None,
    num_inference_steps: Annotated[int | None, arg(aliases=["--steps"])] = None,
    eta: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    sampler: Literal["saved", "ddim", "ddpm", "dpm-solver++"] = "saved",
    seed: int = 0,
    revision: str | None = None,
    output_dir: Path = Path("outputs/generated"),
) -> None:
    """Sample images from any saved pipeline, as PNG files that carry their recipe, and a sheet of them all.

    Args:
        pipeline: a folder, or a repository on the Hub.
        num_images: how many; several prompts or class labels are given out in turn.
        prompt: what the images show, for pipelines that are told a text.
        negative_prompt: what they stay away from, with a guidance other than 1.
        class_labels: classes by index or name.
        image: a picture to start from, of the size that the pipeline makes.
        mask: a picture of that size, white where new pixels are made and black where those of image are kept.
        strength: 0 gives image back, 1 begins with noise alone; 0.8 if not given, or 1 with a mask.
        low_resolution: a small picture to make a large one of.
        guidance_scale: how strongly to follow class or text; 1 is as trained. The pipeline's default if not given.
        num_inference_steps: network evaluations per image; the pipeline's default if not given.
        eta: 0 deterministic, 1 as noisy as DDPM; the pipeline's default if not given.
        temperature: less than 1 makes images more typical and alike; the pipeline's default if not given.
        top_k: draw each code from so many of the likeliest, for priors over codes; from all if not given.
        top_p: draw each code from the fewest that have this probability together; from all if not given.
        sampler: the saved scheduler, or another one over the same noise.
        seed: the same seed gives the same images.
        revision: branch, tag or commit on the Hub.
        output_dir: where the files go.
    """
    from latentia.commands.generate import generate, save

    images, recipes = generate(
        pipeline, num_images, prompt=prompt, sampler=sampler, seed=seed, revision=revision,
        class_labels=[int(label) if label.lstrip("-").isdigit() else label for label in class_labels],
        guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, eta=eta,
        negative_prompt=negative_prompt, image=image, mask=mask, strength=strength, low_resolution=low_resolution,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    save(images, recipes, output_dir)
    print(f"{len(images)} images in {output_dir}, each with its recipe in the PNG's text, and sheet.png of them all.")


def evaluate(
    source: Positional[AnySource],
    data: str = "digits",
    split: str = "train",
    n: int = 500,
    metrics: tuple[str, ...] = (),
    extractor: str | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    likelihood_images: int = 0,
    latent_images: int = 0,
    seed: int = 0,
    revision: str | None = None,
    output_dir: Path = Path("outputs/evaluation"),
    update_card: bool = True,
) -> None:
    """Measure what makes images: every metric that applies, beside what real images get at the same n.

    Writes metrics.json and pictures: samples, nearest real images, classes, feature map, precision and recall.
    Under `accelerate launch -m latentia evaluate ...` the processes share the work.

    Args:
        source: a saved pipeline (folder or Hub id), a folder of images, a .npy or .npz file, "module:function" for a
            function (count, seed) -> images, or a baseline, "pca" or "kde".
        data: the real images: digits, emoji, factors, a folder, parquet, or a data set on the Hub.
        split: split of the data; the one that was trained on, or copies go unnoticed.
        n: how many images to sample; the data must hold twice as many.
        metrics: which of the metrics, such as fd kid precision recall; all that apply if not given.
        extractor: digits, mnist, emoji, the folder of a classifier, inception:PATH_OR_HUB_ID, or the name of a
            transformers vision model; the shipped one that fits the images if not given.
        num_inference_steps: network evaluations per image; the pipeline's own default if not given.
        batch_size: images sampled at a time.
        likelihood_images: take the likelihood of so many real images, of the test split where there is one.
        latent_images: take path length and linear probe of the latents of so many real images, likewise.
        seed: of the samples.
        revision: branch, tag or commit on the Hub.
        output_dir: where numbers and pictures go.
        update_card: put the numbers into the card of a saved pipeline, if `source` is its folder.
    """
    from accelerate import PartialState

    from latentia.commands.evaluate import evaluate, update_card_of

    found = evaluate(
        source, data, n=n, split=split, extractor=extractor, metrics=metrics or None, seed=seed, revision=revision,
        num_inference_steps=num_inference_steps, batch_size=batch_size, likelihood_images=likelihood_images,
        latent_images=latent_images,
    )  # fmt: skip
    if PartialState().is_main_process:
        found.save(output_dir)
        print(found.text())
        print(f"\nNumbers and pictures: {output_dir}")
        if update_card and update_card_of(Path(source), found):
            print(f"Card: {source}/README.md")


def compare(
    sources: Positional[tuple[AnySource, ...]],
    data: str = "digits",
    split: str = "train",
    n: int = 500,
    metrics: tuple[str, ...] = (),
    extractor: str | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    likelihood_images: int = 0,
    latent_images: int = 0,
    seed: int = 0,
    output_dir: Path = Path("outputs/comparison"),
) -> None:
    """Measure several sources on equal terms: one table, and one page with what each of them made.

    Args:
        sources: two or more, as for evaluate; "pca" and "kde" are baselines that any model should beat. Several runs
            of one model are given as name=folder,folder or "name=folder-*": the table shows their mean, their
            standard deviation and how many failed.
        data: the real images: digits, emoji, factors, a folder, parquet, or a data set on the Hub.
        split: split of the data.
        n: how many images to sample of each.
        metrics: which of the metrics; all that apply if not given.
        extractor: as for evaluate.
        num_inference_steps: network evaluations per image; each pipeline's own default if not given.
        batch_size: images sampled at a time.
        likelihood_images: take the likelihood of so many real images.
        latent_images: take path length and linear probe of the latents of so many real images.
        seed: of the samples.
        output_dir: where the page goes.
    """
    from accelerate import PartialState

    from latentia.commands.compare import compare, save_comparison
    from latentia.evaluation import text_table

    found = compare(
        sources, data, n=n, split=split, extractor=extractor, metrics=metrics or None, seed=seed,
        num_inference_steps=num_inference_steps, batch_size=batch_size, likelihood_images=likelihood_images,
        latent_images=latent_images,
    )  # fmt: skip
    if PartialState().is_main_process:
        page = save_comparison(found, output_dir)
        print(text_table([evaluation.to_dict() for evaluation in found]))
        print(f"\nThe page: {page}")


def sheet(
    source: Positional[AnySource],
    data: str = "digits",
    split: str = "train",
    against: AnySource | None = None,
    trials: int = 50,
    num_inference_steps: int | None = None,
    seed: int = 0,
    output_dir: Path = Path("outputs/sheet"),
) -> None:
    """Write a blind comparison for people: an HTML page with pairs of images, one of them from the source.

    Args:
        source: as for evaluate.
        data: the real images.
        split: split of the data.
        against: another source to compare with instead of the real images.
        trials: pairs to judge; 50 votes give an interval of about ±0.14, 400 of ±0.05.
        num_inference_steps: network evaluations per image; the pipeline's own default if not given.
        seed: of the samples, their order and their sides.
        output_dir: where the page, a template for votes on paper and the key go; give raters the page alone.
    """
    from latentia.commands.evaluate import blind_sheet

    written = blind_sheet(
        source, data, split=split, against=against, trials=trials, num_inference_steps=num_inference_steps, seed=seed,
        output_dir=output_dir,
    )  # fmt: skip
    print(f"{written.page}: send this file alone to the raters; it saves votes_NAME.csv.")
    print(f"{written.template}: for votes on paper. {written.key}: which side is which; keep it from the raters.")
    print(f"Then: latentia votes {output_dir} votes_*.csv")


def votes(folder: Positional[Path], files: Positional[tuple[Path, ...]]) -> None:
    """Count the votes of a blind comparison: the fooling rate with its exact binomial interval.

    Args:
        folder: what `latentia sheet` wrote.
        files: the CSV files of the raters.
    """
    from latentia.evaluation import read_votes

    print(read_votes(files, folder).text())


def data(
    source: Positional[str],
    split: str = "train",
    resolution: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | None = None,
) -> None:
    """Check a data set: decode every image once, and say what was found.

    Args:
        source: digits, emoji, factors, a folder, a parquet file or folder, or a data set on the Hub.
        split: split of the data.
        resolution: side of the images in pixels; their own size if not given.
        image_column: column of the images.
        label_column: column of the labels.
        caption_column: column of the captions.
        on_bad_image: stop at an image that cannot be read, or pass over at most 1 percent.
        cache_dir: where decoded images are kept.
    """
    from latentia.data import load_images

    found = load_images(
        source,
        split=split,
        resolution=resolution,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        on_bad_image=on_bad_image,
        cache_dir=cache_dir,
    )
    print(found)
    for key, value in found.describe().items():
        print(f"  {key}: {value}")


def embed(
    source: Positional[Annotated[str, arg(metavar="FOLDER|USER/NAME|pixels|pca")]],
    data: str = "digits",
    split: str = "train",
    components: int = 32,
    label_column: str | None = None,
    max_samples: int | None = None,
    points: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
    revision: str | None = None,
    output_dir: Path = Path("outputs/embedding"),
) -> None:
    """Write the latents of images or of a table as parquet, with PCA and t-SNE maps of them.

    Args:
        source: a saved pipeline that can encode, or a baseline: "pixels" or "pca".
        data: digits, emoji, factors, a folder, parquet, a data set on the Hub, or a table of numbers (.csv, .tsv,
            .parquet).
        split: split of the images.
        components: of "pca".
        label_column: column of the labels; found by itself if not given.
        max_samples: use at most so many, spread evenly.
        points: at most so many are in the maps.
        batch_size: images encoded at a time.
        seed: of the choice of points and of t-SNE.
        revision: branch, tag or commit on the Hub.
        output_dir: where latents.parquet and the maps go.
    """
    from latentia.commands.embed import embed

    found = embed(
        source, data, split=split, components=components, label_column=label_column, max_samples=max_samples,
        points=points, batch_size=batch_size, seed=seed, revision=revision,
    )  # fmt: skip
    found.save(output_dir)
    print(f"{found.text()}\nLatents and maps: {output_dir}")


def train(family: Positional[str | None] = None, eject: bool = False, output: Path | None = None) -> None:
    """Train a model of any family: latentia train FAMILY ..., as in latentia train vae --dataset_name digits.

    Runs the family's training script in this process: exit codes, signals, --config, resuming and several processes are
    the script's own. latentia train FAMILY --help shows its flags; options of this command come before FAMILY.

    Args:
        family: name of a training script without train_; all are listed if not given.
        eject: write the script to a file instead of running it, so that you can change it.
        output: where --eject writes; train_FAMILY.py in the current folder if not given.
    """
    from latentia.commands.train import train

    print(train(family, eject=eject, output=output).text())


def doctor(output_dir: Path | None = None, hub: bool = False) -> None:
    """Print what a bug report needs, and what would stop a run: versions, devices, folders, disk, Hub. Never a token.

    Exit code 2 if something is wrong, with a way out of it.

    Args:
        output_dir: where a run would write; whether it can.
        hub: ask the Hub whether it answers, for at most 10 seconds.
    """
    from latentia.commands.doctor import report

    lines, wrong = report(output_dir, hub=hub)
    print(lines)
    if wrong:
        raise UsageError("; ".join(wrong))


COMMANDS = {
    "generate": generate,
    "evaluate": evaluate,
    "compare": compare,
    "sheet": sheet,
    "votes": votes,
    "data": data,
    "verify": verify,
    "convert": convert,
    "card": card,
    "push": push,
    "pull": pull,
    "embed": embed,
    "train": train,
    "doctor": doctor,
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `latentia`."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"] and not argv[1:2] == [] and not argv[1].startswith("-"):  # the rest is the script's
            from latentia.commands.train import train

            train(*argv[1:])
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="latentia",
            description="Every family of generative and representation learning behind the interface of diffusers.",
            args=argv,
            use_underscores=True,
        )
    except LatentiaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
