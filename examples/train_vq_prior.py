"""Train a causal transformer over the codes of a VQ-VAE, so that images can be sampled: of a class, a text or at all.

    accelerate launch examples/train_vqvae.py --dataset_name digits --output_dir outputs/digits-vqvae
    accelerate launch examples/train_vq_prior.py --dataset_name digits --vqvae outputs/digits-vqvae \\
        --class_conditional --output_dir outputs/digits-prior

The codes are computed once and kept. A run that was killed goes on when the same command is started again. The folder
it leaves is a pipeline that holds the VQ-VAE too.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch

from latentia import VQVAE, VQPriorPipeline
from latentia.data import cached_latents
from latentia.errors import UsageError
from latentia.losses.autoregressive import code_loss
from latentia.losses.quantisation import perplexity
from latentia.models.clip import train_tokenizer
from latentia.models.vq_prior import code_prefix, code_transformer
from latentia.pipelines.latents import fingerprint, load_autoencoder
from latentia.pipelines.vq_prior import text_tokens
from latentia.pipelines.vqvae import VQVAEPipeline
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation, sampler
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class CodeArguments:
    """The VQ-VAE, whose weights do not change. A run is known by them, not by where they lie."""

    vqvae: str | None = None
    """Folder or Hub id of a pipeline that holds one, such as a run of train_vqvae.py; or its own folder."""
    codes_file: str | None = None
    """Where its codes of the images are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class ModelArguments:
    """The transformer over the codes, GPT2LMHeadModel of transformers."""

    width: int = 128
    """Of the embeddings, a multiple of 32."""
    layers: int = 4
    """Transformer blocks."""
    dropout: float = 0.1
    """Dropout rate."""
    class_conditional: bool = False
    """Learn from the labels too; a class must then be asked for."""
    caption: bool = False
    """Learn from the captions too; a text must then be asked for."""
    vocab_size: int = 2048
    """Tokens at most of the tokenizer, which is trained on the captions."""
    max_tokens: int = 32
    """Tokens of a caption; shorter ones are padded, longer ones cut off."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    code: CodeArguments = field(default_factory=CodeArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    optimization: OptimizationArguments = field(
        default_factory=lambda: OptimizationArguments(train_batch_size=64, learning_rate=1e-3)
    )
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def check(args: Arguments, data) -> None:
    """Before anything is computed: what is asked for is there, and flags that do not contradict each other."""
    model = args.model
    if args.code.vqvae is None:
        raise UsageError("--vqvae must name a trained one; examples/train_vqvae.py trains it.")
    if model.class_conditional and model.caption:
        raise UsageError("--caption must be left out beside --class_conditional: an image has one condition.")
    for flag, wanted, there, column in (
        ("class_conditional", model.class_conditional, data.label_names, "labels"),
        ("caption", model.caption, data.captions, "captions"),
    ):
        if wanted and there is None:
            raise UsageError(
                f"--{flag} needs {column}, and this data set has none; name them with --{column[:-1]}_column."
            )


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, model = args.optimization, args.model
    check(args, data)
    vqvae = load_autoencoder(args.code.vqvae)
    if not isinstance(vqvae, VQVAE):
        raise UsageError(f"--vqvae must hold a VQVAE; {args.code.vqvae} holds a {type(vqvae).__name__}.")
    taken = (vqvae.config.in_channels, *(2 ** len(vqvae.config.block_out_channels) * side for side in vqvae.code_shape))
    if taken != tuple(data.shape):
        raise UsageError(f"--vqvae was trained on images of shape {taken}, and the data's have {tuple(data.shape)}.")
    words = VQVAEPipeline(vqvae.requires_grad_(False).to(accelerator.device))
    kept = cached_latents(
        data,
        lambda images: (words.encode(images)[:, None], None),
        f"codes of {fingerprint(vqvae)}",
        file=args.code.codes_file,
        cache_dir=args.data.cache_dir,
    )
    size = vqvae.bottleneck.size
    unigram = math.log2(perplexity(kept.mean.long(), size))
    accelerator.print(
        f"Codes of shape {vqvae.code_shape}: {unigram:.3f} bits each by their shares, at most log2 {size}"
    )

    tokenizer = train_tokenizer(data.captions, model.vocab_size, model.max_tokens) if model.caption else None
    torch.manual_seed(options.seed)
    transformer = code_transformer(
        size,
        vqvae.code_shape,
        num_classes=len(data.label_names) if model.class_conditional else None,
        tokenizer=tokenizer,
        width=model.width,
        layers=model.layers,
        dropout=model.dropout,
    )
    steps = plan(accelerator, args, kept, transformer)

    transformer.to(accelerator.device)
    ema = EMA(transformer, args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        transformer.gradient_checkpointing_enable()
    if options.compile:
        transformer.compile()
    network, optimizer = accelerator.prepare(transformer, adamw(accelerator, args, transformer.parameters()))

    def loss(batch, rng):
        codes = batch["x"].flatten(1).long()
        condition = None
        if model.caption:
            condition = text_tokens(tokenizer, batch["captions"])
        elif model.class_conditional:
            condition = batch["labels"][:, None]
        prefix = code_prefix(size, condition, len(codes)).to(codes.device)
        return code_loss(network, {"prefix": prefix, "codes": codes}, rng)

    phase = Phase(
        name="prior",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )

    def pipeline(weights) -> VQPriorPipeline:
        names = list(data.label_names) if model.class_conditional else None
        return VQPriorPipeline(vqvae, weights.eval(), tokenizer, label_names=names)

    def sample(weights, batch_size: int, seed: int) -> torch.Tensor:
        """Of the classes in turn, or of captions of the data."""
        asked = {"prompt": data.batch(0, batch_size, seed=seed)["captions"]} if model.caption else {}
        return sampler(pipeline, weights, **asked)(batch_size, seed)

    final = ema.module if ema is not None else transformer
    samplers = {"ema": partial(sample, final)} | ({"raw": partial(sample, transformer)} if ema is not None else {})
    validation = Validation(args, data, samplers)
    identity = (model, options, args.ema)
    result = fit(accelerator, args, [phase], kept, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="vq_prior",
        pipeline_tag="text-to-image" if model.caption else "unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
