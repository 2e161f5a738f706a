"""Alternating variational EM: the encoder and the decoder of one network as two phases of training."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from latentia.errors import Count, UsageError, check_arguments
from latentia.rng import Rng
from latentia.training.loop import Phase

ENCODER = ("encoder", "encoder_class_embedding", "encoder_mlp", "posterior", "hierarchy.posteriors")


@check_arguments
def alternating_phases(
    network: nn.Module,
    loss: Callable[[dict[str, Any], Rng], dict[str, Tensor]],
    optimizer: Callable[[list[nn.Parameter]], Any],
    *,
    encoder_parts: tuple[str, ...] = ENCODER,
    decoder_every: Count = 1,
    **options: Any,
) -> list[Phase]:
    r"""Variational EM by stochastic gradients, as two phases over one network.

    With the bound \(\mathcal{L}(\xi, \theta) = \log p_\theta(x) - \mathrm{KL}(q_\xi(z|x) \| p_\theta(z|x))\) the first
    phase brings q nearer to the posterior, \(\min_\xi \mathrm{KL}\), and the second raises the bound over
    \(\theta\). Joint training of a VAE does both at once.

    Args:
        network: such as `latentia.VAE`.
        loss: (batch, rng) -> {"loss": the negative bound, **metrics}, of that network.
        optimizer: parameters -> optimizer, called once for the encoder and once for the decoder.
        encoder_parts: names of the submodules whose parameters are xi; all others are theta. Default those of a VAE.
        decoder_every: the decoder takes a step in every n-th step only. Default 1.
        **options: of both phases, such as `max_grad_norm`; see `latentia.training.loop.Phase`.

    Returns:
        The phases "encoder" and "decoder", in that order, for one process.

    Raises:
        UsageError: one of the parts has no parameters.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114); A View of the EM Algorithm that Justifies
    Incremental, Sparse, and other Variants (Neal and Hinton, 1998).

    Example:
        >>> import torch
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=4, latent_dim=2, hidden_sizes=(8,))
        >>> phases = alternating_phases(vae, lambda batch, rng: {"loss": torch.zeros(())}, torch.optim.Adam)
        >>> [(phase.name, len(list(phase.trains.parameters()))) for phase in phases]
        [('encoder', 4), ('decoder', 4)]
    """
    parts: dict[str, list[nn.Parameter]] = {"encoder": [], "decoder": []}
    for name, parameter in network.named_parameters():
        inferring = any(name.startswith(f"{part}.") for part in encoder_parts)
        parts["encoder" if inferring else "decoder"].append(parameter)
    for name, parameters in parts.items():
        if not parameters:
            raise UsageError(
                f"The {name} of {type(network).__name__} has no parameters beside encoder_parts="
                f"{encoder_parts}, so there is nothing to alternate. Name the submodules of its encoder."
            )
    return [
        Phase(name, loss, nn.ParameterList(parameters), optimizer(parameters), every=every, **options)
        for (name, parameters), every in zip(parts.items(), (1, decoder_every))
    ]
