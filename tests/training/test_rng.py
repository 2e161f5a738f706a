"""The counter-based random numbers: equal to a plain implementation, well distributed, and independent of processes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from latentia import rng as module
from latentia.rng import Rng, seed_from

MASK = (1 << 64) - 1


def splitmix64(counter: int) -> int:
    """Variant 13 in Python's own integers."""
    z = counter & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bits(seed: int, stream: str, position: int, n: int) -> list[int]:
    gamma = 0x9E3779B97F4A7C15
    return [splitmix64(seed_from(seed, stream) + gamma * ((position << 32) + k)) for k in range(1, n + 1)]


def test_numbers_are_those_of_splitmix64():
    found = Rng(7, 1000, 8, 3, 2)
    for row, position in enumerate((1003, 1004)):
        numbers = bits(7, "s", position, 3)
        uniform = [n >> 40 for n in numbers] + [n & 0xFFFFFF for n in numbers]
        assert found.uniform("s", (5,))[row].tolist() == [u / 2**24 for u in uniform[:5]]
        radius = [math.sqrt(-2 * math.log(((n & 0xFFFFFFFF) + 0.5) / 2**32)) for n in numbers]
        angle = [2 * math.pi * (n >> 32) / 2**32 for n in numbers]
        normal = [r * math.cos(a) for r, a in zip(radius, angle)] + [r * math.sin(a) for r, a in zip(radius, angle)]
        np.testing.assert_allclose(found.normal("s", (5,))[row].numpy(), normal[:5], atol=2e-6)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_distribution_of_many_numbers(kind):
    x = getattr(Rng(0, 512, 4096, 0, 4096), kind)("s", (64,)).double()
    assert stats.kstest(x.flatten().numpy(), {"normal": "norm", "uniform": "uniform"}[kind]).pvalue > 0.001
    centred = (x - x.mean()) / x.std()
    n = x.numel()
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1]), (centred[:, 32:], centred[:, :32])):
        assert abs((a * b).sum()) < 5 * math.sqrt(n)
        assert abs(((a**2 - 1) * (b**2 - 1)).sum()) < 5 * math.sqrt(n) * float((centred**2 - 1).var())


def test_no_two_elements_have_equal_numbers():
    rows = Rng(0, 0, 20_000, 0, 20_000).uniform("s", (4,))
    assert len(rows.unique(dim=0)) == 20_000


def test_a_process_makes_its_own_numbers_only(monkeypatch):
    made, mix = [], module._mix
    monkeypatch.setattr(module, "_mix", lambda x: made.append(x.numel()) or mix(x))
    Rng(0, 0, 8, 0, 8).normal("s", (10,))
    Rng(0, 0, 8 * 1024, 8 * 1000, 8).normal("s", (10,))
    assert made == [8 * 5, 8 * 5]


def test_global_batch_and_its_split_change_no_number():
    whole = Rng(3, 96, 32, 0, 32).normal("s", (3,))
    parts = [Rng(3, 96, 32, start, 4).normal("s", (3,)) for start in range(0, 32, 4)]
    assert torch.equal(torch.cat(parts), whole)
    smaller = [Rng(3, 96 + start, 8, 0, 8).normal("s", (3,)) for start in range(0, 32, 8)]  # four steps of 8
    assert torch.equal(torch.cat(smaller), whole)


def test_stratified_has_one_number_in_each_interval():
    whole = Rng(5, 64, 16, 0, 16).stratified("t")
    assert sorted((whole * 16).long().tolist()) == list(range(16))
    assert torch.equal(torch.cat([Rng(5, 64, 16, s, 8).stratified("t") for s in (0, 8)]), whole)
    assert not torch.equal(Rng(5, 80, 16, 0, 16).stratified("t"), whole)


def test_nothing_is_made_on_another_device():
    assert Rng(0, 0, 4, 0, 4, "meta").normal("s", (3, 2)).device.type == "meta"
    assert Rng(0, 0, 4, 0, 4, "meta").stratified("s").device.type == "meta"
