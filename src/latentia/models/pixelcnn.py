"""Gated PixelCNN: masked convolutions in a vertical and a horizontal stack, without a blind spot."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Rate, Size, UsageError, check_arguments, check_range
from latentia.functional.pixels import from_levels
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.convolution import image_size
from latentia.models.layers.raster import Pick, check_length, check_tokens
from latentia.models.layers.residual import zero_init
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import AutoregressiveOutput


class GatedPixelCNN(ModelMixin, ConfigMixin):
    r"""Gated PixelCNN: \(p(x) = \prod_i p(x_i | x_1, ..., x_{i-1}, y)\) of the values of an image in raster order.

    The vertical stack sees all rows above, the horizontal one the values to the left and, at each layer, the vertical
    one; each layer is \(\tanh(a + V_y) \odot \sigma(b + W_y)\). A masked convolution is a plain one whose masked
    weights are left out: the input is shifted down by a row, or right by a value, and padded on these sides alone. The
    channels of a pixel follow each other, so an image is H rows of W C values, and kernels are C times as wide.

    Args:
        sample_size: height and width in pixels, an integer or (H, W). Default 28.
        in_channels: channels of an image. Default 1.
        levels: K, of each value, from 2 to 256: 256 (default) are bytes, 2 are binary images.
        hidden_channels: of each stack. Default 64.
        layers: gated layers. Default 8.
        kernel_size: pixels, odd. Default 3.
        first_kernel_size: of the first layer, odd. Default 7.
        dropout: rate, before the gates' convolutions but the first. Default 0.
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.

    Raises:
        UsageError: an even kernel or numbers out of range; at the call values of another shape or range, and labels
            that are missing or not expected.

    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016, 1606.05328), section 2.

    Example:
        >>> network = GatedPixelCNN(sample_size=8, levels=2, hidden_channels=8, layers=2)
        >>> network(torch.zeros(4, 1, 8, 8, dtype=torch.long)).logits.shape
        torch.Size([4, 1, 8, 8, 2])
    """

    _gradient_checkpointing_func: Any
    _supports_gradient_checkpointing = True

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: Size = 1,
        levels: Size = 256,
        hidden_channels: Size = 64,
        layers: Size = 8,
        kernel_size: Size = 3,
        first_kernel_size: Size = 7,
        dropout: Rate = 0.0,
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        check_range("levels", levels, 2, 256)
        for name, size in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            if size % 2 == 0:
                raise UsageError(f"{name} must be odd; got {size}.")
        self.shape = (in_channels, *image_size(sample_size))
        check_length(self.shape)
        planes = 1 + (in_channels if in_channels > 1 else 0)  # the values, and which channel each is of
        self.layers = nn.ModuleList(
            GatedLayer(
                hidden_channels if i else planes,
                hidden_channels,
                kernel_size if i else first_kernel_size,
                in_channels,
                dropout if i else 0.0,
                num_class_embeds,
            )
            for i in range(layers)
        )
        self.project = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.out = zero_init(nn.Conv2d(hidden_channels, levels, 1))
        self.gradient_checkpointing = False

    def forward(
        self, tokens: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[Tensor]:
        """The logits of each value given those before it.

        Args:
            tokens: levels, integers in [0, K), (B, C, H, W).
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
        """
        if tuple(tokens.shape[1:]) != self.shape or not len(tokens):
            raise UsageError(
                f"tokens must have shape (B, {', '.join(map(str, self.shape))}); got {tuple(tokens.shape)}."
            )
        check_tokens(tokens, self.config.levels)
        check_class_labels(class_labels, self.config.num_class_embeds)
        rows = self._rows(tokens)
        links = self._vertical(rows, class_labels)
        logits = self._horizontal(rows, links, class_labels)
        logits = logits.unflatten(3, (-1, self.shape[0])).permute(0, 4, 2, 3, 1)  # (B, K, H, W C) to (B, C, H, W, K)
        return AutoregressiveOutput(logits) if return_dict else (logits,)

    @torch.no_grad()
    def sample(
        self,
        uniform: Tensor,
        pick: Pick,
        *,
        given: Tensor | None = None,
        known: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Draw values one after the other: the vertical stack once for each row, the horizontal one of that row alone.

        Args:
            uniform: numbers in [0, 1), one for each value, (B, C, H, W).
            pick: logits (B, K) and the numbers of one place (B,) -> levels (B,).
            given: levels (B, C, H, W), of which the first `known` of each image are kept. Default none.
            known: integers (B,), how many in raster order. Default none.
            class_labels: as in `forward`.

        Returns:
            int64 (B, C, H, W).
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        channels, height, width = self.shape
        numbers = uniform.permute(0, 2, 3, 1).flatten(2)  # (B, H, W C)
        start = None if given is None else given.permute(0, 2, 3, 1).flatten(2)
        values = torch.zeros(numbers.shape, dtype=torch.long, device=uniform.device)
        # Rows above that a value depends on.
        reach = 1 + sum(layer.up for layer in self.layers if isinstance(layer, GatedLayer))
        for row in range(height):
            above = self._planes(values[:, max(0, row - reach) : row + 1])
            links = [link[:, :, -1:] for link in self._vertical(above, class_labels)]
            for column in range(width * channels):
                line = self._planes(values[:, row : row + 1])
                logits = self._horizontal(line, links, class_labels)[:, :, 0, column]
                drawn = pick(logits.float(), numbers[:, row, column])
                if start is not None and known is not None:
                    drawn = torch.where(row * width * channels + column < known, start[:, row, column], drawn)
                values[:, row, column] = drawn
        return values.unflatten(2, (width, channels)).permute(0, 3, 1, 2)

    # ------------------------------------------------------------ parts

    def _rows(self, tokens: Tensor) -> Tensor:
        return self._planes(tokens.permute(0, 2, 3, 1).flatten(2))

    def _planes(self, values: Tensor) -> Tensor:
        """Levels (B, rows, W C) as floats in [-1, 1], and which channel each is of: (B, planes, rows, W C)."""
        channels = self.shape[0]
        x = from_levels(values, self.config.levels).to(self.dtype)[:, None]
        if channels == 1:
            return x
        which = torch.eye(channels, device=x.device, dtype=x.dtype).repeat(1, self.shape[2])
        return torch.cat([x, which[None, :, None].expand(len(x), -1, x.shape[2], -1)], 1)

    def _vertical(self, rows: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        """What each layer hands to the horizontal stack, of which row i has seen rows 0 to i - 1."""
        h, links = F.pad(rows, (0, 0, 1, -1)), []
        for layer in self.layers:
            h, link = self._run(layer.vertical, h, class_labels)
            links.append(link)
        return links

    def _horizontal(self, rows: Tensor, links: list[Tensor], class_labels: Tensor | None) -> Tensor:
        """Logits (B, K, rows, W C); each value has seen those to its left, and the links of its row."""
        h, skip = F.pad(rows, (1, -1)), torch.zeros((), device=rows.device, dtype=rows.dtype)
        for layer, link in zip(self.layers, links):
            h, out = self._run(layer.horizontal, h, link, class_labels)
            skip = skip + out
        return self.out(F.relu(self.project(F.relu(skip))))

    def _run(self, part: Any, *arguments: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *arguments)
        return part(*arguments)


class GatedLayer(nn.Module):
    """One layer of both stacks of a gated PixelCNN.

    Args:
        in_channels, channels: of both stacks before and after the layer.
        kernel_size: pixels, odd.
        values_per_pixel: by which kernels are wider.
        dropout: rate, of the inputs.
        num_class_embeds: number of classes; `None`: no labels.

    Example:
        >>> layer = GatedLayer(1, 8, 3, 1, 0.0, None)
        >>> down, link = layer.vertical(torch.randn(2, 1, 5, 5), None)
        >>> layer.horizontal(torch.randn(2, 1, 5, 5), link, None)[0].shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        values_per_pixel: int,
        dropout: float,
        num_class_embeds: int | None,
    ):
        super().__init__()
        radius = kernel_size // 2
        self.across, self.up = radius * values_per_pixel, radius  # rows above, beside the row itself
        self.left = (radius + 1) * values_per_pixel - 1
        self.conv_vertical = nn.Conv2d(in_channels, 2 * channels, (radius + 1, 2 * self.across + 1))
        self.conv_horizontal = nn.Conv2d(in_channels, 2 * channels, (1, self.left + 1))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, 2 * channels, 1)  # to the next layer, and to the logits
        self.classes = nn.Embedding(num_class_embeds, 4 * channels) if num_class_embeds is not None else None
        self.dropout = nn.Dropout(dropout)

    def vertical(self, x: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vertical stack: its output and what the horizontal one gets, (B, 2 channels, H, W)."""
        h = self.conv_vertical(F.pad(self.dropout(x), (self.across, self.across, self.up, 0)))
        return gate(self._with_class(h, class_labels, 0)), self.link(h)

    def horizontal(self, x: Tensor, link: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The horizontal stack: its output, a residual one where the channels agree, and its part of the logits."""
        h = self.conv_horizontal(F.pad(self.dropout(x), (self.left, 0))) + link
        out, skip = self.out(gate(self._with_class(h, class_labels, 1))).chunk(2, dim=1)
        return (x + out if x.shape[1] == out.shape[1] else out), skip

    def _with_class(self, h: Tensor, class_labels: Tensor | None, stack: int) -> Tensor:
        if self.classes is None or class_labels is None:
            return h
        return h + self.classes(class_labels).chunk(2, dim=1)[stack][:, :, None, None].to(h.dtype)


def gate(x: Tensor) -> Tensor:
    r"""\(\tanh(a) \odot \sigma(b)\) of the halves of the channels.

    Example:
        >>> gate(torch.zeros(1, 4, 2, 2)).shape
        torch.Size([1, 2, 2, 2])
    """
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
