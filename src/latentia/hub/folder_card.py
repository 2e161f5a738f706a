"""The card of a saved pipeline from what lies in its folder, without losing what a person wrote into it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from latentia.errors import UsageError
from latentia.hub.blocks import put_block, read_blocks
from latentia.hub.card import evaluation_lines, join_results, model_card, save_card
from latentia.hub.files import CARD_NAME
from latentia.hub.load import read_index

_PARTS = ("summary", "use", "training", "evaluation", "limits")


@dataclass(frozen=True)
class FolderCard:
    """A card, and what it lacks.

    Args:
        path: where it belongs, the README.md of its folder.
        content: the card.
        remarks: what it lacks, and which parts were left as they are, since they were changed by hand.
        written: whether it is at `path`.
    """

    path: Path
    content: str
    remarks: list[str]
    written: bool = False

    def text(self) -> str:
        """The card, or where it was written, and the remarks."""
        return "\n".join([f"{self.path} is written." if self.written else self.content, *self.remarks])


def folder_card(
    folder: str | Path,
    *,
    write: bool = False,
    name: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> FolderCard:
    """Make the card of a saved pipeline from what its folder holds, and list what the card lacks.

    What is given comes first, then what the present card holds, then what the run left. What a person wrote stays:
    sections and keys of the metadata that are not latentia's, and generated parts that were changed by hand. Numbers of
    the present card stay too, since `latentia evaluate` may have put them there after the run.

    Args:
        folder: a saved pipeline, such as the output folder of a run.
        write: put the card into README.md; otherwise it is only returned.
        name: of the model.
        dataset: what it was trained on, a Hub id or any name.
        license: the Hub's identifier, such as apache-2.0.
        repo_id: "user/name", for the lines that show how to load it.

    Returns:
        The card and the remarks.

    Raises:
        CheckpointError: `folder` is no saved pipeline.
        UsageError: data set or licence are not known, or the card's metadata cannot be read.

    Example:
        >>> folder_card("/nowhere")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /nowhere has no model_index.json ...
    """
    folder = Path(folder)
    index, path = read_index(folder), folder / CARD_NAME
    old = _load(path) if path.is_file() else None
    said = old.data.to_dict() if old else {}
    config, summary = (_json(folder / file) for file in ("training_config.json", "run_summary.json"))
    kind = index["_class_name"]
    found: dict[str, Any] = {
        "dataset": dataset or next(iter(said.get("datasets") or ()), None) or _trained_on(config),
        "license": license or said.get("license") or config.get("hub_license"),
    }
    for argument, value in found.items():
        if not value:
            raise UsageError(f"{argument} is missing: nothing in {folder} says it. Give it, as in {_LIKE[argument]}.")
    tags = [tag for tag in said.get("tags") or () if tag not in ("diffusers", "latentia")]
    texts = any(index.get(part, [None])[0] for part in ("tokenizer", "text_encoder"))
    guess = "text-to-image" if texts else "unconditional-image-generation"
    seconds = summary.get("training_seconds")
    recipe = {**config, "data": summary.get("data") or {}} if config else None
    card = model_card(
        name=name or said.get("model_name") or config.get("hub_model_id") or folder.resolve().name,
        pipeline_class=kind,
        family=tags[0] if tags else summary.get("family") or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind[:-8]).lower(),
        pipeline_tag=said.get("pipeline_tag") or summary.get("pipeline_tag") or guess,
        recipe=recipe,
        metrics=_measured(summary.get("score")),
        hardware=summary.get("hardware"),
        minutes=None if seconds is None else seconds / 60,
        seed=config.get("seed"),
        command=summary.get("command"),
        lineage=summary.get("lineage"),
        grid="samples/grid.png" if (folder / "samples" / "grid.png").is_file() else None,
        repo_id=repo_id or config.get("hub_model_id"),
        limits=summary.get("limits") or (),
        **found,
    )
    unknown = () if summary else ("limits",)  # what the run said of itself stays, where nothing else is left of it
    text, kept = merged(old, card, keep_results=True, leave=unknown) if old else (str(card), [])
    remarks = [f"The part {part} was changed by hand, so it is left as it is." for part in kept]
    if write:
        save_card(path, text)
    return FolderCard(path, text, [*remarks, *lacks(text, folder)], written=write)


_LIKE = {"dataset": "user/name", "license": "apache-2.0"}


def merged(old: ModelCard, new: ModelCard, *, keep_results: bool, leave: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The card `new` with what a person wrote into `old`, and the names of the parts that were changed by hand.

    Args:
        old: a card, perhaps one without marks; all its text outside of latentia's parts stays.
        new: of `model_card`.
        leave: parts that stay as they are in `old`, if it has them.
        keep_results: whether the numbers in `old` stay where both have one; False for a network that was trained anew.
    """
    text, parts = old.text, read_blocks(new.text)
    kept: list[str] = []
    was: Any = old.data
    data: Any = new.data
    if keep_results and was.eval_results:
        data.eval_results = join_results(data.eval_results or [], was.eval_results)
        data.model_name = data.model_name or was.model_name
        data.metrics = list(dict.fromkeys([*(data.metrics or []), *(was.metrics or [])]))
        parts["evaluation"] = "\n".join(evaluation_lines(data.eval_results))
    for at, part in enumerate(_PARTS):
        if body := parts.get(part):
            there = read_blocks(text)
            if part in leave and part in there:
                continue
            later = next((name for name in _PARTS[at + 1 :] if name in there), None)
            text, written = put_block(text, part, body.split("\n"), before=later)
            kept += [] if written else [part]
    data.tags = list(dict.fromkeys([*(data.tags or []), *(was.tags or [])]))
    for key, value in was.to_dict().items():  # whatever else a person has put there
        if key not in data.to_dict() and key != "model-index":
            data[key] = value
    return f"---\n{data.to_yaml()}\n---\n{text if text.startswith(chr(10)) else chr(10) + text}", kept


def renewed(path: Path, new: ModelCard) -> tuple[ModelCard, list[str]]:
    """The card of a network that was trained further, with what a person wrote into the one at `path`, and remarks.

    A card that cannot be read is put aside, so that a run never fails at its end for it, and nothing is lost.
    """
    if not path.is_file():
        return new, []
    try:
        text, kept = merged(_load(path), new, keep_results=False)
    except UsageError as error:
        aside = path.with_name(f"README.before-{path.stat().st_mtime_ns}.md")
        path.replace(aside)
        return new, [f"{error} It is now {aside.name}."]
    return ModelCard(text), [
        f"README.md: the part {part} was changed by hand, so it is left as it is." for part in kept
    ]


def lacks(text: str, folder: Path) -> list[str]:
    """What a reader of the card would miss, each with the way to it."""
    card: Any = ModelCard(text)
    data, body = card.data.to_dict(), card.text
    results = [r.metric_args or {} for r in card.data.eval_results or []]
    measured = bool(results) and all(
        {"n_samples", "extractor", "extractor_sha256"} <= about.keys() for about in results
    )
    wanted = {
        "library_name": (data.get("library_name") == "latentia", "latentia card --write puts it in"),
        "pipeline_tag and tags": (data.get("pipeline_tag") and data.get("tags"), "latentia card --write puts them in"),
        "a licence": (data.get("license"), "name it as license"),
        "a data set": (data.get("datasets") or "trained on" in body, "name it as dataset"),
        "numbers with n, extractor and its hash": (measured, f"latentia evaluate {folder} measures and enters them"),
        "a picture of samples": ("![" in body, "save one as samples/grid.png and run this again"),
        "how to load it": ("from_pretrained(" in body, "latentia card --write puts it in"),
        "the recipe": ("## Training" in body, "it comes from training_config.json of a run; write it by hand"),
        "command, seed, hardware, minutes and versions": (
            all(word in body for word in ("seed ", "minutes", "torch ", "text\n")),
            "they come from run_summary.json of a run; write them by hand",
        ),
    }
    return [f"The card lacks {what}: {way}." for what, (there, way) in wanted.items() if not there]


def _measured(score: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """The metrics of a run's summary, as `model_card` takes them."""
    if not score:
        return []
    shared = {key: score[key] for key in ("n", "extractor", "extractor_sha256")}
    return [
        {
            "type": key, "name": one["title"], **{part: one[part] for part in ("value", "low", "high")},
            "real": one.get("real", one.get("floor")), **shared,  # "floor": in summaries of version 0.1
        }
        for key, one in score["scores"].items()
    ]  # fmt: skip


def _trained_on(config: Mapping[str, Any]) -> str | None:
    return config.get("dataset_name") or (Path(config["train_data_dir"]).name if config.get("train_data_dir") else None)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}. Mend it or move it away.") from error
    return found if isinstance(found, dict) else {}


def _load(path: Path) -> ModelCard:
    try:
        return ModelCard.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"The metadata at the head of {path} cannot be read: {error}. Mend or remove them.") from error
