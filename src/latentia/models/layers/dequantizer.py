"""Variational dequantisation: noise of the width of a byte, whose distribution is learned and depends on the image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.functional.distributions import log_normal
from latentia.models.layers.conditioners import ConvConditioner
from latentia.models.layers.flow import Coupling, Transform, summed

_LAYERS = 4


class VariationalDequantizer(nn.Module):
    r"""A conditional flow \(q(u|x)\) of the noise of dequantisation, by affine couplings and a sigmoid.

    Uniform noise makes a smooth density fit steps; learned noise tightens the bound
    \(\log P(x) \ge E_{q(u|x)} [\log p(x + u) - \log q(u|x)]\).

    Flow++ (Ho et al., 2019, 1902.00275), section 3.1.

    Args:
        in_channels: of an image with even sides.
        hidden_sizes: channels of the convolutions of each coupling.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`.

    Example:
        >>> dequantizer = VariationalDequantizer(1, (8, 8), "relu")
        >>> u, log_q = dequantizer(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
        >>> u.unique().tolist(), log_q.shape
        ([0.5], torch.Size([2]))
    """

    def __init__(self, in_channels: int, hidden_sizes: Sequence[int], activation: str):
        super().__init__()
        channels = 4 * in_channels
        board = [[c for c in range(channels) if (c % 4 in (0, 3)) == colour] for colour in (True, False)]
        transform = Transform("affine", 2, 1.0)
        self.layers = nn.ModuleList()
        for i in range(_LAYERS):
            known, changed = board[i % 2], board[1 - i % 2]
            outputs = len(changed) * transform.parameters_per_value
            network = _ImageConditioner(len(known) + channels, outputs, hidden_sizes, activation, has_context=False)
            self.layers.append(Coupling(known, changed, network, transform))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """u in [0, 1], shaped as `images`, and log q(u|x), (B,).

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: N(0, 1), of that shape.
        """
        x, z, log_q = F.pixel_unshuffle(images, 2), F.pixel_unshuffle(noise, 2), log_normal(noise.flatten(1))
        for layer in self.layers:
            z, change = layer(z, x)
            log_q = log_q - change
        z = F.pixel_shuffle(z, 2)
        return z.sigmoid(), log_q - summed(F.logsigmoid(z) + F.logsigmoid(-z))


class _ImageConditioner(ConvConditioner):
    """A conditioner whose context is an image beside the known channels."""

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return super().forward(x if context is None else torch.cat([x, context], 1), None)
