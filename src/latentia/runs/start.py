"""The start of a run: its folder, its processes, its data set."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from filelock import FileLock, Timeout

from latentia.data import load_images
from latentia.errors import UsageError
from latentia.runs.arguments import DataArguments
from latentia.runs.command_line import flat_values
from latentia.training.processes import process_group
from latentia.training.sharding import ShardingAccelerator
from latentia.training.state import owner


def start(args: Any) -> Accelerator:
    """Prepare the output folder and what accelerate needs; nothing has been computed yet.

    Args:
        args: has the groups `output`, `optimization` and `hub`.

    Raises:
        UsageError: `output_dir` is a file or cannot be written, or fp16 was asked for without a GPU.
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
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise UsageError(
            f"mixed_precision fp16 needs a GPU: on the {accelerator.device.type} accelerate would train in float32. "
            "Use bf16 or no."
        )
    if accelerator.is_main_process:
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"output_dir must be a folder; {folder} is a file.")
            if args.output.overwrite_output_dir and folder.exists():
                _delete_run(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise UsageError(f"output_dir {folder} cannot be written: {error.strerror}.") from error
    accelerator.wait_for_everyone()
    if args.output.report_to is not None:
        config = {key: str(value) for key, value in flat_values(args).items()}
        accelerator.init_trackers(args.output.tracker_project_name, config=config)
    return accelerator


def _delete_run(folder: Path) -> None:
    """Delete what a run wrote, and refuse to touch a folder that no run made."""
    if any(folder.iterdir()) and not (folder / "training_config.json").exists():
        raise UsageError(
            f"overwrite_output_dir deletes only what a run left, and {folder} has no training_config.json. "
            "Choose another output_dir."
        )
    try:
        with FileLock(folder / ".lock", timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        held = owner(folder / ".lock")
        raise UsageError(f"output_dir {folder} is in use by another run{held}; choose another.") from None


def load_data(args: DataArguments):
    """The data set that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        raise UsageError(
            f"Give dataset_name (a Hub id, digits or emoji) or train_data_dir (a folder or parquet); got {given}."
        )
    return load_images(
        args.dataset_name or Path(args.train_data_dir or ""),
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
