"""Base class of all pipelines: loading, declared capabilities and shared methods."""

import inspect
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline as DiffusersPipeline
from diffusers.utils import logging
from huggingface_hub import hf_hub_download, resolve_revision
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError
from torch import Tensor

from latentia.errors import CheckpointError, HubError, LatentiaError, UsageError, check_choice, did_you_mean
from latentia.hub.load import (
    INDEX_NAME,
    check_components,
    check_kept,
    component_class,
    components,
    left_without,
    pipeline_class,
    read_index,
)
from latentia.pipelines.capabilities import LatentPath, Latents, Likelihood
from latentia.pipelines.denoising import OfCall
from latentia.pipelines.images import AnomalyScore, reconstruction_error
from latentia.safety import LOADING, check_repository

logger = logging.get_logger(__name__)

WORDS = ("encode", "decode", "interpolate", "log_likelihood")
_LATENT_WORDS: dict[Latents | None, tuple[str, ...]] = {
    "continuous": WORDS[:3],
    "indices": WORDS[:3],
    "embeddings": WORDS[:1],
    None: (),
}
Labels = int | str | Sequence[int | str] | Tensor | None


class _AnyClass(tuple):
    """A tuple of classes that holds every class."""

    def __contains__(self, kind: object) -> bool:
        return True


class DiffusionPipeline(DiffusersPipeline):
    """The base of every pipeline here, and the loader of any saved one.

    `DiffusionPipeline.from_pretrained(folder_or_repo)` returns the class that was saved, whether it is latentia's or
    diffusers' own around a network of latentia. Beside sampling, `pipe(...)`, all pipelines have the same four methods
    with the same meaning: `encode`, `decode`, `interpolate`, `log_likelihood`. A family that has not got one raises an
    error that says which it has.

    Example:
        >>> DiffusionPipeline.from_pretrained("/nowhere/at/all")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.UsageError: "/nowhere/at/all" is neither a folder nor the name of a Hub repository ...
    """

    config: Any  # what was registered, by name
    model_cpu_offload_seq: Any  # a text in every family
    # What a pipeline can do is declared by its class, and by the properties below where it depends on the components;
    # `latentia.pipelines.capabilities` explains each and reads them all.
    modality: str = "image"
    conditions: tuple[str, ...] = ()
    latents: Latents | None = None
    latent_conditions: tuple[str, ...] = ()
    latent_path: LatentPath = "lerp"
    needs_image: bool = False  # whether the call makes images only from an image, and `translate` from its tensor
    needs_prior: bool = False  # whether there is nothing to sample from while its component `prior` is None

    @property
    def likelihood(self) -> Likelihood | None:
        """What `log_likelihood` gives; None if the family defines none."""
        return None

    @property
    def input_channels(self) -> int | None:
        """Channels of the images that it makes images from, as `translate` takes them; None if it needs none."""
        return None

    @property
    def words(self) -> tuple[str, ...]:
        """Those of encode, decode, interpolate and log_likelihood that this pipeline has; all of latents by default."""
        return _LATENT_WORDS[self.latents] + (WORDS[3:] if self.likelihood else ())

    @property
    def num_classes(self) -> int | None:
        """Number of classes that can be asked for; None if the networks were trained without."""
        configs = (getattr(component, "config", None) for component in self.components.values())
        found = (getattr(config, "num_class_embeds", None) for config in configs)
        return next((count for count in found if count), None)

    @property
    def is_text_conditional(self) -> bool:
        """Whether the pipeline is conditioned on text."""
        return any(self.components.get(part) is not None for part in ("text_encoder", "tokenizer"))

    # Read by callbacks of diffusers while a pipeline denoises, see `latentia.pipelines.denoising`.
    _callback_tensor_inputs: tuple[str, ...] = ("latents",)
    _num_timesteps, _guidance_scale, _interrupt = OfCall(), OfCall(), OfCall()

    @property
    def num_timesteps(self) -> int:
        """How many steps the call that runs, or the last one, makes."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The weight of classifier-free guidance at the next step."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step evaluates the network without condition too."""
        return self._guidance_scale != 1

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the loop."""
        return self._interrupt

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple]:
        """The classes of components that diffusers' `from_pipe` carries over: any, as constructors check contracts."""
        return {name: _AnyClass((inspect.Signature.empty,)) for name in inspect.signature(cls).parameters}

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Builds a pipeline of this class from the components of another one, as diffusers does.

        Args:
            pipeline: the other one, of latentia or diffusers.
            **kwargs: components to use instead of those that it has, or beside them.

        Raises:
            UsageError: it has a component that this class has no place for, such as an autoencoder, without which its
                images would be wrong.
        """
        lost = left_without(cls, [name for name, part in pipeline.components.items() if part is not None])
        if lost:
            raise UsageError(
                f"pipeline has {', '.join(lost)}, for which {cls.__name__} has no place: its images would be wrong. "
                f"Build it from the components that it takes: {cls.__name__}(...)."
            )
        return super().from_pipe(pipeline, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Loads a saved pipeline from a folder or from the Hub.

        Nothing that lies in the repository is run, and nothing in it is unpickled.

        Args:
            pretrained_model_name_or_path: a folder, or "user/name" on the Hub.
            **kwargs: as in diffusers: `revision`, `dtype`, `cache_dir`, `local_files_only`, a component to use
                instead of the saved one, ...

        Returns:
            A pipeline of the class that was saved, or of this class if it is a particular one.

        Raises:
            CheckpointError: model_index.json or a component is missing, damaged or not allowed, or this class has no
                place for a component.
            HubError: the repository cannot be reached.
            UsageError: the name is no folder and no repository, or code of a repository was asked for.
        """
        _refuse_code(kwargs)
        name = str(pretrained_model_name_or_path)
        local = os.path.isdir(name)
        folder = name if local else str(cls.download(name, **kwargs))
        index = read_index(folder)
        where = os.path.join(name, INDEX_NAME)
        asked = {name: pair for name, pair in components(index).items() if name not in kwargs}
        kinds = {name: component_class(*pair, where) for name, pair in asked.items()}
        check_components(kinds, Path(folder), kwargs.get("variant"))
        kind = pipeline_class(index, where) if cls is DiffusionPipeline else cls
        check_kept(kind, index, where)
        kwargs["use_safetensors"] = True
        try:
            load = DiffusersPipeline.from_pretrained.__func__  # type: ignore[attr-defined]
            with LOADING:
                pipe = load(kind, folder, **kwargs)  # `super()` would not do: `kind` may be diffusers' own
        except UsageError as error:  # of a setting in the index
            raise UsageError(f"{where}: {error}") from error
        except LatentiaError:
            raise
        except Exception as error:  # each of the three libraries has errors of its own
            raise CheckpointError(f"{kind.__name__} cannot be loaded from {name}: {error}") from error
        # A folder of this machine, the cache included, must not end up in saved files.
        pipe.register_to_config(_name_or_path=None if local else name)
        for part in pipe.components.values():
            if isinstance(part, ConfigMixin) and os.path.isdir(str(part.config.get("_name_or_path"))):
                part.register_to_config(_name_or_path=None)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """Fetches the files of a saved pipeline into the cache, all from one commit.

        Args:
            pretrained_model_name: "user/name" on the Hub.
            **kwargs: as in diffusers.

        Returns:
            The folder that holds them.

        Raises:
            HubError: the repository, its revision or a file of it cannot be had.
        """
        _refuse_code(kwargs)
        check_repository(str(pretrained_model_name), kwargs.get("revision"))
        place = {key: kwargs[key] for key in ("cache_dir", "local_files_only", "token") if key in kwargs}
        place["local_files_only"] = bool(place.get("local_files_only"))
        kwargs["use_safetensors"] = True
        asked = kwargs.pop("revision", None)
        try:
            # Resolved once, so that the index that is checked and the files that are fetched are one commit's.
            commit = resolve_revision(pretrained_model_name, revision=asked, **place)
            index_file = hf_hub_download(
                pretrained_model_name,
                INDEX_NAME,
                revision=commit,
                force_download=bool(kwargs.get("force_download")),
                **place,
            )
            logger.info(f"{pretrained_model_name} at commit {commit.resolved}")
            index = read_index(Path(index_file).parent)
            where = f"{pretrained_model_name}/{INDEX_NAME}"
            kind = pipeline_class(index, where) if cls is DiffusionPipeline else cls
            fetch = DiffusersPipeline.download.__func__  # type: ignore[attr-defined]
            return fetch(kind, pretrained_model_name, revision=commit, **kwargs)
        except LatentiaError:
            raise
        except HFValidationError as error:
            raise UsageError(
                f'"{pretrained_model_name}" is neither a folder nor the name of a Hub repository ("user/name").'
            ) from error
        except (HfHubHTTPError, RevisionResolutionError, OSError, ValueError) as error:
            raise HubError(f"{pretrained_model_name} cannot be fetched from the Hub: {error}") from error

    # Families narrow these signatures: each has options of its own.

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        """Encode images into latents; images as for `from_input`."""
        self._cannot("encode")

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decode latents into images, the inverse of `encode` as far as the family has one."""
        self._cannot("decode")

    def interpolate(self, *args: Any, **kwargs: Any) -> Any:
        """Interpolate two images in the latent space: a number of images on the way, both ends included."""
        self._cannot("interpolate")

    def log_likelihood(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log-likelihood of images in nats, one number per image, summed over its pixels."""
        self._cannot("log_likelihood")

    def anomaly_score(self, images: Any, *, score: AnomalyScore | None = None, **options: Any) -> Tensor:
        """Anomaly score of each image, row or text: the larger, the less it is like what the model was trained on.

        Of a likelihood simple images may score as typical although none like them was seen (Nalisnick et al., 2018,
        1810.09136).

        Args:
            images: what `log_likelihood` or `reconstruct` takes.
            score: "likelihood", the negative `log_likelihood` in nats; "reconstruction", the squared error of
                `reconstruct` in units of half the range [-1, 1], summed over an image; or "relative_reconstruction",
                that error over the variance of the image. `None` (default): the first that the pipeline has.
            **options: of `log_likelihood` or `reconstruct`. Without class_labels a pipeline with classes takes the mean
                likelihood of its classes or the smallest error.

        Returns:
            (B,).

        Raises:
            UsageError: the pipeline has no such score.

        Example:
            >>> from latentia import Autoencoder, AutoencoderPipeline
            >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4))
            >>> pipe.anomaly_score(torch.zeros(2, 1, 8, 8)).shape
            torch.Size([2])
        """
        if score is not None:
            check_choice("score", score, get_args(AnomalyScore))
        if score is None:
            score = "reconstruction" if self.likelihood is None and hasattr(self, "reconstruct") else "likelihood"
        if score == "likelihood":
            return -self.log_likelihood(images, **options)
        if not hasattr(self, "reconstruct"):
            self._cannot("reconstruct")
        return reconstruction_error(self, images, options, relative=score == "relative_reconstruction")

    def _register_label_names(self, label_names: Sequence[str] | Mapping[str, str] | None) -> None:
        """Save the names of the classes with the pipeline; None: they have none.

        model_index.json holds components as lists, so the names are saved as {"0": name, ...}. diffusers sorts the keys
        of that file as text, "10" before "2": the index of a name is its key, never its place.

        Raises:
            UsageError: the keys of a mapping are not the indices 0 to n - 1; a text in place of a list, names that are
                no texts, or two equal ones; another number of names than of classes.
        """
        if isinstance(label_names, Mapping):
            by_index = {str(key): name for key, name in label_names.items()}
            if wrong := {str(i) for i in range(len(by_index))} - by_index.keys():
                raise UsageError(
                    f"label_names must have the keys 0 to {len(by_index) - 1}, the indices of the classes; "
                    f"{', '.join(sorted(wrong))} is missing among {', '.join(by_index)}."
                )
            label_names = [by_index[str(i)] for i in range(len(by_index))]
        if label_names is not None:
            if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names):
                raise UsageError(f"label_names must be a list of texts, one for each class; got {label_names!r}.")
            if len({*label_names}) < len(label_names):
                twice = next(name for name in label_names if [*label_names].count(name) > 1)
                raise UsageError(f'label_names must differ from each other; got "{twice}" twice.')
            if label_names and self.num_classes not in (None, len(label_names)):
                raise UsageError(f"label_names must be {self.num_classes}, one for each class; got {len(label_names)}.")
        self.register_to_config(label_names=label_names and {str(i): name for i, name in enumerate(label_names)})

    def _class_indices(
        self, class_labels: Labels, count: int | None = None, *, required: bool = False
    ) -> Tensor | None:
        """The class indices of labels that are indices or names.

        Args:
            class_labels: an index in [0, num_classes) or a name of `label_names`, or several; `None`: no class.
            count: of images: there must be one label for all of them or one for each; `None` (default): any number.
            required: whether a pipeline that was trained with classes refuses `None`. Default False.

        Returns:
            int64, (count,), or as many as were given without `count`; None for no class.

        Raises:
            UsageError: labels that are missing, not expected, not known, no integers or too few.
        """
        classes = self.num_classes
        if class_labels is None:
            if required and classes is not None:
                raise UsageError(f"class_labels are missing: this pipeline was trained with {classes} classes.")
            return None
        if classes is None:
            raise UsageError("class_labels were given, but this pipeline was trained without classes; leave them out.")
        rule = f"class_labels must be integers from 0 to {classes - 1}, or names"
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.reshape(-1).tolist()
        elif isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        if not len(class_labels):
            raise UsageError(f"{rule}; got none. Leave class_labels out for no class.")
        names = list((self.config.label_names or {}).values())
        indices: list[int] = []
        for label in class_labels:
            if isinstance(label, Tensor) and label.ndim == 0:
                label = label.item()
            if isinstance(label, str):
                if label not in names:
                    known = f"one of {names}" if names else "an index: this pipeline has no names for its classes"
                    raise UsageError(f'class_labels must be {known}; got "{label}".{did_you_mean(label, names)}')
                label = names.index(label)
            if not isinstance(label, Integral) or isinstance(label, bool):
                raise UsageError(f"{rule}; got {label!r}.")
            if not 0 <= label < classes:
                raise UsageError(f"class_labels must be from 0 to {classes - 1}; got {label}.")
            indices.append(int(label))
        if count is not None and len(indices) not in (1, count):
            raise UsageError(f"class_labels must be one, or one for each of {count} images; got {len(indices)}.")
        labels = torch.tensor(indices, device=self._execution_device)
        return labels if count is None else labels.expand(count)

    def _cannot(self, word: str, why: str = "its family does not define one") -> NoReturn:
        words = [known for known in self.words if getattr(type(self), known) is not getattr(DiffusionPipeline, known)]
        able = ", ".join(words)
        if word in self.words:
            why = f"define it in the class, or `words` without it; latents={self.latents!r} stands for it"
        raise UsageError(
            f"{type(self).__name__} has no {word}: {why}. It can sample, pipe(...)"
            + (f", and {able}." if able else ", and nothing else.")
        )


def _refuse_code(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("trust_remote_code", False) or kwargs.pop("custom_pipeline", None) is not None:
        raise UsageError(
            "trust_remote_code and custom_pipeline must be left out: latentia runs no code that lies in a repository. "
            "If you have read that code and trust it, load it with diffusers.DiffusionPipeline."
        )
    if kwargs.get("use_safetensors") is False:
        raise UsageError("use_safetensors must be True, got False: pickled weights can run code.")
