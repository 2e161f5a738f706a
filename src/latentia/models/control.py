"""ControlNet2D: a branch that conditions a trained UNet2D on an image, and the two as one network."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments
from latentia.models.layers.residual import zero_init
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import ControlNet2DOutput
from latentia.models.unet import UNet2D, UNet2DOutput

_OF_DECODER = ("up_blocks", "upsamplers", "conv_norm_out", "conv_out")
_SHARED = (
    *("sample_size", "in_channels", "patch_size", "block_out_channels", "layers_per_block", "attention_stages"),
    *("attention_head_dim", "num_class_embeds"),
)


class ControlNet2D(ModelMixin, ConfigMixin):
    """A control branch: the way down of a `UNet2D` that sees a conditioning image too, and ends in zero convolutions.

    Its outputs are added to the features of a trained `UNet2D`, whose weights stay as they are. They are 0 at first, so
    training starts from what the trained network makes.

    Args:
        condition_channels: channels of the conditioning image. Default 1.
        condition_scale: sides of the conditioning image over those of the sample, as of pixels over latents. Default 1.
        sample_size, in_channels, patch_size, block_out_channels, layers_per_block, attention_stages: see `UNet2D`.
        attention_head_dim, num_class_embeds: see `UNet2D`.

    ControlNet (Zhang et al., 2023, 2302.05543), section 3.

    Example:
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> controlnet = ControlNet2D.from_unet(unet, condition_channels=1)
        >>> found = controlnet(torch.randn(2, 1, 8, 8), 10, condition=torch.zeros(2, 1, 8, 8))
        >>> len(found.down), bool((found.middle == 0).all())
        (2, True)
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks: list[str] = ["UNetBlock"]  # noqa: RUF012 (diffusers reads a list)

    @register_to_config
    @check_arguments
    def __init__(
        self,
        condition_channels: Size = 1,
        condition_scale: Size = 1,
        sample_size: int | tuple[int, int] = 32,
        in_channels: Size = 3,
        patch_size: Size = 1,
        block_out_channels: tuple[Size, ...] = (64, 128, 256),
        layers_per_block: Size = 2,
        attention_stages: tuple[bool, ...] | None = None,
        attention_head_dim: Size = 32,
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        self.encoder: Any = UNet2D(
            sample_size=sample_size,
            in_channels=in_channels,
            patch_size=patch_size,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            attention_stages=attention_stages,
            attention_head_dim=attention_head_dim,
            num_class_embeds=num_class_embeds,
            condition_channels=condition_channels,
            condition_scale=condition_scale,
        )
        for name in _OF_DECODER:
            delattr(self.encoder, name)
        widths = [channels for channels in block_out_channels for _ in range(layers_per_block)]
        self.zero_convs = nn.ModuleList(zero_init(nn.Conv2d(c, c, 1)) for c in [*widths, block_out_channels[-1]])

    @classmethod
    def from_unet(cls, unet: Any, *, condition_channels: int, condition_scale: int = 1) -> "ControlNet2D":
        """A branch for a trained network, with a copy of its way down; what sees the condition starts at 0.

        Args:
            unet: a `UNet2D`.
            condition_channels, condition_scale: see the class.

        Raises:
            UsageError: a network of another class, or one that is conditioned on texts, on images or on the end of a
                step already.
        """
        if not isinstance(unet, UNet2D):
            raise UsageError(f"unet must be a UNet2D; got {type(unet).__name__}.")
        for name in ("condition_channels", "cross_attention_dim", "target_time", "smooth_time"):
            if unet.config[name]:
                raise UsageError(f"unet must have no {name} for a control branch; got {unet.config[name]}.")
        config = {name: unet.config[name] for name in _SHARED}
        branch = cls(condition_channels=condition_channels, condition_scale=condition_scale, **config)
        own, weights = branch.encoder.state_dict(), unet.state_dict()
        copied = {name: weights[name] for name in own if name != "conv_in.weight"}
        first = torch.zeros_like(own["conv_in.weight"])
        first[:, : weights["conv_in.weight"].shape[1]] = weights["conv_in.weight"]
        branch.encoder.load_state_dict({**copied, "conv_in.weight": first})
        return branch

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> ControlNet2DOutput | tuple[Tensor, tuple[Tensor, ...]]:
        """What is added to the features of the trained network.

        Args:
            sample, timestep, class_labels: as the trained network gets them.
            condition: the conditioning images, (B, condition_channels, H, W) times `condition_scale`.
            return_dict: `False` returns the tuple `(middle, down)`.

        Raises:
            UsageError: no condition, or one of another shape.
        """
        middle, features, _ = self.encoder._encode(sample, timestep, class_labels, None, None, None, condition)
        *down, middle = (conv(x) for conv, x in zip(self.zero_convs, [*features, middle], strict=True))
        return ControlNet2DOutput(middle, tuple(down)) if return_dict else (middle, tuple(down))


class Controlled:
    """A trained `UNet2D` and its control branch, called as one network with a `condition`; it holds no weights.

    Args:
        unet: the trained network.
        controlnet: the branch, as accelerate prepared it or plain.

    Example:
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> both = Controlled(unet, ControlNet2D.from_unet(unet, condition_channels=1))
        >>> x = torch.randn(2, 1, 8, 8)
        >>> torch.equal(both(x, 10, condition=torch.ones(2, 1, 8, 8)).sample, unet(x, 10).sample)
        True
    """

    def __init__(self, unet: Any, controlnet: Any):
        self.unet, self.controlnet = unet, controlnet
        self.config = unet.config

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> UNet2DOutput:
        added = self.controlnet(sample, timestep, class_labels=class_labels, condition=condition)
        return self.unet(sample, timestep, class_labels=class_labels, residuals=(*added.down, added.middle))
