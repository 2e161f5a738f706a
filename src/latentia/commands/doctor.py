"""List versions, devices, folders, disk and Hub, for a bug report and before a run; never a token."""

import importlib.util
import os
import platform
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate.commands.config.config_args import default_config_file
from huggingface_hub import HfApi, constants, get_token
from packaging.requirements import Requirement

from latentia.errors import Range, UsageError, check_arguments, format_number
from latentia.files.cache import cache_folder
from latentia.functional.settings import check_types
from latentia.hub.client import hide_password

PACKAGES = "latentia torch diffusers accelerate datasets safetensors huggingface_hub transformers".split()
# What constraints.txt names, which is not installed with the package; a test compares the two.
TESTED = {
    "torch": "2.13.0", "diffusers": "0.42.1", "accelerate": "1.15.0", "datasets": "5.2.0", "safetensors": "0.8.0",
    "huggingface_hub": "2.4.0", "transformers": "5.23.0",
}  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        lines: versions, devices, folders, disk and Hub.
        problems: what would stop a run, each with a way out.
    """

    lines: list[str]
    problems: list[str]

    @property
    def exit_code(self) -> int:
        """0, or 2 if there is a problem."""
        return UsageError.exit_code if self.problems else 0

    def text(self) -> str:
        """The lines, and the problems after them."""
        return "\n".join([*self.lines, *(f"problem         {problem}" for problem in self.problems)])


@check_types
@check_arguments
def doctor(
    output_dir: str | Path | None = None,
    *,
    hub: bool = False,
    max_seconds: Annotated[float, Range(0, closed="neither", most=1e6)] = 10.0,
) -> Diagnosis:
    """List versions, devices, folders, disk and Hub, for a bug report and before a run; never a token.

    The exit code is 2 if something would stop a run; the last lines say what, with a way out.

    Args:
        output_dir: where a run would write; not checked if not given.
        hub: ask the Hub whether it answers.
        max_seconds: wait for the Hub at most so long.

    Returns:
        The lines and the problems.

    Example:
        >>> doctor().lines[0].split()[0]
        'python'
    """
    lines, wrong = [f"python          {platform.python_version()} on {platform.platform()}"], []
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            lines.append(f"{name:15} not installed")
            continue
        tested = TESTED.get(name)
        lines.append(f"{name:15} {found}{f', tested with {tested}' if tested and _plain(found) != tested else ''}")
    wrong += _not_allowed()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(devices) or "CPU only"
    lines.append(f"devices         {found}; {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    bits = "on" if torch.are_deterministic_algorithms_enabled() else "off, as it comes; not needed on a CPU"
    lines.append(f"determinism     torch.use_deterministic_algorithms is {bits}")
    config = Path(os.environ.get("ACCELERATE_CONFIG_FILE") or default_config_file)
    there = config if config.is_file() else "none; `accelerate launch` takes its defaults (accelerate config)"
    lines.append(f"accelerate      config: {there}")
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
            lines.append("torchvision     installed (latentia does not need it)")
        except (ImportError, RuntimeError, OSError) as error:
            lines.append(f"torchvision     installed but broken ({error}); uninstall it: diffusers trips over it")
            wrong.append("torchvision is broken, and diffusers trips over it: pip uninstall torchvision")
    folders = {"cache": (cache_folder(None), "set LATENTIA_CACHE")}
    if output_dir is not None:
        folders["output_dir"] = (Path(output_dir), "choose another folder")
    for name, (folder, way) in folders.items():
        free, problem = _room(folder)
        lines.append(f"{name:15} {folder}, {problem or f'writable, {free:.1f} GiB free'}")
        wrong += [f"{folder} {problem}: {way}."] if problem else []
    login = "logged in" if get_token() else "not logged in (hf auth login)"
    if hub:
        answer = _answer_of_the_hub(max_seconds)
        login += f"; {constants.ENDPOINT} {answer or 'answers'}"
        wrong += (
            [f"The Hub {hide_password(answer)}: check the network, HF_ENDPOINT and HF_HUB_OFFLINE."] if answer else []
        )
    lines.append(f"Hub             {hide_password(login)}")
    return Diagnosis(lines, wrong)


def _plain(found: str) -> str:
    return re.split(r"[+]", found)[0]  # 2.13.0+cpu


def _not_allowed() -> list[str]:
    """What is installed in a version that this package does not take."""
    wrong = []
    for text in requires("latentia") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed: pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is installed; pip install '{requirement}'")
    return wrong


def _room(folder: Path) -> tuple[float, str]:
    """GiB that are free where `folder` is or would be, and what keeps one from writing there."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        return 0.0, f"cannot be made: {place} is a file"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"1")
            probe.flush()
    except OSError as error:
        return 0.0, f"cannot be written: {error.strerror}"
    return shutil.disk_usage(place).free / 2**30, ""


def _answer_of_the_hub(wait: float) -> str:
    """What is wrong with the Hub, if anything, after at most `wait` seconds."""
    said: list[Any] = []

    def ask() -> None:
        try:
            HfApi(library_name="latentia").whoami() if get_token() else next(iter(HfApi().list_models(limit=1)), None)
            said.append("")
        except Exception as error:  # whatever it is, it is what the user wants to know
            said.append(f"did not answer as it should ({type(error).__name__})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(wait)
    return said[0] if said else f"did not answer within {format_number(wait)} s"
