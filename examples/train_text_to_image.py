"""Train texts to images, on images with captions: yours, the Hub's or the embedded emoji.

    accelerate launch examples/train_text_encoder.py --dataset_name emoji --output_dir outputs/emoji-text
    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl
    accelerate launch examples/train_text_to_image.py --dataset_name emoji --text_encoder outputs/emoji-text \\
        --autoencoder outputs/emoji-kl --output_dir outputs/emoji-images

Without --autoencoder the network makes pixels. Latents and hidden states of the captions are computed once and cached.
A run that was killed goes on when the same command is started again. Its folder has Stable Diffusion's layout.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from latentia import TextToImagePipeline, UNet2D
from latentia.data import cached_captions
from latentia.errors import Finite, Rate, UsageError
from latentia.pipelines.texts import embed_texts, load_text_encoder, max_tokens, text_fingerprint
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.compilation import fast_layout
from latentia.runs.diffusion import (
    DiffusionArguments,
    DiffusionEvaluationArguments,
    LatentArguments,
    check_objective,
    evaluation_steps,
    flow_map_settings,
    latents_of,
    objective,
    schedulers,
)
from latentia.runs.run import Run


@dataclass(frozen=True)
class TextArguments:
    """The text encoder, whose weights do not change. A run is known by them, not by where they lie."""

    identifies: ClassVar[bool] = False
    text_encoder: str | None = None
    """Folder or Hub id of a run of train_text_encoder.py, or of a CLIP, T5 or BERT-like model of transformers."""
    texts_file: str | None = None
    """Where its hidden states of the captions are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class ConditionArguments:
    """Captions as a condition."""

    caption_dropout: Rate = 0.1
    """Share of captions that are dropped, for classifier-free guidance; with 0 there is none."""


@dataclass(frozen=True)
class SampleArguments:
    """How samples on the way and the score are made."""

    identifies: ClassVar[bool] = False
    guidance_scale: Finite = 3.0
    """Classifier-free guidance; 1: none, more exaggerates the text."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    text: TextArguments = TextArguments()
    latent: LatentArguments = LatentArguments()
    model: NetworkArguments = network_arguments(
        UNet2D,
        "block_out_channels patch_size layers_per_block attention_stages attention_head_dim dropout",
        helps={"attention_stages": " Not given: all, as each attends to the text."},
        block_out_channels=(64, 128),
        layers_per_block=1,
    )
    condition: ConditionArguments = ConditionArguments()
    diffusion: DiffusionArguments = DiffusionArguments()
    sample: SampleArguments = SampleArguments()
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments()


def check(args: Arguments, data) -> None:
    """Refuse flags that would fail later, or be ignored."""
    dropout = args.condition.caption_dropout
    if args.data.streaming or data.captions is None:
        raise UsageError(
            "--caption_column must name the captions, of data that is not streamed: this data set has none. The "
            'embedded "emoji" has some.'
        )
    if args.text.text_encoder is None:
        raise UsageError("--text_encoder must name a trained one: latentia train text_encoder")
    if dropout == 0 and args.sample.guidance_scale != 1:
        raise UsageError(
            "--guidance_scale must be 1 with --caption_dropout 0, as guidance needs a network that was trained without "
            f"texts too; got {args.sample.guidance_scale}."
        )
    if args.latent.autoencoder is not None and args.model.patch_size != 1:
        raise UsageError(
            f"--patch_size must be 1 with --autoencoder, as latents are small; got {args.model.patch_size}."
        )
    check_objective(args.diffusion, args.optimization.train_batch_size)


def main(args: Arguments) -> int:
    run = Run(args, family="text_to_image", pipeline_tag="text-to-image")
    check(args, run.data)
    tokenizer, text_encoder = load_text_encoder(args.text.text_encoder)
    text_encoder.requires_grad_(False).to(run.device)
    vae, dropout = None, args.condition.caption_dropout
    if args.latent.autoencoder is not None:
        vae, run.inputs = latents_of(run, args.latent)
    run.inputs = cached_captions(
        run.inputs,
        partial(embed_texts, tokenizer, text_encoder),
        f"{text_fingerprint(tokenizer, text_encoder)}-{max_tokens(tokenizer, text_encoder)}",
        file=args.text.texts_file,
        cache_dir=args.data.cache_dir,
    )
    run.seed()
    chosen = {**args.model, **flow_map_settings(args.diffusion.few_steps)}
    chosen["attention_stages"] = args.model.attention_stages or (True,) * len(args.model.block_out_channels)
    network = UNet2D(**run.image, **chosen, cross_attention_dim=run.inputs.text_shape[1])
    unet = run.prepare("unet", fast_layout(network, args, run.device))
    noise, sampling = schedulers(args.diffusion, run.device, clip_sample=vae is None)
    empty = tuple(part.to(run.device) for part in run.inputs.empty)
    loss = objective(unet.network, noise, args.diffusion, dropout, empty)

    def pipeline(weights) -> TextToImagePipeline:
        return TextToImagePipeline(tokenizer, text_encoder, weights, sampling, vae, dropout > 0)

    steps = evaluation_steps(args.diffusion, args.evaluation)
    return run.train(
        [unet.phase(loss)],
        pipeline,
        guidance_scale=args.sample.guidance_scale,
        num_inference_steps=steps,
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
