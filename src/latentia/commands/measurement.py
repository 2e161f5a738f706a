"""Measurements: of the real images, and of a source on one or several processes, with time and memory."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes
from torch import Tensor
from tqdm.auto import tqdm

from latentia.commands.reference import Reference
from latentia.commands.sources import Source
from latentia.data import ImageData
from latentia.errors import UsageError
from latentia.evaluation import (
    LatentStructure,
    Likelihood,
    NoiseFloor,
    Reconstruction,
    Sample,
    cached_predict,
    check_metrics,
    dequantise,
    exact_likelihood,
    extractor_for,
    fitting_extractor,
    latent_structure,
    load_extractor,
    measure,
    noise_floor,
    own_extractor,
    reconstruction,
    uint8_batches,
)
from latentia.evaluation.features.base import FeatureExtractor, known_range
from latentia.evaluation.likelihood.pixels import Pixels
from latentia.evaluation.noise_floor import NOISE_METRICS
from latentia.functional.pixels import from_uint8

KEPT = 100  # images of a source that stay in memory to be shown; the others are deleted once they are measured


def check_options(device: Any, reconstruction_images: int) -> None:
    """UsageError for a device or a number of images that cannot be, before anything is computed."""
    if reconstruction_images == 1:
        raise UsageError("reconstruction_images must be 0 or at least 2, as distances need two images; got 1.")
    check_device(device)


def check_device(device: Any) -> None:
    """UsageError for a device that is unknown or not on this machine; None is none."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).item()  # which meta does not give
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # AssertionError: built without CUDA
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise UsageError(f"device must be one of {', '.join(['cpu', *there])}; got {str(device)!r}.") from error


@dataclass(frozen=True)
class Real:
    """What was measured of the real images, once for all sources.

    Args:
        sample: features and the like.
        noise: what noise gets; None for too few images, or if no metric of it was asked for.
    """

    sample: Sample
    noise: NoiseFloor | None


def measure_real(
    images: ImageData, extractor: FeatureExtractor, n: int, seed: int, metrics: Sequence[str] | None
) -> Real:
    """The features of the real images, and what n images of noise get beside them in the metrics that say it."""
    sample = measure_data(images, extractor)
    if not {*check_metrics(metrics)} & {*NOISE_METRICS}:
        return Real(sample, None)
    with known_range():
        return Real(sample, noise_floor(images.images, sample, extractor, n, seed=seed))


def measure_data(real: ImageData, extractor: FeatureExtractor, cache_dir: str | Path | None = None) -> Sample:
    """The features of real images, as the metrics need them; computed once and cached."""
    starts = tqdm(range(0, len(real), 1000), desc=f"features of {len(real)} real images", unit="batch", leave=False)
    batches = (from_uint8(real.images[start : start + 1000]) for start in starts)
    with known_range():
        features = cached_predict(batches, extractor, real.fingerprint, cache_dir, count=len(real))
        return measure(uint8_batches(real.images), extractor, real.labels, predictions=features)


def find_extractor(extractor: Any, real: ImageData, device: Any = None) -> tuple[FeatureExtractor, list[str]]:
    """Choose the extractor by its name, or the one that fits the images, with notes for readers of its numbers.

    One that is loaded or trained here runs on `device`, by default that of the process. One whose classes are not those
    of the data gives features alone: no metric of classes is taken.
    """
    device = PartialState().device if device is None else device
    lacks = sorted(name for name in FeatureExtractor.__annotations__ if not hasattr(extractor, name))
    if not (extractor is None or isinstance(extractor, str | Path)) and lacks:
        raise UsageError(
            f"extractor must be a name, a folder or a FeatureExtractor; got {type(extractor).__name__}, which has no "
            f"{lacks[0]}."
        )
    if extractor is None:
        shipped = extractor_for(real.shape, device)
        if shipped is not None and shipped.class_names == real.label_names:
            return shipped, []
        tqdm.write(
            "No shipped extractor has the classes of these images; own is taken (a first time trains it, a minute)."
        )
        extractor = "own"
    if extractor == "own":
        note = "the extractor was trained on these real images: its distances compare only at equal data and hash"
        return own_extractor(real, device=device), [note]
    found = load_extractor(extractor, device) if isinstance(extractor, str | Path) else extractor
    found, warning = fitting_extractor(found, real.label_names)
    return found, [] if warning is None else [warning]


def sample_and_measure(
    draw: Callable[[int, int], Tensor],
    count: int,
    batch_size: int,
    extractor: FeatureExtractor,
    labels: Any,
    title: str,
) -> tuple[Sample, Tensor, float]:
    """Sample images 0..count of `draw` and measure them, on all processes.

    Returns measurements, the first `KEPT` images, and the seconds that sampling took.

    Batch b belongs to process b modulo their number. What each has is padded to equal length, gathered, and put back
    into order.
    """
    state = PartialState()
    starts = list(range(0, count, batch_size))[state.process_index :: state.num_processes]
    seconds = 0.0
    parts: list[Sample] = []
    kept: list[Tensor] = []
    owned: list[Tensor] = []
    bar = tqdm(starts, desc=title, unit="batch", disable=not state.is_main_process or len(starts) < 2)
    for start in bar:
        began, stop = time.perf_counter(), min(start + batch_size, count)
        images = draw(start, stop)
        seconds += time.perf_counter() - began
        if not parts and seconds * len(starts) > 20:
            bar.write(f"{title}: {count} images take about {seconds * len(starts):.0f} s.")
        with known_range():
            parts.append(measure(from_uint8(images), extractor, None if labels is None else labels[start:stop]))
        kept.append(images[: max(0, KEPT - start)])
        owned.append(torch.arange(start, stop))
    if not parts:  # fewer batches than processes: take part in the gathering with nothing
        images = draw(0, min(batch_size, count))[:1]
        with known_range():
            parts = [measure(from_uint8(images), extractor, None if labels is None else labels[:1])[:0]]
        kept, owned = [images[:0]], [torch.zeros(0, dtype=torch.int64)]
    sample = Sample.cat(parts)
    first, place = torch.cat(kept), torch.cat(owned)
    if state.num_processes > 1:
        first = _gathered(first, state)[_gathered(place[place < KEPT], state).argsort()]
        order = _gathered(place, state).argsort()
        sample = sample.map(lambda column: _gathered(column, state)[order])
        seconds = float(_gathered(torch.tensor([seconds]), state).max())
    return sample, first, seconds


def _gathered(x: Tensor, state: PartialState) -> Tensor:
    """The rows of all processes, one after the other."""
    lengths = gather(torch.tensor([len(x)], device=state.device))
    padded = pad_across_processes(x.to(state.device), dim=0)
    parts = gather(padded.contiguous()).cpu().split(int(lengths.max()))
    return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist())])


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list of one number: at the end, by how many MB the memory of the GPU, or else of the process, rose."""
    found, cuda = [0.0], torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()  # other sources, too
        yield found
        found[0] = (torch.cuda.max_memory_allocated() - held) / 2**20
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def poll() -> None:
        while not done.wait(0.02):
            found[0] = max(found[0], (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def measure_likelihood(opened: Source, reference: Reference, count: int, seed: int) -> Likelihood | None:
    """The likelihood of `count` held-out images; None for none, or for a source that defines none."""
    if count < 1 or opened.log_likelihood is None:
        return None
    chosen, _, seen = reference.held_out(count)
    if opened.has_density:
        pixels = dequantise(chosen, seed)
    else:
        pixels = Pixels(from_uint8(chosen), "256 bins", 256, None)
    nats = torch.cat([opened.log_likelihood(part).double().cpu() for part in pixels.values.split(100)])
    return exact_likelihood(nats, pixels, kind=f"{opened.likelihood_kind}, {seen}")


def measure_latents(
    opened: Source, reference: Reference, extractor: FeatureExtractor, count: int, seed: int
) -> LatentStructure | None:
    """Path length and linear probe of the latents of `count` held-out images; None for none, or without latents."""
    if count < 1 or opened.encode is None or opened.decode is None:
        return None
    chosen, labels, seen = reference.held_out(count)
    images = from_uint8(chosen)
    try:
        began = time.perf_counter()
        opened.encode(images[:8])
        seconds = (time.perf_counter() - began) / 8 * len(images)
    except UsageError as error:
        tqdm.write(f"{opened.name}: no latents. {error}")
        return None
    if 1.5 * seconds > 20:  # the way back takes half as long
        tqdm.write(f"{opened.name}: latents of {len(images)} images take about {1.5 * seconds:.0f} s.")
    with known_range():
        return latent_structure(
            opened.encode, opened.decode, images, labels, extractor, mode=opened.latent_path, about=seen, seed=seed
        )


def measure_reconstruction(
    opened: Source, reference: Reference, real: Sample, extractor: FeatureExtractor, count: int
) -> Reconstruction | None:
    """Quality of the reconstructions of `count` held-out images; None for none, or a source that cannot."""
    if count < 2 or opened.reconstruct is None:
        return None
    chosen, _, seen = reference.held_out(count)
    try:
        with known_range():
            return reconstruction(opened.reconstruct, chosen, seen, real, extractor)
    except UsageError as error:  # it is conditioned on the class
        tqdm.write(f"{opened.name}: no reconstructions. {error}")
        return None
