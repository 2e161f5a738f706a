"""A causal transformer: the exact distribution of each token of a text, or value of an image, given those before it."""

from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Rate, Size, UsageError, check_arguments, check_choice, check_range
from latentia.models.layers.causal import CausalBlock, KeyValueCache, rotary
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.raster import Pick, check_length, check_tokens, raster, unraster
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import AutoregressiveOutput


class CausalTransformer(ModelMixin, ConfigMixin):
    r"""A decoder-only causal transformer, \(p(x) = \prod_i p(x_i | x_1, ..., x_{i-1}, y)\) over K tokens.

    A learned token that begins the sequence, one for each class y if there are some, stands before the first; then the
    tokens, embedded by the matrix that also gives their logits. Blocks have their norms first. An image is read in
    raster order, the channels of a pixel one after the other.

    Args:
        levels: K, characters of a vocabulary or levels of a pixel, from 2 to 65 536. Default 256.
        shape: of a sample: (L,) of a sequence of at most L tokens, (C, H, W) of an image. Default (256,).
        width: of the tokens, a multiple of `heads`. Default 128.
        layers: transformer blocks. Default 4.
        heads: of the attention. Default 4.
        dropout: rate, of embeddings and residual branches. Default 0.
        positions: "rotary" (default), relative ones, for texts; or "learned", an embedding of each place, for images.
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.

    Raises:
        UsageError: a width that the heads do not divide evenly, or numbers out of range; at the call tokens of another
            shape or range, and labels that are missing or not expected.

    Attention Is All You Need (Vaswani et al., 2017, 1706.03762); Language Models are Unsupervised Multitask Learners
    (Radford et al., 2019), section 2.3, for norms that come first; RoFormer (Su et al., 2021, 2104.09864); Using the
    Output Embedding to Improve Language Models (Press and Wolf, 2016, 1608.05859).

    Example:
        >>> transformer = CausalTransformer(levels=5, shape=(8,), width=16, layers=1)
        >>> transformer(torch.tensor([[0, 3, 1]])).logits.shape
        torch.Size([1, 3, 5])
        >>> pixels = CausalTransformer(levels=2, shape=(1, 4, 4), width=16, layers=1, positions="learned")
        >>> pixels(torch.zeros(3, 1, 4, 4, dtype=torch.long)).logits.shape
        torch.Size([3, 1, 4, 4, 2])
    """

    _gradient_checkpointing_func: Any
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ("embedding", "begin", "places")  # whose dtypes are read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        levels: Size = 256,
        shape: tuple[Size, ...] = (256,),
        width: Size = 128,
        layers: Size = 4,
        heads: Size = 4,
        dropout: Rate = 0.0,
        positions: Literal["rotary", "learned"] = "rotary",
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        check_range("levels", levels, 2, 2**16)
        check_choice("positions", positions, ("rotary", "learned"))
        if len(shape) not in (1, 3):
            raise UsageError(f"shape must be (L,) or (C, H, W); got {tuple(shape)}.")
        if width % (2 * heads):
            raise UsageError(f"width must be a multiple of 2 heads = {2 * heads}; got {width}.")
        self.shape = tuple(shape)
        self.length = check_length(self.shape)
        self.embedding = nn.Embedding(levels, width)
        self.begin = nn.Embedding(num_class_embeds or 1, width)
        self.places = nn.Embedding(self.length, width) if positions == "learned" else None
        for table in (self.embedding, self.begin, *([self.places] if self.places is not None else [])):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.gradient_checkpointing = False

    def forward(
        self, tokens: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[Tensor]:
        """The logits of each token given those before it.

        Args:
            tokens: integers in [0, K), (B, *shape), or of a sequence (B, T) with 1 <= T <= L.
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
        """
        shape = self.shape
        fits = tokens.ndim == 2 and 1 <= tokens.shape[1] <= shape[0] if len(shape) == 1 else tokens.shape[1:] == shape
        if not fits or not len(tokens):
            raise UsageError(f"tokens must have shape (B, {', '.join(map(str, shape))}); got {tuple(tokens.shape)}.")
        check_tokens(tokens, self.config.levels)
        flat = raster(tokens) if len(shape) == 3 else tokens
        logits = self._logits(self._embed(flat[:, :-1], class_labels, 0, len(flat)))
        if len(shape) == 3:
            logits = unraster(logits, shape)
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
        use_cache: bool = True,
    ) -> Tensor:
        """Draw tokens one after the other. A sequence may be longer than L: then the last L / 2 tokens begin it anew.

        Args:
            uniform: numbers in [0, 1), one for each token, (B, *shape), or of a sequence (B, T) of any T.
            pick: logits (B, K) and the numbers of one place (B,) -> tokens (B,).
            given: tokens of the shape of `uniform`, of which the first `known` of each sample are kept. Default none.
            known: integers (B,), how many. Default none.
            class_labels: as in `forward`.
            use_cache: keep keys and values, so that a token costs one position; `False` computes all anew, for
                comparison. Default True.

        Returns:
            int64, the shape of `uniform`.
        """
        shape, image = uniform.shape[1:], len(self.shape) == 3
        numbers = raster(uniform) if image else uniform
        start = raster(given) if image and given is not None else given
        count, length = numbers.shape
        tokens = torch.zeros(count, length, dtype=torch.long, device=numbers.device)
        first, cache = 0, None  # where the window begins, and what was computed of it
        for i in range(length):
            if i - first == self.length:
                first, cache = i - self.length // 2, None
            seen = tokens[:, first:i]
            if cache is None:
                cache = self._cache(count) if use_cache else None
                h = self._embed(seen, class_labels, 0, count, cache=cache)
            else:
                h = self._embed(seen[:, -1:], None, i - first, count, begin=False, cache=cache)
            drawn = pick(self._logits(h[:, -1]).float(), numbers[:, i])
            if start is not None and known is not None:
                drawn = torch.where(i < known, start[:, i], drawn)
            tokens[:, i] = drawn
        return unraster(tokens, tuple(shape)) if image else tokens

    # ------------------------------------------------------------ parts

    def _cache(self, count: int) -> KeyValueCache:
        config = self.config
        shape = (count, config.heads, self.length, config.width // config.heads)
        return KeyValueCache(config.layers, shape, self.embedding.weight)

    def _embed(
        self,
        tokens: Tensor,
        class_labels: Tensor | None,
        first: int,
        count: int,
        *,
        begin: bool = True,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The last hidden states (B, T, width) of tokens whose first stands at place `first`, after `begin`."""
        h = self.embedding(tokens)
        if begin:
            check_class_labels(class_labels, self.config.num_class_embeds)
            row = self.begin.weight[:1].expand(count, -1) if class_labels is None else self.begin(class_labels)
            h = torch.cat([row[:, None].to(h.dtype), h], 1)
        last = first + h.shape[1]
        rotation = None
        if self.places is not None:
            h = h + self.places.weight[first:last]
        else:
            rotation = rotary(first, last, self.config.width // self.config.heads, h.device)
        h = self.dropout(h)
        for i, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = self._gradient_checkpointing_func(block, h, rotation)
            else:
                h = block(h, rotation, cache, i)
        if cache is not None:
            cache.advance(h.shape[1])
        return self.norm(h)

    def _logits(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.embedding.weight.to(h.dtype))
