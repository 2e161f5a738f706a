"""A small convolutional classifier: its classes judge samples, its features measure distances."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from latentia.errors import UsageError
from latentia.models.modeling import UNSET, ModelMixin


@dataclass
class ClassifierOutput(BaseOutput):
    """What a classifier says about B images.

    Args:
        logits: unnormalised log p(c|x), (B, num_classes).
        features: the layer before the last, (B, feature_dim). `logits` is an affine function of it.
    """

    logits: torch.Tensor
    features: torch.Tensor = UNSET


class DigitClassifier(ModelMixin, ConfigMixin):
    """Per entry of `block_out_channels` a convolution, batch norm, GELU and a halving; then two linear layers.

    Args:
        sample_size: height and width in pixels, at least `2 ** len(block_out_channels)`.
        in_channels: channels of the images.
        num_classes: number of classes K.
        block_out_channels: channels after each convolution.
        feature_dim: width D of the penultimate layer. A covariance of it has full rank from D + 1 images on.

    Raises:
        UsageError: `sample_size` is too small for that many halvings.

    Example:
        >>> classifier = DigitClassifier(sample_size=8, block_out_channels=(8, 16)).eval()
        >>> output = classifier(torch.zeros(3, 1, 8, 8))
        >>> tuple(output.logits.shape), tuple(output.features.shape)
        ((3, 10), (3, 64))
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        feature_dim: int = 64,
    ):
        super().__init__()
        side = sample_size >> len(block_out_channels)
        if side < 1:
            raise UsageError(
                f"`sample_size` must be at least 2 ** len(block_out_channels) = {2 ** len(block_out_channels)}. "
                f"Got {sample_size}; pass fewer entries in `block_out_channels`."
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels in block_out_channels:
            # No bias: the mean that batch norm subtracts would cancel it.
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(out_channels), nn.GELU(), nn.MaxPool2d(2)]
            channels = out_channels
        self.body = nn.Sequential(*layers)
        self.to_features = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, feature_dim), nn.GELU())
        self.to_logits = nn.Linear(feature_dim, num_classes)

    def forward(
        self, images: torch.Tensor, return_dict: bool = True
    ) -> ClassifierOutput | tuple[torch.Tensor, torch.Tensor]:
        """Classify images.

        Args:
            images: (B, in_channels, sample_size, sample_size) in [-1, 1].
            return_dict: False returns the tuple (logits, features).

        Returns:
            `ClassifierOutput` with logits (B, num_classes) and features (B, feature_dim).
        """
        features = self.to_features(self.body(images))  # (B, D)
        logits = self.to_logits(features)  # (B, K)
        return ClassifierOutput(logits=logits, features=features) if return_dict else (logits, features)
