"""Train a text encoder beside an image encoder, on images with captions: each text nearest to its own image.

    accelerate launch examples/train_text_encoder.py --dataset_name emoji --output_dir outputs/emoji-text

A run that was killed goes on when the same command is started again. The folder it leaves is a `CLIPPipeline`, and its
`tokenizer/` and `text_encoder/` are what text to image learns from. The score is retrieval among pairs it has not seen.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from latentia import CLIPPipeline
from latentia.errors import UsageError
from latentia.evaluation import retrieval_scores
from latentia.losses.contrastive import contrastive_loss, moved
from latentia.models.clip import ContrastivePair, clip_towers, train_tokenizer
from latentia.pipelines.clip import scale_of
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation
from latentia.training.ema import EMA
from latentia.training.loop import Phase, Progress, learning_rate_schedule


@dataclass(frozen=True)
class ModelArguments:
    """Both encoders, transformers' CLIP, and the tokenizer, which is trained on the captions first."""

    width: int = 128
    """Channels of both, a multiple of 32."""
    text_layers: int = 3
    """Transformer blocks of the text encoder."""
    image_layers: int = 4
    """Transformer blocks of the image encoder."""
    patch_size: int | None = None
    """Side of the squares that the image encoder sees; not given: an eighth of the image's."""
    projection_dim: int = 128
    """Dimensions of the space where texts and images meet."""
    dropout: float = 0.1
    """Dropout rate of the attention of both."""
    vocab_size: int = 2048
    """Tokens at most."""
    max_tokens: int = 32
    """Tokens of a caption at most; what is longer is cut off."""


@dataclass(frozen=True)
class ContrastiveArguments:
    """What is shown."""

    augment: bool = True
    """Move and scale the images; their colours stay."""


@dataclass(frozen=True)
class ValidationArguments:
    """Pairs that are scored and never trained on."""

    validation_split: str = "test"
    """Split of the same data set; of one without, a part that --split leaves out, such as "train[90%:]"."""
    validation_steps: int = 0
    """Steps between pictures of what texts find; 0: only at the end."""
    eval_steps: int = 0
    """Steps between scores; 0: only at the end."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    contrastive: ContrastiveArguments = field(default_factory=ContrastiveArguments)
    optimization: OptimizationArguments = field(
        default_factory=lambda: OptimizationArguments(
            train_batch_size=128, learning_rate=1e-3, adam_beta2=0.98, adam_weight_decay=0.1
        )
    )
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: ValidationArguments = field(default_factory=ValidationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


class RetrievalValidation(Validation):
    """Shows what held-out texts find, and scores retrieval among the held-out pairs."""

    def __init__(self, args: Arguments, data, held_out, pipeline):
        self.args, self.data, self.pipelines, self.report = args, data, {"ema": self.found}, None
        self.folder = Path(args.output.output_dir)
        self.held_out, self.pipeline = held_out, pipeline

    def _images(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        return self.held_out.images[chosen].float() / 127.5 - 1

    def found(self, batch_size: int, seed: int) -> torch.Tensor:
        """Rows of eight: a text's own image, then the seven that it finds first."""
        rows = torch.randperm(len(self.held_out), generator=torch.Generator().manual_seed(seed))[: batch_size // 8]
        pipe = self.pipeline()
        texts = pipe.encode_text([self.held_out.captions[row] for row in rows.tolist()])
        first = (texts @ pipe.encode(self._images(slice(None))).T).topk(min(7, len(self.held_out))).indices.cpu()
        return self._images(torch.cat([rows[:, None], first], 1).flatten())

    def score(self, progress: Progress) -> dict[str, float]:
        pipe = self.pipeline()
        numbers = {caption: i for i, caption in enumerate(sorted(set(self.held_out.captions)))}
        groups = torch.tensor([numbers[caption] for caption in self.held_out.captions])
        images, texts = pipe.encode(self._images(slice(None))), pipe.encode_text(self.held_out.captions)
        self.report = retrieval_scores(images, texts, groups=groups)
        return {f"eval/{key}": value for key, value in self.report.to_dict().items()}


def main(args: Arguments) -> int:
    accelerator = start(args)
    data, options, model = load_data(args.data), args.optimization, args.model
    if args.data.streaming or data.captions is None:
        raise UsageError("A text encoder needs captions, not streamed; name their column with --caption_column.")
    if data.shape[1] != data.shape[2]:
        raise UsageError(f"--resolution must make square images; these are {data.shape[1]} by {data.shape[2]}.")
    held_out = load_data(
        replace(args.data, split=args.evaluation.validation_split, random_flip=False, max_train_samples=None)
    )
    if held_out.fingerprint == data.fingerprint or held_out.shape != data.shape:
        raise UsageError("--validation_split must name other images than --split, of the same shape.")

    tokenizer = train_tokenizer(data.captions, model.vocab_size, model.max_tokens)
    torch.manual_seed(options.seed)
    towers = clip_towers(
        tokenizer,
        data.shape[1],
        data.shape[0],
        width=model.width,
        text_layers=model.text_layers,
        image_layers=model.image_layers,
        patch_size=model.patch_size,
        projection_dim=model.projection_dim,
        dropout=model.dropout,
    )
    pair = ContrastivePair(*towers)
    steps = plan(accelerator, args, data, torch.nn.ModuleList(towers))

    ema = EMA(pair.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        for tower in towers:
            tower.gradient_checkpointing_enable()
    if options.compile:
        pair.compile()
    network, optimizer = accelerator.prepare(pair, adamw(accelerator, args, pair.parameters()))
    numbers = {caption: i for i, caption in enumerate(sorted(set(data.captions)))}

    def loss(batch, rng):
        images, captions = batch["x"], batch["captions"]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=model.max_tokens, return_tensors="pt")
        images = moved(images, rng) if args.contrastive.augment else images
        groups = torch.tensor([numbers[caption] for caption in captions], device=images.device)
        return contrastive_loss(*network(tokens["input_ids"].to(images.device), images), groups=groups)

    phase = Phase(
        name="clip",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )
    final = ema.module if ema is not None else pair

    def pipeline() -> CLIPPipeline:
        final.eval()
        return CLIPPipeline(tokenizer, final.text_encoder, final.image_encoder, scale_of(final.log_scale))

    validation = RetrievalValidation(args, data, held_out, pipeline)
    identity = (model, args.contrastive, options, args.ema)
    result = fit(accelerator, args, [phase], data, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(),
        validation,
        family="clip",
        pipeline_tag="zero-shot-image-classification",
        limits=["It knows the words of its captions and no others."],
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
