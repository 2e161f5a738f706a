"""Sources of images behind one contract: saved pipelines, folders and files of images, functions, baselines."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from latentia.data import ImageData, load_images
from latentia.errors import DataError, UsageError, did_you_mean
from latentia.evaluation.baselines import KernelDensitySampler, PCASampler
from latentia.functional.pixels import to_uint8
from latentia.pipelines.base import DiffusionPipeline, from_input
from latentia.pipelines.capabilities import Capabilities, capabilities
from latentia.rng import seed_from

BASELINES = {"pca": PCASampler, "kde": KernelDensitySampler}


@dataclass
class Source:
    """A source of images.

    Args:
        name: its name in tables.
        draw: (start, stop) -> images start..stop of an endless or finite series, uint8 (stop - start, C, H, W). An
            image depends on its position alone, so that neither batch size nor number of processes changes it.
        labels: (start, stop) -> the classes of those images; None without classes.
        count: how many images there are; None for endless.
        about: facts for tables: kind, class, parameters, training_seconds.
        log_likelihood: images (B, C, H, W) in [-1, 1] -> nats per image (B,); None if the family has none.
        likelihood_kind: of that number: "exact" or "lower bound", with what it is of.
        has_density: whether it is a density on [-1, 1], taken of dequantised pixels, and no probability of 256 bins.
        encode: images (B, C, H, W) in [-1, 1] -> latents (B, ...), floats; None if the family has none. A network that
            is conditioned on the class of the image raises a UsageError.
        decode: latents -> images in [-1, 1]; None as for `encode`.
        latent_path: "lerp" or "slerp", the path between two latents.
    """

    name: str
    draw: Callable[[int, int], Tensor]
    labels: Callable[[int, int], list[int]] | None = None
    count: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    log_likelihood: Callable[[Tensor], Tensor] | None = None
    likelihood_kind: str = "exact"
    has_density: bool = False
    encode: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    latent_path: Literal["lerp", "slerp"] = "lerp"


def load_real(data: str | Path | ImageData, split: str = "train", **options: Any) -> ImageData:
    """The real images that a source is compared with, in memory.

    Args:
        data: their name or path, as for `load_images`, or the images themselves.
        split: of the data that is named.
        **options: of `load_images`.

    Raises:
        UsageError: `data` is neither.
    """
    found = load_images(data, split=split, **options) if isinstance(data, str | Path) else data
    if not isinstance(found, ImageData):
        raise UsageError(f"data must be the name of a data set, or ImageData; got {type(found).__name__}.")
    return found


def open_source(
    source: Any,
    real: ImageData,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> Source:
    """Open a source of images by what a user writes.

    Args:
        source: a pipeline or the folder or Hub id of a saved one; a folder of images; a .npy or .npz file, uint8 or
            float in [0, 1], (N, H, W) or (N, H, W, C); a function (count, seed) -> images, or "module:function"; a
            tensor, an array or images; "pca" or "kde", which are fitted to `real`.
        real: the data set that it is compared with, and whose shape it must have.
        seed: of the samples.
        num_inference_steps: network evaluations per image, for pipelines that take several; None is the pipeline's own
            default.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs; None is the process's own.

    Raises:
        UsageError: `source` is none of these.
        DataError: a file does not hold images of the shape of `real`.
    """
    text = str(source) if isinstance(source, str | Path) else ""
    path = Path(text).expanduser() if text else None
    if text in BASELINES:
        sampler = BASELINES[text](real.images)
        return Source(
            text,
            lambda start, stop: _bytes(sampler.sample(stop - start, seed, start=start)),
            about={"kind": "baseline", "class": type(sampler).__name__},
            log_likelihood=sampler.log_likelihood,
            likelihood_kind="lower bound",
        )
    if path and path.suffix in (".npy", ".npz"):
        return _fixed(path.stem, _read_array(path), real, {"kind": "array file"})
    if path and path.is_dir() and not (path / "model_index.json").exists():
        images = load_real(path, channels=real.shape[0]).images
        return _fixed(path.name, images, real, {"kind": "image folder"})
    if text and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        source = _import(text)
    elif text:
        source = DiffusionPipeline.from_pretrained(text, **({"revision": revision} if revision else {}))
    if hasattr(source, "save_pretrained") and callable(source):
        return _pipeline(source, text, real, seed, num_inference_steps, device)
    if callable(source):
        return _function(source, text or getattr(source, "__name__", type(source).__name__), real, seed)
    return _fixed("images", source, real, {"kind": "images"})


def _pipeline(pipe: Any, text: str, real: ImageData, seed: int, steps: int | None, device: Any) -> Source:
    pipe.to(PartialState().device if device is None else device)
    pipe.set_progress_bar_config(disable=True)
    able = capabilities(pipe)
    classes, captions = able.num_classes or 0, real.captions if "prompt" in able.conditions else []
    options = {} if steps is None or "num_inference_steps" not in able.options else {"num_inference_steps": steps}
    if captions is None:
        raise UsageError(
            f"data must have captions, as {text or type(pipe).__name__} is conditioned on text, and this data set has "
            "none. Name data with captions, such as emoji."
        )

    def labels(start: int, stop: int) -> list[int]:
        return [i % classes for i in range(start, stop)]

    def draw(start: int, stop: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed_from(seed, "sample", i)) for i in range(start, stop)]
        asked: dict[str, Any] = {"class_labels": labels(start, stop)} if classes else {}
        if captions:  # those of the data in turn
            asked["prompt"] = [captions[i % len(captions)] for i in range(start, stop)]
        else:
            asked["batch_size"] = stop - start
        found = pipe(generator=generators, output_type="np", **asked, **options).images
        images = from_input(_not_empty(found, type(pipe).__name__))
        if tuple(images.shape[1:]) != tuple(real.shape):
            raise UsageError(
                f"{text or type(pipe).__name__} makes images of shape {tuple(images.shape[1:])}, and the data's have "
                f"{tuple(real.shape)}; name the data that it was trained on, at that resolution."
            )
        return _bytes(images)

    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    about = {
        "kind": "pipeline", "class": type(pipe).__name__,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "training_seconds": _training_seconds(Path(text)) if text else None,
    }  # fmt: skip
    return Source(
        Path(text).name or type(pipe).__name__,
        draw,
        labels if classes else None,
        about=about,
        log_likelihood=pipe.log_likelihood if able.likelihood else None,
        likelihood_kind=str(able.likelihood or "exact"),
        has_density=able.likelihood is not None and able.likelihood.of == "density",
        **_latents(pipe, able, options),
    )


def _latents(pipe: Any, able: Capabilities, options: dict[str, Any]) -> dict[str, Any]:
    """`encode`, `decode` and `latent_path` of a `Source`; nothing for a pipeline that cannot do both."""
    if not {"encode", "decode"} <= {*able.words}:
        return {}
    before = {"continuous": True} if able.latents == "indices" else {}  # between indices there is no path

    def encode(images: Tensor) -> Tensor:
        return torch.cat([pipe.encode(part, **options, **before).cpu().float() for part in images.split(100)])

    def decode(z: Tensor) -> Tensor:
        found = [pipe.decode(part, **options, output_type="latent").cpu().float() for part in z.split(100)]
        return torch.cat(found).clamp(-1, 1)

    return {"encode": encode, "decode": decode, "latent_path": able.latent_path}


def _function(function: Callable[[int, int], Any], name: str, real: ImageData, seed: int) -> Source:
    def draw(start: int, stop: int) -> Tensor:
        found = _not_empty(function(stop - start, seed_from(seed, "sample", start)), name)
        return _bytes(from_input(found, channels=real.shape[0], size=real.shape[1:]))

    return Source(name, draw, about={"kind": "function"})


def _fixed(name: str, images: Any, real: ImageData, about: dict[str, Any]) -> Source:
    """Images that are there already."""
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = images[..., None]
    pixels = _bytes(from_input(images, channels=real.shape[0], size=real.shape[1:]))
    return Source(name, lambda start, stop: pixels[start:stop], count=len(pixels), about=about)


def _bytes(images: Tensor) -> Tensor:
    """What a PNG would hold: samples are compared as they would be delivered, with 256 bins like the real ones."""
    return to_uint8(images.float()).cpu()


def _not_empty(found: Any, name: str) -> Any:
    if found is None or len(found) == 0:
        raise DataError(f"{name} returned no images.")
    return found


def _read_array(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            if len(found.files) != 1:
                raise DataError(f"{path} must hold one array. It holds {', '.join(found.files) or 'none'}.")
            return found[found.files[0]]
    except DataError:
        raise
    except Exception as error:  # of the zip archive, of what it unpacks, of the header in it
        raise DataError(f"{path} cannot be read as an array of images: {error}") from error


def _import(text: str) -> Callable:
    module, name = text.split(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise UsageError(f'"{text}": the module {module} cannot be imported: {error}. Is it on PYTHONPATH?') from error
    except AttributeError:
        known = dir(import_module(module))
        raise UsageError(f'"{text}": {module} has no {name}.{did_you_mean(name, known)}') from None


def _training_seconds(folder: Path) -> float | None:
    try:
        return json.loads((folder / "run_summary.json").read_bytes())["training_seconds"]
    except (OSError, ValueError, KeyError):
        return None
