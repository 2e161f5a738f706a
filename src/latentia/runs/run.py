"""What every example script shares: start a run, watch it, and leave a folder that a person can read."""

import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from filelock import FileLock, Timeout
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from latentia.data import load_images
from latentia.errors import DataError, HubError, LatentiaError, NumericsError, UsageError, add_dashes
from latentia.evaluation import curves, grid
from latentia.hub.card import model_card, public_words
from latentia.hub.folder_card import renewed
from latentia.hub.push import push_to_hub
from latentia.runs.arguments import DataArguments, flat_values, parse_arguments, run_identity
from latentia.runs.program import lineage, program
from latentia.runs.validation import Validation
from latentia.training.checkpoint import replace_file
from latentia.training.loop import Hook, Phase, Result, train
from latentia.training.processes import process_group
from latentia.training.sharding import ShardingAccelerator, make_whole
from latentia.training.state import owner

T = TypeVar("T")
INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


def run_script(arguments: type[T], main: Callable[[T], int], description: str) -> None:
    """Parse the command line, run `main`, and end the process with an exit code that schedulers understand.

    0 done, 2 usage, 3 numerics, 4 data, 5 checkpoint, 6 Hub, 75 interrupted after a checkpoint, 130 by a second Ctrl-C.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    started = program()
    try:
        code = main(
            parse_arguments(
                arguments,
                prog=" ".join(started) if started[0] == "latentia" else None,
                description=f"{description}\n\nAll flags can also be given in a file, "
                "--config run.yaml; the command line overrides it.",
            )
        )
    except LatentiaError as error:
        print(f"error: {add_dashes(str(error), flat_values(arguments()))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("Stopped at once. Start the same command again to go on from the last checkpoint.", file=sys.stderr)
        code = 130
    sys.exit(code)


def start(args: Any) -> Accelerator:
    """Prepare the output folder and what accelerate needs; nothing has been computed yet.

    Args:
        args: has the groups `output`, `optimization` and `hub`.

    Raises:
        UsageError: `output_dir` is a file or cannot be written.
    """
    options = args.optimization
    if options.allow_tf32:
        torch.set_float32_matmul_precision("high")
    folder = Path(args.output.output_dir)
    accelerator = ShardingAccelerator(
        mixed_precision=options.mixed_precision,
        log_with=args.output.report_to,
        project_dir=str(folder / args.output.logging_dir),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),  # every process computes the same
            process_group(options.distributed_timeout),
        ],
    )
    if accelerator.is_main_process:
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"--output_dir must be a folder; {folder} is a file.")
            if args.output.overwrite_output_dir and folder.exists():
                _delete_run(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise UsageError(f"--output_dir {folder} cannot be written: {error.strerror}.") from error
    accelerator.wait_for_everyone()
    if args.output.report_to is not None:
        config = {key: str(value) for key, value in flat_values(args).items()}
        accelerator.init_trackers(args.output.tracker_project_name, config=config)
    return accelerator


def _delete_run(folder: Path) -> None:
    """Delete what a run wrote, and refuse to touch a folder that no run made."""
    if any(folder.iterdir()) and not (folder / "training_config.json").exists():
        raise UsageError(
            f"--overwrite_output_dir deletes only what a run left, and {folder} has no training_config.json. "
            "Choose another --output_dir."
        )
    try:
        with FileLock(folder / ".lock", timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        held = owner(folder / ".lock")
        raise UsageError(f"--output_dir {folder} is in use by another run{held}; choose another.") from None


def load_data(args: DataArguments):
    """The data set that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        raise UsageError(
            f"Give --dataset_name (a Hub id, digits or emoji) or --train_data_dir (a folder or parquet); got {given}."
        )
    return load_images(
        args.dataset_name or Path(args.train_data_dir),
        split=args.split,
        config_name=args.dataset_config_name,
        revision=args.dataset_revision,
        image_column=args.image_column,
        label_column=args.label_column,
        caption_column=args.caption_column,
        resolution=args.resolution,
        channels=args.channels,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        max_samples=args.max_train_samples,
        on_bad_image=args.on_bad_image,
        cache_dir=args.cache_dir,
        num_workers=args.dataloader_num_workers,
        streaming=args.streaming,
    )


def plan(accelerator: Accelerator, args: Any, data: Any, network: nn.Module) -> int:
    """Check before the first step what would otherwise fail later, and say what will be done.

    Returns:
        The number of optimizer steps.

    Raises:
        DataError: fewer images than one global batch.
        HubError: push_to_hub without a login.
        UsageError: a stream without max_train_steps, or too little disk for the checkpoints.
    """
    options, folder = args.optimization, Path(args.output.output_dir)
    global_batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    data.require(global_batch)
    if args.hub.push_to_hub:
        try:
            validate_repo_id(_hub_name(args))
        except HFValidationError as error:
            raise UsageError(f'--hub_model_id must be "user/name"; got "{_hub_name(args)}": {error}') from error
        if get_token() is None:
            raise HubError("--push_to_hub needs a login; run `hf auth login` or set HF_TOKEN, then start again.")
    if options.max_train_steps is not None:
        steps = options.max_train_steps
    elif args.data.streaming:
        raise UsageError("--streaming needs --max_train_steps: a stream has no length to count epochs by.")
    else:
        steps = max(1, options.num_train_epochs * len(data) // global_batch)
    if steps < 1:
        raise UsageError(f"--max_train_steps must be at least 1; got {steps}.")
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    need = 4 * size * (max(args.output.checkpoints_total_limit or 10, 2) + 1)  # weights, average, two moments
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UsageError(
            f"--output_dir {folder} has {free / 2**20:.0f} MB free, but its checkpoints need {need / 2**20:.0f} MB. "
            "Free space or lower --checkpoints_total_limit."
        )
    parts = network if isinstance(network, nn.ModuleList) else [network]
    names = " and ".join(type(part).__name__ for part in parts)
    if args.data.streaming:
        accelerator.print(
            "A stream goes on at-least-once: it is read again up to where the run stands, so all is as without the "
            "break while the source stays as it is; one that changed shows some images twice or not at all."
        )
    epochs = "" if args.data.streaming else f" ({steps * global_batch / len(data):.1f} epochs)"
    accelerator.print(
        f"{data}\n{names}: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters\n"
        f"{steps} steps of {global_batch} images{epochs} on {accelerator.num_processes} x {accelerator.device}, "
        f"precision {accelerator.mixed_precision}"
    )
    return steps


def adamw(accelerator: Accelerator, args: Any, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """The optimizer that the flags describe; with --scale_lr its rate is multiplied by the global batch.

    It is fused, one pass over all weights, but for fp16: a fused one would take overflows in without a word.
    """
    options = args.optimization
    scale = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    return torch.optim.AdamW(
        parameters,
        lr=options.learning_rate * (scale if options.scale_lr else 1),
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
        eps=options.adam_epsilon,
        fused=accelerator.scaler is None,
    )


def fit(
    accelerator: Accelerator,
    args: Any,
    phases: Sequence[Phase],
    data: Any,
    steps: int,
    *,
    identity: Sequence[Any],
    hooks: Sequence[Hook] = (),
    folder: str | Path | None = None,
) -> Result:
    """`train` as the flags say.

    Args:
        accelerator, args, data: of the run; `args` has the groups `output` and `optimization`.
        phases: see `Phase`.
        steps: optimizer steps in all.
        identity: the groups of flags that must be equal for a checkpoint to be continued.
        hooks: what to do on the way.
        folder: of checkpoints and metrics; None for `--output_dir`.
    """
    options, output = args.optimization, args.output
    try:
        result = train(
            accelerator,
            phases,
            data,
            output_dir=output.output_dir if folder is None else folder,
            max_steps=steps,
            batch_size=options.train_batch_size,
            accumulate=options.gradient_accumulation_steps,
            seed=options.seed,
            hooks=hooks,
            checkpoint_every=output.checkpointing_steps,
            checkpoints_limit=output.checkpoints_total_limit,
            resume=output.resume_from_checkpoint,
            config=run_identity(*identity),
            arguments=flat_values(args),
            log_every=output.logging_steps,
            max_skips=options.max_skips if options.on_nonfinite == "skip" else 0,
        )
        if result.status != "interrupted":  # else nothing is made of the weights
            networks = [accelerator.unwrap_model(phase.trains) for phase in phases]
            make_whole(networks + [phase.ema.module for phase in phases if phase.ema is not None])
        return result
    except (NumericsError, DataError) as error:  # of the run itself, not of a folder that may be another run's
        if accelerator.is_main_process:
            summary = {"status": "failed", "exit_code": error.exit_code, "error": str(error)}
            replace_file(Path(output.output_dir) / "run_summary.json", json.dumps(summary, indent=1) + "\n")
        raise


def finish(
    accelerator: Accelerator,
    args: Any,
    result: Result,
    pipeline: Any,
    validation: Validation,
    *,
    family: str,
    pipeline_tag: str,
    limits: Sequence[str] = (),
) -> int:
    """Export the pipeline with its card, draw the curves, write the summary, and push if asked to.

    Returns:
        The exit code of the process.
    """
    accelerator.end_training()
    if not accelerator.is_main_process:
        return 0 if result.status != "interrupted" else INTERRUPTED
    folder = Path(args.output.output_dir)
    progress, report = result.progress, validation.report
    summary = {
        "status": result.status, "steps": progress.step, "images": progress.images, "restarts": progress.restarts,
        "skipped_steps": progress.skipped,
        "training_seconds": round(progress.seconds, 1), "images_per_second": round(result.images_per_second, 1),
        "peak_memory_mb": round(result.peak_memory_mb), "resumed_from": result.resumed_from,
        "score": report.to_dict() if report else None,
        "family": family, "pipeline_tag": pipeline_tag, "limits": list(limits), "hardware": _hardware(accelerator),
        "command": [*public_words([*program(), *sys.argv[1:]])], "lineage": lineage(),
    }  # fmt: skip
    if result.status == "interrupted":
        replace_file(folder / "run_summary.json", json.dumps(summary, indent=1) + "\n")
        print(f"Interrupted at step {progress.step}; the checkpoint is whole. Start the same command again to go on.")
        return INTERRUPTED
    if result.status == "nothing to do" and _exported_step(folder) == progress.step:
        print(f"Nothing to do: {folder} is trained to step {progress.step}. Raise --max_train_steps to go on.")
    else:
        if report is None:  # the run was finished before, but killed while it was being exported
            validation.score(progress)
            report = validation.report
        _draw(folder, args, validation)
        card = model_card(
            name=_hub_name(args),
            pipeline_class=type(pipeline).__name__,
            family=family,
            pipeline_tag=pipeline_tag,
            dataset=args.data.dataset_name or Path(args.data.train_data_dir).name,
            license=args.hub.hub_license,
            recipe={**flat_values(args), "data": validation.data.describe()},
            metrics=report.for_card() if report else [],
            hardware=summary["hardware"],
            minutes=summary["training_seconds"] / 60,
            seed=args.optimization.seed,
            command=summary["command"],
            lineage=summary["lineage"],
            repo_id=args.hub.hub_model_id,
            limits=limits,
        )
        card, remarks = renewed(folder / "README.md", card)
        print(*remarks, sep="\n", end="\n" if remarks else "")
        export(pipeline, folder, card)
        summary |= {"score": report.to_dict() if report else None, "data": validation.data.describe()}
        replace_file(folder / "run_summary.json", json.dumps(summary, indent=1, default=str) + "\n")
        print(f"Trained {progress.images} images in {progress.seconds:.0f} s. Pipeline, card and pictures: {folder}")
        if report:
            print(report.text())
    if args.hub.push_to_hub:
        print(f"Pushed to {push_to_hub(folder, _hub_name(args), private=args.hub.hub_private_repo)}")
    return 0


def _exported_step(folder: Path) -> int | None:
    """The step whose weights lie in the export; the summary is written after it."""
    try:
        summary = json.loads((folder / "run_summary.json").read_bytes())
        whole = summary["status"] != "interrupted" and (folder / "model_index.json").exists()
        return summary["steps"] if whole else None
    except (OSError, ValueError, KeyError):
        return None


def _hub_name(args: Any) -> str:
    return args.hub.hub_model_id or Path(args.output.output_dir).resolve().name


def _draw(folder: Path, args: Any, validation: Validation) -> None:
    """The final grid and the loss curve."""
    (folder / "samples").mkdir(exist_ok=True)
    grid(next(iter(validation.pipelines.values()))(64, args.optimization.seed)).save(folder / "samples" / "grid.png")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for row in rows for key in row if key.endswith("/loss")})
    if keys:
        curves(rows, keys, folder / "loss.png", x="images", title="Training")


def export(pipeline: Any, folder: Path, card: Any) -> None:
    """Save a pipeline into a folder that holds other things, its index last, so that what loads is whole."""
    staging = folder / ".export"
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    card.save(staging / "README.md")
    (folder / "model_index.json").unlink(missing_ok=True)
    for item in sorted(staging.iterdir(), key=lambda path: path.name == "model_index.json"):
        if (folder / item.name).is_dir():
            shutil.rmtree(folder / item.name)
        os.replace(item, folder / item.name)
    staging.rmdir()


def _hardware(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name(accelerator.device)}"
    return f"{torch.get_num_threads() * accelerator.num_processes} CPU threads ({platform.machine()})"
