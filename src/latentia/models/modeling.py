"""The base of every network: diffusers' `ModelMixin`, strict about what it loads."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin as DiffusersModelMixin

from latentia.errors import CheckpointError, UsageError, check_known, did_you_mean
from latentia.functional.settings import check_settings
from latentia.safety import (
    LOADING,
    Weight,
    build_on_meta,
    check_files,
    check_keys,
    check_link,
    check_subfolder,
    differences,
    fetch,
    read_json,
    read_weight_headers,
)

STEM = "diffusion_pytorch_model"
# The names of the parts of networks and of their settings, as a number in each saved configuration: raised when names
# change, so that files of another version are refused as such. Files of latentia 0.1 have no number, which counts as 1.
# 2: encoder, decoder, quantize, ... as in diffusers.
FORMAT_KEY, FORMAT = "_latentia_format", 2
# What diffusers' `EMAModel.save_pretrained` adds to the configuration of the network that it averages.
_EMA_KEYS = {
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
}
# What diffusers' loader takes beside settings of a network.
_LOADER_OPTIONS = (
    *("cache_dir", "force_download", "local_dir", "local_dir_use_symlinks", "local_files_only", "mirror", "proxies"),
    *("revision", "subfolder", "token", "user_agent", "variant", "use_safetensors", "output_loading_info"),
    *("dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage"),
    *("ignore_mismatched_sizes", "quantization_config", "disable_mmap", "use_flashpack", "flashpack_kwargs"),
)


def _settings(cls: type) -> list[str]:
    """The names of the settings of a class: the arguments of its constructor."""
    return [key for key in inspect.signature(cls.__init__).parameters if key != "self"]  # type: ignore[misc]


def _first(keys: Iterable[object], shown: int = 3) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


class ModelMixin(PeftAdapterMixin, DiffusersModelMixin):
    """diffusers' `ModelMixin` that loads safetensors only, and refuses weights that do not fit exactly.

    diffusers leaves a weight that is missing from the file at random and only warns. Here it is an error, whichever
    loader asks: the class's own `from_pretrained`, a pipeline's, ours or diffusers'. Adapters of PEFT, such as LoRA,
    are added, saved and loaded by the methods of diffusers' `PeftAdapterMixin`.

    Example:
        >>> from diffusers import ConfigMixin
        >>> class Thing(ModelMixin, ConfigMixin):
        ...     config_name = "config.json"
    """

    # Of ConfigMixin, from which each network derives too: the arguments of the constructor by name, and their file.
    config: Any
    config_name: Any
    from_config: ClassVar[Any]
    # A part may bear the name of a setting, as `decoder` or `minibatch_std`: settings are read from `config` alone.
    __getattr__ = torch.nn.Module.__getattr__

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Loads a LoRA adapter as diffusers does, from safetensors only.

        Args:
            pretrained_model_name_or_path_or_dict: a folder that `save_lora_adapter` wrote, a Hub repository or weights.
            prefix: of the names of the weights; `None` for what `save_lora_adapter` wrote. Default that of diffusers.
            hotswap: replace a loaded adapter in place. Default False.
            **kwargs: as in diffusers: `adapter_name`, `weight_name`.

        Raises:
            UsageError: `use_safetensors=False`, as pickled weights can run code.
        """
        if kwargs.get("use_safetensors") is False:
            raise UsageError("use_safetensors must be True, got False: pickled weights can run code.")
        kwargs["use_safetensors"] = True
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, prefix, hotswap, **kwargs)

    def register_to_config(self, **settings: Any) -> None:
        """Keeps settings in `config`, as diffusers does, once each is of the type that the constructor asks for.

        Raises:
            UsageError: a setting of another type, or a size, a number or a rate out of its range.
        """
        check_settings(type(self), settings)
        super().register_to_config(**settings)  # type: ignore[misc]  # of ConfigMixin, from which networks derive too

    # The arguments have names because diffusers' pipelines hand on only those that they find in the signature.
    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves configuration and weights as diffusers does, with the number of the format in the configuration.

        Args:
            save_directory: a folder, which is made if it is missing.
            is_main_process: whether this process writes the configuration. Default True.
            save_function: as in diffusers. Default `None`.
            safe_serialization: must be True, the default.
            variant: a word in the names of the weights, such as "fp16"; `None` (default): none.
            max_shard_size: weights of more bytes are written as several files. Default "10GB".
            push_to_hub: upload the folder as diffusers does. Default False.
            use_flashpack: must be False, the default.
            **kwargs: of the upload, as in diffusers.

        Raises:
            UsageError: a format of weights that is not safetensors.
        """
        if not safe_serialization or use_flashpack:
            given = "use_flashpack must be False, got True" if use_flashpack else "safe_serialization must be True"
            raise UsageError(f"{given}: networks of latentia are loaded from safetensors only. Leave it out.")
        self.register_to_config(**{FORMAT_KEY: FORMAT})
        super().save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            save_function=save_function,
            variant=variant,
            max_shard_size=max_shard_size,
            push_to_hub=push_to_hub,
            **kwargs,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # diffusers' signature takes None too, which names no folder
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
            CheckpointError: the weights do not fit, are damaged, or are not safetensors; the configuration asks for
                more than they hold.
            HubError: the repository cannot be had.
            UsageError: `use_safetensors=False`, a `subfolder` that is more than plain names, or a keyword that is
                neither an option of the loader nor a setting of the network.
        """
        check_known(f"from_pretrained of {cls.__name__}", kwargs, [*_settings(cls), *_LOADER_OPTIONS])
        if kwargs.pop("use_safetensors", True) is False:
            raise UsageError(
                "use_safetensors must be True, got False: pickled weights can run arbitrary code. Convert them to "
                "safetensors first, which runs none: latentia convert FOLDER OUTPUT"
            )
        name, subfolder = str(pretrained_model_name_or_path), check_subfolder(kwargs.pop("subfolder", None))
        local = os.path.isdir(name)
        place = {key: kwargs.pop(key, None) for key in ("revision", "cache_dir", "token", "local_files_only")}
        place["force_download"] = kwargs.pop("force_download", None)
        if local:
            root = Path(name)
        else:
            variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
            weights = [f"{STEM}{variant}.safetensors", f"{STEM}{variant}-*.safetensors"]
            files = [cls.config_name, f"{STEM}.safetensors.index{variant}.json", *weights]
            root = fetch(name, [os.path.join(subfolder, file) for file in files], **place)
        folder = root / subfolder
        check_link(folder, root)
        held, empty, current = cls._weights_and_network(folder, kwargs, strict)
        unfit = differences(empty, held)
        if unfit and not current:
            raise CheckpointError(cls._other_format(folder))
        if unfit and strict:
            raise CheckpointError(
                f"The weights in {folder} do not fit {cls.__name__}: "
                + "; ".join(f"{len(keys)} {what} ({_first(keys.values())})" for what, keys in unfit.items())
                + f". Check that {cls.config_name} and the weights belong together, or pass strict=False to load what "
                "fits and start the rest afresh."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # with strict=False
        try:
            with LOADING:
                loaded: Any = super().from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
        except CheckpointError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{cls.__name__} cannot be loaded from {folder}: {error}") from error
        network, info = loaded
        if unfit:
            # The loader has left the other weights unset: without initialisation, or without memory.
            fresh = torch.nn.Module.to(cls.from_config(network.config), network.dtype).eval()
            fits = {
                key: value for key, value in network.state_dict().items() if not any(key in k for k in unfit.values())
            }
            fresh.load_state_dict(fits, strict=False)
            network = fresh
        network.register_to_config(_name_or_path=None if local else name)  # no folder of this machine in saved files
        result: Any = (network, info) if wants_info else network
        return result

    @classmethod
    def _other_format(cls, folder: Path) -> str:
        saved = read_json(folder / cls.config_name).get(FORMAT_KEY)
        version = "0.1" if saved is None else f"with format {saved} of its networks"
        return (
            f"{folder} holds a {cls.__name__} saved by latentia {version}, whose parts have other names than in this "
            f"version, which reads format {FORMAT}. Train it again, or load it with the version that saved it."
        )

    @classmethod
    def _weights_and_network(
        cls, folder: Path, changes: dict[str, Any], strict: bool
    ) -> tuple[dict[str, Weight], torch.nn.Module, bool]:
        """The weights in `folder`, the network of its configuration, without memory, and whether names are today's."""
        where = folder / cls.config_name
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder, so {cls.__name__} cannot be loaded from it.")
        check_files(folder)
        config = read_json(where)
        check_keys(config, str(where))
        current = config.get(FORMAT_KEY) == FORMAT
        # A class derived from a network registers its own settings, and the constructor of the network the others.
        known = list(
            dict.fromkeys(key for base in cls.__mro__ if issubclass(base, ModelMixin) for key in _settings(base))
        )
        for key in config:
            if key not in known and not key.startswith("_") and key not in _EMA_KEYS:
                if not current and config.get("_class_name") == cls.__name__:
                    raise CheckpointError(cls._other_format(folder))
                raise CheckpointError(
                    f"{where} has {key!r}, which is no setting of {cls.__name__}.{did_you_mean(key, known)} Was it "
                    "saved with a newer version, or does it belong to another network?"
                )
        if not isinstance(config.get("_class_name", ""), str):
            raise CheckpointError(f"_class_name in {where} must be plain text, got {config['_class_name']!r}.")
        held = read_weight_headers(folder, STEM, changes.get("variant"))
        changes = {key: value for key, value in changes.items() if key in _settings(cls)}
        factor = 1 if strict else 8
        network = build_on_meta(lambda: cls.from_config(config, **changes), held, str(folder), factor=factor)
        return held, network, current
