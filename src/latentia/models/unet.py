"""UNet2D: one network for unconditional, class-conditional and text-conditional diffusion."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.models.modeling import ModelMixin


@dataclass
class UNet2DOutput(BaseOutput):
    """`sample`: the prediction, of shape (B, out_channels, H, W)."""

    sample: Tensor


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    r"""Time encoding \(\cos(\omega_i t), \sin(\omega_i t)\) with \(\omega_i = P^{-i/(d/2)}\).

    Args:
        t: time steps, shape (B,), any real dtype.
        dim: even width d of the encoding.
        max_period: P, the longest wavelength over 2 pi.

    Returns:
        float32 of shape (B, dim).

    Attention Is All You Need (Vaswani et al., 2017, 1706.03762), section 3.5.

    Example:
        >>> sinusoidal_embedding(torch.tensor([0, 10]), 8).shape
        torch.Size([2, 8])
    """
    omega = torch.exp(-math.log(max_period) / (dim // 2) * torch.arange(dim // 2, device=t.device))
    angle = t[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _groups(channels: int) -> int:
    """The largest number of groups up to 32 that leaves at least 4 channels in each."""
    return next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)


def _zero(module: nn.Module) -> nn.Module:
    """A residual branch that ends in zeros starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Norm(nn.GroupNorm):
    """Group norm in the precision of its weights: its bfloat16 kernel on CPUs is many times slower than float32's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, twice; time and class enter as scale and shift after the second norm (2105.05233, eq. 4)."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, dropout: float):
        super().__init__()
        self.norm1 = Norm(_groups(in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(emb_dim, 2 * out_channels)
        self.norm2 = Norm(_groups(out_channels), out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels and, where there is a context, cross-attention to it."""

    def __init__(self, channels: int, head_dim: int, cross_attention_dim: int | None):
        super().__init__()
        self.heads = channels // head_dim
        self.norm = Norm(_groups(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = _zero(nn.Linear(channels, channels))
        if cross_attention_dim is not None:
            self.cross_norm = nn.LayerNorm(channels)
            self.cross_q = nn.Linear(channels, channels)
            self.cross_kv = nn.Linear(cross_attention_dim, 2 * channels)
            self.cross_out = _zero(nn.Linear(channels, channels))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, head_dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split(q), self._split(k), self._split(v)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # so is this one's
            with torch.autocast("cpu", enabled=False):
                h = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
        else:
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return h.transpose(1, 2).flatten(2)  # (B, tokens, channels)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, channels)
        h = self.out(self._attend(*self.qkv(h).chunk(3, dim=-1)))
        if context is not None:
            q = self.cross_q(self.cross_norm(h + x.flatten(2).transpose(1, 2)))
            h = h + self.cross_out(self._attend(q, *self.cross_kv(context).chunk(2, dim=-1), mask))
        return x + h.transpose(1, 2).unflatten(2, x.shape[-2:])


class Stage(nn.Module):
    """A residual block and, at the levels that have it, attention."""

    def __init__(self, in_channels, out_channels, emb_dim, dropout, head_dim, cross_attention_dim):
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, emb_dim, dropout)
        self.attention = AttentionBlock(out_channels, head_dim, cross_attention_dim) if head_dim else None

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.residual(x, emb)
        return x if self.attention is None else self.attention(x, context, mask)


class Upsample(nn.Module):
    """Down to the channels of the finer level while the image is small, then nearest-neighbour doubling."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class UNet2D(ModelMixin, ConfigMixin):
    r"""A U-Net that predicts from a noisy image, a time and optional conditions an image of the same size.

    It is called as diffusers' `UNet2DModel` is and returns what that returns, so each runs in the other's pipelines.
    The picture is first cut into `patch_size` x `patch_size` patches that become channels (space to depth), which
    quarters the work at 2; then come the levels of the U, each half as large as the one before.

    Args:
        sample_size: height and width of the image in pixels, an integer or (H, W); each must be divisible by
            `patch_size * 2 ** (levels - 1)`. The network runs on other divisible sizes too.
        in_channels: channels of the image. Default 3.
        out_channels: channels of the prediction; `None` (default): `in_channels`. Learned variance needs
            `2 * in_channels`.
        patch_size: side of a patch in pixels. Default 1.
        block_out_channels: channels of each level from fine to coarse; its length is the number of levels.
        layers_per_block: residual blocks of each level on the way down.
        attention_levels: for each level whether its blocks attend; `None` (default): the coarsest only.
        attention_head_dim: channels of one head; must divide the channels of each level that attends. Default 32.
        num_class_embeds: number of classes; `None` (default): no labels. One more row is kept for "no class", at index
            `num_class_embeds`: it is what `class_labels=None` means and what classifier-free guidance contrasts with.
        cross_attention_dim: width of the context tokens; `None` (default): no context.
        dropout: rate inside the residual blocks, in [0, 1). Default 0.

    Raises:
        UsageError: a size that cannot be halved often enough, heads that do not divide, labels or a context for a
            network that has none, a context that is missing.

    U-Net (Ronneberger et al., 2015, 1505.04597); its use in diffusion: DDPM (Ho et al., 2020, 2006.11239), appendix B.

    Example:
        >>> unet = UNet2D(sample_size=28, in_channels=1, patch_size=2, block_out_channels=(32, 64))
        >>> unet(torch.randn(2, 1, 28, 28), 10).sample.shape
        torch.Size([2, 1, 28, 28])
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks: list[str] = ["Stage"]  # noqa: RUF012 (diffusers reads a list)
    masks_padding = True  # trained and sampled with `encoder_attention_mask`; networks of diffusers see the padding

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        patch_size: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] | None = None,
        attention_head_dim: int = 32,
        num_class_embeds: int | None = None,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        levels = len(block_out_channels)
        if attention_levels is None:
            attention_levels = (*[False] * (levels - 1), True)
        for name, value in (("layers_per_block", layers_per_block), ("attention_head_dim", attention_head_dim)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        self._check_config(sample_size, in_channels, patch_size, block_out_channels, attention_levels)
        for channels, attends in zip(block_out_channels, attention_levels):
            if attends and channels % attention_head_dim:
                raise UsageError(
                    f"attention_head_dim must divide the channels of every level that attends; got "
                    f"{attention_head_dim} for {channels} of block_out_channels={tuple(block_out_channels)}. "
                    f"Choose a divisor of {channels}, or switch attention off at that level with attention_levels."
                )

        width = block_out_channels[0]
        emb_dim = 4 * width
        self.time_mlp = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.class_embedding = nn.Embedding(num_class_embeds + 1, emb_dim) if num_class_embeds is not None else None

        def stage(a: int, b: int, level: int) -> Stage:
            head_dim = attention_head_dim if attention_levels[level] else 0
            return Stage(a, b, emb_dim, dropout, head_dim, cross_attention_dim)

        # Down: remember the channels of everything that the way up will concatenate.
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, width, 3, padding=1)
        self.down, self.downsample, skips, channels = nn.ModuleList(), nn.ModuleList(), [], width
        for level, width_out in enumerate(block_out_channels):
            stages = nn.ModuleList()
            for _ in range(layers_per_block):
                stages.append(stage(channels, width_out, level))
                channels = width_out
                skips.append(channels)
            self.down.append(stages)
            if level < levels - 1:
                self.downsample.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))

        self.middle = nn.ModuleList([stage(channels, channels, levels - 1), stage(channels, channels, levels - 1)])

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels)):
            stages = nn.ModuleList()
            for _ in range(layers_per_block):
                stages.append(stage(channels + skips.pop(), block_out_channels[level], level))
                channels = block_out_channels[level]
            self.up.append(stages)
            if level > 0:
                self.upsample.append(Upsample(channels, block_out_channels[level - 1]))
                channels = block_out_channels[level - 1]

        self.norm_out = Norm(_groups(width), width)
        out_channels = in_channels if out_channels is None else out_channels
        self.conv_out = _zero(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))
        self.gradient_checkpointing = False

    @staticmethod
    def _check_config(sample_size, in_channels, patch_size, block_out_channels, attention_levels) -> None:
        if len(attention_levels) != len(block_out_channels):
            raise UsageError(
                f"attention_levels must have one entry per level; got {len(attention_levels)} entries for "
                f"{len(block_out_channels)} levels (block_out_channels={tuple(block_out_channels)})."
            )
        for name, value in {
            "in_channels": in_channels,
            "patch_size": patch_size,
            "levels": len(block_out_channels),
            "block_out_channels": min(block_out_channels, default=0),
        }.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        factor = patch_size * 2 ** (len(block_out_channels) - 1)
        sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        if len(sides) != 2:
            raise UsageError(f"sample_size must be one number, or height and width; got {len(sides)} numbers.")
        for side in sides:
            if side < factor or side % factor:
                below, above = side // factor * factor, (side // factor + 1) * factor
                sizes = f"{below} or {above}" if below else f"{above}"
                raise UsageError(
                    f"sample_size must be divisible by patch_size * 2 ** (levels - 1) = {factor}, so that each "
                    f"level can halve it; got {side}. Use {sizes}, fewer block_out_channels, or smaller patches."
                )

    def _embed(self, timestep: Tensor | float, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        """Time and class as one vector, (1 or B, emb_dim). One shared time step is embedded once."""
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        emb = self.time_mlp(sinusoidal_embedding(t, self.config.block_out_channels[0]).to(sample.dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((1,), self.config.num_class_embeds, device=sample.device)
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
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict noise, velocity or clean image, whatever it was trained for.

        Args:
            sample: noisy images, shape (B, in_channels, H, W).
            timestep: one time for all images or one each, shape () or (B,); integer or real.
            class_labels: integers in [0, num_class_embeds], shape (B,); `None`: no class.
            encoder_hidden_states: context tokens, shape (B, L, cross_attention_dim).
            encoder_attention_mask: True (or 1) where a token counts, shape (B, L); `None`: all count.
            return_dict: `False` returns the tuple `(sample,)`.
        """
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
        emb = self._embed(timestep, class_labels, sample)

        def run(stage: Stage, x: Tensor) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(stage, x, emb, encoder_hidden_states, mask)
            return stage(x, emb, encoder_hidden_states, mask)

        x = self.conv_in(F.pixel_unshuffle(sample, self.config.patch_size))
        skips = []
        for level, stages in enumerate(self.down):
            for stage in stages:
                x = run(stage, x)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        for stage in self.middle:
            x = run(stage, x)
        for level, stages in enumerate(self.up):
            for stage in stages:
                x = run(stage, torch.cat([x, skips.pop()], dim=1))
            if level < len(self.upsample):
                x = self.upsample[level](x)
        x = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.config.patch_size)
        return UNet2DOutput(sample=x) if return_dict else (x,)
