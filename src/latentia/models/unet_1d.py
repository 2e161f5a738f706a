"""UNet1D: the network of diffusion and flow matching on sequences, such as time series and frames of sound."""

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
from latentia.models.layers.norm import GroupNorm, group_count
from latentia.models.layers.residual import ResidualBlock, zero_init
from latentia.models.modeling import ModelMixin


@dataclass
class UNet1DOutput(BaseOutput):
    """`sample`: the prediction, of shape (B, out_channels, L)."""

    sample: Tensor


class UNet1DBlock(nn.Module):
    """A residual block and, at the stages that have it, attention over the steps; of maps (B, C, 1, L)."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, dropout: float, head_dim: int, kernel: int):
        super().__init__()
        self.resnet = ResidualBlock(in_channels, out_channels, emb_dim, dropout, (1, kernel))
        self.attention = AttentionBlock(out_channels, head_dim, None) if head_dim else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnet(x, emb)
        return x if self.attention is None else self.attention(x, None, None)


class UNet1D(ModelMixin, ConfigMixin):
    r"""A U-Net that predicts from a noisy sequence, a time and an optional class a sequence of the same length.

    The sister of `UNet2D` for sequences (B, C, L): the same blocks with convolutions along the steps. Each stage but
    the first is half as long as the one before. A length that they cannot halve is filled up with zeros at its end, and
    the prediction is cut to it again, so any length is right.

    Args:
        sample_size: L, steps of a sequence; the network runs on other lengths too. Default 64.
        in_channels: channels of a sequence. Default 1.
        out_channels: channels of the prediction; `None` (default): `in_channels`.
        block_out_channels: channels of each stage from fine to coarse; its length is the number of stages. Default
            (32, 64, 64).
        layers_per_block: residual blocks of each stage on the way down. Default 1.
        attention_stages: for each stage whether its blocks attend; `None` (default): the coarsest only.
        attention_head_dim: channels of one head; must divide the channels of each stage that attends. Default 32.
        kernel_size: steps of a convolution, odd. Default 5.
        num_class_embeds: number of classes; `None` (default): no labels. One more row is kept for "no class", at index
            `num_class_embeds`, which stands for `class_labels=None` and is the negative of classifier-free guidance.
        dropout: rate inside the residual blocks, in [0, 1). Default 0.
        target_time: condition the network on the time at which a sampling step ends too, as networks are that sample in
            few steps. Default False.
        masked: whether sequences may be shorter than L: the network then takes `step_mask` as one more channel, sees 0
            where no step is, and predicts 0 there. Default False.
        smooth_time: as of `UNet2D`. Default False.

    Raises:
        UsageError: heads that do not divide, an even kernel, numbers out of their range, other channels, labels or a
            mask for a network that has none.

    U-Net (Ronneberger et al., 2015, 1505.04597); its use in diffusion: DDPM (Ho et al., 2020, 2006.11239), appendix B.

    Example:
        >>> unet = UNet1D(sample_size=30, in_channels=2, block_out_channels=(8, 16), attention_head_dim=8)
        >>> unet(torch.randn(3, 2, 30), 10).sample.shape
        torch.Size([3, 2, 30])
    """

    down_blocks: Any  # for each stage a list of UNet1DBlock
    up_blocks: Any
    _gradient_checkpointing_func: Any
    _supports_gradient_checkpointing = True
    _repeated_blocks: list[str] = ["UNet1DBlock"]  # noqa: RUF012 (diffusers reads a list)

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: Size = 64,
        in_channels: Size = 1,
        out_channels: Size | None = None,
        block_out_channels: tuple[Size, ...] = (32, 64, 64),
        layers_per_block: Size = 1,
        attention_stages: tuple[bool, ...] | None = None,
        attention_head_dim: Size = 32,
        kernel_size: Size = 5,
        num_class_embeds: Size | None = None,
        dropout: Rate = 0.0,
        target_time: bool = False,
        masked: bool = False,
        smooth_time: bool = False,
    ):
        super().__init__()
        stages = len(block_out_channels)
        if not stages:
            raise UsageError("block_out_channels must be at least one number; got none.")
        attends = (*[False] * (stages - 1), True) if attention_stages is None else tuple(attention_stages)
        self._check_config(block_out_channels, attends, attention_head_dim, kernel_size)
        if masked and target_time:
            raise UsageError(
                "target_time must be False with masked, as flow maps know no padded steps. Cut all sequences to one "
                "length for a network that samples in few steps."
            )
        width = block_out_channels[0]
        emb_dim = 4 * width
        self.time_embedding = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.step_embedding = None
        if target_time:  # zero at first: a network without it becomes one with it by its own weights
            layers = nn.Linear(width, emb_dim), nn.SiLU(), zero_init(nn.Linear(emb_dim, emb_dim))
            self.step_embedding = nn.Sequential(*layers)
        self.class_embedding = nn.Embedding(num_class_embeds + 1, emb_dim) if num_class_embeds is not None else None

        def block(a: int, b: int, stage: int) -> UNet1DBlock:
            head_dim = attention_head_dim if attends[stage] else 0
            return UNet1DBlock(a, b, emb_dim, dropout, head_dim, kernel_size)

        padding = (0, kernel_size // 2)
        self.conv_in = nn.Conv2d(in_channels + masked, width, (1, kernel_size), padding=padding)
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
                self.downsamplers.append(nn.Conv2d(channels, channels, (1, 3), stride=(1, 2), padding=(0, 1)))
        self.mid_block = nn.ModuleList([block(channels, channels, stages - 1), block(channels, channels, stages - 1)])
        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(range(stages)):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block):
                blocks.append(block(channels + skips.pop(), block_out_channels[stage], stage))
                channels = block_out_channels[stage]
            self.up_blocks.append(blocks)
            if stage > 0:  # to the channels of the finer stage while the sequence is short, then doubled
                self.upsamplers.append(nn.Conv2d(channels, block_out_channels[stage - 1], 1))
                channels = block_out_channels[stage - 1]
        self.conv_norm_out = GroupNorm(group_count(width), width)
        out_channels = in_channels if out_channels is None else out_channels
        self.conv_out = zero_init(nn.Conv2d(width, out_channels, (1, kernel_size), padding=padding))
        self.gradient_checkpointing = False

    @staticmethod
    def _check_config(
        block_out_channels: tuple[int, ...], attends: tuple[bool, ...], head_dim: int, kernel_size: int
    ) -> None:
        if len(attends) != len(block_out_channels):
            raise UsageError(
                f"attention_stages must have one entry per stage; got {len(attends)} entries for "
                f"{len(block_out_channels)} stages (block_out_channels={tuple(block_out_channels)})."
            )
        if kernel_size % 2 == 0:
            raise UsageError(
                f"kernel_size must be odd, so that a step is its middle; got {kernel_size}. Take {kernel_size + 1}."
            )
        for channels, attend in zip(block_out_channels, attends):
            if attend and channels % head_dim:
                raise UsageError(
                    f"attention_head_dim must divide the channels of every stage that attends; got {head_dim} for "
                    f"{channels} of block_out_channels={tuple(block_out_channels)}. Choose a divisor of {channels}, or "
                    "switch attention off at that stage with attention_stages."
                )

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles each residual block with its attention; arguments as for `torch.compile`.

        Stages have widths of their own, and each shape is compiled once, so as many are allowed as there are blocks.
        """
        count = sum(isinstance(module, UNet1DBlock) for module in self.modules())
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

    def _masked(self, sample: Tensor, step_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The sample with 0 where no step is, and the mask as one more channel, (B, 1, L); None of another network."""
        if not self.config.masked:
            if step_mask is not None:
                raise UsageError("step_mask was given, but this network has none; set masked for it.")
            return sample, None
        if step_mask is None:
            step_mask = torch.ones_like(sample[:, 0], dtype=torch.bool)
        if step_mask.shape != (len(sample), sample.shape[2]):
            raise UsageError(
                f"step_mask must be (B, L), ({len(sample)}, {sample.shape[2]}) here; got {tuple(step_mask.shape)}."
            )
        weight = step_mask[:, None].to(sample.dtype)
        return torch.cat([torch.where(step_mask[:, None].bool(), sample, 0), weight], 1), weight

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        step_mask: Tensor | None = None,
        return_dict: bool = True,
        target_timestep: Tensor | float | int | None = None,
    ) -> UNet1DOutput | tuple[Tensor]:
        """Predict the noise, the velocity or the clean sequence, as in training.

        Args:
            sample: noisy sequences, shape (B, in_channels, L).
            timestep: one time for all sequences or one each, shape () or (B,); integer or real.
            class_labels: integers in [0, num_class_embeds], shape (B,); `None`: no class.
            step_mask: True for steps that are there, shape (B, L); `None`: all are.
            return_dict: `False` returns the tuple `(sample,)`.
            target_timestep: with `target_time`, the time at which the step ends, as `timestep`; the prediction is then
                the mean velocity from `timestep` to it. `None` (default): `timestep`, for the velocity at that time.

        Raises:
            UsageError: another number of channels or dimensions, labels out of their range, or conditions that this
                network has not.
        """
        if sample.ndim != 3 or sample.shape[1] != self.config.in_channels or not sample.shape[2]:
            raise UsageError(f"sample must be (B, {self.config.in_channels}, L), L >= 1; got {tuple(sample.shape)}.")
        steps = sample.shape[2]
        emb = self._embed(timestep, target_timestep, class_labels, sample)
        x, weight = self._masked(sample, step_mask)

        def run(block: nn.Module, x: Tensor) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(block, x, emb)
            return block(x, emb)

        x = F.pad(x, (0, -steps % 2 ** len(self.downsamplers)))[:, :, None]  # (B, C, 1, L)
        x = self.conv_in(x)
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
        for stage, blocks in enumerate(self.up_blocks):
            for block in blocks:
                x = run(block, torch.cat([x, skips.pop()], dim=1))
            if stage < len(self.upsamplers):
                x = F.interpolate(self.upsamplers[stage](x), scale_factor=(1.0, 2.0), mode="nearest")
        x = self.conv_out(F.silu(self.conv_norm_out(x)))[:, :, 0, :steps]
        x = x if weight is None else x * weight
        return UNet1DOutput(sample=x) if return_dict else (x,)
