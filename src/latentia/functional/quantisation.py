"""Vector quantisation and finite scalar quantisation: codes of latents and back, and the update of a codebook."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentia.functional.precision import full_precision


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """`value`, to the last bit, with the gradient of `like` (Bengio et al., 2013, 1308.3432, section 4).

    Example:
        >>> z = torch.tensor([0.3], requires_grad=True)
        >>> straight_through(z.round(), z).mul(5).backward()
        >>> z.grad
        tensor([5.])
    """
    return value.detach() + (like - like.detach())


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    r"""The nearest row of a codebook for each latent: \(c = \arg\min_k \lVert z - e_k \rVert\).

    Args:
        z: (B, D, ...), computed in the dtype of the codebook, whatever autocast says: near rows cannot be told apart in
            half precision.
        codebook: e, (K, D).

    Returns:
        int64 (B, ...).

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937), eq. 1.

    Example:
        >>> nearest_codes(torch.tensor([[0.9], [0.2]]), torch.tensor([[0.0], [1.0]]))
        tensor([1, 0])
    """
    with full_precision(z.device.type):
        flat = z.movedim(1, -1).to(codebook.dtype).detach()  # (B, ..., D)
        e = codebook.detach()
        return (0.5 * e.square().sum(1) - flat @ e.T).argmin(-1)  # |z - e|^2 / 2 without |z|^2 / 2


def codebook_lookup(codes: Tensor, codebook: Tensor) -> Tensor:
    """The rows of codes (B, ...) as (B, D, ...).

    Example:
        >>> codebook_lookup(torch.tensor([[1, 0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0]])).shape
        torch.Size([1, 2, 2])
    """
    return torch.nn.functional.embedding(codes, codebook).movedim(-1, 1)


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 (K,).

    Args:
        codes: int64 in [0, K), any shape.
        codebook_size: K.

    Example:
        >>> code_counts(torch.tensor([0, 2, 2]), 4)
        tensor([1, 0, 2, 0])
    """
    flat = codes.flatten()  # bincount would wait for the largest code, to know how long its result is
    return flat.new_zeros(codebook_size).scatter_add_(0, flat, torch.ones_like(flat))


def codebook_sums(z: Tensor, codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """How many latents took each row of the codebook, and their sums; the same to the last bit on every call.

    Args:
        z: (n, D).
        codes: int64 in [0, K), (n,).
        codebook_size: K.

    Returns:
        Counts, int64 (K,), and sums (K, D).

    Example:
        >>> codebook_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1]), 2)[1]
        tensor([[2.],
                [5.]])
    """
    counts = code_counts(codes, codebook_size)
    # Sorted and summed row by row: adding in place has no fixed order on a GPU.
    sums = torch.segment_reduce(z[codes.argsort(stable=True)], "sum", lengths=counts, axis=0, unsafe=True)
    return counts, sums


def updated_codebook(
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    batch_counts: Tensor,
    batch_sums: Tensor,
    candidates: Tensor,
    decay: float,
    restart_below: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One step of k-means with a memory, and new places for rows that nobody uses.

    \(N_k \leftarrow \gamma N_k + (1 - \gamma) n_k\), \(m_k \leftarrow \gamma m_k + (1 - \gamma) s_k\),
    \(e_k = m_k / N_k\) (van den Oord et al., 2017, 1711.00937, eq. 6 to 8). A row whose \(N_k\) is below
    `restart_below` times the mean of all is moved to its candidate and given the mean, so that it has time to find its
    own. At first all N are zero, so the rows that the first batch does not use start on latents of that batch.

    Args:
        codebook: e, (K, D).
        counts, sums: N, (K,), and m, (K, D), of the steps before; at first 0.
        batch_counts: n, how many latents of the batch took each row, (K,).
        batch_sums: s, the sums of those latents, (K, D).
        candidates: a latent of the batch for each row, (K, D).
        decay: gamma, in [0, 1); 0 is a step of k-means.
        restart_below: in [0, 1); 0: no restarts.

    Returns:
        The new codebook, counts and sums, and which rows were restarted, bool (K,).

    Restarts: Jukebox (Dhariwal et al., 2020, 2005.00341), section 3.1.

    Example:
        >>> zero, one = torch.zeros(2), torch.ones(2, 1)
        >>> e, n, m, restarted = updated_codebook(
        ...     0 * one, zero, 0 * one, torch.tensor([2, 0]), torch.tensor([[6.0], [0.0]]), one, 0.0, 0.1
        ... )
        >>> e.flatten(), restarted
        (tensor([3., 1.]), tensor([False,  True]))
    """
    counts = counts.lerp(batch_counts.to(counts), 1 - decay)
    sums = sums.lerp(batch_sums.to(sums), 1 - decay)
    used = (counts > 1e-12)[:, None]
    codebook = torch.where(used, sums / counts.clamp(min=1e-12)[:, None], codebook)
    mean = counts.mean()
    dead = counts < restart_below * mean
    candidates = candidates.to(codebook)
    codebook = torch.where(dead[:, None], candidates, codebook)
    sums = torch.where(dead[:, None], mean * candidates, sums)
    return codebook, torch.where(dead, mean, counts), sums, dead


def fsq_codes(z: Tensor, levels: Sequence[int]) -> Tensor:
    r"""Codes of finite scalar quantisation: each channel is squeezed by tanh and rounded to one of its L levels.

    The digit of a channel is \(\mathrm{round}(\tfrac{L - 1}{2} (\tanh z + 1))\); the code is the number whose digits,
    lowest first, have the bases L.

    Args:
        z: (B, d, ...).
        levels: L of each of the d channels.

    Returns:
        int64 (B, ...), in [0, product of the levels).

    Finite Scalar Quantization (Mentzer et al., 2023, 2309.15505), section 3.1.

    Example:
        >>> fsq_codes(torch.tensor([[5.0, -5.0]]), (3, 2))
        tensor([2])
    """
    bases, places = _digits(levels, z)
    wide = z.float() if z.dtype.itemsize < 4 else z
    digits = (wide.tanh().add(1) * (bases - 1) / 2).round().long()
    return (digits * places).sum(1)


def fsq_lookup(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """The points in [-1, 1]^d of codes (B, ...) as (B, d, ...): levels from -1 to 1, both included.

    Example:
        >>> fsq_lookup(torch.tensor([2]), (3, 2))
        tensor([[ 1., -1.]])
    """
    bases, places = _digits(levels, codes[:, None])
    return codes[:, None] // places % bases * 2 / (bases - 1) - 1


def perplexity(codes: Tensor, codebook_size: int) -> Tensor:
    r"""\(\exp(-\sum_k p_k \log p_k)\), how many rows of the codebook are in use: from 1 to K.

    Args:
        codes: integers in [0, K), any shape.
        codebook_size: K.

    Returns:
        A scalar, float32.

    Example:
        >>> perplexity(torch.tensor([0, 0, 1, 1]), 512)
        tensor(2.)
    """
    return perplexity_of_counts(code_counts(codes, codebook_size))


def perplexity_of_counts(counts: Tensor) -> Tensor:
    """`perplexity` from how often each row was used, (K,).

    Example:
        >>> perplexity_of_counts(torch.tensor([3, 3, 0]))
        tensor(2.)
    """
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp().float()


def _digits(levels: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Bases and places of the digits, (d, 1, ...), beside `like`, (B, d, ...)."""
    places = [math.prod(levels[:i]) for i in range(len(levels))]
    shape = (-1, *[1] * (like.ndim - 2))
    bases, worth = (torch.tensor(numbers, device=like.device).view(shape) for numbers in (list(levels), places))
    return bases, worth
