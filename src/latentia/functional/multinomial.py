"""Multinomial diffusion: categories that are replaced by uniform ones, step by step."""

import torch
from torch import Tensor


def noisy_probabilities(one_hot: Tensor, alpha_bar: Tensor) -> Tensor:
    r"""q(x_t | x_0) of a category: \(\bar\alpha_t x_0 + (1 - \bar\alpha_t) / K\).

    Args:
        one_hot: x_0, or probabilities of it, (B, K).
        alpha_bar: the share that is kept, (B,).

    Argmax Flows and Multinomial Diffusion (Hoogeboom et al., 2021, 2102.05379), eq. 12.

    Example:
        >>> noisy_probabilities(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]))
        tensor([[0.7500, 0.2500]])
    """
    return alpha_bar[:, None] * one_hot + (1 - alpha_bar[:, None]) / one_hot.shape[1]


def posterior_probabilities(clean: Tensor, noisy: Tensor, alpha: Tensor, alpha_bar_previous: Tensor) -> Tensor:
    r"""q(x_{t-1} | x_t, x_0), proportional to \((\alpha_t x_t + (1 - \alpha_t) / K) \odot (\bar\alpha_{t-1} x_0 + (1 -
    \bar\alpha_{t-1}) / K)\).

    Args:
        clean: x_0 one-hot, or its predicted probabilities, (B, K).
        noisy: x_t, one-hot, (B, K).
        alpha: share of x_{t-1} that is kept in the step to x_t, (B,).
        alpha_bar_previous: share of x_0 in x_{t-1}, (B,); 1 in the last step, which gives x_0 itself.

    Returns:
        (B, K), which add up to 1.

    Hoogeboom et al., 2021, 2102.05379, eq. 13.

    Example:
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> posterior_probabilities(x, x, torch.tensor([0.5]), torch.tensor([1.0]))
        tensor([[1., 0.]])
    """
    found = noisy_probabilities(noisy, alpha) * noisy_probabilities(clean, alpha_bar_previous)
    return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)


def multinomial_bound_term(
    clean: Tensor, noisy: Tensor, logits: Tensor, alpha: Tensor, alpha_bar_previous: Tensor
) -> Tensor:
    r"""A term of the bound, (B,), in nats: \(\mathrm{KL}(q(x_{t-1}|x_t, x_0) \| q(x_{t-1}|x_t, \hat x_0))\).

    At the last step, where \(\bar\alpha_{t-1} = 1\), it is \(-\log p(x_0 | x_1)\).

    Args:
        clean, noisy: one-hot, (B, K).
        logits: of the predicted \(\hat x_0\), (B, K).
        alpha, alpha_bar_previous: as for `posterior_probabilities`.

    Example:
        >>> x, one = torch.tensor([[1.0, 0.0]]), torch.ones(1)
        >>> multinomial_bound_term(x, x, torch.tensor([[50.0, 0.0]]), 0.5 * one, 0.9 * one).abs() < 1e-6
        tensor([True])
    """
    true = posterior_probabilities(clean, noisy, alpha, alpha_bar_previous)
    predicted = posterior_probabilities(logits.softmax(1), noisy, alpha, alpha_bar_previous)
    smallest = 1e-30
    return (torch.xlogy(true, true) - true * predicted.clamp(min=smallest).log()).sum(1)
