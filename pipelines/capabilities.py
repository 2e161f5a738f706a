"""Capabilities of a pipeline: conditions, latents, likelihood, and the options of its call for a command line.

Pipelines of latentia declare these as attributes of their class (see `DiffusionPipeline`); for a pipeline of diffusers,
which declares nothing, they are read from its call. Callers use `capabilities` and need no names of families.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
from PIL import Image

# Everything that a sample may be conditioned on. Texts and labels are for each image; the last four are images.
CONDITIONS = ("class_labels", "prompt", "negative_prompt", "image", "mask", "low_resolution", "control_image")
Latents = Literal["continuous", "indices", "embeddings"]
LatentPath = Literal["lerp", "slerp"]
_WRITTEN = (Image.Image, str, float, int, bool)  # what can be typed, an image as its path; the first that fits
_CALLERS_OWN = ("batch_size", "num_images_per_prompt", "output_type", "return_dict", "mask_image")


@dataclass(frozen=True)
class Likelihood:
    """The number that `log_likelihood` gives.

    Args:
        kind: "exact" or "lower bound".
        of: "256 bins", a probability of images of 8 bits; "density", a density on [-1, 1], to be taken of dequantised
            images; "binarised pixels", a probability after dynamic binarisation; "levels", of pixels of fewer
            levels than 256; "indices", a probability of the codebook indices of an image and of no pixels; "text", a
            probability of characters; "rows", a probability of the classes and rounded numbers of the rows of a table,
            and a density of its other numbers; "values", a density of the values of time series.

    Example:
        >>> str(Likelihood("lower bound", "256 bins")), str(Likelihood("lower bound", "binarised pixels"))
        ('lower bound', 'lower bound, dynamic binarisation')
        >>> str(Likelihood("exact", "density"))
        'exact density of dequantised pixels'
        >>> str(Likelihood("exact", "levels"))
        'exact, of the fewer levels that bytes fall into'
    """

    kind: Literal["exact", "lower bound"]
    of: Literal["256 bins", "density", "binarised pixels", "levels", "indices", "text", "rows", "values"]

    def __str__(self) -> str:
        if (self.kind, self.of) == ("exact", "density"):  # of the bytes themselves its mean is a bound
            return "exact density of dequantised pixels"
        more = {
            "levels": ", of the fewer levels that bytes fall into",
            "binarised pixels": ", dynamic binarisation",
            "indices": ", of the codes and not of the pixels",
        }
        return self.kind + more.get(self.of, "")


@dataclass(frozen=True)
class Option:
    """An argument of `pipe(...)` that can be typed.

    Args:
        type: `bool`, `int`, `float`, `str`, or `PIL.Image.Image` for an image.
        default: of the call.
        help: what its docstring says, on one line.
    """

    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Capabilities:
    """What one pipeline can do; see `capabilities`.

    Args:
        conditions: those of `CONDITIONS` that this pipeline can be asked for.
        latents: what `encode` gives: "continuous" latents; "indices" of a codebook, where `encode(images,
            continuous=True)` gives the latents before quantisation and `decode` takes both; "embeddings", which nothing
            decodes; `None`: there is no `encode`.
        latent_conditions: those of `conditions` that `encode`, `decode` and `interpolate` take too.
        latent_path: "lerp", the straight line between two latents, or "slerp", the great circle, for latents that are
            noise.
        likelihood: what `log_likelihood` gives; `None`: there is none.
        words: those of encode, decode, interpolate and log_likelihood that it has.
        num_classes: how many classes can be asked for; `None`: none.
        modality: what it makes: "image", or "text".
        samples: whether it makes images of its own; an autoencoder without a prior does not.
        translates: whether it makes images only from an `image` that it is given.
        options: arguments of `pipe(...)` that can be typed, conditions included, by name. A pipeline whose call takes
            `num_inference_steps` takes it in all of its words.
    """

    conditions: tuple[str, ...]
    latents: Latents | None
    latent_conditions: tuple[str, ...]
    latent_path: LatentPath
    likelihood: Likelihood | None
    words: tuple[str, ...]
    num_classes: int | None
    modality: str
    samples: bool
    translates: bool
    options: dict[str, Option]


def capabilities(pipe: Any) -> Capabilities:
    """The capabilities of a pipeline of latentia or of diffusers.

    Args:
        pipe: of latentia, whose class declares them; or any other, which then has no words, and the conditions that its
            call has arguments for.

    Example:
        >>> from latentia import GANPipeline, MLPGenerator
        >>> able = capabilities(GANPipeline(MLPGenerator()))
        >>> able.latents, able.words, able.conditions
        ('continuous', ('encode', 'decode', 'interpolate'), ())
        >>> able.options["truncation"].type, able.options["truncation"].default
        (<class 'float'>, 1.0)
    """
    options = call_options(type(pipe).__call__) if callable(pipe) else {}
    num_classes = getattr(pipe, "num_classes", None)
    conditions = getattr(pipe, "conditions", tuple(name for name in CONDITIONS if name in options))
    absent = set() if num_classes else {"class_labels"}
    if not getattr(pipe, "is_text_conditional", True):
        absent |= {"prompt", "negative_prompt"}
    if getattr(pipe, "input_channels", True) is None:
        absent |= {"control_image"}
    conditions = tuple(name for name in conditions if name not in absent)
    return Capabilities(
        conditions=conditions,
        latents=getattr(pipe, "latents", None),
        latent_conditions=tuple(name for name in getattr(pipe, "latent_conditions", ()) if name in conditions),
        latent_path=getattr(pipe, "latent_path", "lerp"),
        likelihood=getattr(pipe, "likelihood", None),
        words=getattr(pipe, "words", ()),
        num_classes=num_classes,
        translates=getattr(pipe, "needs_image", False),
        modality=getattr(pipe, "modality", "image"),
        samples=not getattr(pipe, "needs_prior", False) or pipe.prior is not None,
        options=options,
    )


def call_options(call: Callable) -> dict[str, Option]:
    """The arguments of a function that can be typed, with their help from its Google docstring.

    Left out are what only Python can give, such as tensors, generators and functions, `batch_size`, `output_type` and
    `return_dict`, which whoever calls it chooses, and `mask_image`, another name for `mask`.

    Example:
        >>> def call(pipe, batch_size: int = 1, *, top_k: int | None = None, latents: torch.Tensor | None = None):
        ...     '''Sample.
        ...
        ...     Args:
        ...         top_k: draw from the k likeliest.
        ...     '''
        >>> call_options(call)
        {'top_k': Option(type=<class 'int'>, default=None, help='draw from the k likeliest.')}
    """
    helps = {arg.arg_name: arg.description or "" for arg in docstring_parser.parse(inspect.getdoc(call) or "").params}
    found = {}
    for name, argument in inspect.signature(call).parameters.items():
        typed = _written(argument.annotation)
        if typed is not None and name not in _CALLERS_OWN:
            found[name] = Option(typed, argument.default, " ".join(helps.get(name, "").split()))
    return found


def _written(annotation: Any) -> type | None:
    """The type of what is typed for an argument; None if it cannot be typed."""
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    return next((kind for kind in _WRITTEN if kind in members), None)
