"""Model card of a saved pipeline, made from its folder; text that a user wrote into it is kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData

from latentia.errors import UsageError
from latentia.files.reading import MAX_TEXT, read_json
from latentia.files.writing import write_text
from latentia.functional.settings import check_types
from latentia.hub.blocks import put_block, read_blocks
from latentia.hub.card import evaluation_lines, join_results, model_card, read_card
from latentia.hub.files import CARD_NAME
from latentia.hub.load import components, read_index
from latentia.hub.usage import saved_usage

_CONFIG, _SUMMARY = "training_config.json", "run_summary.json"
# What these two may hold under the keys that are read here.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("family", "pipeline_tag", "hardware", "hub_model_id", "hub_license", "dataset_name"), str),
    **dict.fromkeys(("score", "data", "lineage"), dict),
    **{"train_data_dir": str, "training_seconds": int | float, "epochs": int | float, "seed": int},
    **{"command": list, "limits": list},
}
_PARTS = ("summary", "use", "training", "evaluation", "limits")


@dataclass(frozen=True)
class FolderCard:
    """A model card and remarks on what it lacks.

    Args:
        path: where it belongs, the README.md of its folder.
        content: the card.
        remarks: what it lacks, and which sections were left as they are because they were edited by hand.
        written: whether it is at `path`.
    """

    path: Path
    content: str
    remarks: list[str]
    written: bool = False

    def text(self) -> str:
        """The card, or where it was written, and the remarks."""
        return "\n".join([f"{self.path} is written." if self.written else self.content, *self.remarks])


@check_types
def folder_card(
    folder: str | Path,
    *,
    write: bool = False,
    name: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> FolderCard:
    """Make the model card of a saved pipeline from the files in its folder, and list what the card lacks.

    Arguments take precedence over the present card, and that over the files of the run. Sections and metadata that a
    user wrote or edited stay, and so do results of the present card, which `latentia evaluate` may have added.

    Args:
        folder: a saved pipeline, such as the output folder of a run.
        write: put the card into README.md; otherwise it is only returned.
        name: of the model.
        dataset: what it was trained on, a Hub id or any name.
        license: the Hub's identifier, such as apache-2.0; not given: that of the present card or of the run, if they
            name one.
        repo_id: "user/name", for the lines that show how to load it.

    Returns:
        The card and the remarks.

    Raises:
        CheckpointError: `folder` is not a saved pipeline.
        UsageError: the data set is not known, or the card's metadata cannot be read.

    Example:
        >>> folder_card("/nowhere")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere has no model_index.json ...
    """
    folder = Path(folder)
    index, path = read_index(folder), folder / CARD_NAME
    old = read_card(path) if path.is_file() else None
    said = old.data.to_dict() if old else {}
    config, summary = (_json(folder / file) for file in (_CONFIG, _SUMMARY))
    kind = index["_class_name"]
    trained_on = dataset or next(iter(said.get("datasets") or ()), None) or _dataset_name(config)
    if not trained_on:
        raise UsageError(f"dataset is missing: no file in {folder} names it. Give it, as in user/name.")
    tags = [tag for tag in said.get("tags") or () if tag not in ("diffusers", "latentia")]
    texts = {"tokenizer", "text_encoder"} & components(index).keys()
    guess = "text-to-image" if texts else "unconditional-image-generation"
    seconds = summary.get("training_seconds")
    images = {"grid": "samples/grid.png", "reconstructions": "samples/reconstructions.png"}
    recipe = {**config, "data": summary.get("data") or {}} if config else None
    card = model_card(
        name=name or said.get("model_name") or config.get("hub_model_id") or folder.resolve().name,
        pipeline_class=kind,
        family=tags[0] if tags else summary.get("family") or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind[:-8]).lower(),
        pipeline_tag=said.get("pipeline_tag") or summary.get("pipeline_tag") or guess,
        dataset=trained_on,
        on_hub=trained_on != Path(config.get("train_data_dir") or "").name or trained_on == dataset,
        license=license or said.get("license") or config.get("hub_license"),
        recipe=recipe,
        metrics=_run_metrics(summary.get("score"), folder / _SUMMARY),
        hardware=summary.get("hardware"),
        minutes=None if seconds is None else seconds / 60,
        epochs=summary.get("epochs"),
        seed=config.get("seed"),
        command=summary.get("command"),
        lineage=summary.get("lineage"),
        usage=saved_usage(folder),
        repo_id=repo_id or config.get("hub_model_id"),
        limits=summary.get("limits") or (),
        **{key: path if (folder / path).is_file() else None for key, path in images.items()},
    )
    unknown = () if summary else ("limits",)  # without a summary of the run, the present card is the only source
    text, kept = merge_cards(old, card, keep_results=True, leave=unknown) if old else (str(card), [])
    remarks = [f"The part {part} was changed by hand, so it is left as it is." for part in kept]
    if write:
        write_text(path, text)
    return FolderCard(path, text, [*remarks, *missing_parts(text, folder)], written=write)


def merge_cards(
    old: ModelCard, new: ModelCard, *, keep_results: bool, leave: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Merge a new card with what a user wrote into the old one; also return the names of the sections edited by hand.

    Args:
        old: a card, with or without marks; its text outside of the marked sections stays.
        new: of `model_card`.
        leave: parts that stay as they are in `old`, if it has them.
        keep_results: whether results in `old` replace those of `new`; False for a network that was trained further.
    """
    text, parts, data, before = old.text, read_blocks(new.text), _metadata(new), _metadata(old)
    kept: list[str] = []
    if keep_results and before.eval_results:
        data.eval_results = join_results(data.eval_results or [], before.eval_results)
        data.model_name = data.model_name or before.model_name
        data.metrics = list(dict.fromkeys([*(data.metrics or []), *(before.metrics or [])]))
        parts["evaluation"] = "\n".join(evaluation_lines(data.eval_results))
    for at, part in enumerate(_PARTS):
        if body := parts.get(part):
            there = read_blocks(text)
            if part in leave and part in there:
                continue
            later = next((name for name in _PARTS[at + 1 :] if name in there), None)
            text, written = put_block(text, part, body.split("\n"), before=later)
            kept += [] if written else [part]
    data.tags = list(dict.fromkeys([*(data.tags or []), *(before.tags or [])]))
    for key, value in before.to_dict().items():  # further keys of the user
        if key not in data.to_dict() and key != "model-index":
            data[key] = value
    return f"---\n{data.to_yaml()}\n---\n{text if text.startswith(chr(10)) else chr(10) + text}", kept


def update_card(path: Path, new: ModelCard) -> tuple[ModelCard, list[str]]:
    """Update the card at `path` after further training, keeping what a user wrote; returns the card and remarks.

    A card that cannot be read is renamed instead of failing, so that a run does not fail at its end.
    """
    if not path.is_file():
        return new, []
    try:
        text, kept = merge_cards(read_card(path), new, keep_results=False)
    except UsageError as error:
        aside = path.with_name(f"README.before-{path.stat().st_mtime_ns}.md")
        path.replace(aside)
        return new, [f"{error} It is now {aside.name}."]
    return ModelCard(text), [
        f"README.md: the part {part} was changed by hand, so it is left as it is." for part in kept
    ]


def missing_parts(text: str, folder: Path) -> list[str]:
    """List what a card lacks, each with the way to add it."""
    card = ModelCard(text)
    data, body = card.data.to_dict(), card.text
    results = [r.metric_args or {} for r in _metadata(card).eval_results or []]
    measured = bool(results) and all(
        {"n_samples", "extractor", "extractor_sha256"} <= about.keys() for about in results
    )
    wanted = {
        "library_name": (data.get("library_name") == "latentia", "latentia card --write puts it in"),
        "pipeline_tag and tags": (data.get("pipeline_tag") and data.get("tags"), "latentia card --write puts them in"),
        "a licence": (data.get("license"), "name it as license"),
        "a data set": (data.get("datasets") or "trained on" in body, "name it as dataset"),
        "numbers with n, extractor and its hash": (measured, f"latentia evaluate {folder} measures and enters them"),
        "an image of samples": ("![" in body, "save one as samples/grid.png and run this again"),
        "how to load it": ("from_pretrained(" in body, "latentia card --write puts it in"),
        "the recipe": ("## Training" in body, "it comes from training_config.json of a run; write it by hand"),
        "command, seed, hardware, minutes and versions": (
            all(word in body for word in ("seed ", "minutes", "torch ", "text\n")),
            "they come from run_summary.json of a run; write them by hand",
        ),
    }
    return [f"The card lacks {what}: {way}." for what, (there, way) in wanted.items() if not there]


def _run_metrics(score: Mapping[str, Any] | None, where: Path) -> Sequence[Mapping[str, Any]]:
    """The metrics of a run's summary, as `model_card` takes them."""
    if not score:
        return []
    try:
        shared = {key: score[key] for key in ("n", "extractor", "extractor_sha256")}
        return [
            {
                "type": key, "name": one["title"], **{part: one[part] for part in ("value", "low", "high")},
                "real": one.get("real", one.get("floor")), **shared,  # "floor": in summaries of version 0.1
            }
            for key, one in score["scores"].items()
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"score in {where} is not as a run writes it: {error!r}. Delete it, or the file.") from error


def _dataset_name(config: Mapping[str, Any]) -> str | None:
    return config.get("dataset_name") or (Path(config["train_data_dir"]).name if config.get("train_data_dir") else None)


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path, MAX_TEXT, home=path.parent, error=UsageError) if path.is_file() else {}
    found = found if isinstance(found, dict) else {}
    for key, kind in _KINDS.items():
        value = found.get(key)
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if value is not None and (wrong or (kind is list and not all(isinstance(one, str) for one in value))):
            given = f"got {type(value).__name__} {str(value)[:100]}"
            raise UsageError(f"{key} in {path} is not as a run writes it: {given}. Mend it, or delete the line.")
    return found


def _metadata(card: ModelCard) -> ModelCardData:
    return cast(ModelCardData, card.data)  # which the type of a card does not say
