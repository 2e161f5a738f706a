"""Discriminator rejection sampling: keep a generator's samples by the density ratio of its discriminator."""

import math
from collections.abc import Callable

import torch
from diffusers.utils import logging
from torch import Tensor

logger = logging.get_logger(__name__)

_TRIES = 200  # candidates for one sample; about one in five is accepted


def rejection_sample(
    draw: Callable[[Tensor, list[torch.Generator]], tuple[Tensor, Tensor]],
    generators: list[torch.Generator],
    groups: Tensor | None = None,
    *,
    burn_in: int = 256,
    percentile: float = 0.8,
) -> Tensor:
    r"""Discriminator rejection sampling: candidates are kept with probability \(\sigma(F(x) - \gamma)\).

    \(F(x) = D(x) - D_M - \log(1 - e^{D(x) - D_M - \epsilon})\), where D is the logit, which for the objectives
    minimax, non-saturating and relativistic is \(\log p / p_g\) up to a constant, and \(D_M\) its largest value.

    Args:
        draw: rows (k,) and their k generators -> k candidates, and their logits (k,).
        generators: one for each wanted sample: its candidates and uniform numbers come from it alone.
        groups: (B,), what each sample is conditioned on; \(D_M\) and \(\gamma\) are taken for each by itself.
        burn_in: candidates that they are taken of, with fixed seeds. Default 256.
        percentile: \(\gamma\) is this quantile of F among them, 0.8 by default: lower accepts more.

    Returns:
        One accepted candidate for each generator. After 200 rejections, the one with the largest logit, and a warning.

    Discriminator Rejection Sampling (Azadi et al., 2018, 1810.06758), eq. 7 and 8.

    Example:
        >>> def draw(rows, generators):  # uniform on [0, 1], to be weighted by exp(4 x)
        ...     x = torch.stack([torch.rand((), generator=g) for g in generators])
        ...     return x, 4 * x
        >>> x = rejection_sample(draw, [torch.Generator().manual_seed(i) for i in range(200)])
        >>> bool(x.mean() > 0.6)
        True
    """
    groups = torch.zeros(len(generators), dtype=torch.int64) if groups is None else groups.cpu()
    top, gamma = (torch.zeros(len(groups), dtype=torch.float64) for _ in range(2))
    for group in groups.unique():
        own = (groups == group).nonzero()[:, 0]
        fixed = [torch.Generator(generators[0].device).manual_seed(2**62 + i) for i in range(burn_in)]
        logits = draw(own[:1].expand(burn_in), fixed)[1].double().cpu()
        top[own], gamma[own] = logits.max(), _log_odds(logits, logits.max()).quantile(percentile)
    waiting = torch.arange(len(groups))
    found: Tensor | None = None
    best = torch.full((len(groups),), -math.inf, dtype=torch.float64)
    for _ in range(_TRIES):
        own = [generators[i] for i in waiting.tolist()]
        samples, logits = draw(waiting, own)
        logits = logits.double().cpu()
        uniform = [torch.rand((), generator=g, device=g.device, dtype=torch.float64).item() for g in own]
        kept = torch.tensor(uniform) < (_log_odds(logits, top[waiting]) - gamma[waiting]).sigmoid()
        better = kept | (logits > best[waiting])
        best[waiting] = torch.maximum(best[waiting], logits)
        found = torch.empty_like(samples) if found is None else found
        found[waiting[better].to(found.device)] = samples[better.to(found.device)]
        waiting = waiting[~kept]
        if not len(waiting):
            break
    else:
        logger.warning("%d samples were rejected %d times; their best candidates are returned.", len(waiting), _TRIES)
    assert found is not None  # there is at least one generator
    return found


def _log_odds(logits: Tensor, top: Tensor) -> Tensor:
    gap = (logits - top).clamp(max=0)
    return gap - torch.log1p(-(gap - 1e-6).exp())
