"""The flags of a training script: typed dataclasses, one per concern, that a command line or a file fills in.

Names are those that users of diffusers' training scripts type. The flags of a network are the arguments of its
constructor, explained by its docstring: `network_arguments`.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import docstring_parser
import tyro

from latentia.errors import (
    Count,
    Natural,
    Positive,
    Range,
    Rate,
    Seed,
    Size,
    UsageError,
    Weight,
    check_text,
    check_value,
    range_of,
    ranges,
)


@dataclass(frozen=True)
class DataArguments:
    """What to train on."""

    identifies: ClassVar[bool] = False

    dataset_name: str | None = None
    """A data set id on the Hub, or an embedded set: "digits" (8x8 grey) or "emoji" (32x32 colour)."""
    dataset_config_name: str | None = None
    """Configuration of a Hub data set that has several."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    train_data_dir: str | None = None
    """A folder of images (class subfolders give labels), or a parquet file, folder or pattern."""
    split: str = "train"
    """Split of the data set."""
    image_column: str | None = None
    """Column of the images; found by type if not given."""
    label_column: str | None = None
    """Column of the class labels; found by type if not given."""
    caption_column: str | None = None
    """Column of the captions."""
    resolution: Annotated[int, Range(1, most=4096)] | None = None
    """Shorter side in pixels after resizing, then cropped to a square; not given: the images' own size."""
    channels: Literal[1, 3, 4] | None = None
    """1 grey, 3 RGB, 4 RGBA; not given: as the first image is."""
    center_crop: bool = True
    """Crop at the centre; otherwise at random."""
    random_flip: bool = False
    """Mirror half of the images left to right."""
    max_train_samples: Count | None = None
    """Use at most so many samples, spread evenly over the set."""
    streaming: bool = False
    """Read the data set as a stream, without storing it."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do with an image that cannot be read; at most 1 percent may be skipped."""
    dataloader_num_workers: Annotated[int, Range(0, most=1024)] = 0
    """Processes that decode images while the cache is built."""
    cache_dir: str | None = None
    """Folder of the cache of decoded images."""


@dataclass(frozen=True)
class OptimizationArguments:
    """How to train."""

    train_batch_size: Size = 64
    """Images per micro-batch and process."""
    gradient_accumulation_steps: Size = 1
    """Micro-batches per optimizer step."""
    minutes: Annotated[float, Range(0, closed="neither", most=1e6)] | None = None
    """Train for about so many minutes: as many steps as fit, found by timing a few; instead of max_train_steps."""
    max_train_steps: Count | None = None
    """Optimizer steps; not given: num_train_epochs."""
    num_train_epochs: Size = 100
    """Passes over the data if max_train_steps is not given."""
    init_from: str | None = None
    """Fine-tune: folder or Hub id of a saved pipeline whose weights the networks start from, such as that of a run."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of AdamW."""
    scale_lr: bool = False
    """Multiply the rate by processes x accumulation x batch size."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the rate after warm-up."""
    lr_warmup_steps: Natural = 50
    """Steps of linear warm-up."""
    adam_beta1: Rate = 0.9
    """Decay of the first moment."""
    adam_beta2: Rate = 0.99
    """Decay of the second moment."""
    adam_weight_decay: Weight = 0.01
    """Decoupled weight decay."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator."""
    max_grad_norm: Positive = 1.0
    """Clip gradients to this norm."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite: end with exit code 3, or pass over the batch and go on."""
    max_skips: Natural = 10
    """Batches that `--on_nonfinite skip` passes over in the whole run; one more ends it."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; bf16 is safe, fp16 often is not for small networks."""
    allow_tf32: bool = False
    """Allow TensorFloat-32 matrix products on NVIDIA GPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations on the way back: less memory, more time."""
    compile: bool = False
    """Compile the network with torch.compile."""
    distributed_timeout: Annotated[float, Range(0, closed="neither", most=1e8)] = 600.0
    """Seconds that one of several processes waits for another; longer than the longest score on the way."""
    seed: Seed = 0
    """Seed of everything."""


@dataclass(frozen=True)
class EMAArguments:
    """The moving average of the weights, which is what is sampled from and saved."""

    use_ema: bool = True
    """Keep and use the average."""
    ema_decay: Rate = 0.998
    """Decay per step."""
    ema_warmup: bool = True
    """Average over fewer steps early on: min(decay, (1 + n) / (10 + n))."""


@dataclass(frozen=True)
class OutputArguments:
    """What is written, and how a run goes on."""

    identifies: ClassVar[bool] = False

    output_dir: str = "outputs/run"
    """Folder of the run: pipeline, card, checkpoints, metrics, images."""
    overwrite_output_dir: bool = False
    """Delete what an earlier run left in output_dir and start anew."""
    checkpointing_steps: Count = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: Annotated[int, Range(2, most=2**20)] | None = 3
    """Checkpoints to keep, at least 2."""
    resume_from_checkpoint: str = "auto"
    """"auto": go on if there is something to go on from; "latest": it must be there; "none"; or a folder."""
    report_to: str | None = None
    """A tracker known to accelerate: tensorboard, trackio, wandb, ... metrics.jsonl is always written."""
    logging_dir: str = "logs"
    """Folder of the tracker, inside output_dir."""
    tracker_project_name: str = "latentia"
    """Project name in the tracker."""
    logging_steps: Count = 10
    """Steps between lines of metrics.jsonl."""
    profile: bool = False
    """Trace a few steps, and write the largest operators and what bounds the run into output_dir/profile."""


@dataclass(frozen=True)
class EvaluationArguments:
    """Images and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: Natural = 0
    """Steps between sample grids, from raw and averaged weights; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores; 0: only at the end."""
    eval_num_samples: Natural = 500
    """Images to sample for a score; 0: no score."""
    eval_metrics: tuple[str, ...] = ("fd", "kid", "inception_score")
    """What a score holds: fd, kid, precision, recall, ... as `latentia evaluate` lists them."""


@dataclass(frozen=True)
class HubArguments:
    """Sharing. Log in with `hf auth login` or the environment variable HF_TOKEN; there is no flag for a token."""

    identifies: ClassVar[bool] = False

    push_to_hub: bool = False
    """Upload the pipeline and its card at the end."""
    hub_model_id: str | None = None
    """Repository, such as "me/ddpm-digits"; not given: the name of output_dir."""
    hub_private_repo: bool = True
    """Make the repository private; --no_hub_private_repo makes it public."""
    hub_license: str | None = None
    """Licence that the card names, such as apache-2.0; a public repository needs one, or "none"."""


@dataclass(frozen=True)
class RunArguments:
    """The groups of flags that every training script has. A script adds its own and changes defaults.

    The flags of all groups must be equal for a checkpoint to be continued, but for groups with `identifies = False`.
    The type of a number declares its range, `Annotated[int, Range(1)]` or a name for it such as `Count`: it is shown by
    `--help` and checked before anything is computed.
    """

    data: DataArguments = DataArguments()
    optimization: OptimizationArguments = OptimizationArguments()
    ema: EMAArguments = EMAArguments()
    evaluation: EvaluationArguments = EvaluationArguments()
    output: OutputArguments = OutputArguments()
    hub: HubArguments = HubArguments()


@dataclass(frozen=True)
class ClassArguments:
    """Class labels as a condition."""

    class_conditional: bool = False
    """Condition the network on the class labels of the data set, so that classes can be asked for."""


class NetworkArguments:
    """A group of flags made by `network_arguments`, which unpacks as constructor arguments: `VAE(**args.model)`.

    A value is an attribute too, by the name of its flag.
    """

    flags: ClassVar[Mapping[str, str]]  # argument of the constructor -> name of its flag

    def __getitem__(self, argument: str) -> Any:
        return getattr(self, self.flags[argument])

    def keys(self) -> Iterable[str]:
        return self.flags.keys()

    if typing.TYPE_CHECKING:

        def __getattr__(self, flag: str) -> Any: ...


def network_arguments(
    network: Callable[..., Any],
    arguments: str,
    *,
    flags: Mapping[str, str] | None = None,
    helps: Mapping[str, str] | None = None,
    **defaults: Any,
) -> NetworkArguments:
    """Make the flags of a network from its constructor: types and defaults from the signature, help from the docstring.

    Args:
        network: a class or a function that builds one; its docstring has an "Args:" section.
        arguments: names of the constructor's arguments that become flags, separated by spaces.
        flags: argument -> name of its flag, where the two differ.
        helps: argument -> what the recipe adds to its help.
        **defaults: of this recipe, where they differ from the constructor's; `None`: the script chooses.

    Returns:
        A filled group, the default of a field of the script's `Arguments`.

    Example:
        >>> from latentia import VAE
        >>> group = network_arguments(VAE, "latent_dim activation", latent_dim=2)
        >>> dict(group), group.latent_dim
        ({'latent_dim': 2, 'activation': 'silu'}, 2)
    """
    call: Any = vars(network)["__init__"] if isinstance(network, type) else network
    signature, hints = inspect.signature(call), typing.get_type_hints(call, include_extras=True)
    explained = {
        name.strip(): param.description or ""
        for param in docstring_parser.parse(inspect.getdoc(network) or "").params
        for name in param.arg_name.split(",")
    }
    names = {argument: (flags or {}).get(argument, argument) for argument in arguments.split()}
    fields = []
    for argument, flag in names.items():
        default = defaults.pop(argument) if argument in defaults else signature.parameters[argument].default
        help_of_flag = tyro.conf.arg(
            help=_plain(explained[argument]) + (helps or {}).get(argument, ""),
            help_behavior_hint=functools.partial(_say, range_of(hints[argument])),
        )
        kind: Any = hints[argument] | None if default is None else hints[argument]
        hint: Any = Annotated[kind, help_of_flag]  # type: ignore[valid-type]  # a type made at run time
        fields.append((flag, hint, dataclasses.field(default=default)))
    if defaults:
        raise TypeError(f"defaults must be of {list(names)}; got {sorted(defaults)}.")
    group = dataclasses.make_dataclass(
        f"{network.__name__}Arguments",
        fields,
        bases=(NetworkArguments,),
        namespace={"__doc__": f"Options of {network.__name__}.", "flags": names},
        frozen=True,
    )
    return group()


def check_unused(group: Any, default: Any, reason: str, names: Iterable[str] | None = None) -> None:
    """Raises a `UsageError` for the first flag of a group that was given although another flag leaves it unused.

    Args:
        group: of flags.
        default: the same group as it is when nothing is given.
        reason: words that follow the name of the flag, with a way out.
        names: of the flags to look at; `None` (default): all of the group.

    Example:
        >>> given = OptimizationArguments(seed=3)
        >>> check_unused(given, OptimizationArguments(), "is of training; leave it out")
        Traceback (most recent call last):
        latentia.errors.UsageError: --seed is of training; leave it out. Got 3.
    """
    for name in names or [field.name for field in dataclasses.fields(group)]:
        value = getattr(group, name)
        if value != getattr(default, name):
            raise UsageError(f"--{name} {reason}. Got {value}.")


def check_ranges(arguments: Any) -> None:
    """Check the numbers of all groups of flags against the ranges that their types declare, and texts for zeros.

    Raises:
        UsageError: naming the first that is not in its range, or that holds a zero character.
    """
    for group in vars(arguments).values():
        for name, value in vars(group).items():
            check_text(name, value)
        for name, allowed in ranges(type(group)).items():
            check_value(name, getattr(group, name), allowed)


def show_ranges(arguments: Any) -> None:
    """Let `--help` show the ranges that the types of the flags declare, beside their defaults."""
    for group in {type(group) for group in vars(arguments).values()}:
        for name, hint in typing.get_type_hints(group, include_extras=True).items():
            allowed = range_of(hint)
            if allowed is not None and not issubclass(group, NetworkArguments):
                said = tyro.conf.arg(help_behavior_hint=functools.partial(_say, allowed))
                group.__annotations__[name] = Annotated[hint, said]


def _say(allowed: Range | None, default: str) -> str:
    return f"({allowed.rule()}; default: {default})" if allowed is not None else f"(default: {default})"


def _plain(text: str) -> str:
    """The help of a flag from a docstring's entry: no markup, and no default, which the command line shows itself."""
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r"`|\\[()]|\s*\(default[^)]*\)|\s*Default (?:[^.]|\.\d)*\.(?=\s|$)", "", text)
    return text[:1].upper() + text[1:]
