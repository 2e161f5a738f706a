"""What a finished run leaves: pipeline, card, sample grid, loss curve, summary; and the push to the Hub."""

import glob
import inspect
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from latentia.errors import HubError, UsageError, counted, escaped
from latentia.evaluation import plot_curves
from latentia.files.reading import MAX_LOG, read_bytes
from latentia.files.writing import write_json, write_text
from latentia.hub.card import model_card, redact_command
from latentia.hub.folder_card import update_card
from latentia.hub.push import check_license, push_to_hub
from latentia.hub.usage import pipeline_usage
from latentia.pipelines.base import DiffusionPipeline
from latentia.runs.command_line import flat_values
from latentia.runs.program import lineage, program
from latentia.training.checkpoint import read_own
from latentia.training.loop import Result
from latentia.training.ownership import RUN, claim, delete, list_export, listed
from latentia.training.progress import read_log

INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


def export_run(
    run: Any,
    result: Result,
    pipeline: Callable[[], Any],
    validation: Any,
    limits: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Export the pipeline of a finished run with its card and images, and push it if asked to.

    Args:
        run: the `Run`.
        result: of its training.
        pipeline: makes the pipeline; called only if it is exported.
        validation: a `Validation`, or another one with its members: scores the pipeline if that was not done.
        limits: what the card says of the limits of the model; called at the end.
    """
    args, folder, progress = run.args, run.folder, result.progress
    if result.status == "nothing to do" and _exported_step(folder) == progress.step:
        print(f"Nothing to do: {folder} is trained to step {progress.step}. Raise --max_train_steps to go on.")
    else:
        if validation.report is None:  # the run was finished before, but killed while it was being exported
            validation.score(progress)
        report = validation.report
        shown = validation.finish(progress.step)
        _draw_loss(folder)
        pipe, said = pipeline(), list(limits())
        parts = [part.config for part in pipe.components.values() if isinstance(getattr(part, "config", None), Mapping)]
        summary = _summary(run, result, said) | {
            "score": report.to_dict() if report else None,
            "data": run.data.describe(),
        }
        card = model_card(
            name=as_utf8(hub_name(args)),
            pipeline_class=type(pipe).__name__,
            family=run.family,
            pipeline_tag=run.pipeline_tag,
            dataset=as_utf8(args.data.dataset_name or Path(args.data.train_data_dir).name),
            on_hub=args.data.dataset_name is not None,
            license=args.hub.hub_license,
            recipe=as_utf8({**flat_values(args, run.unused), "data": summary["data"]}),
            metrics=report.for_card() if report else [],
            hardware=summary["hardware"],
            minutes=summary["training_seconds"] / 60,
            epochs=summary["epochs"],
            seed=args.optimization.seed,
            command=as_utf8(summary["command"]),
            lineage=summary["lineage"],
            **shown,
            usage=pipeline_usage(type(pipe), pipe.config, parts),
            repo_id=args.hub.hub_model_id,
            limits=as_utf8(said),
        )
        card, remarks = update_card(folder / "README.md", card)
        print(*map(escaped, remarks), sep="\n", end="\n" if remarks else "")
        export(pipe, folder, card)
        write_json(folder / "run_summary.json", json.loads(json.dumps(summary, default=str)))
        epochs, kind = summary["epochs"], run.data.modality
        seen = counted(progress.images, kind)
        if epochs is not None:
            seen = f"{counted(len(run.data), kind)}, {epochs:g} epochs,"
        print(f"Trained on {seen} in {progress.seconds:.0f} s. Pipeline, card and images: {folder}")
        if report:
            print(escaped(report.text()))
    if args.hub.push_to_hub:
        options = {"private": args.hub.hub_private_repo, "license": args.hub.hub_license}
        print(f"Pushed to {push_to_hub(folder, hub_name(args), **options)}")


def as_utf8(value: Any) -> Any:
    """Escape in texts, also those in lists and mappings, what UTF-8 cannot write: bytes of the names of files.

    Example:
        >>> as_utf8(["photos_\\udce9", 1])
        ['photos_\\\\udce9', 1]
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {as_utf8(key): as_utf8(one) for key, one in value.items()}
    return [as_utf8(one) for one in value] if isinstance(value, list | tuple) else value


def write_summary(run: Any, result: Result) -> None:
    """Write `run_summary.json` of a run that exports nothing, such as an interrupted one."""
    write_json(run.folder / "run_summary.json", _summary(run, result, ()))


def hub_name(args: Any) -> str:
    """The repository of a run: `--hub_model_id`, or the name of its folder."""
    return args.hub.hub_model_id or Path(args.output.output_dir).resolve().name


def check_push(args: Any) -> None:
    """Before training: whether `--push_to_hub` will find a repository's name, a licence and a login.

    Raises:
        UsageError: the name is none of a repository, or the repository is to be public without a word on the licence.
        HubError: there is no login.
    """
    if not getattr(getattr(args, "hub", None), "push_to_hub", False):
        return
    name = hub_name(args)
    if not args.hub.hub_private_repo:
        check_license(args.hub.hub_license, "hub_license")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f'hub_model_id must be "user/name"; got "{name}": {error}') from error
    if get_token() is None:
        raise HubError("push_to_hub needs a login; run `hf auth login` or set HF_TOKEN, then start again.")


def _summary(run: Any, result: Result, limits: Sequence[str]) -> dict[str, Any]:
    progress = result.progress
    return {
        "status": result.status, "exit_code": INTERRUPTED if result.status == "interrupted" else 0,
        "steps": progress.step, "images": progress.images, "restarts": progress.restarts,
        "skipped_steps": progress.skipped,
        "epochs": None if run.data.endless else round(progress.images / len(run.data), 1),
        "training_seconds": round(progress.seconds, 1), "images_per_second": round(result.images_per_second, 1),
        "peak_memory_mb": round(result.peak_memory_mb), "resumed_from": result.resumed_from, "score": None,
        "family": run.family, "pipeline_tag": run.pipeline_tag, "limits": list(limits),
        "hardware": _hardware(run.accelerator), "command": [*redact_command([*program(), *sys.argv[1:]])],
        "lineage": lineage(),
    }  # fmt: skip


def _exported_step(folder: Path) -> int | None:
    """The step whose weights lie in the export; the summary is written after it."""
    summary = read_own(folder / "run_summary.json")
    whole = summary.get("status") in ("finished", "nothing to do") and (folder / "model_index.json").is_file()
    return summary.get("steps") if whole else None


def _draw_loss(folder: Path) -> None:
    """The loss curve."""
    log = folder / "metrics.jsonl"  # which others may have deleted meanwhile
    rows = read_log(read_bytes(log, MAX_LOG)) if log.is_file() else []
    keys = sorted({key for row in rows for key in row if key.endswith("/loss")})
    if keys:
        plot_curves(rows, keys, folder / "loss.png", x="images", title="Training")


def component_names(pipeline: Callable[..., Any]) -> list[str]:
    """Names of the folders of a pipeline's components.

    Args:
        pipeline: its class, or a function whose annotation says which it returns; another one has none.

    Example:
        >>> from latentia import VAEPipeline
        >>> component_names(VAEPipeline)
        ['prior', 'vae']
    """
    made = pipeline if isinstance(pipeline, type) else inspect.signature(pipeline, eval_str=True).return_annotation
    if not (isinstance(made, type) and issubclass(made, DiffusionPipeline)):
        return []
    return sorted({*made._get_signature_keys(made)[0], *made._optional_components})


def export(pipeline: Any, folder: Path, card: Any = None) -> None:
    """Save a pipeline into the folder of a run, its index last, so that what loads is whole.

    Files of an earlier export are replaced or deleted, other files stay where they are.
    """
    staging = folder / ".export"
    claim(folder, RUN, folders=[staging.name])
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    if card is not None:
        write_text(staging / "README.md", str(card))
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    claim(
        folder, RUN, files=[n for n in names if "/" not in n], folders={n.partition("/")[0] for n in names if "/" in n}
    )
    _, earlier = listed(folder)
    list_export(folder, {*names, *earlier})
    (folder / "model_index.json").unlink(missing_ok=True)
    delete(folder, map(glob.escape, {*earlier} - {*names}))
    for name in sorted(names, key=lambda name: name == "model_index.json"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        os.replace(staging / name, folder / name)
    list_export(folder, names)
    shutil.rmtree(staging)


def _hardware(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name(accelerator.device)}"
    threads = torch.get_num_threads() * accelerator.num_processes
    return f"{counted(threads, 'CPU thread')} ({platform.machine()})"
