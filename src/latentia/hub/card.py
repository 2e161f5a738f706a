"""Model cards: training, data set, evaluation results and usage, written from plain data."""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latentia.errors import UsageError
from latentia.files.reading import read_text
from latentia.files.writing import write_text
from latentia.hub.blocks import block, put_block
from latentia.hub.usage import Usage

_SECRET_KEY = re.compile(r"token|key|secret|password", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b|\b\w+://[^/\s:@]+:[^/\s@]+@")
MAX_CARD = 1_000_000  # bytes
MAX_METADATA, MAX_DEPTH = 100_000, 32  # characters and levels
_OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_IMAGE_PATH = re.compile(r"[\w\-]+(/[\w.\-]+)*\.(png|jpg|jpeg|webp|gif)")
_SHOWN_CLASSES = 20
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def model_card(
    *,
    name: str,
    pipeline_class: str,
    family: str,
    pipeline_tag: str,
    dataset: str,
    on_hub: bool = True,
    license: str | None = None,
    recipe: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
    hardware: str | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    command: Sequence[str] | None = None,
    lineage: Mapping[str, str] | None = None,
    grid: str | None = "samples/grid.png",
    reconstructions: str | None = None,
    excerpt: str | None = None,
    usage: Usage | None = None,
    repo_id: str | None = None,
    limits: Sequence[str] = (),
) -> ModelCard:
    """Write the model card of a trained pipeline, to be saved as README.md beside model_index.json.

    Sections are marked, so that they can be updated without touching what a user adds. Strings are escaped in YAML and
    in Markdown. Possible secrets are left out: entries of `recipe` whose key has
    token, key, secret or password in it, and values that look like an access token. Absolute paths lose their folders.

    Args:
        name: of the model, as in "digits-ddpm".
        pipeline_class: the saved class, as in "UnconditionalDiffusionPipeline".
        family: a tag, as in "diffusion", "vae", "gan".
        pipeline_tag: the Hub's task, as in "unconditional-image-generation".
        dataset: its Hub id, or any name.
        on_hub: whether `dataset`, if it looks like a Hub id, is one. False for a folder of this machine, whose name
            must not stand for a data set on the Hub. Default True.
        license: the Hub's identifier, as in "apache-2.0"; None (default) or "none": the card names no licence.
        recipe: the resolved training arguments; nested mappings become dotted keys. None if they are not known; then
            the card has no section on training.
        metrics: one mapping each, with "name" and "value"; "real" (the same metric of real images),
            "type" (its short name on leaderboards), "n" (samples), "extractor", "extractor_sha256" and any
            further keys are optional.
        hardware: what it was trained on, as in "2 CPU cores".
        minutes: how long it took.
        epochs: how often it saw each image of the data; None for a stream.
        seed: of the run.
        command: the command line that started it, split into words.
        lineage: versions and commit, as in {"torch": "2.13.0", "commit": "866f060"}.
        grid: an image of what the pipeline gives, relative to the folder; None for none.
        reconstructions: an image of data beside their reconstructions, likewise. Default None.
        excerpt: a text that the pipeline gives, shown as it is. Default None.
        usage: how the pipeline is called and what it gives; None (default): it samples without conditions.
        repo_id: "user/name", if it is known.
        limits: sentences about limitations of the model.

    Returns:
        The card. `card.save(folder / "README.md")` writes it.

    Raises:
        UsageError: `pipeline_class` is not the name of a class, `grid` or `reconstructions` is not a relative path of
            an image, or a metric lacks its name or value.

    Example:
        >>> card = model_card(
        ...     name="digits", pipeline_class="UnconditionalDiffusionPipeline", family="diffusion",
        ...     pipeline_tag="unconditional-image-generation", dataset="digits", license="apache-2.0",
        ...     recipe={"learning_rate": 2e-4}, metrics=[{"name": "FID", "value": 3.5, "real": 1.2, "n": 1000}],
        ...     hardware="2 CPU cores", minutes=12, seed=0)
        >>> card.data.library_name
        'latentia'
    """
    if not re.fullmatch(r"[A-Za-z]\w*", pipeline_class):
        raise UsageError(f"pipeline_class must be the name of a class, got {pipeline_class!r}.")
    usage = usage or Usage()
    images = {"grid": (grid, usage.caption), "reconstructions": (reconstructions, "Images, and beside each its own")}
    for argument, (path, _) in images.items():
        if path is not None and (not _IMAGE_PATH.fullmatch(path) or ".." in PurePosixPath(path).parts):
            raise UsageError(
                f'{argument} must be the path of an image inside the folder, such as "samples/grid.png"; got {path!r}.'
            )
    if repo_id is not None and not _HUB_ID.fullmatch(repo_id):
        raise UsageError(f'repo_id must be "user/name", got {repo_id!r}.')
    for metric in metrics:
        if not {"name", "value"} <= metric.keys():
            raise UsageError(f'Every metric needs a "name" and a "value", got {dict(metric)!r}.')
    metrics = usage.metrics(metrics)
    dataset = _plain(dataset)
    data = ModelCardData(
        library_name="latentia",
        tags=["diffusers", "latentia", family],
        pipeline_tag=pipeline_tag,
        license=None if license == "none" else license,
        datasets=[dataset] if on_hub and _HUB_ID.fullmatch(dataset) else None,
        metrics=list(dict.fromkeys(_type(metric) for metric in metrics)) or None,
        model_name=name,
        eval_results=_results(metrics, pipeline_tag, dataset, seed) or None,
    )
    summary = [
        f"# {_escape(name)}",
        "",
        f"{pipeline_class} of the {_escape(family)} family, trained on {_escape(dataset)} with latentia.",
        *(line for path, caption in images.values() if path for line in ("", f"![{caption}]({path})")),
        *([] if excerpt is None else ["", "A sample:", "", *(f"    {line}" for line in excerpt.splitlines())]),
    ]
    training = [] if recipe is None else _training(recipe, command, hardware, minutes, epochs, seed, lineage or {})
    unranked = [metric for metric in metrics if not _ranked(metric)]
    said = [*limits, usage.limit(dataset)]
    parts = {
        "summary": summary,
        "use": use_lines(usage, repo_id),
        "training": training,
        "evaluation": evaluation_lines(data.eval_results or [], unranked) if metrics else [],
        "limits": ["## Limits", "", *(f"- {_escape(sentence)}" for sentence in said)],
    }
    text = "\n".join(block(part, lines) for part, lines in parts.items() if lines)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def read_card(path: Path) -> ModelCard:
    """Read a card that may come from anyone.

    Raises:
        UsageError: it is no text of at most `MAX_CARD` bytes, or its metadata are no YAML mapping of at most
            `MAX_METADATA` characters, of one model, not nested too deep and without aliases, of which a few stand for
            any number of values.
    """
    text = read_text(path, MAX_CARD, home=path.parent, error=UsageError)
    head = text.lstrip().partition("\n---")[0]
    try:
        if head.startswith("---"):
            if len(head) > MAX_METADATA:
                raise ValueError(f"they have {len(head)} characters; at most {MAX_METADATA} are read")
            depth = 0
            for token in yaml.scan(head):
                depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
                if depth > MAX_DEPTH or isinstance(token, yaml.AliasToken):
                    raise ValueError(f"they are nested more than {MAX_DEPTH} deep, or use an alias of YAML")
            found = yaml.safe_load(head)
            index = found.get("model-index") if isinstance(found, dict) else None
            if isinstance(index, list) and len(index) > 1:  # the Hub's client would join them under one name
                raise ValueError(f"model-index holds {len(index)} models, and one is kept")
        card = ModelCard(text)
        for key, several in {"tags": True, "datasets": True, "metrics": True, "pipeline_tag": False}.items():
            value = card.data.get(key)
            if several and isinstance(value, str):  # the Hub takes one text for a list of one
                card.data[key] = [value]
            elif value is not None and not (_is_texts(value) if several else isinstance(value, str)):
                raise ValueError(f"{key} must be {'a list of texts' if several else 'a text'}, got {value!r:.100}")
        return card
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"The metadata at the head of {path} cannot be read: {error}. Mend or remove them.") from error


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def add_results(path: Path, metrics: Sequence[Mapping[str, Any]], *, dataset: str, seed: int) -> bool:
    """Add evaluation results to a saved card: to its `model-index` and its section "Evaluation".

    Results of the same metric on the same data set are replaced; everything else, and a section that was edited by
    hand, is left as it is.

    Args:
        path: the README.md.
        metrics: as for `model_card`.
        dataset: Hub id or name of the real images.
        seed: of the samples.

    Returns:
        Whether the section was written; False: it was edited by hand, and only the metadata have the results.

    Raises:
        UsageError: the file has no metadata of a model, or a metric lacks its name or value.
    """
    card = read_card(path)
    data: Any = card.data
    dataset = _plain(dataset)
    fresh = _results(metrics, data.pipeline_tag or "unconditional-image-generation", dataset, seed)
    data.eval_results = join_results(data.eval_results or [], fresh)
    data.model_name = data.model_name or path.resolve().parent.name
    data.metrics = list(dict.fromkeys([*(data.metrics or []), *(_type(metric) for metric in metrics)]))
    lines = evaluation_lines(data.eval_results, [metric for metric in metrics if not _ranked(metric)])
    text, written = put_block(card.text, "evaluation", lines, before="limits")
    write_text(path, f"---\n{data.to_yaml()}\n---\n{text}")
    return written


def join_results(old: Iterable[EvalResult], new: Iterable[EvalResult]) -> list[EvalResult]:
    """Join two lists of results; a new result replaces an old one of the same metric and data set."""
    new = list(new)
    replaced = {(result.dataset_name, result.metric_type) for result in new}
    return [*(r for r in old if (r.dataset_name, r.metric_type) not in replaced), *new]


def evaluation_lines(results: Iterable[EvalResult], unranked: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Write the section "Evaluation": results of the metadata and any that are not finite."""
    columns = ("metric", "value", "real-data score", "samples", "extractor", "data")
    rows = []
    for result in results:
        about = result.metric_args or {}
        extractor = f"{about.get('extractor', '')} {str(about.get('extractor_sha256', ''))[:8]}".strip()
        data = f"{result.dataset_name} {result.dataset_split or ''}".strip()
        values = (result.metric_value, about.get("real", about.get("floor")), about.get("n_samples"))  # "floor" in 0.1
        rows.append([str(result.metric_name or result.metric_type), *map(_number, values), extractor, data])
    for metric in unranked:
        rows.append([*(_number(metric.get(key)) for key in ("name", "value", "real", "n", "extractor")), ""])
    return [
        "## Evaluation",
        "",
        *_table(columns, rows),
        "",
        "The numbers compare only with numbers from the same extractor at the same number of samples. The real-data "
        "score is what held-out real images get in place of the samples.",
    ]


def use_lines(usage: Usage, repo_id: str | None, diffusers_code: bool = False) -> list[str]:
    """Write the section "Use": loading with latentia and, with `diffusers_code`, with diffusers and pipeline.py."""
    place = repo_id or "path/to/this/folder"
    lines = [
        "## Use",
        "",
        "```python",
        *([*(f"import {name}" for name in usage.imports), ""] if usage.imports else []),
        "import latentia",
        "",
        f'pipe = latentia.DiffusionPipeline.from_pretrained("{place}")',
        *usage.code,
        "```",
    ]
    if usage.classes:
        shown = ", ".join(_escape(name) for name in usage.classes[:_SHOWN_CLASSES])
        more = len(usage.classes) - _SHOWN_CLASSES
        lines += ["", f"It is conditioned on {len(usage.classes)} classes: {shown}{f' and {more} more' * (more > 0)}."]
    if diffusers_code:
        lines += [
            "",
            "In a program that knows diffusers only, with latentia installed. This runs the `pipeline.py` of this "
            "repository, a few lines that name the class; read it first.",
            "",
            "```python",
            "import diffusers",
            "from huggingface_hub import snapshot_download",
            "",
            f'folder = snapshot_download("{place}")',
            "pipe = diffusers.DiffusionPipeline.from_pretrained(",
            '    folder, custom_pipeline="pipeline", trust_remote_code=True',
            ")",
            "```",
        ]
    return lines


def _training(recipe, command, hardware, minutes, epochs, seed, lineage) -> list[str]:
    lines = ["## Training", "", *_table(("argument", "value"), list(_recipe_rows(recipe)))]
    if command:
        line = " ".join(shlex.join(redact_command(command)).split())
        fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 3)
        lines += ["", f"{fence}text", line, fence]
    took = "" if minutes is None else f" in {minutes:.3g} minutes" if minutes >= 1 else f" in {60 * minutes:.3g} s"
    known = [] if epochs is None else [f"{epochs:.3g} epochs"]
    known += [f"seed {seed}"] if seed is not None else []
    known += [f"{key} {value}" for key, value in {"latentia": version("latentia"), **lineage}.items()]
    return [
        *lines,
        "",
        f"Trained on {_escape(hardware or 'hardware that is not known')}{took}, {_escape(', '.join(known))}.",
    ]


def redact_command(command: Iterable[str]) -> Iterator[str]:
    """Remove secrets and absolute folders from the words of a command line."""
    hide = False
    for word in command:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            hide = bool(_SECRET_KEY.search(flag)) and not equals
            if _SECRET_KEY.search(flag) or SECRET_VALUE.search(word):
                continue
            yield f"{flag}{equals}{_plain(value)}"
        elif not hide and not SECRET_VALUE.search(word):
            yield _plain(word)


def _results(metrics: Sequence[Mapping[str, Any]], task: str, dataset: str, seed: int | None) -> list[EvalResult]:
    results = []
    for metric in metrics:
        if not _ranked(metric):
            continue
        named = ("type", "name", "value", "n", "split")
        rest = {key: _plain(value) for key, value in metric.items() if key not in named}
        arguments = {"n_samples": metric.get("n"), **rest, "seed": seed, "latentia_version": version("latentia")}
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


def _ranked(metric: Mapping[str, Any]) -> bool:
    """Whether a leaderboard can show the number; the table in the text can show any."""
    return not isinstance(metric["value"], (int, float)) or math.isfinite(metric["value"])


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
    """Convert to JSON types; absolute paths lose their folders."""
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
    """Escape Markdown and HTML, so that `text` appears as it is, in one line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)
