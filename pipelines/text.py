"""Sampling, continuation and exact likelihood of texts, character by character, by a causal transformer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.data.texts import decode_text, encode_text
from latentia.errors import DataError, UsageError, check_choice, check_range
from latentia.functional.chunks import in_chunks
from latentia.losses.autoregressive import token_log_probs
from latentia.models.autoregressive import CausalTransformer
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_uniform, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.images import AnomalyScore
from latentia.pipelines.tokens import make_pick

Texts = str | Sequence[str]
MAX_LENGTH = 2**20
ROWS = 16  # texts at a time, as few are usual


@dataclass
class TextPipelineOutput(BaseOutput):
    """`texts`: a list of B texts, each with its prompt at the beginning."""

    texts: list[str]


class TextPipeline(DiffusionPipeline):
    r"""\(p(x) = \prod_i p(x_i | x_1, ..., x_{i-1})\) over the characters of a text.

    A text may be longer than the L characters that the transformer sees: where its window is full, the last L / 2
    characters begin the next one, in sampling and in the likelihood alike.

    Args:
        transformer: `CausalTransformer` of sequences, over the characters of the vocabulary.
        vocabulary: the characters, in the order of their indices.
        unknown_character: one of them that stands for all others; `None` (default): others are an error.

    Example:
        >>> transformer = CausalTransformer(levels=5, shape=(8,), width=16, layers=1)
        >>> pipe = TextPipeline(transformer.eval(), vocabulary="abcd ")
        >>> text = pipe(prompt="bad ", length=20, generator=torch.Generator().manual_seed(0)).texts[0]
        >>> len(text), text[:4], bool(pipe.log_likelihood(text) < 0)
        (24, 'bad ', True)
    """

    transformer: Any

    model_cpu_offload_seq = "transformer"

    modality = "text"
    likelihood = Likelihood("exact", "text")

    def __init__(self, transformer, vocabulary: str = "", unknown_character: str | None = None):
        super().__init__()
        if not isinstance(transformer, CausalTransformer) or len(transformer.shape) != 1:
            raise UsageError(f"transformer must be a CausalTransformer of sequences; got {type(transformer).__name__}.")
        if not isinstance(vocabulary, str) or len({*vocabulary}) != len(vocabulary):
            raise UsageError(f"vocabulary must be a text that holds no character twice; got {vocabulary!r:.200}.")
        if len(vocabulary) != transformer.config.levels:
            raise UsageError(
                f"vocabulary must hold {transformer.config.levels} characters, one for each level of the transformer; "
                f"got {len(vocabulary)}."
            )
        if unknown_character is not None and (len(unknown_character) != 1 or unknown_character not in vocabulary):
            raise UsageError(f"unknown_character must be one character of the vocabulary; got {unknown_character!r}.")
        self.register_modules(transformer=transformer)
        self.register_to_config(vocabulary=vocabulary, unknown_character=unknown_character)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        prompt: Texts | None = None,
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> TextPipelineOutput | tuple:
        r"""Sample texts, or continue given beginnings.

        Args:
            batch_size: number of texts; `None` (default): as many as `prompt`, else 1.
            prompt: the beginning of the text, or one for each; `None` (default): none.
            length: characters that are sampled after the prompt, at least 1. Default 500.
            temperature: T of \(\mathrm{softmax}(l / T)\), above 0. 1 (default) is the model; less makes texts more
                typical and repetitive.
            top_k: draw from the k likeliest characters, at least 1; `None` (default): from all.
            top_p: draw from the fewest characters that have this probability together, in (0, 1]. Default 1: from all.
            generator: one `torch.Generator` or one per text. The same seed gives the same texts whatever the batch.
            return_dict: `False` returns the tuple `(texts,)`.

        Returns:
            `.texts`.

        Raises:
            UsageError: an argument out of its range, or a prompt with a character that the vocabulary does not hold.

        The Curious Case of Neural Text Degeneration (Holtzman et al., 2019, 1904.09751), eq. 2, for `top_p`.
        """
        pick = make_pick(temperature, top_k, top_p)
        check_range("length", length, 1, MAX_LENGTH, integer=True)
        count = count_images(batch_size, prompt=prompt or None)
        prompts = [prompt or ""] * count if isinstance(prompt, str | None) else list(prompt)
        prompts = prompts * (count // len(prompts))
        window = self.transformer.shape[0]
        begins = [self._encode(text, "prompt")[-window:] for text in prompts]  # what it sees of a longer one
        uniform = draw_uniform(image_generators(generator, count), (length,), self._execution_device)
        known = torch.tensor([len(tokens) for tokens in begins])
        places = int(known.max()) + length
        # The numbers of a text follow its own prompt, so that it does not depend on those of the others.
        numbers, given = uniform.new_zeros(count, places), torch.zeros(count, places, dtype=torch.long)
        for row, tokens in enumerate(begins):
            given[row, : len(tokens)] = tokens
            numbers[row, len(tokens) : len(tokens) + length] = uniform[row]

        def draw(numbers: Tensor, given: Tensor, known: Tensor) -> Tensor:
            return self.transformer.sample(numbers, pick, given=given, known=known)

        drawn = in_chunks(draw, numbers, given.to(numbers.device), known.to(numbers.device), size=ROWS)
        vocabulary = self.config.vocabulary
        texts = [
            text + decode_text(row[len(tokens) : len(tokens) + length], vocabulary)
            for text, tokens, row in zip(prompts, begins, drawn.cpu())
        ]
        self.maybe_free_model_hooks()
        return TextPipelineOutput(texts=texts) if return_dict else (texts,)

    @torch.no_grad()
    def log_likelihood(self, texts: Texts) -> Tensor:
        r"""\(\log p(x)\), exact, in nats per text, summed over its characters.

        Args:
            texts: a text, or several, none of them empty.

        Returns:
            float64, (B,).

        Raises:
            UsageError: no text, an empty one, or one with a character that the vocabulary does not hold.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given or not all(isinstance(text, str) and text for text in given):
            raise UsageError("texts must be one or several, none of them empty; got none, an empty one or no text.")
        return torch.stack([self._log_probs(self._encode(text, "texts")).sum() for text in given])

    def bits_per_character(self, texts: Texts) -> Tensor:
        r"""\(-\log_2 p(x) / n\) of texts of n characters, float64, (B,); arguments and errors of `log_likelihood`.

        Example:
            >>> pipe = TextPipeline(CausalTransformer(levels=4, shape=(8,), width=16, layers=1), vocabulary="abcd")
            >>> 1 < pipe.bits_per_character("abad cab".replace(" ", "")).item() < 3
            True
        """
        lengths = torch.tensor([len(text) for text in ([texts] if isinstance(texts, str) else texts)])
        nats = self.log_likelihood(texts)
        return -nats / lengths.to(nats.device) / math.log(2)

    def anomaly_score(self, images: Texts, *, score: AnomalyScore | None = None, **options: Any) -> Tensor:
        """Anomaly score of texts, their bits per character, float64, (B,); larger is less likely.

        Args:
            images: the texts, as for `log_likelihood`.
            score: "likelihood" or `None` (default), which are the same.
            **options: none.
        """
        if score is not None:
            check_choice("score", score, ("likelihood",))
        return self.bits_per_character(images, **options)

    # ------------------------------------------------------------ parts

    def _encode(self, text: str, argument: str) -> Tensor:
        try:
            return encode_text(text, self.config.vocabulary, self.config.unknown_character, name=argument)
        except DataError as error:
            raise UsageError(str(error)) from error

    def _log_probs(self, tokens: Tensor) -> Tensor:
        """Of each character given those before it in its window, float64 (n,)."""
        window = self.transformer.shape[0]
        step = window - window // 2  # each window but the first repeats window // 2 characters
        begins = [0, *range(step, len(tokens) - window // 2, step)] if len(tokens) > window else [0]
        rows = torch.zeros(len(begins), window, dtype=torch.long)
        for row, begin in enumerate(begins):
            part = tokens[begin : begin + window]
            rows[row, : len(part)] = part
        found = in_chunks(lambda part: token_log_probs(self.transformer, part), rows.to(self._execution_device))
        parts = [found[0], *found[1:, window // 2 :]]
        return torch.cat(parts)[: len(tokens)].double()
