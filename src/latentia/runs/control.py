"""Diffusion that is conditioned on images: its flags, data and networks, and samples beside what they are made from.

The targets of the pairs are what is generated, their inputs what it is conditioned on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch

from latentia.data import Degradation
from latentia.data.latents import LatentData
from latentia.data.pairs import PairedImages
from latentia.errors import Positive, UsageError
from latentia.models.control import ControlNet2D
from latentia.models.unet import UNet2D
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.latents import sample_shape
from latentia.pipelines.sampling import is_flow, noise_schedule
from latentia.runs.arguments import DataArguments, check_unused
from latentia.runs.pairs import PairArguments, load_paired, shown_inputs
from latentia.runs.run import Run
from latentia.runs.validation import Sampler, Samples
from latentia.schedulers.ddpm import DDPMScheduler

_CHUNK = 100  # images at a time
_OF_BASE = ("num_train_timesteps", "beta_schedule", "prediction_type", "few_steps", "coupling_size", "learned_variance")


@dataclass(frozen=True)
class ConditionImageArguments(PairArguments):
    """Conditioning images, one of three; none given: the network is not conditioned on images."""

    identifies: ClassVar[bool] = False

    target_data_dir: str | None = None
    """Generate these from the images of the data flags: a folder with files named as those, or a parquet file."""
    target_column: str | None = None
    """Generate the images of this column from those of image_column."""
    degrade: Literal["grey", "edges", "smaller", "masked", "noised"] | None = None
    """Generate the images from what this makes of them: colour, draw along edges, enlarge, fill or denoise."""
    strength: Positive | None = None
    """Of degrade: side of the blocks of smaller (2), share of the area of masked (0.25), noise of noised (0.5)."""


@dataclass(frozen=True)
class BranchArguments:
    """A control branch (ControlNet)."""

    control_from: str | None = None
    """Folder or Hub id of a pipeline: its network stays as it is, and a branch conditions it on the images."""


def condition_data(
    data: DataArguments, images: ConditionImageArguments, branch: BranchArguments
) -> PairedImages | None:
    """The pairs that the flags name; None for none.

    Raises:
        UsageError: flags that contradict each other, or a branch without conditioning images.
        DataError: data that cannot be read, or that are no pairs.
    """
    given = (images.target_data_dir, images.target_column, images.degrade)
    if images.strength is not None and images.degrade is None:
        raise UsageError(f"strength is of degrade; give that, or leave it out. Got {images.strength:g}.")
    if any(value is not None for value in given):
        pairs = load_paired(data, images)
        if images.degrade == "grey" and pairs.shape[0] == 1:
            raise UsageError('degrade "grey" needs colour images, and these are grey; got 1 channel. Give 3 channels.')
        return pairs
    if branch.control_from is not None:
        raise UsageError(
            "control_from needs conditioning images: give degrade, target_column or target_data_dir; got none."
        )
    return None


class LatentPairs:
    """A `Dataset` of latents, "x", and the conditioning images that belong to them, "condition".

    Args:
        latents: of the targets of the pairs.
        pairs: the images.

    Example:
        >>> from latentia.data import load_pairs
        >>> pairs = load_pairs("digits", degrade="edges", max_samples=8)
        >>> data = LatentPairs(LatentData(torch.zeros(8, 4, 4, 4), None, pairs.targets, "0"), pairs)
        >>> {name: tuple(values.shape) for name, values in data.batch(0, 2).items()}
        {'x': (2, 4, 4, 4), 'labels': (2,), 'condition': (2, 1, 8, 8)}
    """

    modality = "latent"
    endless = False

    def __init__(self, latents: LatentData, pairs: PairedImages):
        self.latents, self.pairs = latents, pairs
        self.shape, self.labels, self.label_names = latents.shape, latents.labels, latents.label_names
        self.captions, self.has_captions = latents.captions, latents.has_captions
        self.fingerprint = f"{latents.fingerprint}-{pairs.fingerprint}"

    def __len__(self) -> int:
        return len(self.latents)

    def describe(self) -> dict[str, Any]:
        """Those of the latents, with what the conditioning images are."""
        return {**self.latents.describe(), "inputs": self.pairs.describe()["inputs"], "fingerprint": self.fingerprint}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n."""
        self.latents.require(n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`."""
        condition = self.pairs.batch(start, stop, seed=seed, device=device)["condition"]
        return {**self.latents.batch(start, stop, seed=seed, device=device), "condition": condition}


def condition_arguments(pairs: PairedImages | None, sides: tuple[int, int]) -> dict[str, int]:
    """The arguments of a network that is conditioned on the inputs of pairs; none without pairs.

    Args:
        pairs: or None.
        sides: height and width of what the network makes.
    """
    if pairs is None:
        return {}
    scale, rest = divmod(pairs.condition_shape[1], sides[0])
    if rest or (sides[0] * scale, sides[1] * scale) != tuple(pairs.condition_shape[1:]):
        raise UsageError(
            f"resolution must make images whose sides are multiples of those of their latents, {sides[0]} by "
            f"{sides[1]}; got {pairs.condition_shape[1]} by {pairs.condition_shape[2]}."
        )
    return {"condition_channels": pairs.condition_shape[0], "condition_scale": scale}


def load_base(source: str, kind: type, class_conditional: bool) -> Any:
    """The pipeline of `--control_from`, whose network gets a branch.

    Args:
        source: folder or Hub id.
        kind: class of the pipeline.
        class_conditional: of the run.

    Raises:
        UsageError: a pipeline of another class, or a network that does not fit the run.
    """
    pipe: Any = DiffusionPipeline.from_pretrained(source)
    network, branch = (pipe.components.get(name) for name in ("unet", "controlnet"))
    if type(pipe) is not kind or not isinstance(network, UNet2D) or branch is not None:
        raise UsageError(
            f"control_from must be a {kind.__name__} with a UNet2D and no branch; {source} is a {type(pipe).__name__}"
            f"{' with a branch' if branch is not None else f' with {type(network).__name__}'}."
        )
    classes = network.config.num_class_embeds is not None
    if classes != class_conditional:
        raise UsageError(
            f"class_conditional must be {'given' if classes else 'left out'}, as the network of control_from is "
            f"{'' if classes else 'not '}conditioned on classes."
        )
    return pipe


def check_shape(base: Any, shape: tuple[int, ...]) -> None:
    """UsageError unless the network of a trained pipeline makes (C, H, W) of this shape."""
    if (made := sample_shape(base.unet)) != tuple(shape):
        raise UsageError(
            f"resolution and channels must make what the network of control_from makes, {made}; got {tuple(shape)}."
        )


def check_branch(args: Any, usual: Any) -> None:
    """UsageError for a flag that `--control_from` leaves unused, as the trained network and its noise stay as they are.

    Args:
        args: of the script, with the groups `model` and `diffusion`.
        usual: the same as they are when nothing is given.
    """
    reason = "is of the network of --control_from, which stays as it is; leave it out"
    check_unused(args.model, usual.model, reason)
    names = [field.name for field in fields(usual.diffusion) if field.name in _OF_BASE]
    check_unused(args.diffusion, usual.diffusion, reason, names)


def objective_of(base: Any, chosen: Any, device: torch.device) -> tuple[Any, Any]:
    """The noise that a trained pipeline was trained with, None for flow matching, and the flags of its objective.

    Args:
        base: the pipeline.
        chosen: flags of the objective of the run.
        device: of the noise.

    Raises:
        UsageError: a network that samples in few steps.
    """
    flow, config = is_flow(base.scheduler), base.scheduler.config
    found = replace(chosen, num_train_timesteps=config.num_train_timesteps)
    if flow:
        return None, replace(found, prediction_type="flow")
    learned = base.unet.config.out_channels == 2 * base.unet.config.in_channels
    kind = "learned_range" if learned else "fixed_small"
    noise = noise_schedule(base.scheduler, DDPMScheduler, variance_type=kind).to(device)
    return noise, replace(found, prediction_type=config.prediction_type)


def branch_of(base: Any, pairs: PairedImages, sides: tuple[int, int], device: torch.device) -> ControlNet2D:
    """A control branch for the network of a trained pipeline, which is frozen and put on the device."""
    branch = ControlNet2D.from_unet(base.unet, **condition_arguments(pairs, sides))
    base.unet.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    return branch


def degradation_config(pairs: PairedImages | None) -> dict[str, Any] | None:
    """How a pipeline saves what the conditioning images were made by; None for nothing."""
    return asdict(pairs.inputs) if pairs is not None and isinstance(pairs.inputs, Degradation) else None


def condition_samplers(
    pipeline: Callable[[Any], Any], prepared: Any, pairs: PairedImages | None, **options: Any
) -> dict[str, Sampler] | None:
    """Samples from the averaged and the raw weights, beside the conditioning images and targets of the training data.

    Args:
        pipeline: network -> pipeline.
        prepared: the network of the run.
        pairs: the data; None: no samplers, as of a run without conditioning images.
        **options: of the pipeline's call.
    """
    if pairs is None:
        return None

    def sampler(network: Any) -> Sampler:
        def sample(count: int, seed: int, start: int = 0) -> Samples:
            training, found = network.training, []
            network.eval()
            pipe = pipeline(network)
            pipe.set_progress_bar_config(disable=True)
            batch = pairs.batch(start, start + count, seed=seed, device=network.device)
            for i in range(0, count, _CHUNK):
                labels = {"class_labels": batch["labels"][i : i + _CHUNK]} if pipe.num_classes else {}
                made = pipe(
                    control_image=batch["condition"][i : i + _CHUNK],
                    generator=torch.Generator().manual_seed(seed + start + i),
                    output_type="latent",
                    **labels,
                    **options,
                )
                found.append(made.images.clamp(-1, 1).cpu())
            network.train(training)
            images, inputs = torch.cat(found), shown_inputs(pairs, batch["condition"]).cpu()
            return Samples(images, beside={"input": inputs, "output": images, "target": batch["x"].cpu()})

        return sample

    samplers = {"ema": sampler(prepared.final)}
    return samplers if prepared.ema is None else {**samplers, "raw": sampler(prepared.module)}


def run_on_pairs(args: Any, family: str, images: ConditionImageArguments, branch: BranchArguments) -> tuple[Run, Any]:
    """A run whose data are images, or with conditioning images pairs; and the pairs, or None."""
    pairs = condition_data(args.data, images, branch)
    if pairs is None:
        return Run(args, family=family), None
    return Run(args, family=family, pipeline_tag="image-to-image", data=pairs), pairs
