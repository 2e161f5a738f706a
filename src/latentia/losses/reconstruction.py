"""The reconstruction loss of autoencoders: plain, denoising or sparse."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from latentia.errors import Range, UsageError, Weight, check_choice, check_range
from latentia.functional.distributions import bernoulli_kl, log_cosh
from latentia.losses.conditions import item_of
from latentia.losses.networks import config_of
from latentia.rng import Rng

CORRUPTIONS = ("none", "gaussian", "masking")
SPARSITIES = ("none", "l1", "l2", "kl")
RECONSTRUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.square, "l1": torch.abs, "log_cosh": log_cosh}


def corrupt(x: Tensor, rng: Rng, corruption: str = "none", strength: float = 0.0, masked_value: float = -1.0) -> Tensor:
    r"""The input of a denoising autoencoder: \(\tilde x = x + \sigma \epsilon\), or x with pixels switched off.

    Args:
        x: images (B, C, H, W) in [-1, 1], or sequences (B, T, D).
        rng: the randomness of this micro-batch.
        corruption: "none", "gaussian" or "masking".
        strength: of "gaussian" the standard deviation sigma in units of x, so that 1 is half of the range [-1, 1] (0.5
            of images in [0, 1]); of "masking" the share of pixels, or of elements of a sequence, in [0, 1). A masked
            pixel is off in all its channels.
        masked_value: what is put in their place; -1 (default) is black.

    Returns:
        Shaped as `x`, not clamped. The same `rng` gives the same corruption.

    Raises:
        UsageError: unknown `corruption`, or a strength out of its range.

    Extracting and Composing Robust Features with Denoising Autoencoders (Vincent et al., 2008), section 2.3.

    Example:
        >>> x = corrupt(torch.ones(4, 3, 8, 8), Rng(0, 0, 4, 0, 4), "masking", 0.5)
        >>> sorted(x.unique().tolist())
        [-1.0, 1.0]
    """
    check_choice("corruption", corruption, CORRUPTIONS)
    if corruption == "none":
        return x
    if corruption == "gaussian":
        check_range("corruption_strength", strength, 0)
        return x + strength * rng.normal("corruption", tuple(x.shape[1:])).to(x.dtype)
    check_range("corruption_strength", strength, 0, 1, closed="left", advice="It is a share.")
    place = (1, *x.shape[2:]) if x.ndim == 4 else (x.shape[1], 1)
    return torch.where(rng.uniform("corruption", place) < strength, masked_value, x)


def autoencoder_loss(
    network: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    corruption: str = "none",
    corruption_strength: Weight = 0.0,
    masked_value: float = -1.0,
    sparsity: str = "none",
    sparsity_weight: Weight = 0.0,
    sparsity_target: Annotated[float, Range(0, 1, "neither")] = 0.1,
    reconstruction: str = "mse",
) -> dict[str, Tensor]:
    r"""\(\mathbb{E}_x \lVert g(f(\tilde x)) - x \rVert^2 + \lambda\, \Omega(z)\), \(\tilde x\) corrupted, \(x\) clean.

    \(\Omega\) is \(\sum_j |z_j|\) ("l1") or \(\sum_j z_j^2\) ("l2") of an image's code, averaged over the batch; or
    \(\sum_j \mathrm{KL}(\rho \,\|\, \hat\rho_j)\) ("kl"), where \(\hat\rho_j\) is the mean of unit j over the images
    of the micro-batch, which should therefore be large.

    Args:
        network: `Autoencoder` or `RecurrentAutoencoder`, plain or prepared; called through `forward` alone.
        batch: "x", images (B, C, H, W) in [-1, 1]; or sequences (B, T, D) and, if they differ in length, "mask" (B, T),
            True where an element counts.
        rng: the randomness of this micro-batch.
        corruption: of the input, while the target is clean: "none", "gaussian" or "masking", see `corrupt`.
        corruption_strength: standard deviation (1 is half of the range), or share of masked pixels.
        masked_value: value of masked pixels; -1 (default) is black.
        sparsity: penalty on the latents: "none", "l1", "l2" or "kl"; "kl" needs latents in (0, 1), by
            `latent_activation="sigmoid"`.
        sparsity_weight: weight of the penalty, in units of squared error per image; at least 0.
        sparsity_target: mean activation that "kl" wants, rho in (0, 1). Default 0.1.
        reconstruction: error of a value: "mse", the squared difference; "l1", the absolute one; or "log_cosh", between
            (Chen et al., 2019).

    Returns:
        "loss"; "reconstruction", the error of an image summed over its values (a unit is half of the range [-1, 1],
        squared for "mse"); "per_value", the same per value; and "sparsity", Omega before its weight, if there is one.

    Raises:
        UsageError: unknown names, a negative weight, a target or strength out of its range, "kl" without a sigmoid.

    Denoising: Vincent et al., 2010, JMLR 11, eq. 9. Sparsity: Ng, 2011, CS294A lecture notes, section 3.

    Example:
        >>> from latentia import Autoencoder
        >>> network = Autoencoder(sample_size=8, latent_dim=16, latent_activation="sigmoid")
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> values = autoencoder_loss(network, batch, Rng(0, 0, 4, 0, 4), sparsity="kl", sparsity_weight=0.5)
        >>> bool(values["loss"] == values["reconstruction"] + 0.5 * values["sparsity"])
        True
    """
    check_choice("sparsity", sparsity, SPARSITIES)
    check_choice("reconstruction", reconstruction, RECONSTRUCTIONS)
    check_range("sparsity_weight", sparsity_weight, 0)
    if sparsity == "kl":
        check_range("sparsity_target", sparsity_target, 0, 1, closed="neither")
        activation = config_of(network).latent_activation
        if activation != "sigmoid":
            raise UsageError(
                'sparsity="kl" compares mean activations with a target in (0, 1), and this network has '
                f'latent_activation="{activation}". Build it with "sigmoid", or take "l1".'
            )
    x = item_of(batch, "x")
    mask = {"mask": batch["mask"]} if "mask" in batch else {}
    out = network(corrupt(x, rng, corruption, corruption_strength, masked_value), **mask)

    gap = out.reconstruction.float() - x
    error = RECONSTRUCTIONS[reconstruction](gap)
    count = torch.full((), float(x[0].numel()), device=x.device)
    if mask:
        counts = batch["mask"].bool()[..., None]
        error = torch.where(counts, error, 0.0)
        count = counts.expand_as(x).flatten(1).sum(1).float().mean()
    per_image = error.flatten(1).sum(1).mean()
    values = {"loss": per_image, "reconstruction": per_image, "per_value": per_image / count}
    if sparsity != "none":
        z = out.latents.float()
        if sparsity == "kl":
            omega = bernoulli_kl(sparsity_target, z.mean(0)).sum()
        else:
            omega = (z.abs() if sparsity == "l1" else z.square()).sum(1).mean()
        values |= {"loss": per_image + sparsity_weight * omega, "sparsity": omega}
    return values
