"""Inception-v3 as the Frechet inception distance uses it: the graph of 2015-12-05, with its own pooling."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import UsageError, check_range
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import ClassifierOutput


class _Conv(NamedTuple):
    """A row of the tables below: a convolution with its name in the weights file. Padded to "same" unless strided."""

    name: str
    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1


# What a branch may do before its convolution, or alone.
_POOLS = {
    # Only pixels of the image count in an average at the border.
    "average": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: F.max_pool2d(x, 3, stride=2),
}

# A block is a list of branches, whose results are concatenated; a branch is a chain of pools and convolutions; a tuple
# of convolutions takes the same input in parallel. Names are those of the usual weights file.
_Branch = list["str | _Conv | tuple[_Conv, ...]"]


def _block_35(pool_channels: int) -> list[_Branch]:
    """Figure 5 of the paper: 3 x 3 convolutions, on 35 x 35."""
    return [
        [_Conv("branch1x1", 64, 1)],
        [_Conv("branch5x5_1", 48, 1), _Conv("branch5x5_2", 64, 5)],
        [_Conv("branch3x3dbl_1", 64, 1), _Conv("branch3x3dbl_2", 96, 3), _Conv("branch3x3dbl_3", 96, 3)],
        ["average", _Conv("branch_pool", pool_channels, 1)],
    ]


def _block_17(c: int) -> list[_Branch]:
    """Figure 6, n = 7: a 7 x 7 convolution as 1 x 7 and 7 x 1, on 17 x 17."""
    row, column = (1, 7), (7, 1)
    return [
        [_Conv("branch1x1", 192, 1)],
        [_Conv("branch7x7_1", c, 1), _Conv("branch7x7_2", c, row), _Conv("branch7x7_3", 192, column)],
        [
            _Conv("branch7x7dbl_1", c, 1),
            _Conv("branch7x7dbl_2", c, column),
            _Conv("branch7x7dbl_3", c, row),
            _Conv("branch7x7dbl_4", c, column),
            _Conv("branch7x7dbl_5", 192, row),
        ],
        ["average", _Conv("branch_pool", 192, 1)],
    ]


def _block_8(pool: str) -> list[_Branch]:
    """Figure 7: the last convolution of a branch is a row and a column side by side, on 8 x 8."""
    row, column = (1, 3), (3, 1)
    return [
        [_Conv("branch1x1", 320, 1)],
        [_Conv("branch3x3_1", 384, 1), (_Conv("branch3x3_2a", 384, row), _Conv("branch3x3_2b", 384, column))],
        [
            _Conv("branch3x3dbl_1", 448, 1),
            _Conv("branch3x3dbl_2", 384, 3),
            (_Conv("branch3x3dbl_3a", 384, row), _Conv("branch3x3dbl_3b", 384, column)),
        ],
        [pool, _Conv("branch_pool", 192, 1)],
    ]


_BLOCKS: dict[str, list[_Branch]] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    # Figure 10: convolutions and a pool of stride 2 side by side.
    "Mixed_6a": [
        [_Conv("branch3x3", 384, 3, 2)],
        [_Conv("branch3x3dbl_1", 64, 1), _Conv("branch3x3dbl_2", 96, 3), _Conv("branch3x3dbl_3", 96, 3, 2)],
        ["halve"],
    ],
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": [
        [_Conv("branch3x3_1", 192, 1), _Conv("branch3x3_2", 320, 3, 2)],
        [
            _Conv("branch7x7x3_1", 192, 1),
            _Conv("branch7x7x3_2", 192, (1, 7)),
            _Conv("branch7x7x3_3", 192, (7, 1)),
            _Conv("branch7x7x3_4", 192, 3, 2),
        ],
        ["halve"],
    ],
    "Mixed_7b": _block_8("average"),
    # In the graph of 2015 this one pool takes the maximum, and every FID was measured with it.
    "Mixed_7c": _block_8("max"),
}


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm with eps = 0.001, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        # Keeps the variance over 47 layers, so that an untrained network is a fair baseline.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MixedBlock(nn.Module):
    """Parallel branches on the same input, concatenated over channels.

    Args:
        in_channels: channels of the input.
        branches: the block's entry in `_BLOCKS`.
    """

    def __init__(self, in_channels: int, branches: list[_Branch]):
        super().__init__()
        self.branches = branches
        self.out_channels = 0
        for branch in branches:
            channels = in_channels
            for step in branch:
                if isinstance(step, str):
                    continue
                row = (step,) if isinstance(step, _Conv) else step
                for conv in row:
                    height, width = (conv.kernel,) * 2 if isinstance(conv.kernel, int) else conv.kernel
                    same = (height // 2, width // 2) if conv.stride == 1 else 0
                    module = ConvNormReLU(channels, conv.channels, conv.kernel, conv.stride, same)
                    self.add_module(conv.name, module)
                channels = sum(conv.channels for conv in row)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for branch in self.branches:
            h = x
            for step in branch:
                if isinstance(step, str):
                    h = _POOLS[step](h)
                elif isinstance(step, _Conv):
                    h = getattr(self, step.name)(h)
                else:
                    h = torch.cat([getattr(self, conv.name)(h) for conv in step], dim=1)
            results.append(h)
        return torch.cat(results, dim=1)


class InceptionV3(ModelMixin, ConfigMixin):
    """The network behind the Frechet inception distance: 2048 pooled features and 1008 logits.

    It differs from the Inception-v3 of today's model zoos in three places: averages at the border leave the padding
    out, the last block pools by maximum, and there are 1008 logits (1000 classes of ImageNet and 8 unused ones). Names
    and shapes of the weights are those of the file that pytorch-fid and torch-fidelity use; see `inception_extractor`.

    Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015, 1512.00567), table 1; GANs Trained
    by a Two Time-Scale Update Rule (Heusel et al., 2017, 1706.08500) for its use as a distance.

    Args:
        num_classes: number of logits K.

    Example:
        >>> network = InceptionV3().eval()
        >>> output = network(torch.zeros(1, 3, 75, 75))
        >>> tuple(output.features.shape), tuple(output.logits.shape)
        ((1, 2048), (1, 1008))
    """

    @register_to_config
    def __init__(self, num_classes: int = 1008):
        super().__init__()
        check_range("num_classes", num_classes, 1)
        self.Conv2d_1a_3x3 = ConvNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        channels = 192
        for name, branches in _BLOCKS.items():
            block = MixedBlock(channels, branches)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, return_dict: bool = True) -> ClassifierOutput | tuple[Tensor, Tensor]:
        """Features and logits of images.

        Args:
            images: (B, 3, H, W) in [-1, 1]. H = W = 299 is what distances are measured at; at least 75.
            return_dict: False returns the tuple (logits, features).

        Returns:
            `ClassifierOutput` with logits (B, num_classes) and features (B, 2048).

        Raises:
            UsageError: `images` has another number of channels, or is too small for five halvings.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 75:
            raise UsageError(
                f"`images` must be (B, 3, H, W) with H and W at least 75. Got {tuple(images.shape)}; resize to 299 x "
                "299, as `inception_extractor` does."
            )
        x = self.Conv2d_1a_3x3(images)  # (B, 32, 149, 149)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))  # (B, 64, 147, 147)
        x = _POOLS["halve"](x)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = _POOLS["halve"](x)  # (B, 192, 35, 35)
        for name in _BLOCKS:
            x = getattr(self, name)(x)
        features = x.mean((2, 3))  # (B, 2048) from (B, 2048, 8, 8)
        logits = self.fc(features)  # (B, K)
        return ClassifierOutput(logits=logits, features=features) if return_dict else (logits, features)
