"""The base of every scheduler: diffusers' `SchedulerMixin`, strict about the configurations that it loads."""

import inspect
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin as DiffusersSchedulerMixin

from latentia.errors import CheckpointError, LatentiaError, check_known
from latentia.files.reading import check_link
from latentia.functional.settings import check_settings
from latentia.safety import check_keys, check_loader_options, check_subfolder, fetch, read_json


class SchedulerMixin(DiffusersSchedulerMixin):
    """diffusers' `SchedulerMixin` that checks a configuration before it builds tables of it.

    Example:
        >>> from diffusers import ConfigMixin
        >>> class Thing(SchedulerMixin, ConfigMixin):
        ...     config_name = "scheduler_config.json"
    """

    # Of ConfigMixin, from which each scheduler derives too: the arguments of the constructor by name, and their file.
    config: Any
    config_name: Any
    from_config: ClassVar[Any]

    def register_to_config(self, **settings: Any) -> None:
        """Keeps settings in `config`, as diffusers does, once each is of the type that the constructor asks for.

        A tensor or an array, as `trained_betas`, is kept as a list, which can be saved.

        Raises:
            UsageError: a setting of another type.
        """
        settings = {k: v.tolist() if isinstance(v, torch.Tensor | np.ndarray) else v for k, v in settings.items()}
        check_settings(type(self), settings)
        super().register_to_config(**settings)  # type: ignore[misc]  # of ConfigMixin, from which schedulers derive too

    @classmethod
    def from_pretrained(  # type: ignore[override]  # diffusers' signature takes None too, which names no folder
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a saved scheduler from a folder or from the Hub, and checks its configuration before it builds tables.

        Args:
            pretrained_model_name_or_path: a folder, or "user/name" on the Hub.
            subfolder: where in it; `None` (default): at its top.
            return_unused_kwargs: as in diffusers. Default False.
            **kwargs: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`, or a value to change.

        Raises:
            CheckpointError: the file is missing, damaged, holds a value out of its range, or is of a scheduler of
                another kind.
            HubError: the repository cannot be had.
            UsageError: a value to change that is out of its range, a `subfolder` that is more than plain names, or a
                keyword that is no setting of the scheduler.
        """
        name, subfolder = str(pretrained_model_name_or_path), check_subfolder(subfolder)
        place = {key: kwargs.pop(key, None) for key in ("revision", "cache_dir", "token", "local_files_only")}
        place["force_download"] = kwargs.pop("force_download", None)
        if not return_unused_kwargs:
            check_known(f"from_pretrained of {cls.__name__}", kwargs, inspect.signature(cls).parameters)
        root = Path(name) if os.path.isdir(name) else fetch(name, [os.path.join(subfolder, cls.config_name)], **place)
        path = root / subfolder / cls.config_name
        check_link(path, root)
        config = read_json(path)
        check_keys(config, str(path))
        check_loader_options(config, str(path))
        known, saved = [cls.__name__, *cls._compatibles], config.get("_class_name", cls.__name__)
        if saved not in known:  # such as one of flow matching, which has no betas
            raise CheckpointError(
                f"{path} is of a {saved}, whose noise a {cls.__name__} does not know. Load it with {saved}, or build a "
                f"{cls.__name__} with the settings that the network was trained with."
            )
        try:
            return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        except LatentiaError as error:
            if kwargs:  # perhaps of a value that the caller gave
                raise
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:  # a hostile configuration can make a constructor raise anything
            raise CheckpointError(f"{path} makes no {cls.__name__}: {error}") from error
