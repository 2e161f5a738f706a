"""What a bug report needs: versions, devices, disk, Hub login. Never a token."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch
from huggingface_hub import get_token

from latentia.data.cache import cache_folder

PACKAGES = "latentia torch diffusers accelerate datasets safetensors huggingface_hub transformers".split()


def report() -> str:
    """The lines that `latentia doctor` prints.

    Example:
        >>> report().splitlines()[0].split()[0]
        'python'
    """
    lines = [f"python          {platform.python_version()} on {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name:15} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:15} not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(devices) or "CPU only"
    lines.append(f"devices         {found}; {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
            lines.append("torchvision     installed (latentia does not need it)")
        except (ImportError, RuntimeError, OSError) as error:
            lines.append(f"torchvision     installed but broken ({error}); uninstall it: diffusers trips over it")
    folder = cache_folder(None)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    lines.append(f"cache           {folder}, {shutil.disk_usage(place).free / 2**30:.1f} GiB free")
    lines.append(f"Hub             {'logged in' if get_token() else 'not logged in (hf auth login)'}")
    return "\n".join(lines)
