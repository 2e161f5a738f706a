"""Import what training scripts and commands import, and what they need a moment for once: forks then start at once."""

import importlib
import io
import pkgutil

import accelerate.utils.fsdp_utils
import hypothesis
import pyarrow.parquet
import pytest
import sklearn.linear_model
import sklearn.mixture
import torch.distributed.fsdp
import torch.nn.parallel.distributed
import tyro
from diffusers import AutoencoderKL
from matplotlib.figure import Figure
from transformers import CLIPTextModelWithProjection, CLIPTokenizerFast, CLIPVisionModelWithProjection, GPT2LMHeadModel

import latentia
import latentia.pipelines

for package in (latentia, latentia.pipelines):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.rpartition(".")[2] not in ("__main__", "unpickle") and ".examples" not in module.name:
            importlib.import_module(module.name)

figure = Figure(layout="constrained")
figure.subplots().plot([0, 1], label="warm")
figure.savefig(io.BytesIO())
READY = True
