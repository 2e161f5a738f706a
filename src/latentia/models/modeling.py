"""The base of every network: diffusers' `ModelMixin`, strict about what it loads."""

import os
from collections.abc import Iterable
from typing import Any, Self

import diffusers
import torch

from latentia.errors import CheckpointError, UsageError


def _first(keys: Iterable[object], shown: int = 3) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


class ModelMixin(diffusers.ModelMixin):
    """diffusers' `ModelMixin` that loads safetensors only, and refuses weights that do not fit exactly.

    diffusers leaves a weight that is missing from the file at random and only warns. Here it is an error, whichever
    loader asks: the class's own `from_pretrained`, a pipeline's, ours or diffusers'.

    Example:
        >>> from diffusers import ConfigMixin
        >>> class Thing(ModelMixin, ConfigMixin):
        ...     config_name = "config.json"
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, strict: bool = True, **kwargs: Any
    ) -> Self:
        """Loads a saved network from a folder or from the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or "user/name" on the Hub.
            strict: whether the weights in the file must be exactly the network's: no key missing, none extra, all
                shapes equal. If False, what fits is loaded and the rest starts from its own initialisation, as in
                fine-tuning with other classes.
            **kwargs: as in diffusers: `subfolder`, `revision`, `dtype`, `cache_dir`, ..., or a configuration
                value to change.

        Raises:
            CheckpointError: the weights do not fit, are damaged, or are not safetensors.
            UsageError: `use_safetensors=False`.
        """
        where = os.path.join(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        if kwargs.pop("use_safetensors", True) is False:
            raise UsageError(
                "use_safetensors must be True, got False: pickled weights can run code. Load such weights once with "
                "diffusers and save them again with save_pretrained(folder), which writes safetensors."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they come back in `info`, all of them, and are judged below
        try:
            network, info = super().from_pretrained(
                pretrained_model_name_or_path, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            pickled = os.path.isdir(where) and sorted(
                name for name in os.listdir(where) if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))
            )
            if pickled and not any(name.endswith(".safetensors") for name in os.listdir(where)):
                raise CheckpointError(
                    f"{where} holds its weights as {_first(pickled)}, and such pickled files can run code when they "
                    "are read. Load them once with diffusers and save them again with save_pretrained(folder), which "
                    "writes diffusion_pytorch_model.safetensors."
                ) from error
            raise CheckpointError(f"{cls.__name__} cannot be loaded from {where}: {error}") from error
        unfit = {
            "missing": info["missing_keys"],
            "not part of the network": info["unexpected_keys"],
            "of another shape": [f"{key} {tuple(a)} instead of {tuple(b)}" for key, a, b in info["mismatched_keys"]],
        }
        if any(unfit.values()):
            if strict:
                raise CheckpointError(
                    f"The weights in {where} do not fit {cls.__name__}: "
                    + "; ".join(f"{len(keys)} {what} ({_first(keys)})" for what, keys in unfit.items() if keys)
                    + ". Check that config.json and the weights belong together, or pass strict=False to load what "
                    "fits and start the rest afresh."
                )
            # The loader has left the other weights unset: without initialisation, or without memory.
            fresh = torch.nn.Module.to(cls.from_config(network.config), network.dtype).eval()
            absent = {*info["missing_keys"], *(key for key, _, _ in info["mismatched_keys"])}
            fresh.load_state_dict({k: v for k, v in network.state_dict().items() if k not in absent}, strict=False)
            network = fresh
        if os.path.isdir(pretrained_model_name_or_path):
            network.register_to_config(_name_or_path=None)  # else a folder of this machine ends up in saved files
        return (network, info) if wants_info else network  # type: ignore[return-value]
