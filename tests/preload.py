"""Import what training scripts and commands import, and draw a first plot: forks of this process then start at once."""

import gc
import importlib
import io
import pkgutil
from pathlib import Path

from children import small_chunks

import latentia
import latentia.pipelines

LIBRARIES = (
    *("accelerate.utils.fsdp_utils", "torch.distributed.fsdp", "torch.nn.parallel.distributed", "torch._dynamo"),
    *("diffusers.models.autoencoders.autoencoder_kl", "transformers.models.clip.modeling_clip", "pytest", "tyro"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.clip.tokenization_clip", "pyarrow.parquet"),
    *("sklearn.linear_model", "sklearn.mixture", "hypothesis", "matplotlib.figure"),
)


def own_modules() -> list[str]:
    """All of the package, but for those that run when they are imported."""
    found = [
        m.name for p in (latentia, latentia.pipelines) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")
    ]
    return [name for name in found if not name.endswith((".__main__", ".unpickle")) and ".examples" not in name]


for name in (*LIBRARIES, *own_modules()):
    importlib.import_module(name)

small_chunks(importlib.import_module("pytest").MonkeyPatch())
figure = importlib.import_module("matplotlib.figure").Figure(layout="constrained")
figure.subplots().plot([0, 1], label="first")
figure.savefig(io.BytesIO())
# Half of a second of every small training; test_surroundings.py has it drawn.
importlib.import_module("latentia.runs.export").plot_curves = lambda rows, keys, out, **options: Path(out).touch()
gc.collect()
gc.freeze()  # children do not search, and so copy, all that was imported
READY = True
