r"""Algebra of diffusion: clean images, noise and velocity from each other, and the weights of their errors.

Notation: \(x_t = s\, x_0 + n\, \epsilon\) with signal \(s = \sqrt{\bar\alpha_t}\) and noise
\(n = \sqrt{1 - \bar\alpha_t}\), and \(v_t = s\, \epsilon - n\, x_0\).
"""

import torch
from torch import Tensor

from latentia.errors import check_choice

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
WEIGHTING = ("none", "min_snr")


def predict_x0(prediction_type: str, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """x_0 from a network's output.

    Args:
        prediction_type: what the output is: "epsilon", "sample" (x_0) or "v_prediction".
        output, x_t: of one shape.
        signal, noise: broadcasting with both.

    DDPM (Ho et al., 2020, 2006.11239), eq. 15; Progressive Distillation (Salimans and Ho, 2022, 2202.00512), section 4.

    Example:
        >>> one = torch.ones(1)
        >>> predict_x0("epsilon", 2 * one, 3 * one, 0.5 * one, one)
        tensor([2.])
    """
    if prediction_type == "epsilon":
        return (x_t - noise * output) / signal
    return output if prediction_type == "sample" else signal * x_t - noise * output


def predict_eps(prediction_type: str, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The noise from a network's output; arguments as for `predict_x0`.

    Example:
        >>> one = torch.ones(1)
        >>> predict_eps("sample", 2 * one, 3 * one, 0.5 * one, one)
        tensor([2.])
    """
    if prediction_type == "sample":
        return (x_t - signal * output) / noise
    return output if prediction_type == "epsilon" else signal * output + noise * x_t


def predict_velocity(prediction_type: str, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    r"""The velocity v from a network's output; arguments as for `predict_x0`.

    With signal \(\cos\phi\) and noise \(\sin\phi\) it is \(dx/d\phi\) of the probability-flow ODE (Salimans and Ho,
    2022, 2202.00512, appendix D), so no division is left for a network that predicts it.

    Example:
        >>> one = torch.ones(1)
        >>> predict_velocity("epsilon", 2 * one, one, 0.8 * one, 0.6 * one)  # (2 - 0.6) / 0.8
        tensor([1.7500])
    """
    if prediction_type == "epsilon":
        return (output - noise * x_t) / signal
    return output if prediction_type == "v_prediction" else (signal * x_t - output) / noise


def dynamic_threshold(x0: Tensor, quantile: float, most: float) -> Tensor:
    """Dynamic thresholding: clip to [-s, s] and divide by s, the quantile of |x_0| over an image, from 1 to `most`.

    Args:
        x0: (B, ...).
        quantile: in (0, 1].
        most: the largest s, at least 1.

    Photorealistic Text-to-Image Diffusion Models (Saharia et al., 2022, 2205.11487), section 2.3.

    Example:
        >>> dynamic_threshold(torch.tensor([[-4.0, 2.0]]), 1.0, 10.0)
        tensor([[-1.0000,  0.5000]])
    """
    s = torch.quantile(x0.abs().flatten(1), quantile, dim=1)
    s = s.clamp(1, most).reshape(-1, *(1,) * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last is 0 and the first is kept.

    Args:
        betas: (T,), T at least 2.

    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023, 2305.08891), algorithm 1.

    Example:
        >>> zero_terminal_snr(torch.tensor([0.1, 0.2, 0.3]))[-1]
        tensor(1.)
    """
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def snr_weight(alpha_bar: Tensor, prediction_type: str, weighting: str = "none", snr_gamma: float = 5.0) -> Tensor:
    r"""The weight of each image's squared error in the network's own prediction space.

    "min_snr" gives the clean-image error the weight \(\min(\mathrm{SNR}_t, \gamma)\) (Hang et al., 2023, 2303.09556,
    section 3.4), which is \(/\mathrm{SNR}\) for epsilon and \(/(\mathrm{SNR} + 1)\) for v-prediction.

    Args:
        alpha_bar: \(\bar\alpha_t\) of each image, (B,).
        prediction_type: "epsilon", "sample" or "v_prediction".
        weighting: "none" (default; 1 everywhere) or "min_snr".
        snr_gamma: gamma. Default 5.

    Returns:
        float32 of shape (B,).

    Raises:
        UsageError: an unknown name.

    Example:
        >>> snr_weight(torch.tensor([0.5, 0.1]), "epsilon", "min_snr")
        tensor([1., 1.])
        >>> snr_weight(torch.tensor([0.9]), "epsilon", "min_snr")  # SNR 9
        tensor([0.5556])
    """
    check_choice("weighting", weighting, WEIGHTING)
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if weighting == "none":
        return torch.ones(len(alpha_bar), device=alpha_bar.device)
    snr = alpha_bar / (1 - alpha_bar)
    per_x0 = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction_type]
    return (snr.clamp(max=snr_gamma) / per_x0.clamp(min=1e-8)).float()


def logit_normal(u: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    r"""Logit-normal times of uniform ones: \(\sigma(\text{loc} + \text{scale} \cdot \Phi^{-1}(u))\).

    Args:
        u: in [0, 1), any shape.
        loc, scale: of the normal density; a smaller `loc` means smaller times. Defaults 0 and 1.

    Scaling Rectified Flow Transformers (Esser et al., 2024, 2403.03206), eq. 19.

    Example:
        >>> logit_normal(torch.tensor([0.5, 0.9])).round(decimals=4)
        tensor([0.5000, 0.7827])
    """
    return torch.sigmoid(loc + scale * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
