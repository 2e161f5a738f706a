"""The training script that is running: the command that starts it again, and the versions that it runs with."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_SCRIPTS = "latentia.examples.train_"


def program() -> list[str]:
    """The words before the flags: `latentia train vae` for a script of the package, `python train_vae.py` for a file.

    Example:
        >>> program()[0] in ("python", "latentia")
        True
    """
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    if name.startswith(_SCRIPTS):
        return ["latentia", "train", name.removeprefix(_SCRIPTS)]
    return ["python", sys.argv[0]]


def lineage() -> dict[str, str]:
    """The versions that a run used, and the commit of the repository that its script lies in, if it lies in one."""
    found = {name: version(name) for name in ("torch", "diffusers", "accelerate")}
    script = Path(sys.argv[0]).resolve()
    git = ["git", "-C", str(script.parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    known = [*git, "ls-files", "--error-unmatch", script.name]  # a virtual environment may lie in another repository
    try:
        inside = subprocess.run(known, capture_output=True, timeout=10).returncode == 0
        commit = subprocess.run(describe, capture_output=True, text=True, timeout=10).stdout.strip() if inside else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return found | ({"commit": commit} if commit else {})
