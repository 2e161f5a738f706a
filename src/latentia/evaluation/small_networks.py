"""Small networks that metrics of sequences train: a classifier of sequences and a predictor of the next step."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.functional.precision import full_precision

Loss = Callable[[Tensor, Tensor], Tensor]


def fit_network(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, loss: Loss, *, steps: int, seed: int, batch_size: int = 64
) -> nn.Module:
    """A network trained by Adam with a linearly falling rate, the same for the same seed.

    Args:
        build: () -> the network.
        x: inputs, (N, ...).
        y: targets, (N, ...).
        loss: (outputs, targets) -> scalar.
        steps: of Adam, from a rate of .002.
        seed: of the weights and the batches.
        batch_size: default 64.

    Example:
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> network = fit_network(lambda: nn.Linear(1, 1), x, x / 2, F.mse_loss, steps=2000, seed=0)
        >>> round(network.weight.item(), 2)
        0.5
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), full_precision("cpu"):
        torch.manual_seed(seed)
        network = build().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for step in range(steps):
            rows = torch.randint(len(x), (min(batch_size, len(x)),))
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - step / steps)
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


class SequenceClassifier(nn.Module):
    """A small convolutional classifier: three convolutions, mean and maximum over the steps, a hidden layer, logits.

    Args:
        channels: of the sequences (B, C, L).
        classes: logits.

    Example:
        >>> SequenceClassifier(2, 3)(torch.zeros(4, 2, 30)).shape
        torch.Size([4, 3])
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv1d(channels, 32, 5, padding=2, stride=2), nn.SiLU()),
            *(nn.Conv1d(32, 64, 5, padding=2, stride=2), nn.SiLU()),
            *(nn.Conv1d(64, 64, 5, padding=2), nn.SiLU()),
        )
        self.hidden = nn.Linear(128, 32)
        self.out = nn.Linear(32, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 32), what the logits are made of."""
        h = self.convolutions(x)
        return F.silu(self.hidden(torch.cat([h.mean(2), h.amax(2)], 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 256) -> Tensor:
    """A function of rows, so many at once."""
    return torch.cat([function(part) for part in x.split(size)])


def separability(real: Tensor, made: Tensor, *, steps: int = 300, seed: int = 0) -> float:
    """Accuracy, over equal shares, of a small classifier that tells generated sequences from real ones; .5 is chance.

    Two thirds of each side train it, and the rest tests it. Twice, with different thirds, and the mean.

    Args:
        real, made: (N, C, L) each, N at least 6; as many of each are taken.
        steps: of training.
        seed: of the classifier and the parts.

    Example:
        >>> separability(torch.zeros(30, 1, 8), torch.ones(30, 1, 8), steps=50)
        1.0
    """
    count = min(len(real), len(made))
    found = []
    for fold in range(2):
        generator = torch.Generator().manual_seed(seed + fold)
        sides = [side[torch.randperm(len(side), generator=generator)[:count]].float() for side in (real, made)]
        cut = max(1, count // 3)
        x = torch.cat([side[cut:] for side in sides])
        y = torch.arange(2).repeat_interleave(count - cut)
        build = partial(SequenceClassifier, x.shape[1], 2)
        network = fit_network(build, x, y, F.cross_entropy, steps=steps, seed=seed + fold)
        right = [float((in_parts(network, side[:cut]).argmax(1) == k).double().mean()) for k, side in enumerate(sides)]
        found.append(sum(right) / 2)
    return sum(found) / len(found)
