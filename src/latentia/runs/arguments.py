"""The flags of a training script: typed dataclasses, one per concern, that a command line or a file fills in.

Names are those that users of diffusers' training scripts type. Defaults are overridden by `--config file.yaml` (or
.json), and that by the command line. The file is flat, key for flag, so `training_config.json` is one. The flags
of a network are the arguments of its constructor, explained by its docstring: `network_arguments`.
"""

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import docstring_parser
import tyro
import yaml

from latentia.errors import UsageError, did_you_mean

T = TypeVar("T")
Flat = tyro.conf.OmitArgPrefixes


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
    resolution: int | None = None
    """Shorter side in pixels after resizing, then cropped to a square; not given: the images' own size."""
    channels: Literal[1, 3, 4] | None = None
    """1 grey, 3 RGB, 4 RGBA; not given: as the first image is."""
    center_crop: bool = True
    """Crop at the centre; otherwise at random."""
    random_flip: bool = False
    """Mirror half of the images left to right."""
    max_train_samples: int | None = None
    """Use at most so many samples, spread evenly over the set."""
    streaming: bool = False
    """Read the data set as a stream, without storing it."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """What to do with an image that cannot be read; at most 1 percent may be skipped."""
    dataloader_num_workers: int = 0
    """Processes that decode images while the cache is built."""
    cache_dir: str | None = None
    """Where decoded images are kept."""


@dataclass(frozen=True)
class OptimizationArguments:
    """How to train."""

    train_batch_size: int = 64
    """Images per micro-batch and process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    max_train_steps: int | None = None
    """Optimizer steps; not given: num_train_epochs."""
    num_train_epochs: int = 100
    """Passes over the data if max_train_steps is not given."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    scale_lr: bool = False
    """Multiply the rate by processes x accumulation x batch size."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the rate after warm-up."""
    lr_warmup_steps: int = 50
    """Steps of linear warm-up."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.99
    """Decay of the second moment."""
    adam_weight_decay: float = 0.01
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Added to the denominator."""
    max_grad_norm: float = 1.0
    """Clip gradients to this norm."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite: end with exit code 3, or pass over the batch and go on."""
    max_skips: int = 10
    """Batches that `--on_nonfinite skip` passes over in the whole run; one more ends it."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; bf16 is safe, fp16 often is not for small networks."""
    allow_tf32: bool = False
    """Allow TensorFloat-32 matrix products on NVIDIA GPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations on the way back: less memory, more time."""
    compile: bool = False
    """Compile the network with torch.compile."""
    distributed_timeout: float = 600.0
    """Seconds that one of several processes waits for another; longer than the longest score on the way."""
    seed: int = 0
    """Seed of everything."""


@dataclass(frozen=True)
class EMAArguments:
    """The moving average of the weights, which is what is sampled from and saved."""

    use_ema: bool = True
    """Keep and use the average."""
    ema_decay: float = 0.998
    """Decay per step."""
    ema_warmup: bool = True
    """Average over fewer steps early on: min(decay, (1 + n) / (10 + n))."""


@dataclass(frozen=True)
class OutputArguments:
    """What is written, and how a run goes on."""

    identifies: ClassVar[bool] = False

    output_dir: str = "outputs/run"
    """Folder of the run: pipeline, card, checkpoints, metrics, pictures."""
    overwrite_output_dir: bool = False
    """Delete what an earlier run left in output_dir and start anew."""
    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = 3
    """Checkpoints to keep, at least 2."""
    resume_from_checkpoint: str = "auto"
    """"auto": go on if there is something to go on from; "latest": it must be there; "none"; or a folder."""
    report_to: str | None = None
    """A tracker known to accelerate: tensorboard, trackio, wandb, ... metrics.jsonl is always written."""
    logging_dir: str = "logs"
    """Folder of the tracker, inside output_dir."""
    tracker_project_name: str = "latentia"
    """Project name in the tracker."""
    logging_steps: int = 10
    """Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class EvaluationArguments:
    """Pictures and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: int = 0
    """Steps between sample grids, from raw and averaged weights; 0: only at the end."""
    eval_steps: int = 0
    """Steps between scores; 0: only at the end."""
    eval_num_samples: int = 500
    """Images to sample for a score; 0: no score."""
    eval_metrics: tuple[str, ...] = ("fd", "kid", "inception_score")
    """What a score holds: fd, kid, precision, recall, ... as `latentia evaluate` lists them."""
    num_inference_steps: int = 25
    """Network evaluations per sample."""


@dataclass(frozen=True)
class HubArguments:
    """Sharing. Log in with `hf auth login` or the environment variable HF_TOKEN; there is no flag for a token."""

    identifies: ClassVar[bool] = False

    push_to_hub: bool = False
    """Upload the pipeline and its card at the end."""
    hub_model_id: str | None = None
    """Repository, such as "me/ddpm-digits"; not given: the name of output_dir."""
    hub_private_repo: bool = False
    """Make the repository private."""
    hub_license: str = "apache-2.0"
    """License named in the card."""


@dataclass(frozen=True)
class RunArguments:
    """The groups of flags that every training script has. A script adds its own and changes defaults.

    The flags of all groups must be equal for a checkpoint to be continued, but for groups with `identifies = False`.
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
    network: Callable[..., Any], arguments: str, *, flags: Mapping[str, str] | None = None, **defaults: Any
) -> NetworkArguments:
    """Make the flags of a network from its constructor: types and defaults from the signature, help from the docstring.

    Args:
        network: a class or a function that builds one; its docstring has an "Args:" section.
        arguments: names of the constructor's arguments that become flags, separated by spaces.
        flags: argument -> name of its flag, where the two differ.
        **defaults: of this recipe, where they differ from the constructor's.

    Returns:
        A filled group, the default of a field of the script's `Arguments`.

    Example:
        >>> from latentia import VAE
        >>> group = network_arguments(VAE, "latent_dim activation", latent_dim=2)
        >>> dict(group), group.latent_dim
        ({'latent_dim': 2, 'activation': 'silu'}, 2)
    """
    call: Any = vars(network)["__init__"] if isinstance(network, type) else network
    signature, hints = inspect.signature(call), typing.get_type_hints(call)
    explained = {
        name.strip(): param.description or ""
        for param in docstring_parser.parse(inspect.getdoc(network) or "").params
        for name in param.arg_name.split(",")
    }
    names = {argument: (flags or {}).get(argument, argument) for argument in arguments.split()}
    fields = []
    for argument, flag in names.items():
        default = defaults.pop(argument) if argument in defaults else signature.parameters[argument].default
        hint = Annotated[hints[argument], tyro.conf.arg(help=_plain(explained[argument]))]
        fields.append((flag, hint, dataclasses.field(default=default)))
    if defaults:
        raise TypeError(f"defaults must be of {list(names)}; got {sorted(defaults)}.")
    group = dataclasses.make_dataclass(
        f"{network.__name__}Arguments",
        fields,
        bases=(NetworkArguments,),
        namespace={"__doc__": f"The network, {network.__name__}.", "flags": names},
        frozen=True,
    )
    return group()


def _plain(text: str) -> str:
    """The help of a flag from a docstring's entry: no markup, and no default, which the command line shows itself."""
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r"`|\\[()]|\s*\(default[^)]*\)|\s*Default (?:[^.]|\.\d)*\.(?=\s|$)", "", text)
    return text[:1].upper() + text[1:]


def parse_arguments(cls: type[T], argv: Sequence[str] | None = None, *, description: str, prog: str | None = None) -> T:
    """Fill a dataclass of groups from its defaults, then `--config`, then the command line.

    Args:
        cls: a frozen dataclass whose fields are dataclasses of flags.
        argv: the command line; `None`: that of the process.
        description: shown by `--help`.
        prog: name of the program in messages; `None`: that of the process.

    Raises:
        UsageError: the file is missing, not a mapping, or has an unknown key or a value of the wrong type.
        SystemExit: with 2 for a wrong flag, as command lines do.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    default = cls()
    for i, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            if word == "--config" and i + 1 == len(argv):
                raise UsageError("--config needs the path of a .yaml or .json file.")
            path = argv[i + 1] if word == "--config" else word.removeprefix("--config=")
            del argv[i : i + 1 + (word == "--config")]
            default = with_values(default, read_config(Path(path)), source=path)
            break
    return tyro.cli(
        cls, args=argv, default=default, description=description, prog=prog, use_underscores=True, config=(Flat,)
    )


def read_config(path: Path) -> Mapping[str, Any]:
    """A YAML or JSON file as a mapping of flags to values."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--config {path} is not valid YAML or JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise UsageError(f"--config {path} must hold a mapping of flags to values; got {type(values).__name__}.")
    return values


def with_values(default: T, values: Mapping[str, Any], source: str) -> T:
    """A copy of `default` with the fields named in `values` set, each checked against its type.

    Raises:
        UsageError: unknown key, with the nearest known one; value of the wrong type.
    """
    known = {f.name: g.name for g in dataclasses.fields(default) for f in dataclasses.fields(getattr(default, g.name))}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f'{source}: unknown key "{key}".{did_you_mean(str(key), known)} See --help for all keys.')
        group = getattr(default, known[key])
        hint = typing.get_type_hints(type(group))[key]
        groups.setdefault(known[key], {})[key] = _checked(value, hint, f"{source}: {key}")
    return dataclasses.replace(
        default, **{name: dataclasses.replace(getattr(default, name), **new) for name, new in groups.items()}
    )


def flat_values(arguments: Any) -> dict[str, Any]:
    """The flags of a filled-in dataclass as one flat mapping, ready for JSON and for `--config`."""
    groups = (getattr(arguments, group.name) for group in dataclasses.fields(arguments))
    return json.loads(json.dumps({key: value for group in groups for key, value in vars(group).items()}))


# Flags that may change between the parts of one run: how long, how fast, how spread out (the global batch must stay).
_FREE = {
    "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "compile", "allow_tf32", "distributed_timeout", "on_nonfinite",
    "max_skips",
}  # fmt: skip


def run_identity(arguments: Any) -> dict[str, Any]:
    """The flags that must be equal for a checkpoint to be continued: those of all groups that identify a run."""
    groups = (getattr(arguments, group.name) for group in dataclasses.fields(arguments))
    values = {
        key: value
        for group in groups
        if getattr(group, "identifies", True)
        for key, value in vars(group).items()
        if key not in _FREE
    }
    return json.loads(json.dumps(values))


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        for option in options[:-1]:
            try:
                return _checked(value, option, where)
            except UsageError:
                pass  # another option may take it; the last one explains
        return _checked(value, options[-1], where)
    elif origin is Literal:
        if value is False and "no" in options:
            return "no"  # which YAML 1.1 reads as false
        if value in options and type(value) in {type(option) for option in options}:
            return value
        raise UsageError(
            f"{where} must be one of {options}; got {value!r}.{did_you_mean(str(value), map(str, options))}"
        )
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_checked(item, options[0], where) for item in value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        return float(value)  # YAML 1.1 reads 1e-3 as text, because it has no point
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where} must be of type {name}; got {value!r} ({type(value).__name__}).")
