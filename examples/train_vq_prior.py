"""Train a causal transformer over the codes of a VQ-VAE to sample images, series or sounds: of a class, text or any.

    accelerate launch examples/train_vqvae.py --dataset_name digits --output_dir outputs/digits-vqvae
    accelerate launch examples/train_vq_prior.py --dataset_name digits --vqvae outputs/digits-vqvae \\
        --class_conditional --output_dir outputs/digits-prior

Of a VQ-VAE of time series or sounds, give the flags of the data that it was trained on.
The codes are computed once and cached. A run that was killed goes on when the same command is started again. The folder
it leaves is a pipeline that holds the VQ-VAE too.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from latentia import VQVAE, VQPriorPipeline
from latentia.data import cached_latents
from latentia.errors import Size, UsageError
from latentia.functional.quantisation import perplexity
from latentia.losses.autoregressive import code_loss
from latentia.models.clip import train_tokenizer
from latentia.models.vq_prior import code_prefix, code_transformer
from latentia.pipelines.codebook import encode_tensors, input_shape
from latentia.pipelines.latents import fingerprint, load_autoencoder, load_codec
from latentia.pipelines.vq_prior import text_tokens
from latentia.runs.arguments import NetworkArguments, OptimizationArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Run
from latentia.runs.signal_data import arguments_of, open_signals


@dataclass(frozen=True)
class CodeArguments:
    """The VQ-VAE, whose weights do not change. A run is known by them, not by where they lie."""

    identifies: ClassVar[bool] = False
    vqvae: str | None = None
    """Folder or Hub id of a pipeline that holds one, such as a run of train_vqvae.py; or its own folder."""
    codes_file: str | None = None
    """Where its codes of the images are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class ConditionArguments:
    """The condition of the transformer."""

    class_conditional: bool = False
    """Condition on the class labels; a class must then be asked for."""
    caption: bool = False
    """Condition on the captions; a prompt must then be given."""
    vocab_size: Size = 2048
    """Tokens at most of the tokenizer, which is trained on the captions."""
    max_tokens: Size = 32
    """Tokens of a caption; shorter ones are padded, longer ones cut off."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    code: CodeArguments = CodeArguments()
    model: NetworkArguments = network_arguments(code_transformer, "width layers dropout", dropout=0.1)
    condition: ConditionArguments = ConditionArguments()
    optimization: OptimizationArguments = OptimizationArguments(train_batch_size=64, learning_rate=1e-3)


def check(args: Arguments, data) -> None:
    """Refuse flags that would fail later, or contradict each other."""
    condition = args.condition
    if condition.class_conditional and condition.caption:
        raise UsageError("--caption must be left out beside --class_conditional: an image has one condition.")
    if condition.caption and data.captions is None:
        raise UsageError("--caption needs captions, and this data set has none; name them with --caption_column.")


def main(args: Arguments) -> int:
    condition = args.condition
    tag = "text-to-image" if condition.caption else "unconditional-image-generation"
    if args.code.vqvae is None:
        raise UsageError("--vqvae must name a trained one: latentia train vqvae")
    signals = open_signals(args, load_codec(args.code.vqvae) if hasattr(args, "modality") else None)
    run = Run(args, family="vq_prior", **({"pipeline_tag": tag} | (signals.run if signals else {})))
    check(args, run.data)
    vqvae = load_autoencoder(args.code.vqvae)
    if not isinstance(vqvae, VQVAE):
        raise UsageError(f"--vqvae must hold a VQVAE; {args.code.vqvae} holds a {type(vqvae).__name__}.")
    if (taken := input_shape(vqvae)) != tuple(run.data.shape):
        raise UsageError(
            f"--vqvae was trained on inputs of shape {taken}, and the data's have {tuple(run.data.shape)}."
        )
    vqvae.requires_grad_(False).to(run.device)
    run.inputs = cached_latents(
        run.data,
        lambda x: (encode_tensors(vqvae, x.to(run.device))[:, None], None),
        f"codes of {fingerprint(vqvae)}{f' of {fingerprint(signals.codec)}' if signals else ''}",
        file=args.code.codes_file,
        cache_dir=getattr(args.data, "cache_dir", None),
    )
    size = vqvae.quantize.codebook_size
    unigram = math.log2(perplexity(run.inputs.mean.long(), size))
    run.accelerator.print(
        f"Codes of shape {vqvae.code_shape}: {unigram:.3f} bits each by their shares, at most log2 {size}"
    )

    tokenizer = None
    if condition.caption:
        tokenizer = train_tokenizer(run.data.captions, condition.vocab_size, condition.max_tokens)
    run.seed()
    transformer = code_transformer(
        size, vqvae.code_shape, num_classes=run.num_classes, tokenizer=tokenizer, **args.model
    )
    prior = run.prepare("prior", transformer)

    def loss(batch, rng):
        codes, given = batch["x"].flatten(1).long(), None
        if tokenizer is not None:
            given = text_tokens(tokenizer, batch["captions"])
        elif run.num_classes is not None:
            given = batch["labels"][:, None]
        prefix = code_prefix(size, given, len(codes)).to(codes.device)
        return code_loss(prior.network, {"prefix": prefix, "codes": codes}, rng)

    def pipeline(weights) -> VQPriorPipeline:
        codec = signals.codec if signals else None
        return VQPriorPipeline(vqvae, weights.eval(), tokenizer, label_names=run.label_names, codec=codec)

    validation = signals.validation(args, pipeline, prior.final) if signals else None
    return run.train([prior.phase(loss)], pipeline, validation=validation)


if __name__ == "__main__":
    run_script(arguments_of(Arguments), main, __doc__.splitlines()[0])
