"""Files and command lines that chance has spoilt: each is taken, or refused by an error of ours that names it.

A few of each here; `make nightly` tries LATENTIA_FUZZ (default 3000) of each, with other ones every day. What was found
once stays as an example.
"""

import contextlib
import copy
import io
import json
import os
import struct
import sys
from datetime import date
from functools import cache, wraps

import numpy as np
import pytest
import torch
from helpers import load_example
from hostile import sealed
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from PIL import Image, features

import latentia
from latentia import commands
from latentia.commands.main import main
from latentia.commands.sources import open_source
from latentia.data import load_images
from latentia.data.decode import BadImage, Fit, open_image
from latentia.errors import LatentiaError, UsageError
from latentia.runs.command_line import parse_arguments
from latentia.training.checkpoint import load_checkpoint, save_checkpoint
from latentia.training.progress import Progress
from latentia.training.state import check_config, restore

WEIGHTS = "diffusion_pytorch_model.safetensors"

# ------------------------------------------------------------------------------------------------------------ spoiling

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 1, 2**20, 2**31, 2**63, 10**30]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["os", "../x", "__class__"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.integers(0, 40) | st.sampled_from(["", "_class_name", "trust_remote_code", "dtype", "__tensor__", "../x"])
EDITS = st.lists(
    st.tuples(st.lists(KEYS, min_size=1, max_size=4), st.none() | st.tuples(VALUES)), min_size=1, max_size=3
)
BYTES = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "cut", "put", "drop", "twice"]), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def spoilt_json(tree, edits):
    """Each edit walks a path of keys, numbers counting in turn, and puts a value there or takes away what is there."""
    tree = copy.deepcopy(tree)
    for path, value in edits:
        at, key = tree, None
        for i, step in enumerate(path):
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            key = (list(keys)[step % len(keys)] if keys else 0) if isinstance(step, int) else step
            if isinstance(at, list) and not isinstance(key, int):
                key = 0
            inner = at.get(key) if isinstance(at, dict) else at[key] if keys else None
            if i + 1 == len(path) or not isinstance(inner, dict | list):
                break
            at = inner
        if value is None and (key in at if isinstance(at, dict) else len(at)):
            del at[key]
        elif value is not None and isinstance(at, dict):
            at[str(key)] = value[0]
        elif value is not None:
            at[key : key + 1] = [value[0]]
    return tree


def spoilt_bytes(data: bytes, edits) -> bytes:
    for where, how, new in edits:
        i = int(where * max(len(data) - 1, 0))
        if how == "flip":
            data = data[:i] + bytes(a ^ b for a, b in zip(data[i:], new)) + data[i + len(new) :]
        elif how == "cut":
            data = data[:i]
        elif how == "put":
            data = data[:i] + new + data[i:]
        elif how == "drop":
            data = data[:i] + data[i + len(new) :]
        else:
            data = data[:i] + data[max(0, i - 16 * len(new)) :]
    return data


def allowed(load, *args, **kwargs) -> None:
    """It may do, or end with one of our errors, in words."""
    try:
        load(*args, **kwargs)
    except LatentiaError as error:
        assert str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Honest files to spoil. Their copies are written over again and again."""
    root = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    unet = latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,), layers_per_block=1)
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDPMScheduler()).save_pretrained(root / "pipeline")
    latentia.MLPGenerator().save_pretrained(root / "network")
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    info = {"progress": {"step": 3, "images": 6, "seconds": 0.5, "restarts": 0}, "config": {"seed": 0}}
    save_checkpoint(root, 3, state, info, "run")
    return root


# ------------------------------------------------------------------------------------------------------- what is spoilt


@cache
def honest(path) -> bytes:
    return path.read_bytes()


def weights(root, edits):
    path = root / "network" / WEIGHTS
    data = honest(path)
    path.write_bytes(spoilt_bytes(data, edits))
    allowed(latentia.MLPGenerator.from_pretrained, root / "network")
    allowed(latentia.MLPGenerator.from_pretrained, root / "network", strict=False)
    path.write_bytes(data)


def header(root, edits):
    path = root / "network" / WEIGHTS
    data = honest(path)
    (length,) = struct.unpack("<Q", data[:8])
    text = json.dumps(spoilt_json(json.loads(data[8 : 8 + length]), edits)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    allowed(latentia.MLPGenerator.from_pretrained, root / "network")
    path.write_bytes(data)


def json_file(name: str, load):
    def check(root, edits):
        path = root / name
        tree = json.loads(honest(path))
        path.write_text(json.dumps(spoilt_json(tree, edits)))
        allowed(load, root)
        path.write_bytes(honest(path))

    return check


def text_file(name: str, load):
    def check(root, edits):
        path = root / name
        data = honest(path)
        path.write_bytes(spoilt_bytes(data, edits))
        allowed(load, root)
        path.write_bytes(data)

    return check


def index(root):
    latentia.DiffusionPipeline.from_pretrained(root / "pipeline")


def unet(root):
    latentia.UNet2D.from_pretrained(root / "pipeline", subfolder="unet")


def scheduler(root):
    latentia.DDPMScheduler.from_pretrained(root / "pipeline", subfolder="scheduler")


def checkpoint(root):
    folder = root / "checkpoint-3"
    state, manifest = load_checkpoint(folder)
    check_config(folder, manifest.get("config"), {"seed": 0})
    Progress.of(manifest, folder)
    network = torch.nn.Linear(2, 2)
    restore({"model": network, "optimizer": torch.optim.Adam(network.parameters())}, state, folder)


def manifest(root, edits):
    """With the hashes right again: only then what it says is read."""
    folder = root / "checkpoint-3"
    files = {path: honest(path) for path in sorted(folder.iterdir())}
    path = folder / "manifest.json"

    def change(folder):
        path.write_text(json.dumps(spoilt_json(json.loads(files[path]), edits)))

    with contextlib.suppress(KeyError, AttributeError, TypeError):  # nothing to seal
        sealed(change)(folder)
    allowed(checkpoint, root)
    for path, data in files.items():
        path.write_bytes(data)


def state(root, edits):
    folder = root / "checkpoint-3"
    files = {path: honest(path) for path in sorted(folder.iterdir())}
    path = folder / "optimizer.json"
    sealed(lambda folder: path.write_text(json.dumps(spoilt_json(json.loads(files[path]), edits))))(folder)
    allowed(checkpoint, root)
    for path, data in files.items():
        path.write_bytes(data)


@cache
def pictures() -> list[bytes]:
    """Small files of every format and colour mode that is read."""
    draw, files = np.random.default_rng(0), []
    colour = Image.fromarray(draw.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    kinds = [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    kinds += [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("PPM", "RGB")]
    kinds += [("WEBP", "RGB"), ("WEBP", "RGBA")] if features.check("webp") else []
    for kind, mode in kinds:
        image = (
            Image.fromarray(draw.integers(0, 65536, (9, 7), dtype=np.uint16))
            if mode == "I;16"
            else colour.convert(mode)
        )
        more = {"exif": Image.Exif()} if kind in ("PNG", "JPEG", "WEBP") else {}
        if more:
            more["exif"][0x0112] = 6
        if kind == "GIF":
            more = {"save_all": True, "append_images": [image.rotate(90)] * 2, "transparency": 3}
        file = io.BytesIO()
        image.save(file, kind, **more)
        files.append(file.getvalue())
    return files


def picture(root, case):
    which, edits = case
    data = spoilt_bytes(pictures()[which % len(pictures())], edits)
    for channels in (1, 3, 4):
        try:
            found = Fit(channels, (8, 8))(open_image(data))
        except BadImage as error:
            assert str(error)
        else:
            assert found.shape == (channels, 8, 8) and found.dtype == np.uint8


@cache
def arrays() -> dict[str, bytes]:
    """Images as one array, plain and in an archive."""
    draw, files = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8), {}
    for suffix, save in (("npy", np.save), ("npz", np.savez), ("npz", np.savez_compressed)):
        file = io.BytesIO()
        save(file, draw)
        files[f"{len(files)}.{suffix}"] = file.getvalue()
    return files


def array(root, case):
    name, edits = case
    path = root / name
    path.write_bytes(spoilt_bytes(arrays()[name], edits))
    allowed(open_source, path, digits())


@cache
def digits():
    return load_images("digits")


# -------------------------------------------------------------------------------------------------------- command lines


class Parsed(Exception):
    """The command line was understood; nothing is run."""


def exits(run) -> None:
    """A command line is understood, or ends with code 2 and words."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run()
    except (Parsed, UsageError):
        pass
    except SystemExit as end:
        said = out.getvalue() + err.getvalue()
        assert end.code in (2, 0) and said.strip() and "Traceback" not in said, (end.code, said)
        assert end.code == 2 or "usage" in said.lower()


TYPED = (
    "--seed --num_images --num_inference_steps --n --metrics fd kid --sampler ddim pca --sed "
    "--no_update_card --update_card True 1e3 nan -1 0x10 -- -h None --data --output_dir --class_labels "
    "--prompt --config --learning_rate --block_out_channels 8"
).split()
WORDS = st.lists(
    st.one_of(
        st.sampled_from(TYPED),
        st.text(max_size=6),
        st.integers().map(str),
    ),
    max_size=6,
)


def command_line(root, case):
    command, words = case

    def understood(function):
        @wraps(function)
        def stop(*args, **kwargs):
            raise Parsed

        return stop

    def nothing_there(*args, **kwargs):
        raise UsageError("no repository")

    with pytest.MonkeyPatch.context() as patch:
        for name in commands.__all__:
            patch.setattr(commands, name, understood(getattr(commands, name)))
        patch.setattr(sys.modules["latentia.commands.generate"], "fetch", nothing_there)
        exits(lambda: main([*command, *words]))


@cache
def script():
    return load_example("train_ddpm")


def flags(root, words):
    exits(lambda: parse_arguments(script().Arguments, words, description="", prog="train_ddpm.py"))


def config_file(root, case):
    text, values, kind = case
    path = root / f"flags.{kind}"
    path.write_text(text if text is not None else json.dumps(values), encoding="utf-8", errors="replace")
    exits(lambda: parse_arguments(script().Arguments, ["--config", str(path)], description="", prog="train_ddpm.py"))


FLAGS = st.sampled_from(
    ["seed", "sed", "learning_rate", "block_out_channels", "mixed_precision", "output_dir", "max_train_steps"]
)
FUZZ = {  # name -> (what chance chooses, what is tried, how many in the ordinary run)
    "weights": (BYTES, weights, 60),
    "header": (EDITS, header, 60),
    "index": (EDITS, json_file("pipeline/model_index.json", index), 40),
    "index, its bytes": (BYTES, text_file("pipeline/model_index.json", index), 30),
    "configuration": (EDITS, json_file("pipeline/unet/config.json", unet), 60),
    "configuration, its bytes": (BYTES, text_file("pipeline/unet/config.json", unet), 30),
    "scheduler": (EDITS, json_file("pipeline/scheduler/scheduler_config.json", scheduler), 60),
    "checkpoint": (BYTES, text_file("checkpoint-3/manifest.json", checkpoint), 30),
    "manifest": (EDITS, manifest, 60),
    "state": (EDITS, state, 60),
    "arrays": (st.tuples(st.sampled_from(["0.npy", "1.npz", "2.npz"]), BYTES), array, 60),
    "pictures": (st.tuples(st.integers(0, 99), BYTES), picture, 150),
    "latentia": (
        st.tuples(st.lists(st.sampled_from([*commands.__all__, "generat", ""]), max_size=1), WORDS),
        command_line,
        15,
    ),
    "flags of an example": (WORDS, flags, 10),
    "file of flags": (
        st.tuples(
            st.none() | st.text(max_size=30),
            st.dictionaries(FLAGS, VALUES, max_size=3) | VALUES,
            st.sampled_from(["yaml", "json"]),
        ),
        config_file,
        30,
    ),
}
KNOWN = {  # what once ended in a traceback
    "arrays": [
        ("0.npy", [(0.0, "cut", b"x")]),
        ("1.npz", [(0.4, "flip", b"\xff\xff")]),
        ("2.npz", [(0.9, "drop", b"xxx")]),
    ],
    "state": [[([1, 0, 0, 0], (77,))], [(["__items__", 0, 1], ([],))]],
    "manifest": [[(["files"], ([],))], [(["run_id"], ("../x",))], [(["progress"], (None,))]],
}


def attempt(place, name: str, count: int, chosen: int) -> None:
    strategy, check, _ = FUZZ[name]

    @seed(chosen)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(case):
        check(place, case)

    for case in KNOWN.get(name, []):
        one = example(case)(one)
    one()


@pytest.mark.parametrize("name", FUZZ)
def test_what_chance_has_spoilt(place, name):
    attempt(place, name, FUZZ[name][2], chosen=0)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FUZZ)
def test_much_more_of_it(place, name):
    """Other ones every day; LATENTIA_FAULT_SEED brings a day back."""
    chosen = int(os.environ.get("LATENTIA_FAULT_SEED", date.today().toordinal()))
    print(f"LATENTIA_FAULT_SEED={chosen}")
    attempt(place, name, int(os.environ.get("LATENTIA_FUZZ", 3000)), chosen)
