"""Sounds that come with the package, drawn from stated processes: tones of five pitch classes, and five vowels."""

from collections.abc import Callable
from functools import cache

import numpy as np

from latentia.rng import seed_from

Shipped = tuple[np.ndarray, np.ndarray, list[str], int]
RATE, SAMPLES = 8000, 4096  # samples per second, and of a clip: about half a second
PITCHES = {"C": 261.63, "D": 293.66, "E": 329.63, "G": 392.0, "A": 440.0}  # Hz, of the fourth octave
# Mean formants of men in Hz: Peterson and Barney, 1952, doi:10.1121/1.1906875, table II
FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
_BANDWIDTHS = (80.0, 100.0, 140.0)  # Hz
_LOUD = 0.5  # peak of a clip


def tones(count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tones of the pitch classes C, D, E, G and A with harmonics and noise, at 8000 Hz.

    The octave is the third, fourth or fifth; the pitch is off by up to 15 cents; harmonic k has amplitude k^-s, s
    uniform in [.8, 2], for those below 3800 Hz; the tone rises within 5 to 40 ms and falls with a time constant of .15
    to .6 s; noise has a deviation of .003, and the peak is .5.

    Args:
        count: clips. Default 1000.
        seed: equal seeds give equal clips. Default 0.

    Returns:
        Waves, float32 (count, 4096) in [-1, 1], and labels, int64 (count,), in the order of `PITCHES`.

    Example:
        >>> waves, labels = tones(3)
        >>> waves.shape, labels.tolist()
        ((3, 4096), [0, 1, 2])
    """
    random, t = np.random.default_rng(seed_from(seed, "tones")), np.arange(SAMPLES) / RATE
    labels, found = np.arange(count) % len(PITCHES), np.empty((count, SAMPLES), dtype=np.float32)
    for i, label in enumerate(labels):
        pitch = [*PITCHES.values()][label] * 2.0 ** (random.integers(-1, 2) + random.uniform(-15, 15) / 1200)
        harmonics = np.arange(1, int(3800 // pitch) + 1)
        sizes = harmonics ** -random.uniform(0.8, 2.0)
        phases = random.uniform(0, 2 * np.pi, len(harmonics))
        wave = (sizes[:, None] * np.sin(2 * np.pi * pitch * harmonics[:, None] * t + phases[:, None])).sum(0)
        wave *= np.minimum(t / random.uniform(0.005, 0.04), 1) * np.exp(-t / random.uniform(0.15, 0.6))
        found[i] = _levelled(wave) + 0.003 * random.standard_normal(SAMPLES)
    return found.clip(-1, 1), labels


def vowels(count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vowels a, e, i, o and u, synthesised from a source and a filter, at 8000 Hz.

    The source is a train of pulses of 85 to 220 Hz, with vibrato of 1 % at 4 to 6 Hz and a slope of -6 dB an octave,
    and breath noise. The filter is three resonators in a row at the formants of the vowel, each off by up to 5 %. The
    loudness rises and falls within 30 ms; the peak is .5.

    Args:
        count: clips. Default 1000.
        seed: equal seeds give equal clips. Default 0.

    Returns:
        Waves, float32 (count, 4096) in [-1, 1], and labels, int64 (count,), in the order of `FORMANTS`.

    The Acoustic Theory of Speech Production (Fant, 1960).

    Example:
        >>> waves, labels = vowels(2)
        >>> waves.shape, float(abs(waves).max().round(2))
        ((2, 4096), 0.5)
    """
    from scipy.signal import lfilter

    random, t = np.random.default_rng(seed_from(seed, "vowels")), np.arange(SAMPLES) / RATE
    labels, found = np.arange(count) % len(FORMANTS), np.empty((count, SAMPLES), dtype=np.float32)
    ramp = np.minimum(1, np.minimum(t, t[::-1]) / 0.03)
    for i, label in enumerate(labels):
        vibrato = 1 + 0.01 * np.sin(2 * np.pi * random.uniform(4, 6) * t + random.uniform(0, 2 * np.pi))
        cycles = np.cumsum(random.uniform(85, 220) * vibrato) / RATE
        pulses = np.diff(np.floor(cycles + random.uniform(0, 1)), prepend=0)
        wave = lfilter([1.0], [1.0, -0.9], pulses) + 0.01 * random.standard_normal(SAMPLES)
        for centre, width in zip([*FORMANTS.values()][label], _BANDWIDTHS):
            radius = np.exp(-np.pi * width / RATE)
            angle = 2 * np.pi * centre * random.uniform(0.95, 1.05) / RATE
            poles = [1.0, -2 * radius * np.cos(angle), radius**2]
            wave = lfilter([sum(poles)], poles, wave)  # of gain 1 at 0 Hz
        found[i] = _levelled(wave * ramp)
    return found, labels


def _levelled(wave: np.ndarray) -> np.ndarray:
    return _LOUD * wave / np.abs(wave).max()


@cache
def _drawn(draw: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The clips of a process, drawn once: it takes a second."""
    return draw()


def _shipped(draw: Callable[[], tuple[np.ndarray, np.ndarray]], names: list[str]) -> Shipped:
    waves, labels = _drawn(draw)
    return waves.copy(), labels.copy(), names, RATE


# name -> () -> waves (N, T), labels (N,), names of the classes, samples per second
SHIPPED_SOUNDS: dict[str, Callable[[], Shipped]] = {
    "tones": lambda: _shipped(tones, [*PITCHES]),
    "vowels": lambda: _shipped(vowels, [*FORMANTS]),
}
