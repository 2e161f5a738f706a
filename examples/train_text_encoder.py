"""Train a text encoder beside an image encoder, on images with captions: each text nearest to its own image.

    accelerate launch examples/train_text_encoder.py --dataset_name emoji --output_dir outputs/emoji-text

A run that was killed goes on when the same command is started again. The folder it leaves is a `CLIPPipeline`, and its
`tokenizer/` and `text_encoder/` are what text to image learns from. The score is retrieval among pairs it has not seen.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from latentia import CLIPPipeline
from latentia.errors import Natural, Size, UsageError
from latentia.evaluation import retrieval_scores
from latentia.functional.pixels import from_uint8
from latentia.losses.augmentation import random_affine
from latentia.losses.contrastive import contrastive_loss
from latentia.models.clip import ContrastivePair, clip_towers, train_tokenizer
from latentia.pipelines.clip import scale_of
from latentia.runs.arguments import NetworkArguments, OptimizationArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Run
from latentia.runs.start import load_data
from latentia.runs.validation import Samples, Validation, draw_grid
from latentia.training.loop import Progress


@dataclass(frozen=True)
class TokenizerArguments:
    """The tokenizer, which is trained on the captions first."""

    vocab_size: Size = 2048
    """Tokens at most."""
    max_tokens: Size = 32
    """Tokens of a caption at most; what is longer is cut off."""


@dataclass(frozen=True)
class ContrastiveArguments:
    """Augmentation."""

    augment: bool = True
    """Move and scale the images; their colours stay."""


@dataclass(frozen=True)
class ValidationArguments:
    """Pairs that are scored and never trained on."""

    identifies: ClassVar[bool] = False
    validation_split: str = "test"
    """Split of the same data set; of one without, a part that --split leaves out, such as "train[90%:]"."""
    validation_steps: Natural = 0
    """Steps between images of what captions retrieve; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores; 0: only at the end."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        clip_towers, "width text_layers image_layers patch_size projection_dim dropout", dropout=0.1
    )
    tokenizer: TokenizerArguments = TokenizerArguments()
    contrastive: ContrastiveArguments = ContrastiveArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=128, learning_rate=1e-3, adam_beta2=0.98, adam_weight_decay=0.1
    )
    evaluation: ValidationArguments = ValidationArguments()  # type: ignore[assignment]


class RetrievalValidation(Validation):
    """Show what held-out captions retrieve, and score retrieval among the held-out pairs."""

    def __init__(self, run: Run, held_out, pipeline):
        self.args, self.data, self.pipelines, self.report = run.args, run.data, {"ema": self.found}, None
        self.folder, self.held_out, self.pipeline = run.folder, held_out, pipeline

    def _images(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        return from_uint8(self.held_out.images[chosen])

    def found(self, count: int, seed: int, start: int = 0) -> Samples:
        """Rows of eight: a text and its own image, then the seven that it finds first."""
        order = torch.randperm(len(self.held_out), generator=torch.Generator().manual_seed(seed))
        rows = order[start // 8 : (start + count) // 8]
        captions = [self.held_out.captions[row] for row in rows.tolist()]
        pipe = self.pipeline()
        similarity = pipe.encode_text(captions) @ pipe.encode(self._images(slice(None))).T
        first = similarity.topk(min(7, len(self.held_out))).indices.cpu()
        labels = [text for caption in captions for text in (caption, *[""] * first.shape[1])]
        return Samples(self._images(torch.cat([rows[:, None], first], 1).flatten()), labels)

    def check(self) -> None:
        draw_grid(self.found(8, 0))

    def score(self, progress: Progress) -> dict[str, float]:
        pipe = self.pipeline()
        numbers = {caption: i for i, caption in enumerate(sorted(set(self.held_out.captions)))}
        groups = torch.tensor([numbers[caption] for caption in self.held_out.captions])
        images, texts = pipe.encode(self._images(slice(None))), pipe.encode_text(self.held_out.captions)
        self.report = retrieval_scores(images, texts, groups=groups)
        return {f"eval/{key}": value for key, value in self.report.to_dict().items()}


def main(args: Arguments) -> int:
    run = Run(args, family="clip", pipeline_tag="zero-shot-image-classification")
    data, max_tokens = run.data, args.tokenizer.max_tokens
    if args.data.streaming or data.captions is None:
        raise UsageError("A text encoder needs captions, not streamed; name their column with --caption_column.")
    if data.shape[1] != data.shape[2]:
        raise UsageError(f"--resolution must make square images; these are {data.shape[1]} by {data.shape[2]}.")
    held_out = load_data(
        replace(args.data, split=args.evaluation.validation_split, random_flip=False, max_train_samples=None)
    )
    if held_out.fingerprint == data.fingerprint or held_out.shape != data.shape:
        raise UsageError("--validation_split must name other images than --split, of the same shape.")

    tokenizer = train_tokenizer(data.captions, args.tokenizer.vocab_size, max_tokens)
    run.seed()
    towers = clip_towers(tokenizer, data.shape[1], data.shape[0], **args.model)
    clip = run.prepare("clip", ContrastivePair(*towers))
    numbers = {caption: i for i, caption in enumerate(sorted(set(data.captions)))}

    def loss(batch, rng):
        images, captions = batch["x"], batch["captions"]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        images = random_affine(images, rng) if args.contrastive.augment else images
        groups = torch.tensor([numbers[caption] for caption in captions])
        groups, ids = (x.to(images.device, non_blocking=True) for x in (groups, tokens["input_ids"]))
        return contrastive_loss(*clip.network(ids, images), groups=groups)

    def pipeline(weights=clip.final) -> CLIPPipeline:
        weights.eval()
        return CLIPPipeline(tokenizer, weights.text_encoder, weights.image_encoder, scale_of(weights.logit_scale))

    validation = RetrievalValidation(run, held_out, pipeline)
    limits = ["It knows the words of its captions and no others."]
    return run.train([clip.phase(loss)], pipeline, validation=validation, limits=lambda: limits)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
