"""Sources of images behind one contract: saved pipelines, folders and files of images, functions, baselines."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar
from torch import Tensor

from latentia.commands.arrays import as_rows, read_array
from latentia.data import ImageData, load_images
from latentia.errors import DataError, UsageError, counted, did_you_mean
from latentia.evaluation.baselines import KernelDensitySampler, PCASampler
from latentia.files.reading import read_object, user_path
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.hub.load import INDEX_NAME, component_class, components, pipeline_class, read_index
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.capabilities import Capabilities, capabilities
from latentia.pipelines.images import from_input
from latentia.rng import seed_from
from latentia.runs.classes import classes_of

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
        about: facts for tables: kind, class, path, parameters, training_seconds, num_inference_steps.
        notes: what a reader should know of its images.
        log_likelihood: images (B, C, H, W) in [-1, 1] -> nats per image (B,); None if the family has none.
        likelihood_kind: of that number: "exact" or "lower bound", with what it is of.
        has_density: whether it is a density on [-1, 1], taken of dequantised pixels, and no probability of 256 bins.
        encode: images (B, C, H, W) in [-1, 1] -> latents (B, ...), floats; None if the family has none. A network that
            is conditioned on the class of the image raises a UsageError.
        decode: latents -> images in [-1, 1]; None as for `encode`.
        latent_path: "lerp" or "slerp", the path between two latents.
        reconstruct: images in [-1, 1] -> the same, encoded and decoded; None if the family has none.
        translate: inputs in [-1, 1], as the network takes them -> images; None if it is no image-to-image pipeline.
        cycle: inputs -> their way to the other domain and back; None if it does not know both directions.
        samples: whether it makes images of its own; if not, `draw` gives reconstructions of held-out images.
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
    reconstruct: Callable[[Tensor], Tensor] | None = None
    translate: Callable[[Tensor], Tensor] | None = None
    cycle: Callable[[Tensor], Tensor] | None = None
    samples: bool = True
    notes: tuple[str, ...] = ()


def open_source(
    source: Any,
    real: ImageData,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    held_out: Callable[[], tuple[Tensor, Any, str]] | None = None,
    inputs: Callable[[], tuple[Tensor, str] | None] = lambda: None,
) -> Source:
    """Open a source of images by what a user writes.

    Args:
        source: a pipeline or the folder or Hub id of a saved one; a folder of images; a .npy or .npz file, uint8 or
            float in [0, 1], (N, H, W), (N, H, W, C) or (N, C, H, W); a function (count, seed) -> images, or
            "module:function"; a tensor, an array or images; "pca" or "kde", which are fitted to `real`.
        real: the data set that it is compared with, and whose shape it must have.
        seed: of the samples.
        num_inference_steps: network evaluations per image, for pipelines that take several; None is the pipeline's own
            default.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs; None is the process's own.
        held_out: () -> uint8 images, their labels and what they are: those that an autoencoder without a prior
            reconstructs; None for those of `real`.
        inputs: () -> what an image-to-image pipeline translates, as the network takes it, and what it is; None, the
            default: there are no pairs.

    Raises:
        UsageError: `source` is none of these.
        DataError: a file does not hold images of the shape of `real`.
    """
    text = str(source) if isinstance(source, str | Path) else ""
    path = user_path(text) if text else None
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
        array, notes = read_array(path)
        return _fixed(path.stem, array, real, {"kind": "array file", "path": text}, notes)
    if path and path.is_dir() and not (path / "model_index.json").exists():
        images = load_images(path, channels=real.shape[0]).images
        return _fixed(path.name, images, real, {"kind": "image folder", "path": text})
    if text and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        source = _import(text)
    elif text:
        source = load_pipeline(text, revision)
    if hasattr(source, "save_pretrained") and callable(source):
        return _pipeline(source, text, real, seed, num_inference_steps, device, held_out, inputs)
    if callable(source):
        return _function(source, text or getattr(source, "__name__", type(source).__name__), real, seed)
    return _fixed("images", source, real, {"kind": "images"})


def load_pipeline(source: str | Path, revision: str | None = None) -> Any:
    """A saved pipeline, loaded without a progress bar."""
    disable_progress_bar()
    try:
        return DiffusionPipeline.from_pretrained(source, **({"revision": revision} if revision else {}))
    finally:
        enable_progress_bar()


def modality_of(source: Any, revision: str | None = None) -> str:
    """What a saved pipeline makes, read from its index alone; "image" for any other source.

    Example:
        >>> modality_of("pca")
        'image'
    """
    if not isinstance(source, str | Path):
        return "image"
    folder = user_path(source)
    if not (folder / INDEX_NAME).is_file():
        return "image"
    index, where = read_index(folder), str(folder / INDEX_NAME)
    codec = components(index).get("codec")  # of time series or sounds
    return getattr(component_class(*codec, where) if codec else pipeline_class(index, where), "modality", "image")


def _pipeline(
    pipe: Any,
    text: str,
    real: ImageData,
    seed: int,
    steps: int | None,
    device: Any,
    held_out: Callable | None,
    inputs: Callable[[], tuple[Tensor, str] | None],
) -> Source:
    pipe.to(PartialState().device if device is None else device)
    pipe.set_progress_bar_config(disable=True)
    able, name = capabilities(pipe), Path(text).name or type(pipe).__name__
    if able.modality != "image":
        raise UsageError(f"{text or name} makes no images; it makes a {able.modality}. Try latentia evaluate {text}.")
    default = able.options.get("num_inference_steps")
    options = {} if steps is None or default is None else {"num_inference_steps": steps}
    captions = real.captions if "prompt" in able.conditions else []
    if captions is None:
        raise UsageError(
            f"data must have captions, as {text or type(pipe).__name__} is conditioned on text, and this data set has "
            "none. Name data with captions, such as emoji."
        )
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed_from(seed, "captions"))).tolist()
    asked_for, labels, notes = classes_of(pipe, able.num_classes, real)

    def draw(start: int, stop: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed_from(seed, "sample", i)) for i in range(start, stop)]
        asked: dict[str, Any] = {} if asked_for is None else {"class_labels": asked_for(start, stop)}
        if captions:  # those of the data, each once before any is repeated
            asked["prompt"] = [captions[order[i % len(order)]] for i in range(start, stop)]
        else:
            asked["batch_size"] = stop - start
        found = pipe(generator=generators, output_type="np", **asked, **options).images
        return fitting(from_input(_counted(found, name, stop - start)))

    def fitting(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != tuple(real.shape):
            raise UsageError(
                f"{text or type(pipe).__name__} makes images of shape {tuple(images.shape[1:])}, and the data's have "
                f"{tuple(real.shape)}; name the data that it was trained on, at that resolution."
            )
        return _bytes(images)

    def reconstruct(images: Tensor) -> Tensor:
        return torch.cat([pipe.reconstruct(part, output_type="latent").cpu().float() for part in images.split(100)])

    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    about = {
        "kind": "pipeline", "class": type(pipe).__name__, "path": text or None,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "training_seconds": _training_seconds(Path(text)) if text else None,
        "num_inference_steps": None if default is None else steps or default.default,
    }  # fmt: skip
    source = Source(
        name,
        draw,
        labels,
        about=about,
        log_likelihood=_log_likelihood(pipe, seed) if able.likelihood else None,
        likelihood_kind=str(able.likelihood or "exact"),
        has_density=able.likelihood is not None and able.likelihood.of == "density",
        reconstruct=reconstruct if hasattr(pipe, "reconstruct") else None,
        notes=notes,
        **_latents(pipe, able, options),
    )
    if able.translates:
        return _translating(source, pipe, seed, inputs(), fitting, options)
    if able.samples:
        return source
    chosen, _, what = (real.images, None, "training images") if held_out is None else held_out()
    return replace(
        source,
        draw=lambda start, stop: fitting(reconstruct(from_uint8(chosen[start:stop])).clamp(-1, 1)),
        labels=None,
        count=len(chosen),
        samples=False,
        about={**about, "kind": f"reconstructions of {what}"},
        notes=(f"it has no prior to sample from, so its images here are reconstructions of {what}",),
    )


def _translating(
    source: Source,
    pipe: Any,
    seed: int,
    given: tuple[Tensor, str] | None,
    fitting: Callable,
    steps: dict[str, Any],
) -> Source:
    """The source whose images are translations of held-out inputs."""
    if given is None:
        raise UsageError(
            f"data must be pairs, as {type(pipe).__name__} makes images from images: give target_data_dir, "
            "target_column or degrade beside data."
        )
    chosen, what = given
    channels = pipe.input_channels
    if chosen.shape[1] != channels:
        raise UsageError(
            f"data must be pairs with inputs of {counted(channels, 'channel')}, as {type(pipe).__name__} was trained "
            f"on; got {chosen.shape[1]}. Leave target_column, degrade and channels as they were in training."
        )

    def translate(inputs: Tensor, **options: Any) -> Tensor:
        made = []
        for start in range(0, len(inputs), 100):
            part = inputs[start : start + 100]
            seeds = (seed_from(seed, "sample", start + i) for i in range(len(part)))
            generators = [torch.Generator().manual_seed(one) for one in seeds]
            made.append(pipe.translate(part, generators, **steps, **options).cpu().float())
        return torch.cat(made)

    cycle = None
    if "direction" in inspect.signature(pipe.translate).parameters:

        def cycle(inputs: Tensor) -> Tensor:
            return translate(translate(inputs), direction="backward")

    return replace(
        source,
        draw=lambda start, stop: fitting(translate(chosen[start:stop])),
        translate=translate,
        cycle=cycle,
        labels=None,
        log_likelihood=None,
        encode=None,
        decode=None,
        count=len(chosen),
        about={**source.about, "kind": f"translations of {what}"},
        notes=(*source.notes, f"its images are translations of {what}"),
    )


def _log_likelihood(pipe: Any, seed: int) -> Callable[[Tensor], Tensor]:
    """That of a pipeline, with random numbers of `seed` if it draws any."""
    if "generator" not in inspect.signature(pipe.log_likelihood).parameters:
        return pipe.log_likelihood
    return partial(pipe.log_likelihood, generator=torch.Generator().manual_seed(seed_from(seed, "likelihood")))


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
    try:
        inspect.signature(function).bind(1, seed)
    except TypeError as error:
        raise UsageError(f"{name} must be a function (count, seed) -> images: {error}.") from error
    except ValueError:  # it has no signature, as some that are written in C
        pass

    def draw(start: int, stop: int) -> Tensor:
        found = _counted(function(stop - start, seed_from(seed, "sample", start)), name, stop - start)
        return _pixels(found, name, real)

    return Source(name, draw, about={"kind": "function"})


def _fixed(name: str, images: Any, real: ImageData, about: dict[str, Any], notes: tuple[str, ...] = ()) -> Source:
    """Images that are there already."""
    pixels = _pixels(images, name, real)
    return Source(name, lambda start, stop: pixels[start:stop], count=len(pixels), about=about, notes=notes)


def _pixels(images: Any, name: str, real: ImageData) -> Tensor:
    """The bytes of images as `from_input` takes them, or of an array in any layout."""
    if isinstance(images, np.ndarray):
        images = as_rows(images, real.shape, name)
    try:
        return _bytes(from_input(images, channels=real.shape[0], size=real.shape[1:]))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _bytes(images: Tensor) -> Tensor:
    """What a PNG would hold: samples are compared as they would be delivered, with 256 bins like the real ones."""
    return to_uint8(images.float()).cpu()


def _counted(found: Any, name: str, count: int) -> Any:
    if found is None or len(found) == 0:
        raise DataError(f"{name} returned no images.")
    if len(found) != count:
        raise DataError(f"{name} returned {len(found)} images where {count} were asked for.")
    return found


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
        return float(read_object(folder / "run_summary.json")["training_seconds"])
    except (KeyError, TypeError, ValueError):  # our own errors are ValueErrors
        return None
