"""Average the weights of a run over another length than in training, from its checkpoints (post-hoc EMA)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from latentia.commands.output import open_output
from latentia.commands.sources import load_pipeline
from latentia.errors import CheckpointError, Range, Size, UsageError, check_arguments, counted
from latentia.files.reading import MAX_TEXT, read_bytes, user_path
from latentia.files.writing import write_bytes, write_text
from latentia.functional.settings import check_types
from latentia.hub.files import CARD_NAME
from latentia.hub.folder_card import folder_card
from latentia.training.averages import LONGEST, combine
from latentia.training.checkpoint import load_checkpoint, numbered

_CONFIG = "training_config.json"


@dataclass(frozen=True)
class Averaged:
    """A pipeline with averaged weights.

    Args:
        pipeline: that of the run, with these weights.
        about: the run, the length, the step at which it ends, shares of the checkpoints, how far the steps are off as a
            share of the length, and the components that were replaced.
    """

    pipeline: Any
    about: dict[str, Any]

    def text(self) -> str:
        """What was averaged, and how near it comes."""
        used = {step: share for step, share in self.about["shares"].items() if share >= 0.005}
        shares = ", ".join(f"{share:.2f} of step {step}" for step, share in used.items())
        return (
            f"Average of {' and '.join(self.about['components'])} of length {self.about['length']:g} up to step "
            f"{self.about['step']}, from {counted(len(self.about['shares']), 'checkpoint')}: {shares}. Its steps are "
            f"off by {self.about['difference']:.1%} of the length."
        )

    def save(self, output_dir: str | Path = "outputs/averaged", *, overwrite: bool = False) -> list[Path]:
        """Save the pipeline with its card, average.json and the configuration of the run's training.

        Args:
            output_dir: where it goes; it must be empty.
            overwrite: delete what an earlier `average` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "average", overwrite) as folder:
            self.pipeline.save_pretrained(folder)
            write_text(folder / "average.json", json.dumps(self.about, indent=1) + "\n")
            config = Path(self.about["run"]) / _CONFIG
            if config.is_file():
                write_bytes(folder / _CONFIG, read_bytes(config, MAX_TEXT), durable=False)
                (folder / CARD_NAME).unlink(missing_ok=True)  # which diffusers may have put there
                folder_card(folder, write=True, name=folder.resolve().name)
        return [folder]


@check_types
@check_arguments
def average(
    run: str | Path,
    *,
    length: Annotated[float, Range(0, LONGEST, closed="right")] = 0.1,
    step: Size | None = None,
) -> Averaged:
    r"""Average the weights of a run over another length, from the running averages that its checkpoints hold.

    How long the average of the weights should be is known after training alone. Each checkpoint holds the running
    average (`--ema_decay`) up to its step, and a mean of them comes near to an average with weights
    \(\propto \tau^\gamma\) of the steps \(\tau\), of any length above theirs (Karras et al., 2023, 2312.02696, section
    3). What was fitted after training, such as a prior over latents, stays as the run left it.

    Args:
        run: output folder of a run of any family, with its checkpoints: `--checkpointing_steps 100
            --checkpoints_total_limit 100` keeps a hundred.
        length: standard deviation of the steps that are averaged, as a share of all steps up to the last one: .05 is
            short, .28 nearly the mean of all.
        step: the checkpoint at which the average ends, such as an early one, for a guide of `generate`; the last one if
            not given.

    Returns:
        The pipeline with the average in place of that of the run.

    Raises:
        UsageError: a run that keeps no averages (`--use_ema`), a step without a checkpoint, a length that cannot be
            made of them.
        CheckpointError: no checkpoints, a damaged one, or the run has left no pipeline.

    Example:
        >>> average("outputs/digits", length=0.05)  # doctest: +SKIP
    """
    folder = user_path(run)
    found = {number: path for number, path in numbered(folder / "checkpoints")}
    if not found:
        what = "holds no checkpoints" if folder.is_dir() else "is not there"
        raise CheckpointError(f"{folder} {what}. Give the output folder of a run of latentia train.")
    end = max(found) if step is None else step
    if end not in found:
        there = ", ".join(map(str, found))
        raise UsageError(f"step must be that of a checkpoint of {folder}, {there}; got {step}.")
    pipe = load_pipeline(folder)
    updates, about = {}, dict[str, Any]()  # of each checkpoint and each of its averages; one is in memory at a time
    for number in (number for number in found if number <= end):
        state, manifest = load_checkpoint(found[number], ".ema")
        updates[number] = {name: int(part["steps"]) for name, part in state.items() if int(part["steps"])}
        about = manifest["config"]
    names = [name for name in updates[end] if all(name in counts for counts in updates.values())]
    if not names:
        raise UsageError(f"run {folder} keeps no averages of its weights to make others of. Train with use_ema.")
    replaced, shares, difference = [], dict[str, float](), 0.0
    for name in names:
        ends = [counts[name] for counts in updates.values()]
        made = combine(ends, about["ema_decay"], about["ema_warmup"], length, ends[-1])
        shares, difference = dict(zip(map(str, updates), made.shares)), max(difference, made.difference)
        used = [(found[number], share) for number, share in zip(updates, made.shares) if share]
        replaced += _replace(pipe, name.removesuffix(".ema"), _mean(name, used))
    if not replaced:
        raise CheckpointError(f"{folder}: the averages of its checkpoints, {', '.join(names)}, are of no component.")
    numbers = {"length": length, "step": end, "shares": shares, "difference": round(difference, 4)}
    return Averaged(pipe, {"run": str(run), **numbers, "components": replaced})


def _mean(name: str, used: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """The mean of the averages of checkpoints by their shares, in float64; of integers the last ones."""
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for path, share in used:
        last = load_checkpoint(path, name)[0][name]["module"]
        for key, value in last.items():
            if value.is_floating_point():
                total[key] = total.get(key, 0) + share * value.double()
    return {key: total[key].to(value.dtype) if key in total else value for key, value in last.items()}


def _replace(pipe: Any, name: str, weights: Mapping[str, Tensor]) -> list[str]:
    """Give a pipeline the weights of what was trained as `name`: one component, or several under their own names."""
    networks = {key: part for key, part in pipe.components.items() if isinstance(part, nn.Module)}
    fitting = [key for key, part in networks.items() if _fits(part, weights)]
    chosen = [name] if name in fitting else fitting[:1]
    if chosen:
        networks[chosen[0]].load_state_dict(weights)
        return chosen
    for key, part in networks.items():
        own = {label.removeprefix(f"{key}."): x for label, x in weights.items() if label.startswith(f"{key}.")}
        if _fits(part, own):
            part.load_state_dict(own)
            chosen.append(key)
    return chosen


def _fits(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    own = {key: value.shape for key, value in network.state_dict().items()}
    return bool(own) and own == {key: value.shape for key, value in weights.items()}
