"""Hostile folders from a grammar: files of a saved pipeline x mutations, combined two at a time by seeded chance.

`hostile.py` lists what is known to be wrong; here a folder is `(base, [(file, mutation), (file, mutation)])`, drawn
from `BASES`, the files in them and `MUTATIONS`. `python tests/folder_grammar.py SEED FIRST COUNT` goes through some.
"""

import json
import os
import random
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from children import enter
from helpers import card, perturbed, quiet
from hostile import EVIL, MEMORY, peak, refused, source, texts
from hub_server import Hub, point_client_at, running_hub

import latentia

STEM = "diffusion_pytorch_model"
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 4}
# What a loader of pipelines need not read. A mutation of these alone changes no image.
BESIDE = ("README.md", "metrics.jsonl", "run_summary.json", "training_config.json", ".latentia.json", "evil.py")
SPARSE = 2**33  # bytes


# --------------------------------------------------------------------------------------------------------------- bases


def whole(root: Path) -> None:
    unet = perturbed(latentia.UNet2D(**UNET, in_channels=1))
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler()).save_pretrained(root)


def shards(root: Path) -> None:
    whole(root)
    unet = latentia.UNet2D.from_pretrained(root / "unet")
    shutil.rmtree(root / "unet")
    unet.save_pretrained(root / "unet", max_shard_size="30KB")


def with_texts(root: Path) -> None:
    unet = perturbed(latentia.UNet2D(**UNET, in_channels=3, cross_attention_dim=32))
    tokenizer, encoder = texts()
    latentia.TextToImagePipeline(tokenizer, encoder, unet, latentia.DDIMScheduler(), None).save_pretrained(root)


BASES: dict[str, Callable[[Path], None]] = {"whole": whole, "shards": shards, "texts": with_texts}
SHARES = {"whole": 12, "shards": 5, "texts": 2}  # a tokenizer is tried in a process, which takes a second


def make_bases(root: Path) -> None:
    torch.manual_seed(0)
    for name, make in BASES.items():
        folder = root / name
        make(folder)
        card(pipeline_class="UnconditionalDiffusionPipeline").save(folder / "README.md")
        (folder / "metrics.jsonl").write_text('{"step": 1, "images": 2, "denoiser/loss": 0.5}\n' * 3)
        (folder / "run_summary.json").write_text(json.dumps({"training_seconds": 3.5, "family": "ddpm", "epochs": 2}))
        (folder / "training_config.json").write_text(json.dumps({"dataset_name": "digits", "seed": 0}))
        (folder / ".latentia.json").write_text(json.dumps({"command": "run", "names": ["metrics.jsonl"], "files": []}))
        (folder / "evil.py").write_text(EVIL.format(ran="ran"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------- mutations

Draw = random.Random


def outside(path: Path) -> Path:
    """A place beside the folder of the case."""
    folder = next(above for above in path.parents if (above.parent / "outside").is_dir())
    return folder.parent / "outside" / path.name


def truncated(path: Path, draw: Draw) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(max(len(data), 1))])


def link_inside(path: Path, draw: Draw) -> None:
    """The same content under another name in its folder."""
    path.rename(path.with_name(f"moved-{path.name}"))
    path.symlink_to(f"moved-{path.name}")


def link_to_another(path: Path, draw: Draw) -> None:
    others = sorted(other for other in path.parent.iterdir() if other != path)
    path.unlink()
    path.symlink_to(draw.choice(others).name if others else "nothing")


def link_outside(path: Path, draw: Draw) -> None:
    shutil.move(path, outside(path))
    path.symlink_to(outside(path) if draw.random() < 0.5 else os.path.relpath(outside(path), path.parent))


def link_loop(path: Path, draw: Draw) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder_in_place(path: Path, draw: Draw) -> None:
    path.unlink()
    path.mkdir()
    (path / "inner.json").write_text("{}")


def pipe(path: Path, draw: Draw) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path, draw: Draw) -> None:
    os.truncate(path, SPARSE)


def empty(path: Path, draw: Draw) -> None:
    path.write_bytes(b"")


def other_case(path: Path, draw: Draw) -> None:
    path.rename(path.with_name(path.name.swapcase()))


def not_utf8(path: Path, draw: Draw) -> None:
    data = path.read_bytes()
    at = draw.randrange(len(data) + 1)
    path.write_bytes(data[:at] + b"\xff\xfe" + data[at:])


def byte_order_mark(path: Path, draw: Draw) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def deep(path: Path, draw: Draw) -> None:
    path.write_text(draw.choice(['{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, "{" * 100_000]))


def wrong_top(path: Path, draw: Draw) -> None:
    path.write_text(draw.choice(["[]", "3", '"text"', "null", "true", "[1, {}]", "{}"]))


def put(*values: Any) -> Callable[[Path, Draw], None]:
    """One of `values` at a place of a JSON file that chance chooses, at any depth."""

    def change(path: Path, draw: Draw) -> None:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = draw.randrange(len(lines))
        tree = json.loads(lines[at])
        places = list(_places(tree))[:400]
        inner, key = draw.choice(places) if places else (tree, "new")
        inner[key] = draw.choice(values)
        lines[at] = json.dumps(tree)
        path.write_text("\n".join(lines))

    return change


def _places(tree: Any):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def twice(path: Path, draw: Draw) -> None:
    """A key that stands there twice, with another value the first time."""
    text = path.read_text()
    keys = list(json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)) or ["new"]
    value = draw.choice(["null", "1", '"text"', "[]", "{}", '["os", "system"]'])
    path.write_text(text.replace("{", f"{{{json.dumps(draw.choice(keys))}: {value}, ", 1))


JSON: dict[str, Callable[[Path, Draw], None]] = {
    "nested deeply": deep,
    "another type at the top": wrong_top,
    "another type": put(None, True, -1, 0, 1.5, "text", "", [], {}, [[]], {"a": 1}, [None], ["unet", "UNet2D"]),
    "NaN": put(float("nan"), float("inf"), -float("inf")),
    "a huge number": put(10**9, 2**20, 10**30, 1e300, -(10**18)),
    "a key twice": twice,
    "an unknown class": put(["latentia", "UNet3D"], ["diffusers", "Evil"], "Evil", ["transformers", "AutoModel"]),
    "a foreign module": put(["os", "system"], ["evil", "Evil"], "evil.Evil", ["evil.Evil", "evil.Evil"]),
    "an absolute path": put("/etc/passwd", "/", "/dev/zero", ["/etc/passwd", "x"]),
    "a path to the parent": put("..", "../outside", "../../outside/x.safetensors", ["..", "UNet2D"]),
    "a long list": put([0.5] * 5000, ["x"] * 5000, [[8, 8]] * 3000),
    "codes of a terminal": put("\x1b]0;title\x07", "\ud800", "\0", "$x^$"),
}
TEXT: dict[str, Callable[[Path, Draw], None]] = {"no UTF-8": not_utf8, "a byte order mark": byte_order_mark}
ANY: dict[str, Callable[[Path, Draw], None]] = {
    "missing": lambda path, draw: path.unlink(),
    "empty": empty,
    "truncated": truncated,
    "a link inside": link_inside,
    "a link to another file": link_to_another,
    "a link outside": link_outside,
    "a link to itself": link_loop,
    "a folder in its place": folder_in_place,
    "a pipe": pipe,
    "huge and sparse": sparse,
    "other case": other_case,
}
MUTATIONS = ANY | TEXT | JSON
SAME = ("a link inside", "a byte order mark")  # where such a folder is accepted, its images are the same


def mutations_for(name: str) -> list[str]:
    kinds = [ANY, TEXT, JSON] if name.endswith((".json", ".jsonl")) else [ANY] if "safetensors" in name else [ANY, TEXT]
    return [mutation for kind in kinds for mutation in kind]


# --------------------------------------------------------------------------------------------------------------- cases


class Case(NamedTuple):
    """One folder: its base, and two files with a mutation each."""

    seed: int
    number: int
    base: str
    changes: list[tuple[str, str]]

    def make(self, bases: Path, folder: Path) -> None:
        (folder.parent / "outside").mkdir(parents=True)
        shutil.copytree(bases / self.base, folder)
        (folder / "evil.py").write_text(EVIL.format(ran=folder.parent / "ran"))
        draw = Draw(f"{self.seed} {self.number} values")
        for name, mutation in self.changes:
            MUTATIONS[mutation](folder / name, draw)

    def leads_out(self, names: tuple[str, ...]) -> bool:
        return any(name.startswith(names) for name, mutation in self.changes if names and mutation == "a link outside")

    def keeps_images(self) -> bool:
        return all(name in BESIDE or mutation in SAME for name, mutation in self.changes)


def case_of(bases: Path, seed: int, number: int) -> Case:
    """Number `number` of the cases of a seed."""
    draw = Draw(f"{seed} {number}")
    base = draw.choices(list(SHARES), list(SHARES.values()))[0]
    files = files_of(bases / base)
    rooms = sorted({name.partition("/")[0] if "/" in name else "" for name in files})  # the card as often as a shard
    changes: list[tuple[str, str]] = []
    while len(changes) < 2:
        room = draw.choice([*rooms, "", "unet"])
        name = draw.choice([name for name in files if (name.partition("/")[0] if "/" in name else "") == room])
        if name not in dict(changes):
            changes.append((name, draw.choice(mutations_for(name))))
    return Case(seed, number, base, changes)


# ------------------------------------------------------------------------------------------------------------- loaders


def images(folder: Path) -> bytes:
    pipe = quiet(latentia.DiffusionPipeline.from_pretrained(folder))
    return sampled(pipe)


def sampled(pipe: Any) -> bytes:
    """The bytes of an image; none if the settings, which load, are refused for so few steps."""
    asked = {"prompt": ["a red heart"]} if "prompt" in pipe.conditions or hasattr(pipe, "tokenizer") else {}
    generator = torch.Generator().manual_seed(0)
    try:
        found = pipe(num_inference_steps=2, generator=generator, output_type="np", **asked).images
    except latentia.errors.LatentiaError:
        return b""
    assert found.ndim == 4 and 0 <= found.min() and found.max() <= 1, "no images"  # NaN is neither
    return found.tobytes()


def verified(folder: Path) -> None:
    from latentia.commands import verify

    verify(str(folder))


def network(folder: Path) -> None:
    latentia.UNet2D.from_pretrained(folder, subfolder="unet")


def scheduler(folder: Path) -> None:
    latentia.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def card_of_folder(folder: Path) -> None:
    from latentia.commands import card

    card(folder)


def card_written(folder: Path) -> None:
    from latentia.commands import card

    card(folder, write=True)


def results(folder: Path) -> None:
    from latentia.hub.card import add_results

    add_results(folder / "README.md", [{"name": "FD", "value": 3.0, "n": 10}], dataset="digits", seed=0)


def output(folder: Path) -> None:
    """As the output folder of a command."""
    from latentia.commands.output import check_output

    check_output(folder, "run", overwrite=True)


def flags(folder: Path) -> None:
    """How the run read its data, which `evaluate` takes over."""
    from latentia.commands.reference import run_arguments

    run_arguments(folder)


def log(folder: Path) -> None:
    """The losses of the run."""
    from latentia.evaluation.report.grids import plot_curves

    with tempfile.TemporaryDirectory() as place:
        plot_curves(folder / "metrics.jsonl", ["denoiser/loss"], Path(place, "curves.png"))


HUB: list[Hub] = []  # on the loopback, as long as `run` goes through cases


def pulled(folder: Path) -> None:
    """From a Hub, which has regular files only."""
    from latentia.hub.pull import pull

    server = HUB[-1]
    there = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < SPARSE]
    name = f"user/x{len(server.repos)}"
    server.put(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in there})
    with tempfile.TemporaryDirectory() as place:
        pull(name, Path(place, "pulled"))


OTHERS = {
    "verify": verified,
    "source": source,
    "network": network,
    "scheduler": scheduler,
    "card": card_of_folder,
    "card --write": card_written,
    "results in the card": results,
    "output": output,
    "flags": flags,
    "log": log,
    "pull": pulled,
}
FOLDERS = ("output", "source", "card", "card --write")  # without a file they say what the folder lacks
WRITES = ("card --write", "results in the card")
_CARD = ("README.md", "training_config.json", "run_summary.json", "model_index.json")
# What a loader reads, as beginnings of names: a link out of the folder there is refused.
READS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("images", "verify", "source"), ("model_index.json", "unet/", "scheduler/", "text", "tokenizer/")),
    **{"network": ("unet/",), "scheduler": ("scheduler/",), "card": _CARD, "card --write": _CARD},
    "results in the card": ("README.md",),
}


def snapshot(place: Path) -> dict[str, tuple]:
    """What stands below a folder, without opening it."""
    found = {}
    for path in sorted(place.rglob("*")):
        about = path.lstat()
        more = () if stat.S_ISDIR(about.st_mode) else (about.st_size, about.st_mtime_ns, about.st_ino)
        found[path.relative_to(place).as_posix()] = (about.st_mode, *more)
    return found


# --------------------------------------------------------------------------------------------------------- the process


def faults(case: Case, bases: Path, place: Path, honest: dict[str, bytes]) -> list[str]:
    """What is wrong with how a folder is met: it is accepted, and works, or refused by an error that names a file."""
    folder = place / f"case-{case.number}" / "folder"
    case.make(bases, folder)
    before, wrong, made = snapshot(folder.parent), [], []
    names = list(OTHERS)
    other = names[case.number % len(names)]
    if case.base == "texts" and other == "source":  # which needs data with captions
        other = "verify"
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        for name, load in {"images": lambda folder: made.append(images(folder)), other: OTHERS[other]}.items():
            found = refused(load, folder)
            end = found["end"]
            if found["ran"] or found["imported"]:
                wrong.append(f"{name} ran code of the folder")
            if end == "loaded" and case.leads_out(READS.get(name, ())):
                wrong.append(f"{name} followed a link out of the folder")
            if end != "loaded" and not end.startswith("refused"):
                wrong.append(f"{name}: {end}")
            if end.startswith("refused") and not (
                _names(end, case.changes) or (name in FOLDERS and str(folder) in end)
            ):
                wrong.append(f"{name} names no file: {end}")
            after = snapshot(folder.parent)
            changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
            if name in WRITES:  # a link is replaced by a card, and nothing is written through it
                changed -= {"folder/README.md"}
            if changed:
                wrong.append(f"{name} changed {sorted(changed)}")
        if made and case.keeps_images() and made[0] != honest[case.base]:
            wrong.append("other images")
    finally:
        os.chdir(place)
        sys.path.remove(str(folder))
        shutil.rmtree(folder.parent)
    return wrong


def _names(message: str, changes: list[tuple[str, str]]) -> bool:
    """Whether a message names one of the files, or its component."""
    parts = {part for name, _ in changes for part in (Path(name).name, Path(name).parent.name) if part}
    return any(part in message for part in parts)


def go_through(log: str, env: dict[str, str], root: str, seed: int, first: int, count: int) -> None:
    """Some cases of a seed, in one process whose memory is bounded; answers.json holds the faults of each."""
    enter(log, env)
    run(Path(root), seed, first, count)


def run(place: Path, seed: int, first: int, count: int) -> dict[str, Any]:
    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        point_client_at(hub, patch, str(place / "hub"))
        patch.setattr("time.sleep", lambda seconds: None)
        HUB.append(hub)
        return _run(place, seed, first, count)


def _run(place: Path, seed: int, first: int, count: int) -> dict[str, Any]:
    os.chdir(place)
    bases = place / "bases"
    make_bases(bases)
    honest = {base: images(bases / base) for base in BASES}
    for load in OTHERS.values():  # what they import is imported
        folder = shutil.copytree(bases / "whole", place / "warm" / "folder")
        if (load_end := refused(load, folder)["end"]) != "loaded" and load is not output:
            raise AssertionError(load_end)
        shutil.rmtree(folder.parent)
    before = peak()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    found = {}
    for number in range(first, first + count):
        case = case_of(bases, seed, number)
        if wrong := faults(case, bases, place, honest):
            found[f"{seed} {number}: {case.base} {case.changes}"] = wrong
    answer = {"found": found, "grown": 1024 * (peak() - before)}
    (place / "answers.json").write_text(json.dumps(answer))
    return answer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(Path(scratch), *map(int, sys.argv[1:4])), indent=1))
