"""Variational bounds in nats per image: ELBO, beta-VAE, free bits, capacity and IWAE.

How a weight on the KL beside a mean squared error relates to beta and to the variance of the pixels: see
`latentia.functional.bounds.beta_of_mse_weight`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.bounds import (
    bits_per_dim,
    effective_sample_size,
    hierarchical_kl,
    importance_weighted_bound,
)
from latentia.functional.categorical import mixed_kl
from latentia.functional.checks import check_values
from latentia.functional.distributions import log_likelihood, log_normal
from latentia.functional.gamma import NOISE, gamma_kl, gamma_parameters
from latentia.losses.conditions import item_of, labels_of
from latentia.losses.networks import config_of
from latentia.rng import Rng

GRADIENTS = ("standard", "doubly_reparameterised")
Cost = Callable[[Tensor, Tensor], Tensor]  # images, reconstructions -> (B,), in place of -log p(x|z)
ACTIVE = 0.01  # a unit is active if its posterior mean varies by more over the images (1509.00519, section 5.2)


def elbo_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
    capacity_weight: float = 10.0,
    category_capacity: float | None = None,
    temperature: float = 1.0,
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""The negative evidence lower bound: \(-E_{q(z|x)} \log p(x|z) + \beta\, \mathrm{KL}(q(z|x) \| p(z))\).

    The regulariser is, for each image, one of

    - \(\beta \sum_j \max(\mathrm{KL}_j, \lambda)\), with free bits \(\lambda\) below which a dimension costs nothing
      more (Kingma et al., 2016, 1606.04934, eq. 15, there of the batch's mean; here of each image, so that a split
      into micro-batches changes nothing);
    - \(\gamma |\mathrm{KL} - C|\), with capacity C (Burgess et al., 2018, 1804.03599, eq. 8).

    Of a hierarchy the KL of the layers below the topmost is that of one sample, see
    `latentia.functional.bounds.hierarchical_kl`: unbiased for the ELBO, while free bits and capacity, which are not
    linear in it, are biased by its noise.

    For a Bernoulli decoder grey pixels are binarised anew at each step: a value v is white with probability
    (v + 1) / 2 (dynamic binarisation). Pixels that are black or white already stay as they are.

    Args:
        vae: called as `vae(images, noise, class_labels=...)`.
        batch: "x" in [-1, 1], (B, C, H, W), and "labels" (B,) if the network has classes.
        rng: the randomness of this micro-batch.
        beta: weight of the KL; 1 (default) is the ELBO, more disentangles (Higgins et al., 2017), 0 gives an
            autoencoder with noise.
        free_bits: lambda, nats for each dimension of z, of whatever layer, default 0.
        capacity: C, nats; `None` (default): no capacity. A growing C is a function of `rng.position`.
        capacity_weight: gamma, default 10.
        category_capacity: C of categorical latents, beside `capacity`, that of the continuous ones (Dupont, 2018,
            1804.00104, eq. 7): at most \(\sum_g \log K_g\) is of use. `None` (default): one capacity for all.
        temperature: of relaxed categories, above 0, see `latentia.functional.categorical`; unused without them.
            Default 1.
        cost: (images, reconstructions) -> (B,), minimised in place of \(-\log p(x|z)\), see
            `latentia.runs.costs.reconstruction_cost`; `None` (default): the likelihood. "nats" stays the bound.

    Returns:
        "loss"; "nats", the negative ELBO itself whatever beta is, with its two parts "reconstruction" and "kl";
        "bits_per_dim"; "active_units" of this batch. Of categories "kl_categories", and "perplexity" of the mean
        posterior of a variable, 1 to K, a mean over variables. Of a hierarchy also "kl_1", "active_units_1", ... of
        each layer, from the image upwards; the posterior mean of a layer above the first is taken at the samples below
        it, so that with few samples its variance contains their noise.

    Raises:
        UsageError: a negative weight, a capacity beside beta or free bits, images outside [-1, 1], labels out of
            range.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114), eq. 10.

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=4)
        >>> values = elbo_loss(vae, {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4), beta=4.0)
        >>> bool(values["nats"] == values["reconstruction"] + values["kl"])
        True
    """
    weights = {"beta": beta, "free_bits": free_bits, "capacity": capacity or 0.0, "capacity_weight": capacity_weight}
    for name, value in weights.items():
        check_range(name, value, 0)
    if capacity is not None and (beta != 1 or free_bits):
        raise UsageError(
            f"capacity has a weight of its own, capacity_weight; leave beta at 1 and free_bits at 0. Got beta={beta} "
            f"and free_bits={free_bits}."
        )
    if category_capacity is not None:
        check_range("category_capacity", category_capacity, 0)
        if capacity is None or not config_of(vae).categories:
            raise UsageError(
                f"category_capacity must be left out without capacity and categories; got {category_capacity}. The two "
                "capacities are of the continuous and of the categorical latents."
            )
    check_range("temperature", temperature, 0, closed="neither")
    seen = run_vae(vae, batch, rng, temperature=temperature, gaussian=False)
    if free_bits and seen.out.log_prior is not None:
        raise UsageError(
            f"free_bits must be 0 with a learned prior, whose KL is not a sum over dimensions; got {free_bits}. Take "
            "kl_warmup or capacity."
        )
    kl = seen.kl.sum(1)
    if capacity is not None and category_capacity is not None:
        parts = zip((capacity, category_capacity), seen.kl.tensor_split([seen.continuous], 1))
        regulariser = capacity_weight * torch.stack([(part.sum(1) - c).abs() for c, part in parts]).sum(0)
    elif capacity is not None:
        regulariser = capacity_weight * (kl - capacity).abs()
    else:
        regulariser = beta * (seen.kl.clamp(min=free_bits).sum(1) if free_bits else kl)
    error = seen.error(cost)
    loss = (error + regulariser).mean()
    if seen.out.correction is not None:  # its value does not count
        loss = loss + (error.detach() * (seen.out.correction - seen.out.correction.detach())).mean()
    return {"loss": loss, **seen.metrics()}


def iwae_loss(
    vae: Any, batch: Mapping[str, Any], rng: Rng, *, samples: int = 5, gradient: str = "standard"
) -> dict[str, Tensor]:
    r"""The negative importance weighted bound: \(-E \log \frac1k \sum_i \frac{p(x, z_i)}{q(z_i|x)}\), \(z_i \sim q\).

    One sample gives the ELBO. The gradient of "standard" is the bound's own; for the encoder its signal vanishes
    against its noise as k grows. "doubly_reparameterised" replaces the encoder's part by
    \(\sum_i \tilde w_i^2 \frac{\partial \log w_i}{\partial z_i} \frac{\partial z_i}{\partial \phi}\), which has the
    same expectation and less variance. It needs the gradient at z alone, so the network must not be compiled. Of
    a hierarchy z_i is all layers: the first factor holds their samples apart, with log q(z_2|z_1) a function of both,
    and only the second runs from layer to layer; see `StochasticHierarchy.with_constant_posterior` in
    `latentia.models.layers.stochastic`.

    Args:
        vae, batch, rng: as for `elbo_loss`; a Bernoulli decoder's pixels are binarised likewise.
        samples: k, at least 1. Default 5.
        gradient: "standard" (default) or "doubly_reparameterised".

    Returns:
        "loss" = "nats", the negative bound; "elbo_nats", the negative ELBO from the same samples; "kl";
        "bits_per_dim"; "active_units", their posterior means being means over the k samples; both of each layer as for
        `elbo_loss`; "effective_samples", \(1 / \sum_i \tilde w_i^2\).

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 8 and 14; Doubly Reparameterized Gradient
    Estimators (Tucker et al., 2018, 1810.04152), eq. 7; of a hierarchy: Generalized Doubly Reparameterized Gradient
    Estimators (Bauer and Mnih, 2021, 2101.11046).

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=4)
        >>> values = iwae_loss(vae, {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4), samples=3)
        >>> bool(values["nats"] <= values["elbo_nats"])
        True
    """
    check_range("samples", samples, 1)
    check_choice("gradient", gradient, GRADIENTS)
    double = gradient == "doubly_reparameterised"  # z depends on the encoder still, q's density on z alone
    seen = run_vae(vae, batch, rng, (samples,), **({"constant_posterior": True} if double else {}))
    log_w = seen.log_weights()
    w = log_w.detach().softmax(1)
    bound = importance_weighted_bound(log_w.detach())
    # The decoder's gradient is sum_i w_i dlog w_i; at z it is scaled once more, on its way to the encoder.
    for layer in seen.out.layers if double else ():
        if layer.z.requires_grad:
            layer.z.register_hook(lambda g: w[..., None] * g)
    return weighted_values(seen, log_w, w, bound)


@dataclass(frozen=True)
class Seen:
    """One pass of a VAE: its images, binarised for Bernoulli pixels, its output, and the terms of the bound.

    `sizes`: dimensions of each stochastic layer. `kl`: nats of each dimension, (B, D). `log_likelihood`: log p(x|z),
    (B,) or (B, K).
    """

    x: Tensor
    out: Any
    config: Any
    sizes: tuple[int, ...]
    kl: Tensor
    log_likelihood: Tensor

    @property
    def continuous(self) -> int:
        """Dimensions that are not of categorical variables."""
        return sum(self.sizes) - sum(self.config.categories)

    def error(self, cost: Cost | None = None) -> Tensor:
        """-log p(x|z), or the cost of the reconstruction, (B,)."""
        return -self.log_likelihood if cost is None else cost(self.x, self.out.reconstruction.to(self.x.dtype))

    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z|x), of the samples of each image, (B, K)."""
        out = self.out
        mean, log_variance = (p if p.ndim == out.z.ndim else p[:, None] for p in (out.mean, out.log_variance))
        return self.log_likelihood + self.log_prior() - log_normal(out.z, mean, log_variance)

    def log_prior(self) -> Tensor:
        """log p(z), (B,) or (B, K)."""
        return log_normal(self.out.z) if self.out.log_prior is None else self.out.log_prior

    def require(self, objective: str, *, one_layer: bool = False) -> None:
        """Raises a `UsageError` unless the prior is N(0, I), and there is one stochastic layer if that is asked for."""
        if self.out.log_prior is not None:
            raise UsageError(
                f'prior must be "normal" for {objective}, which compares latents with N(0, I); got '
                f'"{self.config.prior}". Take elbo or iwae for a learned prior.'
            )
        if one_layer and len(self.sizes) > 1:
            raise UsageError(
                f"latent_dim must be one number for {objective}, whose terms are of one Gaussian posterior; got "
                f"{self.sizes}. Take elbo for several stochastic layers."
            )

    def metrics(self, nats: Tensor | None = None) -> dict[str, Tensor]:
        """What is logged: the bound and its parts, see `elbo_loss`; `nats` of another bound without the parts."""
        means = [layer.mean if layer.mean.ndim == 2 else layer.mean.mean(1) for layer in self.out.layers]
        if self.config.categories:
            means = [means[0][:, : self.continuous]]
        elif self.config.posterior == "gamma":
            shape, rate = gamma_parameters(self.out.mean, self.out.log_variance)
            means = [shape / rate]
        active = [((mean - mean.mean(0)).square().mean(0) > ACTIVE).sum() for mean in means]  # of no column too
        error, kl = -self.log_likelihood.mean(), self.kl.sum(1).mean()
        parts = {"reconstruction": error} if nats is None else {}
        nats = error + kl if nats is None else nats
        values = {
            "nats": nats, **parts, "kl": kl,
            "bits_per_dim": bits_per_dim(nats, self.x[0].numel(), density=self.config.likelihood == "gaussian"),
            "active_units": torch.stack(active).sum(),
        }  # fmt: skip
        layers = zip(self.kl.split(self.sizes, 1), active) if len(self.sizes) > 1 else ()
        for layer, (part, units) in enumerate(layers, 1):
            values |= {f"kl_{layer}": part.sum(1).mean(), f"active_units_{layer}": units}
        if self.config.categories:
            _, *logits = self.out.mean.split((self.continuous, *self.config.categories), -1)
            used = [each.softmax(-1).mean(0) for each in logits]
            perplexity = torch.stack([torch.special.entr(q).sum().exp() for q in used]).mean()
            values |= {"kl_categories": self.kl[:, self.continuous :].sum(1).mean(), "perplexity": perplexity}
        return {key: value.detach() for key, value in values.items()}


def run_vae(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    samples: tuple[int, ...] | None = (),
    temperature: float | None = None,
    gaussian: bool = True,
    **options: bool,
) -> Seen:
    """Encode and decode the images of a batch.

    Args:
        vae, batch, rng: as for `elbo_loss`.
        samples: () (default): one latent for each image; (K,): K of them; `None`: the means of q(z|x).
        temperature: of relaxed categories, where `gaussian` is False. Default `None`.
        gaussian: whether the objective is of Gaussian posteriors alone. Default True.
        **options: of the network's `forward`.

    Raises:
        UsageError: categories of an objective that takes none, images outside [-1, 1], labels that are missing or out
            of range.

    Example:
        >>> from latentia import VAE
        >>> seen = run_vae(VAE(sample_size=8, latent_dim=4), {"x": torch.zeros(2, 1, 8, 8)}, Rng(0, 0, 2, 0, 2), (5,))
        >>> seen.log_weights().shape
        torch.Size([2, 5])
    """
    config, x = config_of(vae), item_of(batch, "x")
    sizes = tuple(config.latent_dim) if isinstance(config.latent_dim, list | tuple) else (config.latent_dim or 0,)
    relaxed: dict[str, Any] = {}
    if gaussian and (config.categories or config.posterior != "gaussian"):
        raise UsageError(
            f'categories must be () and posterior "gaussian" for this objective; got {config.categories} and '
            f'"{config.posterior}". Take elbo for other latents.'
        )
    if config.categories:
        sizes, relaxed = (sizes[0] + sum(config.categories),), {"temperature": temperature}
    check_values("images", x, -1, 1, advice="Scale pixels v of 0 to 255 by v / 127.5 - 1.")
    labelled = config.num_class_embeds is not None and "labels" in batch
    labels = labels_of(batch, config.num_class_embeds) if labelled else None
    if config.likelihood == "bernoulli":
        x = torch.where(rng.uniform("binarise", x.shape[1:]) < (x + 1) / 2, 1.0, -1.0).to(x.dtype)
    numbers = sum(sizes) * (NOISE if config.posterior == "gamma" else 1)
    noise = None if samples is None else rng.normal("posterior", (*samples, numbers)).to(x.dtype)
    out = vae(x, noise, class_labels=labels, **options, **relaxed)
    if config.categories:
        kl = mixed_kl(out.mean, out.log_variance, config.categories)
    elif config.posterior == "gamma":
        kl = gamma_kl(*gamma_parameters(out.mean, out.log_variance))
    elif config.inference == "top_down" and out.log_prior is None:  # each layer's q is known given the one above
        kl = hierarchical_kl(out.z, out.mean, out.log_variance, (sum(sizes),))
    else:
        kl = hierarchical_kl(out.z, out.mean, out.log_variance, sizes)
    if out.log_prior is not None:  # of the topmost layer the value at the sample, spread evenly over its dimensions
        mean, log_variance = (p if p.ndim == out.z.ndim else p[:, None] for p in (out.mean, out.log_variance))
        whole = log_normal(out.z, mean, log_variance) - out.log_prior
        whole = whole if whole.ndim == 1 else whole.mean(1)
        top = (whole - kl[:, : -sizes[-1]].sum(1))[:, None] / sizes[-1]
        kl = torch.cat([kl[:, : -sizes[-1]], top.expand(-1, sizes[-1])], 1)
    return Seen(x, out, config, sizes, kl, log_likelihood(config.likelihood, x, out.location, out.log_scale))


def weighted_values(seen: Seen, log_w: Tensor, w: Tensor, bound: Tensor, groups: int = 1) -> dict[str, Tensor]:
    """The loss and metrics of a bound whose gradient is that of sum_i w_i log w_i, weights being constants.

    Args:
        seen, log_w: of `run_vae`, and its log-weights, (B, K).
        w: the weights, (B, K).
        bound: its value, (B,).
        groups: in which effective samples are counted. Default 1.
    """
    return bound_values(seen, log_w, -(w * log_w).sum(1), bound, groups)


def bound_values(seen: Seen, log_w: Tensor, surrogate: Tensor, bound: Tensor, groups: int = 1) -> dict[str, Tensor]:
    """The same with the gradient of a surrogate, (B,), whose value does not count."""
    log_w = log_w.detach()
    ess = effective_sample_size(log_w.reshape(len(log_w) * groups, -1))
    loss = (surrogate - surrogate.detach() - bound).mean()
    values = seen.metrics(-bound.mean())
    return {"loss": loss, **values, "elbo_nats": -log_w.mean(), "effective_samples": ess.mean()}
