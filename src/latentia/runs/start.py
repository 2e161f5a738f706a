"""The start of a run: its folder, its processes, its data set."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from latentia.data import load_images
from latentia.errors import UsageError, check_choice
from latentia.files.reading import user_path
from latentia.runs.arguments import DataArguments, check_ranges
from latentia.runs.command_line import flat_values
from latentia.training.ownership import FILES as LOOP_FILES
from latentia.training.ownership import RUN, claim, delete_run
from latentia.training.processes import process_group
from latentia.training.sharding import ShardingAccelerator

# What a run writes in its folder, beside what its loop writes and the components of its pipeline.
FILES = ("README.md", "loss.png", "model_index.json", "run_summary.json")
FOLDERS = ("samples", ".export")
WRITTEN = (  # below them
    *("samples/step-*.png", "samples/grid.png", "samples/reconstructions.png", "samples/*-labels.txt"),
    *("profile/trace.json", "profile/operators.txt"),
    *("samples/step-*.txt", "samples/samples.txt"),
    *("logs/*/events.out.tfevents.*", "logs/*/hparams.yml", "logs/*/*/events.out.tfevents.*"),
)
_LAUNCHER_MARKS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set for the processes that one starts


def start(args: Any) -> Accelerator:
    """Check the flags, and prepare the output folder and what accelerate needs; nothing has been computed yet.

    Args:
        args: has the groups `output`, `optimization` and `hub`.

    Raises:
        UsageError: a flag is out of its range, `output_dir` is a file or cannot be written, a tracker is not known or
            not installed, or fp16 was asked for without a GPU, or bf16 with one that has none.
    """
    options = args.optimization
    check_ranges(args)
    if options.allow_tf32:
        torch.set_float32_matmul_precision("high")
    _use_all_cores()
    _check_bfloat16(options.mixed_precision)
    folder = Path(args.output.output_dir)
    _check_tracker(args.output.report_to)
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
    if not accelerator.is_main_process:
        logging.getLogger("latentia").setLevel(logging.ERROR)  # each warning once
    if accelerator.is_main_process:
        _prepare_folder(folder, args.output)
    accelerator.wait_for_everyone()
    if args.output.report_to is not None:
        config = {key: str(value) for key, value in flat_values(args).items()}
        accelerator.init_trackers(args.output.tracker_project_name, config=config)
    return accelerator


def _use_all_cores() -> None:
    """Take the cores that a launcher left idle: without a setting, `accelerate launch` and torchrun say one thread.

    A number of threads that a person chose stays: one that the launcher was given by its environment or a flag.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return
    try:
        launcher = psutil.Process(os.getppid())
        given, words = launcher.environ(), " ".join(launcher.cmdline())
    except psutil.Error:
        return
    launched = any(mark in os.environ and mark not in given for mark in _LAUNCHER_MARKS)
    if launched and "OMP_NUM_THREADS" not in given and "cpu_threads_per_process" not in words:
        cores = psutil.cpu_count(logical=False) or 1
        if hasattr(os, "sched_getaffinity"):  # a job may be limited to a part of them
            cores = min(cores, len(os.sched_getaffinity(0)))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _check_bfloat16(mixed_precision: str) -> None:
    """UsageError where bfloat16 is asked for on a GPU that can only emulate it."""
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")
    if mixed_precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            f"mixed_precision bf16 needs a GPU with bfloat16, which NVIDIA's have from compute capability 8.0 on; got "
            f"{torch.cuda.get_device_name()}. Use fp16 or no."
        )


def _check_tracker(name: str | None) -> None:
    """accelerate would leave out a tracker that is not installed, with a warning, and report nothing."""
    if name is None:
        return
    check_choice("report_to", name, LOGGER_TYPE_TO_CLASS)
    if name not in map(str, get_available_trackers()):
        raise UsageError(f"report_to {name} needs the package {name}, which is not installed: pip install {name}.")


def _prepare_folder(folder: Path, output: Any) -> None:
    """Make the folder of a run and claim its names; delete what an earlier run listed there, if it is asked for."""
    log = [] if output.report_to is None else [Path(output.logging_dir).parts[0]]
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"output_dir must be a folder; {folder} is a file.")
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, RUN, files=(*LOOP_FILES, *FILES), folders=("checkpoints", *FOLDERS, *log))
        if output.overwrite_output_dir:
            delete_run(folder, WRITTEN)
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be written: {error.strerror}.") from error


def load_data(args: DataArguments):
    """The data set that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir.
    """
    return load_images(data_source(args), **data_options(args), streaming=args.streaming)


def data_source(args: DataArguments) -> str | Path:
    """What `load_images` reads.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        raise UsageError(
            f"Give dataset_name (a Hub id, digits or emoji) or train_data_dir (a folder or parquet); got {given}."
        )
    if "" in (args.dataset_name, args.train_data_dir):
        raise UsageError("dataset_name and train_data_dir must not be empty; got ''.")
    return args.dataset_name or path_or_pattern(args.train_data_dir or "")


def path_or_pattern(folder: str) -> str | Path:
    """A path, or the text itself if it is a pattern of paths and no path.

    Example:
        >>> path_or_pattern("images"), path_or_pattern("images/*.parquet")
        (PosixPath('images'), 'images/*.parquet')
    """
    pattern = any(sign in folder for sign in "*?[") and not user_path(folder).exists()
    return folder if pattern else Path(folder)


def data_options(args: DataArguments) -> dict[str, Any]:
    """How `load_images` reads it, but for `streaming`."""
    return {
        "split": args.split,
        "config_name": args.dataset_config_name,
        "revision": args.dataset_revision,
        "image_column": args.image_column,
        "label_column": args.label_column,
        "caption_column": args.caption_column,
        "resolution": args.resolution,
        "channels": args.channels,
        "center_crop": args.center_crop,
        "random_flip": args.random_flip,
        "max_samples": args.max_train_samples,
        "on_bad_image": args.on_bad_image,
        "cache_dir": args.cache_dir,
        "num_workers": args.dataloader_num_workers,
    }


def check_room(folder: Path, parameters: Sequence[nn.Parameter], checkpoints: int | None) -> None:
    """UsageError unless the disk has room for as many checkpoints: weights, average and two moments each."""
    size = sum(p.numel() * p.element_size() for p in parameters)
    need = 4 * size * (max(checkpoints or 10, 2) + 1)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UsageError(
            f"output_dir {folder} has {free / 2**20:.0f} MB free, but its checkpoints need {need / 2**20:.0f} MB. Free "
            "space or lower checkpoints_total_limit."
        )


def checkpoint_gradients(network: nn.Module) -> bool:
    """Recompute activations in the backward pass, in the parts of a network that can; whether there are some."""
    able = {
        "enable_gradient_checkpointing": "_supports_gradient_checkpointing",  # diffusers
        "gradient_checkpointing_enable": "supports_gradient_checkpointing",  # transformers
    }
    found = False
    for method, attribute in able.items():
        for part in network.modules():
            if getattr(part, attribute, False):
                getattr(part, method)()
                found = True
    return found
