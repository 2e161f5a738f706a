"""Time series that come with the package, drawn from a stated process."""

from collections.abc import Callable

import numpy as np

from latentia.rng import seed_from


def sines_ar2(count: int = 2000, steps: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures of sines, and second-order autoregressive processes, half of each: one channel.

    A series of sines is the sum of two sines and noise: the first has amplitude 1 and .04 to .12 periods a step, the
    second amplitude .5 and twice to three times as many periods, phases are uniform, and the noise is N(0, .05^2).
    A series of the process is x_t = 2 r cos(2 pi f) x_{t-1} - r^2 x_{t-2} + e_t, with r in [.85, .97], f in [.15, .3]
    and e_t Gaussian of the variance that gives x_t variance 1, begun 200 steps before the first that is kept.
    Frequencies and r are drawn uniformly for each series. Values are rounded to 4 decimals.

    Args:
        count: series. Default 2000.
        steps: of each. Default 64.
        seed: equal seeds give equal series. Default 0.

    Returns:
        Values, float64 (count, 1, steps), and labels, int64 (count,): 0 of sines, 1 of the process.

    Example:
        >>> values, labels = sines_ar2(4, 8)
        >>> values.shape, labels.tolist()
        ((4, 1, 8), [0, 1, 0, 1])
    """
    random = np.random.default_rng(seed_from(seed, "sines_ar2"))
    labels = np.arange(count) % 2
    t = np.arange(steps)
    frequency = random.uniform(0.04, 0.12, (count, 1))
    phases = random.uniform(0, 2 * np.pi, (2, count, 1))
    second = frequency * random.uniform(2, 3, (count, 1))
    sines = np.sin(2 * np.pi * frequency * t + phases[0]) + 0.5 * np.sin(2 * np.pi * second * t + phases[1])
    sines += 0.05 * random.standard_normal((count, steps))
    radius, centre = random.uniform(0.85, 0.97, count), random.uniform(0.15, 0.3, count)
    process = simulate_ar2(2 * radius * np.cos(2 * np.pi * centre), -(radius**2), steps, random)
    return np.round(np.where(labels[:, None] == 0, sines, process), 4)[:, None], labels


def simulate_ar2(
    a: np.ndarray, b: np.ndarray, steps: int, random: np.random.Generator, burn_in: int = 200
) -> np.ndarray:
    r"""Series of \(x_t = a x_{t-1} + b x_{t-2} + e_t\) of variance 1, (N, steps), one for each a and b.

    Args:
        a, b: (N,), of stationary processes.
        steps: of each series.
        random: draws e_t.
        burn_in: steps before the first that is kept. Default 200.

    Example:
        >>> simulate_ar2(np.array([0.5]), np.array([-0.3]), 4, np.random.default_rng(0)).shape
        (1, 4)
    """
    # Box and Jenkins, Time Series Analysis (1970), section 3.2: the variance of an AR(2) process
    noise = np.sqrt((1 + b) * ((1 - b) ** 2 - a**2) / (1 - b))
    found = np.zeros((len(a), burn_in + steps + 2))
    shocks = noise[:, None] * random.standard_normal(found.shape)
    for i in range(2, found.shape[1]):
        found[:, i] = a * found[:, i - 1] + b * found[:, i - 2] + shocks[:, i]
    return found[:, -steps:]


# name -> () -> values (N, C, L), labels (N,), names of the classes
SHIPPED_SERIES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray, list[str]]]] = {
    "sines_ar2": lambda: (*sines_ar2(), ["sines", "ar2"]),
}
