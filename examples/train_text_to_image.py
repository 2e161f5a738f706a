"""Train texts to images, on images with captions: yours, the Hub's or the embedded emoji.

    accelerate launch examples/train_text_encoder.py --dataset_name emoji --output_dir outputs/emoji-text
    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl
    accelerate launch examples/train_text_to_image.py --dataset_name emoji --text_encoder outputs/emoji-text \\
        --autoencoder outputs/emoji-kl --output_dir outputs/emoji-pictures

Without --autoencoder the network makes pixels. Latents and hidden states of the captions are computed once and kept. A
run that was killed goes on when the same command is started again. The folder it leaves has Stable Diffusion's layout.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from latentia import TextToImagePipeline, UNet2D
from latentia.data import cached_captions
from latentia.errors import UsageError
from latentia.pipelines.texts import embed_texts, load_text_encoder, max_tokens, text_fingerprint
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.diffusion import (
    DiffusionArguments,
    LatentArguments,
    check_objective,
    latents_of,
    objective,
    schedulers,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class TextArguments:
    """The text encoder, whose weights do not change. A run is known by them, not by where they lie."""

    text_encoder: str | None = None
    """Folder or Hub id of a run of train_text_encoder.py, or of a CLIP, T5 or BERT-like model of transformers."""
    texts_file: str | None = None
    """Where its hidden states of the captions are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class ModelArguments:
    """The network, UNet2D."""

    block_out_channels: tuple[int, ...] = (64, 128)
    """Channels of each level from fine to coarse; every level looks at the text."""
    patch_size: int = 1
    """Side of the patches that become channels first; 2 quarters the work in pixels."""
    layers_per_block: int = 1
    """Residual blocks of each level."""
    attention_head_dim: int = 32
    """Channels of an attention head; must divide the channels of every level."""
    dropout: float = 0.0
    """Dropout rate."""
    caption_dropout: float = 0.1
    """Share of captions that are hidden, for classifier-free guidance; with 0 there is none."""


@dataclass(frozen=True)
class SampleArguments:
    """How samples on the way and the score are made."""

    guidance_scale: float = 3.0
    """How much the text is exaggerated; 1: followed."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    text: TextArguments = field(default_factory=TextArguments)
    latent: LatentArguments = field(default_factory=LatentArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    diffusion: DiffusionArguments = field(default_factory=DiffusionArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    sample: SampleArguments = field(default_factory=SampleArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def check(args: Arguments, data) -> None:
    """What else would fail later, or go unnoticed."""
    model = args.model
    if args.data.streaming or data.captions is None:
        raise UsageError(
            "--caption_column must name the captions, of data that is not streamed: this data set has none. The "
            'embedded "emoji" has some.'
        )
    if args.text.text_encoder is None:
        raise UsageError("--text_encoder must name a trained one; examples/train_text_encoder.py trains it.")
    if not 0 <= model.caption_dropout < 1:
        raise UsageError(f"--caption_dropout must be in [0, 1); got {model.caption_dropout}.")
    if model.caption_dropout == 0 and args.sample.guidance_scale != 1:
        raise UsageError(
            "--guidance_scale must be 1 with --caption_dropout 0, as guidance needs a network that was trained without "
            f"texts too; got {args.sample.guidance_scale}."
        )
    if args.latent.autoencoder is not None and model.patch_size != 1:
        raise UsageError(f"--patch_size must be 1 with --autoencoder, as latents are small; got {model.patch_size}.")
    check_objective(args.diffusion)


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, model = args.optimization, args.model
    check(args, data)
    tokenizer, text_encoder = load_text_encoder(args.text.text_encoder)
    text_encoder.requires_grad_(False).to(accelerator.device)
    vae, seen = None, data
    if args.latent.autoencoder is not None:
        vae, seen = latents_of(accelerator, args.latent, data, args.data.cache_dir)
    seen = cached_captions(
        seen,
        partial(embed_texts, tokenizer, text_encoder),
        f"{text_fingerprint(tokenizer, text_encoder)}-{max_tokens(tokenizer, text_encoder)}",
        file=args.text.texts_file,
        cache_dir=args.data.cache_dir,
    )

    torch.manual_seed(options.seed)
    unet = UNet2D(
        sample_size=seen.shape[1:],
        in_channels=seen.shape[0],
        patch_size=model.patch_size,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        attention_levels=(True,) * len(model.block_out_channels),
        attention_head_dim=model.attention_head_dim,
        cross_attention_dim=seen.text_shape[1],
        dropout=model.dropout,
    ).to(memory_format=torch.channels_last)
    noise, sampling = schedulers(args.diffusion, accelerator.device, clip_sample=vae is None)
    steps = plan(accelerator, args, seen, unet)

    ema = EMA(unet.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:
        unet.compile()
    network, optimizer = accelerator.prepare(unet, adamw(accelerator, args, unet.parameters()))
    empty = tuple(part.to(accelerator.device) for part in seen.empty)
    told = objective(network, noise, args.diffusion, model.caption_dropout, empty)

    def loss(batch, rng):
        return told({key: batch[key] for key in ("x", "text", "text_mask")}, rng)

    phase = Phase(
        name="unet",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )

    def pipeline(weights) -> TextToImagePipeline:
        unconditional = model.caption_dropout > 0
        pipe = TextToImagePipeline(tokenizer, text_encoder, weights, sampling, vae, unconditional)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def captions(count: int, seed: int) -> list[str]:
        return data.batch(0, count, seed=seed)["captions"]

    def sample(weights, batch_size: int, seed: int) -> torch.Tensor:
        """Images of captions of the data."""
        training = weights.training
        images = pipeline(weights.eval())(
            captions(batch_size, seed),
            guidance_scale=args.sample.guidance_scale,
            num_inference_steps=args.evaluation.num_inference_steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        weights.train(training)
        return images.clamp(-1, 1).cpu()

    final = ema.module if ema is not None else unet
    samplers = {"ema": partial(sample, final)} | ({"raw": partial(sample, unet)} if ema is not None else {})
    if accelerator.is_main_process:
        shown = Path(args.output.output_dir) / "samples" / "captions.txt"  # of the pictures beside it, row by row
        shown.parent.mkdir(exist_ok=True)
        shown.write_text("".join(f"{caption}\n" for caption in captions(64, options.seed)))
    validation = Validation(args, data, samplers)
    identity = (model, args.diffusion, options, args.ema)
    result = fit(accelerator, args, [phase], seen, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="text_to_image",
        pipeline_tag="text-to-image",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
