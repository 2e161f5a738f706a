"""The VQ-VAE loss, and the update of a codebook by running means."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.quantisation import codebook_sums, perplexity, perplexity_of_counts
from latentia.losses.conditions import item_of
from latentia.losses.networks import unwrap
from latentia.rng import Rng, seed_from


def vqvae_loss(
    vqvae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    beta: float = 0.25,
    collect: Callable[[Any, Rng], None] | None = None,
) -> dict[str, Tensor]:
    r"""\(\lVert x - \hat x \rVert^2 + \beta \lVert z_e - \mathrm{sg}(z_q) \rVert^2\), \(\hat x\) from \(z_q\).

    Each norm is a mean over what it compares, pixels or latents. If the codebook is a parameter,
    \(\lVert \mathrm{sg}(z_e) - z_q \rVert^2\) is added; finite scalar quantisation has the first term alone.

    Args:
        vqvae: a `VQVAE`, may be wrapped for several processes.
        batch: "x" in [-1, 1], (B, C, H, W).
        rng: the randomness of this micro-batch.
        beta: weight of the commitment, at least 0. Default 0.25.
        collect: `CodebookUpdate.collect`, which gets the output in training; a codebook that is updated without
            gradients needs it.

    Returns:
        "loss", "reconstruction" (mean squared error of values in [-1, 1]), "commitment", and "perplexity" of this
        micro-batch, which its number of latents limits.

    Raises:
        UsageError: a negative beta.

    Neural Discrete Representation Learning (van den Oord et al., 2017, 1711.00937), eq. 3.

    Example:
        >>> from latentia import VQVAE
        >>> vqvae = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16)
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> sorted(vqvae_loss(vqvae, batch, Rng(0, 0, 4, 0, 4)))
        ['commitment', 'loss', 'perplexity', 'reconstruction']
    """
    check_range("beta", beta, 0)
    images, plain = item_of(batch, "x"), unwrap(vqvae)
    out = vqvae(images)
    if collect is not None and plain.training:
        collect(out, rng)
    reconstruction = (out.reconstruction.float() - images).square().flatten(1).mean(1).mean()
    values = {"reconstruction": reconstruction, "perplexity": perplexity(out.codes, plain.quantize.codebook_size)}
    if not plain.quantize.has_commitment:
        return {"loss": reconstruction, **values}
    z_e, z_q = out.latents.float(), out.quantized.float()
    commitment = (z_e - z_q.detach()).square().flatten(1).mean(1).mean()
    loss = reconstruction + beta * commitment
    if z_q.requires_grad:
        loss = loss + (z_e.detach() - z_q).square().flatten(1).mean(1).mean()
    return {"loss": loss, **values, "commitment": commitment}


class CodebookUpdate:
    """Updates the codebook once in each step of training, after all of the step's micro-batches on all processes.

    While the gradients are computed, `collect` notes which latents took which row. Then the object itself, called as
    the loss of a second phase without an optimizer, sums this over processes and updates the buffers of the codebook.
    Rows that are no longer used are put on latents chosen from the whole global batch by the randomness of the step.
    So neither processes nor micro-batches nor a restart of the run change what happens, and nothing is kept between
    steps but the buffers.

    Args:
        vqvae: with `codebook_update="ema"`; may be wrapped for several processes.
        decay: of the running counts and sums, in [0, 1). Default 0.99.
        restart_below: rows used less than this share of the mean are restarted, in [0, 1); 0: never. Default 0.1.

    Raises:
        UsageError: numbers out of range, or a network without such a codebook.

    The running means are those of van den Oord et al., 2017, 1711.00937, appendix A.1; restarts: Jukebox (Dhariwal et
    al., 2020, 2005.00341), section 3.1.

    Example:
        >>> from latentia import VQVAE
        >>> vqvae = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16)
        >>> update, rng = CodebookUpdate(vqvae), Rng(0, 0, 4, 0, 4)
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> _ = vqvae_loss(vqvae, batch, rng, collect=update.collect)
        >>> sorted(update(batch, rng))
        ['perplexity', 'restarts']
    """

    def __init__(self, vqvae: Any, decay: float = 0.99, restart_below: float = 0.1):
        for name, value in (("decay", decay), ("restart_below", restart_below)):
            check_range(name, value, 0, 1, closed="left")
        self.quantizer = unwrap(vqvae).quantize
        if not hasattr(self.quantizer, "counts"):
            raise UsageError(
                'CodebookUpdate needs a network with quantizer="vq" and codebook_update="ema"; this one has no such '
                "codebook. Leave the phase out."
            )
        self.decay, self.restart_below = decay, restart_below
        self._parts: dict[int, list[Tensor]] = {}  # first image of the micro-batch -> counts, sums, candidates
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def collect(self, output: Any, rng: Rng) -> None:
        """Note the latents of a micro-batch. Given the same one again, as after an fp16 overflow, the last counts."""
        size = self.quantizer.codebook_size
        z = output.latents.detach().movedim(1, -1).flatten(0, -2).to(self.quantizer.sums.dtype)  # (n, D)
        codes = output.codes.flatten()
        counts, sums = codebook_sums(z, codes, size)
        area = output.codes[0].numel()
        generator = torch.Generator().manual_seed(seed_from(rng.seed, "codebook restarts", rng.position))
        chosen = torch.randperm(rng.global_batch * area, generator=generator)  # of the latents of all processes
        chosen = chosen[torch.arange(size) % len(chosen)].to(z.device, non_blocking=True) - rng.slice.start * area
        here = (chosen >= 0) & (chosen < len(z))
        candidates = torch.where(here[:, None], z[chosen.clamp(0, len(z) - 1)], 0)
        self._parts[rng.slice.start] = [counts.to(z.dtype), sums, candidates]

    def __call__(self, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
        """Update with what was collected; the first call of a step does it, and all report it.

        Returns:
            "perplexity" of the step's codes over all processes, and "restarts", the number of rows that were moved.
        """
        if self._parts:
            counts, sums, candidates = (torch.stack(part).sum(0) for part in zip(*self._parts.values()))
            self._parts = {}
            if dist.is_available() and dist.is_initialized():
                for part in (counts, sums, candidates):
                    dist.all_reduce(part)
            restarted = self.quantizer.update(counts, sums, candidates, self.decay, self.restart_below)
            self._values = {"perplexity": perplexity_of_counts(counts), "restarts": restarted.sum().float()}
        return self._values
