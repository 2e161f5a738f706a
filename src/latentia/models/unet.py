"""UNet2D: one network for unconditional, class-conditional and text-conditional diffusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Rate, Size, UsageError, check_arguments
from latentia.models.layers.attention import AttentionBlock
from latentia.models.layers.conditioning import SMOOTH, check_rows, sinusoidal_embedding
from latentia.models.layers.convolution import image_size, nearest_multiples
from latentia.models.layers.norm import GroupNorm, group_count
from latentia.models.layers.residual import ResidualBlock, zero_init
from latentia.models.modeling import ModelMixin


@dataclass
class UNet2DOutput(BaseOutput):
    """`sample`: the prediction, of shape (B, out_channels, H, W)."""

    sample: Tensor


class UNetBlock(nn.Module):
    """A residual block and, at the stages that have it, attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        dropout: float,
        head_dim: int,
        cross_attention_dim: int | None,
    ):
        super().__init__()
        self.resnet = ResidualBlock(in_channels, out_channels, emb_dim, dropout)
        self.attention = AttentionBlock(out_channels, head_dim, cross_attention_dim) if head_dim else None

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.resnet(x, emb)
        return x if self.attention is None else self.attention(x, context, mask)


class Upsample(nn.Module):
    """To the channels of the finer stage while the image is small, then nearest-neighbour doubling."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class UNet2D(ModelMixin, ConfigMixin):
    r"""A U-Net that predicts from a noisy image, a time and optional conditions an image of the same size.

    It is called as diffusers' `UNet2DModel` is and returns what that returns, so each runs in the other's pipelines.
    The image is first cut into `patch_size` x `patch_size` patches that become channels (space to depth), which
    quarters the work at 2; then come the stages of the U, each half as large as the one before.

    Args:
        sample_size: height and width of the image in pixels, an integer or (H, W); each must be divisible by
            `patch_size * 2 ** (stages - 1)`. The network runs on other divisible sizes too. Default 32.
        in_channels: channels of the image. Default 3.
        out_channels: channels of the prediction; `None` (default): `in_channels`. Learned variance needs
            `2 * in_channels`.
        patch_size: side of a patch in pixels. Default 1.
        block_out_channels: channels of each stage from fine to coarse; its length is the number of stages. Default
            (64, 128, 256).
        layers_per_block: residual blocks of each stage on the way down. Default 2.
        attention_stages: for each stage whether its blocks attend; `None` (default): the coarsest only.
        attention_head_dim: channels of one head; must divide the channels of each stage that attends. Default 32.
        num_class_embeds: number of classes; `None` (default): no labels. One more row is kept for "no class", at index
            `num_class_embeds`, which stands for `class_labels=None` and is the negative of classifier-free guidance.
        cross_attention_dim: width of the context tokens; `None` (default): no context.
        dropout: rate inside the residual blocks, in [0, 1). Default 0.
        target_time: condition the network on the time at which a sampling step ends too, as networks are that sample in
            few steps (flow maps: mean flow, shortcut models). Default False.
        condition_channels: channels of a conditioning image that is concatenated to the noisy one; `None` (default):
            none.
        condition_scale: sides of the conditioning image over those of the sample, as of pixels over latents; its pixels
            become channels. Default 1.
        smooth_time: encode times without frequencies above .03 per step, as mean flow needs, whose derivative by time
            they would rule. Default False.

    Raises:
        UsageError: a size that cannot be halved often enough, heads that do not divide, numbers out of their range,
            labels or a context for a network that has none, a context that is missing.

    U-Net (Ronneberger et al., 2015, 1505.04597); its use in diffusion: DDPM (Ho et al., 2020, 2006.11239), appendix B.

    Example:
        >>> unet = UNet2D(sample_size=28, in_channels=1, patch_size=2, block_out_channels=(32, 64))
        >>> unet(torch.randn(2, 1, 28, 28), 10).sample.shape
        torch.Size([2, 1, 28, 28])
    """

    down_blocks: Any  # for each stage a list of UNetBlock
    up_blocks: Any
    _gradient_checkpointing_func: Any
    _supports_gradient_checkpointing = True
    _repeated_blocks: list[str] = ["UNetBlock"]  # noqa: RUF012 (diffusers reads a list)
    masks_padding = True  # trained and sampled with `encoder_attention_mask`; networks of diffusers see the padding

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: Size = 3,
        out_channels: Size | None = None,
        patch_size: Size = 1,
        block_out_channels: tuple[Size, ...] = (64, 128, 256),
        layers_per_block: Size = 2,
        attention_stages: tuple[bool, ...] | None = None,
        attention_head_dim: Size = 32,
        num_class_embeds: Size | None = None,
        cross_attention_dim: Size | None = None,
        dropout: Rate = 0.0,
        target_time: bool = False,
        condition_channels: Size | None = None,
        condition_scale: Size = 1,
        smooth_time: bool = False,
    ):
        super().__init__()
        stages = len(block_out_channels)
        if attention_stages is None:
            attention_stages = (*[False] * (stages - 1), True)
        self._check_config(sample_size, patch_size, block_out_channels, attention_stages)
        for channels, attends in zip(block_out_channels, attention_stages):
            if attends and channels % attention_head_dim:
                raise UsageError(
                    f"attention_head_dim must divide the channels of every stage that attends; got "
                    f"{attention_head_dim} for {channels} of block_out_channels={tuple(block_out_channels)}. "
                    f"Choose a divisor of {channels}, or switch attention off at that stage with attention_stages."
                )

        width = block_out_channels[0]
        emb_dim = 4 * width
        self.time_embedding = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.step_embedding = None
        if target_time:  # zero at first: a network without it becomes one with it by its own weights
            layers = nn.Linear(width, emb_dim), nn.SiLU(), zero_init(nn.Linear(emb_dim, emb_dim))
            self.step_embedding = nn.Sequential(*layers)
        self.class_embedding = nn.Embedding(num_class_embeds + 1, emb_dim) if num_class_embeds is not None else None

        def block(a: int, b: int, stage: int) -> UNetBlock:
            head_dim = attention_head_dim if attention_stages[stage] else 0
            return UNetBlock(a, b, emb_dim, dropout, head_dim, cross_attention_dim)

        # Down: remember the channels of everything that the way up will concatenate.
        seen = in_channels + (condition_channels or 0) * condition_scale**2
        self.conv_in = nn.Conv2d(seen * patch_size**2, width, 3, padding=1)
        self.down_blocks, self.downsamplers = nn.ModuleList(), nn.ModuleList()
        skips, channels = [], width
        for stage, width_out in enumerate(block_out_channels):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block):
                blocks.append(block(channels, width_out, stage))
                channels = width_out
                skips.append(channels)
            self.down_blocks.append(blocks)
            if stage < stages - 1:
                self.downsamplers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))

        self.mid_block = nn.ModuleList([block(channels, channels, stages - 1), block(channels, channels, stages - 1)])

        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(range(stages)):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block):
                blocks.append(block(channels + skips.pop(), block_out_channels[stage], stage))
                channels = block_out_channels[stage]
            self.up_blocks.append(blocks)
            if stage > 0:
                self.upsamplers.append(Upsample(channels, block_out_channels[stage - 1]))
                channels = block_out_channels[stage - 1]

        self.conv_norm_out = GroupNorm(group_count(width), width)
        out_channels = in_channels if out_channels is None else out_channels
        self.conv_out = zero_init(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))
        self.gradient_checkpointing = False

    @staticmethod
    def _check_config(
        sample_size: int | Sequence[int],
        patch_size: int,
        block_out_channels: Sequence[int],
        attention_stages: Sequence[bool],
    ) -> None:
        stages = len(block_out_channels)
        if len(attention_stages) != stages:
            raise UsageError(
                f"attention_stages must have one entry per stage; got {len(attention_stages)} entries for {stages} "
                f"stages (block_out_channels={tuple(block_out_channels)})."
            )
        if not stages:
            raise UsageError("block_out_channels must be at least one number; got none.")
        factor = patch_size * 2 ** (stages - 1)
        for side in image_size(sample_size):
            if side % factor:
                raise UsageError(
                    f"sample_size must be divisible by patch_size * 2 ** (stages - 1) = {factor}, so that each "
                    f"stage can halve it; got {side}. Use {nearest_multiples(side, factor)}, "
                    "fewer block_out_channels, or smaller patches."
                )

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles each residual block with its attention; arguments as for `torch.compile`.

        Stages have widths of their own, and each shape is compiled once, so as many are allowed as there are blocks.
        """
        count = sum(isinstance(module, UNetBlock) for module in self.modules())
        super().compile_repeated_blocks(*args, **{"recompile_limit": 4 * count} | kwargs)

    def _embed(
        self,
        timestep: Tensor | float,
        target_timestep: Tensor | float | None,
        class_labels: Tensor | None,
        sample: Tensor,
    ) -> Tensor:
        """Times and class as one vector, (1 or B, emb_dim). One shared time step is embedded once."""

        def encoded(t: Tensor) -> Tensor:
            highest = SMOOTH if self.config.smooth_time else 1.0
            return sinusoidal_embedding(t, self.config.block_out_channels[0], highest=highest).to(sample.dtype)

        t = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        emb = self.time_embedding(encoded(t))
        if self.step_embedding is not None:
            end = t if target_timestep is None else torch.as_tensor(target_timestep, device=sample.device).reshape(-1)
            emb = emb + self.step_embedding(encoded(t - end))
        elif target_timestep is not None:
            raise UsageError("target_timestep was given, but this network has none; set target_time for it.")
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((1,), self.config.num_class_embeds, device=sample.device)
            check_rows(class_labels, self.class_embedding.num_embeddings)
            emb = emb + self.class_embedding(class_labels)
        elif class_labels is not None:
            raise UsageError("class_labels were given, but this network has none; set num_class_embeds for them.")
        return F.silu(emb)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        target_timestep: Tensor | float | int | None = None,
        condition: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise, the velocity or the clean image, as in training.

        Args:
            sample: noisy images, shape (B, in_channels, H, W).
            timestep: one time for all images or one each, shape () or (B,); integer or real.
            class_labels: integers in [0, num_class_embeds], shape (B,); `None`: no class.
            encoder_hidden_states: context tokens, shape (B, L, cross_attention_dim).
            encoder_attention_mask: True (or 1) where a token counts, shape (B, L); `None`: all count.
            return_dict: `False` returns the tuple `(sample,)`.
            target_timestep: with `target_time`, the time at which the step ends, as `timestep`; the prediction is then
                the mean velocity from `timestep` to it. `None` (default): `timestep`, for the velocity at that time.
            condition: with `condition_channels`, the conditioning images, (B, condition_channels, H, W) times
                `condition_scale`.
            residuals: what a `ControlNet2D` adds to the features of each block on the way down and of the middle.

        Raises:
            UsageError: sides that the stages cannot halve, labels out of their range, or conditions that this network
                has not or needs.
        """
        x, skips, run = self._encode(
            sample,
            timestep,
            class_labels,
            encoder_hidden_states,
            encoder_attention_mask,
            target_timestep,
            condition,
        )
        if residuals is not None:
            *own, middle = residuals
            x, skips = x + middle, [skip + residual for skip, residual in zip(skips, own, strict=True)]
        blocks: Any  # a ModuleList
        for stage, blocks in enumerate(self.up_blocks):
            for block in blocks:
                x = run(block, torch.cat([x, skips.pop()], dim=1))
            if stage < len(self.upsamplers):
                x = self.upsamplers[stage](x)
        x = F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.config.patch_size)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _encode(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        target_timestep: Tensor | float | int | None,
        condition: Tensor | None,
    ) -> tuple[Tensor, list[Tensor], Callable[[nn.Module, Tensor], Tensor]]:
        """The features of the middle and of each block on the way down, and what runs a block with the conditions."""
        factor = self.config.patch_size * 2 ** len(self.downsamplers)
        if any(side % factor for side in sample.shape[-2:]):
            raise UsageError(f"sample must have sides divisible by {factor}; got {tuple(sample.shape[-2:])}.")
        if (encoder_hidden_states is None) != (self.config.cross_attention_dim is None):
            have, given = (
                ("needs a context", "was not") if encoder_hidden_states is None else ("takes no context", "was")
            )
            raise UsageError(
                f"This network {have} (cross_attention_dim={self.config.cross_attention_dim}), but "
                f"encoder_hidden_states {given} given."
            )
        mask = None
        if encoder_attention_mask is not None:
            mask = encoder_attention_mask.bool()[:, None, None, :]  # (B, heads, queries, L)
        emb = self._embed(timestep, target_timestep, class_labels, sample)

        def run(block: nn.Module, x: Tensor) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(block, x, emb, encoder_hidden_states, mask)
            return block(x, emb, encoder_hidden_states, mask)

        x = self.conv_in(F.pixel_unshuffle(self._with_condition(sample, condition), self.config.patch_size))
        skips = []
        blocks: Any  # a ModuleList
        for stage, blocks in enumerate(self.down_blocks):
            for block in blocks:
                x = run(block, x)
                skips.append(x)
            if stage < len(self.downsamplers):
                x = self.downsamplers[stage](x)
        for block in self.mid_block:
            x = run(block, x)
        return x, skips, run

    def _with_condition(self, sample: Tensor, condition: Tensor | None) -> Tensor:
        """The sample with the conditioning image as more channels."""
        channels, scale = self.config.condition_channels, self.config.condition_scale
        if channels is None:
            if condition is not None:
                raise UsageError("condition was given, but this network has none; set condition_channels for it.")
            return sample
        wanted = (len(sample), channels, *(scale * side for side in sample.shape[-2:]))
        if condition is None or tuple(condition.shape) != wanted:
            given = "none" if condition is None else tuple(condition.shape)
            raise UsageError(f"condition must be images of shape {wanted}; got {given}.")
        return torch.cat([sample, F.pixel_unshuffle(condition, scale).to(sample.dtype)], dim=1)
