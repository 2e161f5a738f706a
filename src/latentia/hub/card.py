"""Model cards: what was trained, on what, how well, and how to load it, from plain data."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import latentia
from latentia.errors import UsageError

_SECRET_KEY = re.compile(r"token|key|secret|password", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b|\b\w+://[^/\s:@]+:[^/\s@]+@")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_PICTURE = re.compile(r"[\w\-]+(/[\w.\-]+)*\.(png|jpg|jpeg|webp|gif)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def model_card(
    *,
    name: str,
    pipeline_class: str,
    family: str,
    pipeline_tag: str,
    dataset: str,
    license: str,
    recipe: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    hardware: str,
    minutes: float,
    seed: int,
    grid: str | None = "samples/grid.png",
    repo_id: str | None = None,
    limits: Sequence[str] = (),
) -> ModelCard:
    """The card of a trained pipeline, to be saved as README.md beside model_index.json.

    User strings are escaped in YAML and in Markdown. What may be secret is left out: entries of `recipe` whose key has
    token, key, secret or password in it, and values that look like an access token. Absolute paths lose their folders.

    Args:
        name: of the model, as in "digits-ddpm".
        pipeline_class: the saved class, as in "UnconditionalDiffusionPipeline".
        family: a tag, as in "diffusion", "vae", "gan".
        pipeline_tag: the Hub's task, as in "unconditional-image-generation".
        dataset: its Hub id, or any name.
        license: the Hub's identifier, as in "apache-2.0".
        recipe: the resolved training arguments; nested mappings become dotted keys.
        metrics: one mapping each, with "name" and "value"; "floor" (the same metric between two sets of real images),
            "type" (its short name on leaderboards), "n" (samples), "extractor", "extractor_sha256" and whatever else is
            worth knowing are optional.
        hardware: what it was trained on, as in "2 CPU cores".
        minutes: how long it took.
        seed: of the run.
        grid: a picture of samples, relative to the folder; None for none.
        repo_id: "user/name", if it is known.
        limits: sentences about what the model does not do.

    Returns:
        The card. `card.save(folder / "README.md")` writes it.

    Raises:
        UsageError: `pipeline_class` is no class name, `grid` is no relative picture path, or a metric lacks its name
            or value.

    Example:
        >>> card = model_card(
        ...     name="digits", pipeline_class="UnconditionalDiffusionPipeline", family="diffusion",
        ...     pipeline_tag="unconditional-image-generation", dataset="digits", license="apache-2.0",
        ...     recipe={"learning_rate": 2e-4}, metrics=[{"name": "FID", "value": 3.5, "floor": 1.2, "n": 1000}],
        ...     hardware="2 CPU cores", minutes=12, seed=0)
        >>> card.data.library_name
        'latentia'
    """
    if not re.fullmatch(r"[A-Za-z]\w*", pipeline_class):
        raise UsageError(f"pipeline_class must be the name of a class, got {pipeline_class!r}.")
    if grid is not None and (not _PICTURE.fullmatch(grid) or ".." in PurePosixPath(grid).parts):
        raise UsageError(f'grid must be a picture inside the folder, as in "samples/grid.png", got {grid!r}.')
    if repo_id is not None and not _HUB_ID.fullmatch(repo_id):
        raise UsageError(f'repo_id must be "user/name", got {repo_id!r}.')
    for metric in metrics:
        if not {"name", "value"} <= metric.keys():
            raise UsageError(f'Every metric needs a "name" and a "value", got {dict(metric)!r}.')
    dataset = _plain(dataset)
    data = ModelCardData(
        library_name="latentia",
        tags=["diffusers", "latentia", family],
        pipeline_tag=pipeline_tag,
        license=license,
        datasets=[dataset] if _HUB_ID.fullmatch(dataset) else None,
        metrics=list(dict.fromkeys(_type(metric) for metric in metrics)) or None,
        model_name=name,
        eval_results=_results(metrics, pipeline_tag, dataset, seed) or None,
    )
    body = _body(name, pipeline_class, family, pipeline_tag, dataset, grid, repo_id)
    body += ["## Training", "", *_table(("argument", "value"), list(_recipe_rows(recipe))), ""]
    body += [
        f"Trained on {_escape(hardware)} in {minutes:.4g} minutes, seed {seed}, latentia {latentia.__version__}.",
        "",
    ]
    if metrics:
        body += _evaluation(metrics)
    said = [*limits]
    if metrics:
        said.append(
            "The numbers compare only with numbers from the same extractor at the same number of samples. The floor is "
            "what real images score against other real images, so no model can be expected below it."
        )
    said.append(f"It makes images like those of {dataset} and knows nothing else.")
    body += ["## Limits", "", *(f"- {_escape(sentence)}" for sentence in said), ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body))


def add_results(
    path: Path, metrics: Sequence[Mapping[str, Any]], *, dataset: str, seed: int, picture: str | None = None
) -> None:
    """Put the numbers of an evaluation into a saved card: its `model-index` and its section "Evaluation".

    Numbers of the same metric on the same data set are replaced, others stay. Everything else is left as it is.

    Args:
        path: the README.md.
        metrics: as for `model_card`.
        dataset: Hub id or name of the real images.
        seed: of the samples.
        picture: a picture to show below the table, relative to the card.

    Raises:
        UsageError: the file has no metadata of a model, or a metric lacks its name or value.
    """
    try:
        card = ModelCard.load(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not a model card: {error}") from error
    data, dataset = card.data, _plain(dataset)
    fresh = _results(metrics, data.pipeline_tag or "unconditional-image-generation", dataset, seed)
    replaced = {(result.dataset_name, result.metric_type) for result in fresh}
    kept = [r for r in data.eval_results or [] if (r.dataset_name, r.metric_type) not in replaced]
    data.eval_results, data.model_name = [*kept, *fresh], data.model_name or path.resolve().parent.name
    data.metrics = list(dict.fromkeys([*(data.metrics or []), *(_type(metric) for metric in metrics)]))
    section = "\n".join([*_evaluation(metrics), *([f"![Evaluation]({picture})", ""] if picture else [])])
    parts = re.split(r"(?m)^(?=## )", card.text)
    at = next((i for i, part in enumerate(parts) if part.startswith("## Evaluation")), None)
    if at is None:
        at = next((i for i, part in enumerate(parts) if part.startswith("## Limits")), len(parts))
        parts.insert(at, "")
    parts[at] = section + "\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"---\n{data.to_yaml()}\n---\n{''.join(parts)}", encoding="utf-8")
    temporary.replace(path)


def _evaluation(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ("metric", "value", "floor (real against real)", "samples", "extractor")
    rows = [[_number(m.get(key)) for key in ("name", "value", "floor", "n", "extractor")] for m in metrics]
    return ["## Evaluation", "", *_table(columns, rows), ""]


def _body(name, pipeline_class, family, pipeline_tag, dataset, grid, repo_id) -> list[str]:
    call = 'pipe("a prompt")' if pipeline_tag == "text-to-image" else "pipe()"
    use = [f'{call}.images[0].save("sample.png")']
    if pipeline_tag == "image-feature-extraction":  # an encoder and decoder, which may have nothing to sample from
        use = ['latents = pipe.encode(PIL.Image.open("picture.png"))', 'pipe.decode(latents)[0].save("again.png")']
    return [
        f"# {_escape(name)}",
        "",
        f"{pipeline_class} of the {_escape(family)} family, trained on {_escape(dataset)} with latentia.",
        "",
        *([f"![Samples]({grid})", ""] if grid else []),
        "## Use",
        "",
        "```python",
        *(["import PIL.Image", "", "import latentia"] if len(use) > 1 else ["import latentia"]),
        "",
        f'pipe = latentia.DiffusionPipeline.from_pretrained("{repo_id or "path/to/this/folder"}")',
        *use,
        "```",
        "",
    ]


def _results(metrics, task: str, dataset: str, seed: int) -> list[EvalResult]:
    results = []
    for metric in metrics:
        if isinstance(metric["value"], (int, float)) and not math.isfinite(metric["value"]):
            continue  # the table in the text shows it; a leaderboard cannot
        named = ("type", "name", "value", "n", "split")
        rest = {key: _plain(value) for key, value in metric.items() if key not in named}
        arguments = {"n_samples": metric.get("n"), **rest, "seed": seed, "latentia_version": latentia.__version__}
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=metric.get("split"),
                metric_type=_type(metric),
                metric_name=str(metric["name"]),
                metric_value=_plain(metric["value"]),
                metric_args={key: value for key, value in arguments.items() if value is not None},
            )
        )
    return results


def _type(metric: Mapping[str, Any]) -> str:
    return str(metric.get("type") or re.sub(r"[^a-z0-9]+", "_", str(metric["name"]).lower()).strip("_"))


def _recipe_rows(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in recipe.items():
        if _SECRET_KEY.search(str(key)):
            continue
        if isinstance(value, Mapping):
            yield from _recipe_rows(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            yield from _recipe_rows({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        elif not SECRET_VALUE.search(str(value)):
            yield f"{prefix}{key}", str(_plain(value))


def _plain(value: Any) -> Any:
    """JSON's types only, and no folders of the machine that trained."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of numpy or torch
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _number(value: Any) -> str:
    value = _plain(value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _escape(text: str) -> str:
    """`text` as it stands, in one line, whatever Markdown or HTML it holds."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)
