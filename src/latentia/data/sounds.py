"""Sounds: WAV and FLAC files as clips of one length and one sampling rate, and as log-mel frames to train on."""

import hashlib
import io
import math
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentia.data.base import annotate, description, require
from latentia.data.names import class_order
from latentia.data.order import check_positions, indices
from latentia.data.shipped_sounds import SHIPPED_SOUNDS
from latentia.errors import DataError, UsageError, check_choice, check_range, counted, did_you_mean
from latentia.files.cache import key_of
from latentia.files.reading import open_file, user_path
from latentia.functional.settings import check_types
from latentia.rng import seed_from

SUFFIXES = (".wav", ".flac")
HELD_OUT = 0.2  # share of the clips that nothing is trained on
SILENT = 1e-3  # root mean square below which a clip is silence: -60 dB
_MAX_BYTES, _MAX_SAMPLES, _MAX_FILES = 2**30, 2**28, 200_000


@dataclass(frozen=True, eq=False)
class Sounds:
    """Clips of mono sound of one length and sampling rate.

    Args:
        waves: float32 (N, T) in [-1, 1].
        sampling_rate: samples per second.
        labels: class of each clip, int64 (N,); `None` (default): none.
        label_names: of the classes.
        files: number of the file that each clip is of, int64 (N,); `None` (default): each of its own.
        source: where the clips come from, and what was decided in reading them, for the model card.

    Example:
        >>> load_sounds("tones")
        Sounds(tones: 1000 clips of 0.512 s at 8000 Hz, 5 classes)
    """

    waves: np.ndarray
    sampling_rate: int
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    files: np.ndarray | None = None
    source: dict[str, Any] = field(default_factory=lambda: {"kind": "sounds", "name": "sounds"})

    def __len__(self) -> int:
        return len(self.waves)

    def __repr__(self) -> str:
        seconds = self.waves.shape[1] / self.sampling_rate
        classes = "" if self.label_names is None else f", {len(self.label_names)} classes"
        said = "".join(f"; {text}" for text in self.source.get("decisions", ()))
        name = self.source["name"]
        return (
            f"Sounds({name}: {counted(len(self), 'clip')} of {seconds:g} s at {self.sampling_rate} Hz{classes}{said})"
        )

    @property
    def values(self) -> np.ndarray:
        """The waves."""
        return self.waves

    def take(self, rows: np.ndarray | slice) -> "Sounds":
        """The clips of these indices."""
        labels, files = (None if each is None else each[rows] for each in (self.labels, self.files))
        return Sounds(self.waves[rows], self.sampling_rate, labels, self.label_names, files, self.source)

    def parts(self, held_out: float = HELD_OUT) -> tuple["Sounds", "Sounds"]:
        """The clips to train on and those held out, the same whenever so many clips are split.

        Clips of one file stay together, so that no piece of a sound is in both parts.

        Args:
            held_out: share of the files, in [0, 1); at least one stays to train on. Default .2.
        """
        check_range("held_out", held_out, 0, 1, closed="left")
        of = np.arange(len(self)) if self.files is None else self.files
        files = np.unique(of)
        order = np.random.default_rng(seed_from(0, "held out", len(files))).permutation(files)
        trained = np.isin(of, order[: max(1, round(len(files) * (1 - held_out)))])
        return self.take(np.flatnonzero(trained)), self.take(np.flatnonzero(~trained))


@check_types
def load_sounds(
    source: str | Path,
    *,
    sampling_rate: int | None = None,
    clip_seconds: float | None = None,
    on_silence: str = "raise",
    max_samples: int | None = None,
) -> Sounds:
    """Read clips of sound from WAV and FLAC files, or those that come with the package.

    Several channels of a file become one by their mean, which is said. Files need the package soundfile.

    Args:
        source: a folder of .wav and .flac files, whose subfolders are classes; one such file; or "tones" or "vowels",
            see `latentia.data.shipped_sounds`.
        sampling_rate: samples per second that all files are resampled to; `None` (default): that of the files, which
            must be one.
        clip_seconds: cut files into clips of so many seconds, one after the other; what is left at the end is left out
            and said. `None` (default): files are clips, and must be of one length.
        on_silence: "raise" (default): a clip below -60 dB is an error; "skip": it is left out and said.
        max_samples: use at most so many clips, spread evenly; `None` (default): all.

    Raises:
        UsageError: another source, or the package soundfile is missing.
        DataError: a file that cannot be read or holds values beyond [-1, 1], files of several sampling rates or
            lengths, a file shorter than a clip, silence. The message names the file and the way out.

    Example:
        >>> load_sounds("vowels", max_samples=10).label_names
        ['a', 'e', 'i', 'o', 'u']
    """
    check_choice("on_silence", on_silence, ("raise", "skip"))
    for name, value, low, whole in (
        ("sampling_rate", sampling_rate, 100, True),
        ("clip_seconds", clip_seconds, 1e-3, False),
        ("max_samples", max_samples, 1, True),
    ):
        if value is not None:
            check_range(name, value, low, 1e6, integer=whole)
    if isinstance(source, str) and source in SHIPPED_SOUNDS:
        if sampling_rate is not None or clip_seconds is not None:
            raise UsageError(f"sampling_rate and clip_seconds are of files, and {source} is none; leave them out.")
        waves, labels, names, rate = SHIPPED_SOUNDS[source]()
        found = Sounds(waves, rate, labels, names, source={"kind": "sounds", "name": source})
    else:
        found = _read_all(user_path(source), source, sampling_rate, clip_seconds, on_silence == "skip")
    if max_samples is not None and max_samples < len(found):
        found = found.take(np.linspace(0, len(found) - 1, max_samples).round().astype(np.int64))
    return found


def _read_all(path: Path, source: Any, rate: int | None, seconds: float | None, skip: bool) -> Sounds:
    files = _files(path, source)
    clips, classes, of = [], [], []
    decisions: dict[str, int] = {}

    def shown(file: Path) -> str:
        return file.relative_to(path).as_posix() if path.is_dir() else file.name

    first: tuple[Path, int, int] | None = None  # whose rate and length all others must have
    for number, file in enumerate(files):
        wave, own = _read(file, decisions)
        if rate is None and first is not None and own != first[1]:
            raise DataError(
                f"files must have one sampling rate: {shown(first[0])} has {first[1]} Hz and {shown(file)} {own} Hz. "
                f"Give sampling_rate={min(own, first[1])} to resample all."
            )
        if rate is not None and own != rate:
            wave = _resampled(wave, own, rate)
            decisions["resampled"] = decisions.get("resampled", 0) + 1
        own = own if rate is None else rate
        length = len(wave) if seconds is None else round(seconds * own)
        if seconds is None and first is not None and length != first[2]:
            raise DataError(
                f"files must have one length: {shown(first[0])} has {first[2]} samples and {shown(file)} {length}. "
                "Give clip_seconds, at most the length of the shortest file, to cut all, such as clip_seconds=0.25."
            )
        if len(wave) < length:
            raise DataError(
                f"{shown(file)} has {len(wave) / own:g} s, less than a clip of clip_seconds={seconds:g}. Leave it out, "
                "or take shorter clips."
            )
        first = first or (file, own, length)
        pieces = wave[: len(wave) // length * length].reshape(-1, length)
        if left := len(wave) % length:
            decisions["cut"] = decisions.get("cut", 0) + left
        for k, piece in enumerate(pieces):
            if np.sqrt(np.square(piece, dtype=np.float64).mean()) < SILENT:
                if not skip:
                    raise DataError(
                        f"{shown(file)} is silent from {k * length / own:g} s to {(k + 1) * length / own:g} s, below "
                        '-60 dB. Leave it out, or leave silent clips out by on_silence="skip".'
                    )
                decisions["silent"] = decisions.get("silent", 0) + 1
                continue
            clips.append(piece)
            classes.append(file.parent)
            of.append(number)
    if first is None or not clips:
        raise DataError(f"{source} holds no clip that is not silent.")
    labels = names = None
    folders = sorted({*classes})
    if len(folders) > 1 or folders[0] != (path if path.is_dir() else path.parent):
        names = class_order({folder.name for folder in folders})
        labels = np.array([names.index(folder.name) for folder in classes])
    said = {"mono": "{} made mono", "resampled": "{} resampled", "cut": "{} left out", "silent": "{} left out"}
    what = {"mono": "file", "resampled": "file", "cut": "sample", "silent": "silent clip"}
    notes = [said[key].format(counted(number, what[key])) for key, number in decisions.items()]
    about = {"kind": "sounds", "name": path.name, "decisions": notes}
    return Sounds(np.stack(clips), first[1], labels, names, np.array(of), about)


def _files(path: Path, source: Any) -> list[Path]:
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [path]
    if not path.is_dir():
        raise UsageError(
            f"sounds must be a folder of {' and '.join(SUFFIXES)} files, such a file, or one of "
            f"{', '.join(SHIPPED_SOUNDS)}; got {source}.{did_you_mean(str(source), SHIPPED_SOUNDS)}"
        )
    found = sorted(p for p in path.glob("**/*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{path} holds no {' or '.join(SUFFIXES)} file.")
    if len(found) > _MAX_FILES:
        raise DataError(f"{path} holds {len(found)} files; at most {_MAX_FILES} are read.")
    return found


def _read(path: Path, decisions: dict[str, int]) -> tuple[np.ndarray, int]:
    """Samples of a file, mono, float32, and its sampling rate."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise UsageError(
            f"sound files need the package soundfile, which cannot be imported: {error}. pip install latentia[sound]"
        ) from error
    with open_file(path, most=_MAX_BYTES, error=DataError) as file:
        try:
            about = soundfile.info(file)
            if about.frames * about.channels > _MAX_SAMPLES:
                raise DataError(
                    f"{path} has {about.frames} samples of {counted(about.channels, 'channel')}, more than "
                    f"{_MAX_SAMPLES}."
                )
            file.seek(0)
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read as sound: {error}. Repair or remove it.") from error
    if not len(samples):
        raise DataError(f"{path} holds no samples. Remove it.")
    if not np.isfinite(samples).all() or np.abs(samples).max() > 1:
        raise DataError(f"{path} has samples beyond [-1, 1] or that are not finite. Scale it, or repair it.")
    if samples.shape[1] > 1:
        decisions["mono"] = decisions.get("mono", 0) + 1
    return samples.mean(1), int(rate)


def _resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """By a polyphase filter; clipped to [-1, 1], which the filter may leave a little."""
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    return resample_poly(samples, rate // common, own // common).astype(np.float32).clip(-1, 1)


def wav_bytes(samples: np.ndarray, sampling_rate: int) -> bytes:
    """A WAV file of 16 bits of mono samples (T,) in [-1, 1].

    Example:
        >>> wav_bytes(np.zeros(4), 8000)[:4], len(wav_bytes(np.zeros(4), 8000))
        (b'RIFF', 52)
    """
    target = io.BytesIO()
    with wave.Wave_write(target) as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes((np.asarray(samples, dtype=np.float64).clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return target.getvalue()


class SoundFrames:
    """A `Dataset` of clips as standardised log-mel frames.

    Args:
        sounds: to train on.
        log_mel: a `LogMel` of their length and sampling rate.

    Example:
        >>> from latentia import LogMel
        >>> sounds = load_sounds("tones", max_samples=20)
        >>> log_mel = LogMel.fit(torch.from_numpy(sounds.waves), sounds.sampling_rate)
        >>> SoundFrames(sounds, log_mel).batch(0, 8)["x"].shape
        torch.Size([8, 80, 17])
    """

    modality = "clip"
    endless = False
    captions = None
    has_captions = False

    def __init__(self, sounds: Sounds, log_mel: Any):
        self.sounds, self.log_mel = sounds, log_mel
        self.inputs = log_mel.encode(torch.from_numpy(sounds.waves))  # all in order, as networks take them
        self.shape: tuple[int, ...] = tuple(self.inputs.shape[1:])
        self.labels: Tensor | None = None if sounds.labels is None else torch.from_numpy(sounds.labels).long()
        self.label_names = sounds.label_names

    def __len__(self) -> int:
        return len(self.sounds)

    def __repr__(self) -> str:
        return f"SoundFrames({self.sounds!r} as {self.shape[0]} bands of {self.shape[1]} frames)"

    @property
    def fingerprint(self) -> str:
        """Changes with the waves, the sampling rate, the labels and the bands and frames."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.sounds.waves).data, digest_size=32).hexdigest()
        labels = None if self.sounds.labels is None else self.sounds.labels.tolist()
        return key_of(["sounds", digest, self.sounds.sampling_rate, self.label_names, labels, list(self.shape)])

    def describe(self) -> dict[str, Any]:
        """Source, clips, seconds and sampling rate; for a model card."""
        seconds = self.sounds.waves.shape[1] / self.sounds.sampling_rate
        about = {"clips": len(self), "seconds": seconds, "sampling_rate": self.sounds.sampling_rate}
        return {**self.sounds.source, **description(self), **about}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n clips, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, num_mels, L)}, with "labels" if there are some.
        """
        check_positions(start, stop)
        rows = indices(start, stop, len(self), seed)
        return annotate({"x": self.inputs[rows].to(device, non_blocking=True)}, self, rows, device)
