"""Pictures from any saved pipeline, as PNG files that carry their recipe, and one sheet of them all."""

import inspect
import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentia.data.decode import BadImage, open_image
from latentia.errors import UsageError
from latentia.evaluation import image_grid
from latentia.pipelines.base import DiffusionPipeline, from_input
from latentia.pipelines.sampling import image_generators, is_flow
from latentia.schedulers.ddim import DDIMScheduler
from latentia.schedulers.ddpm import DDPMScheduler

SAMPLERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
}
_CHUNK = 64  # images at once
_OPTIONS = (
    *("num_inference_steps", "guidance_scale", "eta", "negative_prompt", "strength"),
    *("temperature", "top_k", "top_p"),
)
_FILES = ("image", "mask", "low_resolution")


def generate(
    source: str,
    num_images: int = 8,
    *,
    prompt: str | Sequence[str] = (),
    class_labels: Sequence[int | str] = (),
    sampler: str = "saved",
    seed: int = 0,
    revision: str | None = None,
    **options: Any,
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Pictures of a saved pipeline, each with all that is needed to make it again.

    Args:
        source: a folder, or "user/name" on the Hub.
        num_images: how many; several prompts or class labels are given out in turn.
        prompt: a text or several, for pipelines that are told one.
        class_labels: indices or names, for pipelines that are told one.
        sampler: "saved" (default), or one of `SAMPLERS` over the same noise, for diffusion.
        seed: the same seed gives the same pictures, however many are asked for.
        revision: branch, tag or commit on the Hub.
        **options: num_inference_steps, guidance_scale, eta, negative_prompt, strength, temperature, top_k, top_p; and
            image, mask and low_resolution, files. Those that are None keep the pipeline's own default.

    Returns:
        The pictures, and a recipe for each, which names no folder of this machine but `source`'s own name.

    Raises:
        UsageError: an argument out of its range, or one that this pipeline does not take.
    """
    if num_images < 1:
        raise UsageError(f"--num_images must be at least 1; got {num_images}.")
    pipe = DiffusionPipeline.from_pretrained(source, **({"revision": revision} if revision else {}))
    takes = inspect.signature(type(pipe).__call__).parameters
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = {"prompt": prompts or None, "class_labels": class_labels or None, **options}
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in takes:
            known = [f"--{name}" for name in ("prompt", "class_labels", *_OPTIONS, *_FILES) if name in takes]
            raise UsageError(
                f"--{key} must be left out: {type(pipe).__name__} does not take it. It takes "
                f"{', '.join(known) or 'none of these'}."
            )
    if "prompt" in takes and not prompts and pipe.is_text_conditional:
        raise UsageError(f'--prompt is missing: {type(pipe).__name__} makes images of a text, such as "red heart".')
    files = {key: _opened(key, given[key]) for key in _FILES if key in given}
    _choose(pipe, sampler)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    labels, texts = (
        [values[i % len(values)] if values else None for i in range(num_images)] for values in (class_labels, prompts)
    )
    generators = image_generators(torch.Generator().manual_seed(seed), num_images)
    images: list[Image.Image] = []
    for start in range(0, num_images, _CHUNK):
        part = slice(start, min(start + _CHUNK, num_images))
        asked = {key: value for key, value in given.items() if key in _OPTIONS} | files
        if prompts:
            asked["prompt"] = texts[part]
        else:
            asked["batch_size"] = part.stop - part.start
        if class_labels:
            asked["class_labels"] = labels[part]
        images += pipe(generator=generators[part], **asked).images
    defaults = {key: takes[key].default for key in _OPTIONS if key in takes}
    scheduler = getattr(pipe, "scheduler", None)
    common = {
        "pipeline": Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source,
        "class": type(pipe).__name__,
        "revision": revision,
        "sampler": None if scheduler is None else type(scheduler).__name__,
        "seed": seed,
        **defaults,
        **{key: value for key, value in given.items() if key in _OPTIONS},
        **{key: {"name": given[key].name, "sha256": sha256(given[key].read_bytes()).hexdigest()} for key in files},
        "device": pipe.device.type,
        "versions": {
            "latentia": version("latentia"),
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }
    own = zip(labels, texts)
    return images, [{**common, "index": i, "class_label": label, "prompt": text} for i, (label, text) in enumerate(own)]


def _opened(flag: str, path: Path) -> Image.Image:
    try:
        return open_image(path)
    except BadImage as error:
        raise UsageError(f"--{flag} must be a picture; {path} {error}.") from error


def _choose(pipe: Any, sampler: str) -> None:
    """Put another scheduler over the same noise in the place of the saved one."""
    if sampler == "saved":
        return
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or is_flow(scheduler):
        why = "has no noise to take away" if scheduler is None else "was trained by flow matching"
        raise UsageError(f"--sampler must be saved, as {type(pipe).__name__} {why} here; got {sampler}.")
    pipe.scheduler = SAMPLERS[sampler].from_config(scheduler.config)


def save(images: Sequence[Image.Image], recipes: Sequence[dict[str, Any]], folder: Path) -> None:
    """00000.png, 00001.png, ... with their recipes as JSON in the PNG's text "latentia", and sheet.png of them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, recipe) in enumerate(zip(images, recipes)):
        info = PngInfo()
        info.add_text("latentia", json.dumps(recipe))
        image.save(folder / f"{i:05d}.png", pnginfo=info)
    shown = [_on_white(image) for image in images]
    common = {key: value for key, value in recipes[0].items() if key not in ("index", "class_label", "prompt")}
    info = PngInfo()
    info.add_text("latentia", json.dumps({**common, "images": len(images)}))
    image_grid(from_input(shown)).save(folder / "sheet.png", pnginfo=info)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
