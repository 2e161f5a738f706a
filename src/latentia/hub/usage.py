"""How a saved pipeline is called, and what its images are: for its model card, read from its configuration alone."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentia.errors import CheckpointError
from latentia.hub.load import INDEX_NAME, components, pipeline_class, read_index
from latentia.safety import read_json

_CAPTIONS = {
    "reconstructions": "Reconstructions",
    "embeddings": "Captions by their images, each with the images that it retrieves",
    "translations": "Inputs, outputs and targets, side by side",
}
_PRIORS = {  # a density fitted to latents or codes, which samples are drawn from
    "PositionPrior": "Samples of a prior that takes the codes of an image as independent",
    "LatentMixture": "Samples of a Gaussian mixture fitted to the latents",
    "LatentVAE": "Samples of a second VAE, fitted to the latents",
}
_SIGNALS = {  # modality -> a line that samples, with the class that is asked for, and what the figure shows
    "series": ('pipe(10, {}output_type="pandas").series.to_csv("series.csv")', "Real and generated series"),
    "sound": ('wav = pipe(1, {}output_type="wav").sound[0]', "Spectrograms of real and generated clips"),
}
_CODECS = {"SeriesScaler": "series", "LogMel": "sound"}  # what a pipeline with this component makes
_LIMITS = {
    "samples": "It makes images like those of {} and knows nothing else.",
    "reconstructions": "It encodes and decodes images like those of {}, and has nothing to sample new ones from.",
    "rows": "It makes rows like those of {} and knows nothing else. It gives no guarantee of privacy.",
    "signals": "It makes signals like those of {} and knows nothing else.",
    "embeddings": "It compares images and texts like those of {} and makes neither.",
    "translations": "It translates images like the inputs of {} and knows nothing else.",
    "texts": "It writes texts like {}, character by character, knows nothing else, and may repeat spans of it.",
}


@dataclass(frozen=True)
class Usage:
    """How a pipeline is called, and what it gives.

    Args:
        code: Python lines that use the pipeline `pipe`. Default: draw one sample.
        imports: modules that the lines need besides latentia.
        gives: "samples", "reconstructions" (an autoencoder without a prior), "embeddings", "translations", "texts",
            "rows" (of a table) or "signals" (time series and sounds).
        caption: of an image of what it gives.
        classes: names of the classes that it is conditioned on, or their indices as texts; empty: none.
    """

    code: Sequence[str] = ('pipe().images[0].save("sample.png")',)
    imports: Sequence[str] = ()
    gives: Literal["samples", "reconstructions", "embeddings", "translations", "texts", "rows", "signals"] = "samples"
    caption: str = "Samples"
    classes: Sequence[str] = ()

    def limit(self, dataset: str) -> str:
        """What a model trained on `dataset` cannot do."""
        return _LIMITS[self.gives].format(dataset)

    def metrics(self, metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The metrics of a card, named as those of reconstructions if they are."""
        found = [dict(metric) for metric in metrics]
        if self.gives == "reconstructions":
            for metric in found:
                name = metric.get("name", "")
                metric["name"] = name if "reconstruction" in name else f"{name} of reconstructions"
        return found


def pipeline_usage(kind: type, config: Mapping[str, Any], parts: Iterable[Mapping[str, Any]]) -> Usage:
    """The usage of a pipeline of latentia or diffusers.

    Args:
        kind: its class.
        config: what it registered: components as (library, class), and settings such as `label_names`.
        parts: configurations of its components.

    Example:
        >>> from latentia import VAE, VAEPipeline
        >>> pipe = VAEPipeline(VAE(sample_size=8, latent_dim=2, num_class_embeds=2), None, ["cat", "dog"])
        >>> pipeline_usage(type(pipe), pipe.config, [pipe.vae.config]).code
        ('pipe(class_labels="cat").images[0].save("sample.png")',)
    """
    call: Any = kind.__call__
    conditions = getattr(kind, "conditions", inspect.signature(call).parameters)
    present = {name: value[1] for name, value in components(config).items()}
    merged: dict[str, Any] = {}
    parts = list(parts)
    for part in parts:
        merged = {**part, **{key: value for key, value in merged.items() if value is not None}}
    if getattr(kind, "modality", None) == "table":
        lines = ("rows = pipe(1000).rows", 'rows.to_csv("rows.csv", index=False)')
        return Usage(lines, gives="rows", caption="Columns of real and of generated rows")
    modality = _CODECS.get(present.get("codec", ""), getattr(kind, "modality", "image"))
    if modality in _SIGNALS:
        line, caption = _SIGNALS[modality]
        classes = _classes(config, merged)
        asked = f"class_labels={classes[0]!r}, " if classes and config.get("label_names") else ""
        return Usage((line.format(asked),), gives="signals", caption=caption, classes=classes)
    if getattr(kind, "latents", None) == "embeddings":
        code = [*_image(merged), 'probabilities = pipe(image, ["a heart", "a star"])', "vector = pipe.encode(image)"]
        return Usage(tuple(code), ("PIL.Image",), "embeddings", _CAPTIONS["embeddings"])
    control = next((part for part in parts if part.get("condition_channels")), None)
    if control is not None and "control_image" in conditions:
        classes = _classes(config, merged) if "class_labels" in conditions else []
        return _control_usage(control, config.get("degradation") or {}, classes, _named(config, classes))
    if getattr(kind, "needs_image", False) is True:
        masked = (config.get("degradation") or {}).get("name") == "masked"
        if masked:  # whose networks take the mask as one more channel
            merged["in_channels"] = merged.get("out_channels")
        opened, mask = _image(merged), 'mask = PIL.Image.open("mask.png").convert("L")'
        call = f'pipe(image{", mask=mask" * masked}).images[0].save("sample.png")'
        code = [*opened, *([mask] if masked else []), call]
        return Usage(tuple(code), ("PIL.Image",), "translations", _CAPTIONS["translations"])
    if getattr(kind, "modality", "image") == "text":
        return Usage(("print(pipe(length=500).texts[0])",), gives="texts")
    if getattr(kind, "needs_prior", False) and "prior" not in present:
        code = [*_image(merged), "latents = pipe.encode(image)", 'pipe.decode(latents)[0].save("again.png")']
        return Usage(tuple(code), ("PIL.Image",), "reconstructions", _CAPTIONS["reconstructions"])
    classes = _classes(config, merged) if "class_labels" in conditions else []
    words = []
    if classes:
        words.append(_named(config, classes))
    if "prompt" in conditions and {"tokenizer", "text_encoder"} & present.keys():
        words.append('prompt="a prompt"')
    caption = _PRIORS.get(present.get("prior", ""), "Samples")
    return Usage((f'pipe({", ".join(words)}).images[0].save("sample.png")',), caption=caption, classes=classes)


def _named(config: Mapping[str, Any], classes: Sequence[str]) -> str:
    """The argument that asks for the first class, by its name if it can be written; empty without classes."""
    if not classes:
        return ""
    named = config.get("label_names") and re.fullmatch(r"[\w .,'&()/+-]+", classes[0])
    return f'class_labels="{classes[0]}"' if named else "class_labels=0"


def _control_usage(
    part: Mapping[str, Any], degradation: Mapping[str, Any], classes: Sequence[str], first_class: str
) -> Usage:
    """The usage of diffusion that is conditioned on images; `part` is the network that sees them."""
    name, size = degradation.get("name"), part["sample_size"]
    channels, scale = part["condition_channels"] - (name == "masked"), part.get("condition_scale") or 1
    sides = [side * scale for side in (size if isinstance(size, (list, tuple)) else (size, size))]
    argument = {"masked": "image", "smaller": "low_resolution"}.get(name or "", "control_image")
    if name == "smaller":
        sides = [int(side // degradation["strength"]) for side in sides]
    code = _image({"in_channels": channels, "sample_size": sides})
    if name == "masked":
        code.append('mask = PIL.Image.open("mask.png").convert("L")')
    words = [f"{argument}=image", *(["mask=mask"] if name == "masked" else []), *([first_class] if first_class else [])]
    code.append(f'pipe({", ".join(words)}).images[0].save("sample.png")')
    return Usage(tuple(code), ("PIL.Image",), "translations", _CAPTIONS["translations"], classes)


def saved_usage(folder: Path) -> Usage:
    """The usage of the pipeline saved in `folder`.

    Raises:
        CheckpointError: it is not a saved pipeline, or a configuration cannot be read.
    """
    index = read_index(folder)
    paths = [folder / name / "config.json" for name in components(index)]
    parts = [read_json(path) for path in paths if path.is_file()]
    kind = pipeline_class(index, str(folder / INDEX_NAME))
    try:
        return pipeline_usage(kind, index, parts)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX_NAME}, or a config.json below it, has a setting that no pipeline has: {error!r}."
        ) from error


def _classes(config: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    names = config.get("label_names")
    if names:
        return [str(names[key]) for key in sorted(names, key=int)]
    return [str(i) for i in range(part.get("num_class_embeds") or 0)]


def _image(part: Mapping[str, Any]) -> list[str]:
    """Lines that open an image as the networks take it: of their channels and size."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(part.get("in_channels") or part.get("num_channels") or 0)
    size = part.get("sample_size") or part.get("image_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    convert = f'.convert("{mode}")' if mode else ""
    return [f'image = PIL.Image.open("image.png"){convert}{f".resize(({width}, {height}))" if size else ""}']
