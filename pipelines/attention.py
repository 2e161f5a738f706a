"""Cross-attention maps of a UNet2D, and their preservation while a prompt is edited (pix2pix-zero)."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from latentia.models.layers.attention import AttentionBlock


class CrossAttention:
    """A copy of a network that keeps the cross-attention maps of its last call.

    Args:
        unet: a `UNet2D` with a context. It is copied, so that other calls of it are not seen.

    Example:
        >>> from latentia import UNet2D
        >>> network = CrossAttention(UNet2D(8, 4, block_out_channels=(32,), cross_attention_dim=16))
        >>> _ = network(torch.randn(2, 4, 8, 8), 3, encoder_hidden_states=torch.randn(2, 5, 16))
        >>> [tuple(one.shape) for one in network.maps]  # of the way down, the middle and the way up
        [(2, 1, 64, 5), (2, 1, 64, 5), (2, 1, 64, 5), (2, 1, 64, 5), (2, 1, 64, 5), (2, 1, 64, 5)]
    """

    def __init__(self, unet: nn.Module):
        self.unet: Any = copy.deepcopy(unet).eval().requires_grad_(False)
        self.config = self.unet.config
        self.maps: list[Tensor] = []
        self._mask: Tensor | None = None
        for module in self.unet.modules():
            if isinstance(module, AttentionBlock) and hasattr(module, "cross_to_q"):
                module.cross_to_kv.register_forward_hook(self._keep(module))
                module.cross_to_q.register_forward_hook(self._hold(module))

    def _hold(self, block: Any) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, queries: Tensor) -> None:
            block.held = queries

        return hook

    def _keep(self, block: Any) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, keys_and_values: Tensor) -> None:
            q, k = block._split(block.held), block._split(keys_and_values.chunk(2, dim=-1)[0])
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, pixels, tokens)
            if self._mask is not None:
                scores = scores.masked_fill(~self._mask[:, None, None, :], float("-inf"))
            self.maps.append(scores.softmax(-1))

        return hook

    def __call__(self, sample: Tensor, timestep: Any, **conditions: Tensor) -> Any:
        mask = conditions.get("encoder_attention_mask")
        self.maps, self._mask = [], None if mask is None else mask.bool()
        return self.unet(sample, timestep, **conditions)
