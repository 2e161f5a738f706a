"""Sample images, texts, rows or signals from any saved pipeline: PNG files with their recipe, text files, or a CSV."""

import inspect
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal

import diffusers
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentia.commands.image_files import batches_of, count_of, described, image_files, opened
from latentia.commands.modalities import MODALITIES
from latentia.commands.output import open_output
from latentia.commands.samplers import OPTIMIZER, SAMPLERS, add_guide, choose_sampler
from latentia.commands.signals import generate_signals
from latentia.commands.sources import load_pipeline
from latentia.commands.tables import GeneratedRows
from latentia.errors import Count, Seed, UsageError, check_arguments, check_choice, counted, did_you_mean
from latentia.evaluation import image_grid
from latentia.files.reading import open_file, user_path
from latentia.files.writing import write_image, write_json, write_text
from latentia.functional.settings import check_types
from latentia.hub.load import INDEX_NAME, pipeline_class, read_index
from latentia.pipelines.arguments import image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.capabilities import Option, call_options, capabilities
from latentia.pipelines.images import from_input
from latentia.pipelines.optimizer import sample_by_optimizer
from latentia.safety import fetch

_CHUNK = 64  # images at once
_SHEET_PIXELS = 2**25
# Conditions that are of each image, so that several are given out in turn: recipe key and type on a command line.
_OF_EACH = {
    "class_labels": ("class_label", str), "prompt": ("prompt", str), "negative_prompt": ("negative_prompt", str),
}  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """Sampled images or texts.

    Args:
        images: the images or texts, which `generate` samples while they are gone through; see `Samples`.
        recipes: of each, all that is needed to sample it again. No folder of this machine is in it but `source`'s name.
        modality: "image" or "text".
    """

    images: Sequence[Any]
    recipes: list[dict[str, Any]]
    modality: str = "image"

    def text(self) -> str:
        """How many, and of what; of texts the first."""
        if self.modality == "text":
            return (
                f"{counted(len(self.images), 'text')} of {self.recipes[0]['class']}; the first:\n\n{self.images[0]}\n"
            )
        return f"{len(self.images)} images of {self.recipes[0]['class']}, each with its recipe in the PNG's text."

    def save(self, output_dir: str | Path = "outputs/generated", *, overwrite: bool = False) -> list[Path]:
        """Write 00000.png, 00001.png, ... with their recipes as JSON in the PNG's text "latentia", and a sheet of them.

        Texts are written as 00000.txt, 00001.txt, ..., with all recipes in recipes.json.

        Images are written as they are made, so an interruption leaves those that are done. The sheet lies beside the
        folder, as outputs/generated_sheet.png, so that the folder holds samples alone: it can be evaluated, or trained
        on. It shows as many of the first images as have 33 million pixels.

        Args:
            output_dir: where the samples go; it must be empty.
            overwrite: delete what an earlier `generate` left in it.

        Returns:
            The folder and the sheet.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
            KeyboardInterrupt: says how many images are written.
        """
        if self.modality == "text":
            return self._save_texts(output_dir, overwrite)
        path = Path(output_dir).resolve()
        path = path.with_name(f"{path.name}_sheet.png")
        _check_sheet(path)
        done, pixels, shown = 0, 0, list[Image.Image]()
        with open_output(output_dir, "generate", overwrite) as folder:
            try:
                for image, recipe in zip(self.images, self.recipes):
                    write_image(folder / f"{done:05d}.png", image, pnginfo=_info(recipe))
                    done += 1
                    pixels += image.width * image.height
                    if not shown or pixels <= _SHEET_PIXELS:
                        shown.append(_on_white(image))
            except KeyboardInterrupt:
                said = f"{done} of {len(self.images)} images are in {folder}"
                raise KeyboardInterrupt(
                    f"{said}. To make them all, start the same again with overwrite=True."
                ) from None
            except OSError as error:
                raise UsageError(
                    f"output_dir {folder} cannot be written: {error.strerror}. It holds {done} images."
                ) from error
            own = {"index", *(key for key, _ in _OF_EACH.values())}
            common = {key: value for key, value in self.recipes[0].items() if key not in own}
            asked = [next((x for x in (r["prompt"], r["class_label"]) if x is not None), None) for r in self.recipes]
            labels = None if None in asked else [str(text) for text in asked[: len(shown)]]
            sheet = image_grid(from_input(shown), tile_labels=labels)
            _check_sheet(path)
            write_image(path, sheet, pnginfo=_info({**common, "images": len(shown)}))
        return [folder, path]

    def _save_texts(self, output_dir: str | Path, overwrite: bool) -> list[Path]:
        with open_output(output_dir, "generate", overwrite) as folder:
            for i, text in enumerate(self.images):
                write_text(folder / f"{i:05d}.txt", text, durable=False)
            write_json(folder / "recipes.json", self.recipes)
        return [folder]


class Samples(Sequence[Any]):
    """Images or texts that are sampled in batches while they are gone through; held once one is asked for by its index.

    Args:
        batches: starts the sampling. The first batch is sampled at once, so that wrong arguments are found.
        count: how many images there are.
    """

    def __init__(self, batches: Callable[[], Iterator[list[Any]]], count: int):
        self._batches, self._count = batches, count
        self._held: list[Any] | None = None
        rest = batches()
        self._begun: Iterator[list[Any]] | None = itertools.chain([next(rest)], rest)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        if self._held is not None:
            return iter(self._held)
        begun, self._begun = self._begun or self._batches(), None
        return itertools.chain.from_iterable(begun)

    def __getitem__(self, index: Any) -> Any:
        if self._held is None:
            self._held = list(self)
        return self._held[index]


@check_types
@check_arguments
def generate(
    source: str | Path,
    num_images: Count | None = None,
    *,
    sampler: Literal["saved", "ddim", "ddpm", "dpm-solver++", "optimizer"] = "saved",
    seed: Seed = 0,
    guide: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> Generated:
    """Sample images or texts from any saved pipeline: PNG files that carry their recipe and a sheet, or text files.

    Options of the pipeline itself, such as prompt, class_labels or num_inference_steps, are those of its call:
    `latentia generate FOLDER --help` lists them.

    Args:
        source: a saved pipeline, a folder or "user/name" on the Hub.
        num_images: how many images, texts or rows; several prompts, class labels or image files are given out in turn.
            None: 8, or one for each of several image files.
        sampler: the saved scheduler, or another one over the same noise, for diffusion; "optimizer" for Adam on the
            error of the network, `latentia.pipelines.optimizer.sample_by_optimizer`, over pixels.
        seed: the same seed gives the same images, however many are sampled.
        guide: a saved pipeline whose network guides this one, with autoguidance_scale above 1: of the same task, and
            smaller or trained for fewer steps, such as `latentia average RUN --step 300` makes.
        revision: branch, tag or commit on the Hub.
        **options: of the pipeline's call; images are files or folders of them, one or several. None and empty ones keep
            the pipeline's own default. A text among class_labels is the name of a class, or, where there is none of
            that name, an index.

    Returns:
        The images, which are sampled while they are gone through or saved, and a recipe for each.

    Raises:
        UsageError: an argument out of its range, or an option that this pipeline does not take.
        CheckpointError: it is no saved pipeline, or one that does not load.

    Example:
        >>> generate("outputs/demo", class_labels=[3]).save("outputs/threes")[0]  # doctest: +SKIP
        PosixPath('outputs/threes')
    """
    check_choice("sampler", sampler, ["saved", *SAMPLERS, OPTIMIZER])
    pipe = load_pipeline(source, revision)
    able = capabilities(pipe)
    given = {key: value for key, value in options.items() if not _is_empty(value)}
    known = [*able.options, *inspect.signature(generate).parameters]
    for key in given:
        if key not in able.options:
            raise UsageError(
                f"{key} must be left out: {type(pipe).__name__} does not take it.{did_you_mean(key, known)} It takes "
                f"{', '.join(f'`{name}`' for name in able.options) or 'no options'}."
            )
    if "prompt" in able.conditions and "prompt" not in given:
        raise UsageError(f'prompt is missing: {type(pipe).__name__} is conditioned on text, such as "red heart".')
    if labels := _listed(given.get("class_labels")):  # a class that is called "10" need not be the one of index 10
        names = {*(getattr(pipe.config, "label_names", None) or {}).values()}
        given["class_labels"] = [
            int(x) if str(x).isdecimal() and len(str(x)) < 19 and x not in names else x for x in labels
        ]
    files = {key: image_files(key, given[key]) for key in given if able.options[key].type is Image.Image}
    per_image = count_of(files)
    num_images = num_images or (per_image if per_image > 1 else 8)
    shared = {key: value for key, value in given.items() if key not in files and key not in _OF_EACH}
    for key, paths in files.items():
        opened(key, paths[0])  # what cannot be read is said before networks are moved
    choose_sampler(pipe, sampler, given)
    if guide is not None:
        add_guide(pipe, guide, given.get("autoguidance_scale"))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    of_each = {
        key: [values[i % len(values)] for i in range(num_images)]
        for key in _OF_EACH
        if (values := _listed(given.get(key)))
    }

    made = "texts" if able.modality == "text" else "images"

    def batches() -> Iterator[list[Any]]:
        generator = torch.Generator().manual_seed(seed)
        for begin in range(0, num_images, _CHUNK):
            for start, stop, images in batches_of(files, begin, min(begin + _CHUNK, num_images)):
                asked = {**shared, **images, **{key: values[start:stop] for key, values in of_each.items()}}
                if "prompt" not in asked:  # which says how many
                    asked["batch_size"] = stop - start
                # Of one generator diffusers' own pipelines draw a batch at once, and an image would depend on others.
                own = isinstance(pipe, DiffusionPipeline)
                drawn = generator if own else image_generators(generator, stop - start)
                if sampler == OPTIMIZER:
                    yield sample_by_optimizer(pipe, generator=drawn, **asked)
                else:
                    yield getattr(pipe(generator=drawn, **asked), made)

    defaults = {
        key: option.default
        for key, option in able.options.items()
        if key not in _OF_EACH and option.type is not Image.Image and option.default is not inspect.Parameter.empty
    }
    scheduler = getattr(pipe, "scheduler", None)
    common = {
        "pipeline": user_path(source).resolve().name if user_path(source).is_dir() else str(source),
        "class": type(pipe).__name__,
        "revision": revision,
        "sampler": sampler if sampler == OPTIMIZER else None if scheduler is None else type(scheduler).__name__,
        "seed": seed,
        **({} if guide is None else {"guide": guide}),
        **defaults,
        **shared,
        **{key: described(paths[0]) for key, paths in files.items() if len(paths) == 1},
        "device": pipe.device.type,
        "versions": {
            "latentia": version("latentia"),
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }
    if able.modality == "table":
        made = pipe(num_images, generator=torch.Generator().manual_seed(seed), **shared).rows
        rows: Any = GeneratedRows(made, {**common, "rows": num_images})
        return rows
    if able.modality in MODALITIES:
        asked = {**shared, **of_each}
        signals: Any = generate_signals(pipe, num_images, seed, {**common, **of_each}, **asked)
        return signals
    several = {key: [described(path) for path in paths] for key, paths in files.items() if len(paths) > 1}
    recipes = [
        {
            **common,
            "index": i,
            **{key: several[key][i % per_image] for key in several},
            **{name: of_each[key][i] if key in of_each else None for key, (name, _) in _OF_EACH.items()},
        }
        for i in range(num_images)
    ]
    return Generated(Samples(batches, num_images), recipes, able.modality)


def options(words: Sequence[str]) -> dict[str, Option]:
    """The options of the pipeline that a command line names, as they are typed there.

    Args:
        words: the command line. The pipeline is its first word, or the first that is the folder of one.

    Returns:
        None if the command line names no pipeline.

    Raises:
        CheckpointError, HubError, UsageError: it is no saved pipeline.
    """
    first = words[0] if words and not words[0].startswith("-") else None
    source = next((word for word in words if os.path.isfile(os.path.join(word, INDEX_NAME))), first)
    if source is None:
        return {}
    folder = Path(source)
    if not folder.is_dir():
        if "/" not in source:  # no name of a repository; `generate` itself refuses it
            return {}
        revision = words[words.index("--revision") + 1] if "--revision" in words[:-1] else None
        folder = fetch(source, [INDEX_NAME], revision=revision)
    kind = pipeline_class(read_index(folder), f"{source}/{INDEX_NAME}")
    return {name: _typed(name, option) for name, option in call_options(kind.__call__).items()}


def _typed(name: str, option: Option) -> Option:
    picture = option.type is Image.Image
    kind: Any = _OF_EACH[name][1] if name in _OF_EACH else Path if picture else option.type
    if name in _OF_EACH or picture:
        return replace(option, type=GenericAlias(tuple, (kind, ...)), default=())
    if option.default is None or option.default is inspect.Parameter.empty:
        return replace(option, type=kind | None, default=None)
    return replace(option, type=kind)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence) and len(value) == 0)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str | int) else list(value)


def _check_sheet(path: Path) -> None:
    """Refuse to replace a file beside the folder of samples that is no sheet of samples."""
    if not os.path.lexists(path):
        return
    try:
        with open_file(path, error=UsageError) as file, Image.open(file, formats=["PNG"]) as image:
            found = not path.is_symlink() and "images" in json.loads(image.info["latentia"])
    except Exception:  # whatever a file of others makes a decoder raise
        found = False
    if not found:
        raise UsageError(
            f"output_dir must be another folder, or {path} moved: the overview of the images goes there, and no "
            "generate wrote what is there."
        )


def _info(recipe: dict[str, Any]) -> PngInfo:
    info = PngInfo()
    info.add_text("latentia", json.dumps(recipe))
    return info


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
