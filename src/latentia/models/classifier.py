"""A small convolutional classifier, whose classes and features evaluate samples."""

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from latentia.errors import UsageError, check_range
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import ClassifierOutput


class DigitClassifier(ModelMixin, ConfigMixin):
    """A convolutional classifier: per entry of `block_out_channels` a convolution, batch norm, GELU and a halving.

    Two linear layers follow.

    Args:
        sample_size: height and width in pixels, at least `2 ** len(block_out_channels)`. Default 28.
        in_channels: channels of the images. Default 1.
        num_classes: number of classes K. Default 10.
        block_out_channels: channels after each convolution. Default (32, 64, 64).
        feature_dim: width D of the penultimate layer. A covariance of it has full rank from D + 1 images on.
            Default 64.

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
        for name, size in {"sample_size": sample_size, "in_channels": in_channels, "num_classes": num_classes}.items():
            check_range(name, size, 1)
        check_range("block_out_channels", block_out_channels, 1)
        check_range("feature_dim", feature_dim, 1)
        side = sample_size >> len(block_out_channels)
        if side < 1:
            raise UsageError(
                f"sample_size must be at least 2 ** len(block_out_channels) = {2 ** len(block_out_channels)}; got "
                f"{sample_size}. Use fewer block_out_channels."
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
