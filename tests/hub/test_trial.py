"""Parts of other libraries: only reviewed classes, tried in a process with limits, and remembered by content."""

import importlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from children import EXAMPLES, ended, launch

import latentia
from latentia.errors import CheckpointError, DataError, UsageError
from latentia.foreign import REVIEWED, foreign_class
from latentia.hub import trial
from latentia.models.clip import clip_towers, train_tokenizer
from latentia.pipelines.texts import embed_texts, load_text_encoder

EMOJI = Path(__file__).resolve().parents[2] / "pretrained" / "emoji"
UNET = {"sample_size": 16, "in_channels": 3, "block_out_channels": (32,), "layers_per_block": 1}
SETTINGS, VOCABULARY = "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline with a tokenizer, an image processor and a scheduler of other libraries."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red heart", "a green bus"], 300, 12)
    encoder = clip_towers(tokenizer, 16, width=32, text_layers=1, image_layers=1)[0].eval()
    unet = latentia.UNet2D(**UNET, cross_attention_dim=32)
    folder = tmp_path_factory.mktemp("saved")
    latentia.TextToImagePipeline(tokenizer, encoder, unet, diffusers.DDIMScheduler(), None).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of it, with a cache that remembers nothing."""
    monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def started(monkeypatch):
    """The commands of the processes that are started."""
    commands, run = [], subprocess.run

    def counted(command, **options):
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    return commands


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


load = latentia.DiffusionPipeline.from_pretrained

# ------------------------------------------------------------------------------------------------------------ the list


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        (
            "DiaProcessor",
            "processor_config.json",
            {
                "audio_tokenizer": {
                    "audio_tokenizer_class": "BertModel",
                    "audio_tokenizer_name_or_path": "evil/other",
                }
            },
        ),
        ("OneFormerImageProcessor", "preprocessor_config.json", {"repo_path": "evil/x", "class_info_file": "a.json"}),
        ("AutoTokenizer", "tokenizer_config.json", {}),
    ],
)
def test_a_class_off_the_list_is_refused_before_its_loader(folder, name, file, settings, started, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    edit(folder / "model_index.json", tokenizer=["transformers", name])
    (folder / "tokenizer" / file).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"{name} of transformers, which is not on the list.*as an argument"):
        load(folder)
    assert not started


def test_a_part_off_the_list_can_be_passed(folder):
    edit(folder / "model_index.json", tokenizer=["transformers", "LlamaTokenizer"])
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    assert load(folder, tokenizer=tokenizer).tokenizer is tokenizer


def test_reviewed_classes_have_no_loader_of_their_own():
    """What a later version of these libraries adds to one of them is seen here, and is to be read."""
    loaders = {"from_pretrained", "_from_pretrained", "from_config", "_from_config", "load_config", "get_config_dict"}
    loaders |= {"get_image_processor_dict", "convert_to_native_format", "from_dict"}
    found = {}
    for library, names in REVIEWED.items():
        for name in names:
            known = getattr(importlib.import_module(library), name, None)
            if known is None or "dummy" in known.__module__:
                continue  # of another version, or it needs a package that is not installed
            kind = foreign_class(library, name, "here")
            base = kind.__module__.split(".")[-1] in ("tokenization_utils_tokenizers", "tokenization_utils_fast")
            configuration = getattr(kind, "config_class", None)
            own = loaders & ({*vars(kind)} | {*(vars(configuration) if configuration else ())})
            if own and not base:
                found[name] = own
    assert not found


def test_a_text_model_of_another_kind_is_refused(folder, started):
    edit(folder / "text_encoder" / "config.json", model_type="levit")
    with pytest.raises(CheckpointError, match=r"kinds bert, clip, .*got 'levit'"):
        load_text_encoder(folder)
    edit(folder / "text_encoder" / "config.json", model_type="clip_text_model")
    edit(folder / SETTINGS, tokenizer_class="MistralCommonBackend")
    with pytest.raises(CheckpointError, match="MistralCommonBackend of transformers, which is not on the list"):
        load_text_encoder(folder)
    assert not started


# ----------------------------------------------------------------------------------------------------------- the trial


def doubling(folder: Path) -> None:
    """26 normalizers that double a letter: 64 MiB of one token, at which the reader aborts or asks for gigabytes."""
    double = {"type": "Replace", "pattern": {"String": "x"}, "content": "xx"}
    token = {"id": 300, "content": "x", "single_word": False, "lstrip": False, "rstrip": False, "special": False}
    found = json.loads((folder / VOCABULARY).read_text())
    added = [*found["added_tokens"], {**token, "normalized": True, "id": max(found["model"]["vocab"].values()) + 1}]
    edit(folder / VOCABULARY, normalizer={"type": "Sequence", "normalizers": [double] * 26}, added_tokens=added)


def nothing(folder: Path) -> None:
    """Some classes make a tokenizer of no words out of an empty folder."""
    edit(folder / "model_index.json", tokenizer=["transformers", "CLIPTokenizer"])
    (folder / VOCABULARY).unlink()


def panic(folder: Path) -> None:
    """A processor of tokens that Rust gives up on."""
    edit(folder / VOCABULARY, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(?<=a+)b"}, "behavior": "Isolated"})


TRIED = {
    "doubles a letter": (doubling, "is refused|cannot be loaded"),
    "a length of text": (lambda folder: edit(folder / SETTINGS, model_max_length="x"), "model_max_length must be"),
    "no length": (lambda folder: edit(folder / SETTINGS, model_max_length=0), "model_max_length must be"),
    "half a vocabulary": (lambda folder: (folder / VOCABULARY).write_text("{"), "cannot be loaded as"),
    "no vocabulary": (nothing, "it holds no vocabulary, one of merges.txt, tokenizer.json, vocab.json"),
    "an expression that is none": (panic, "cannot be loaded as"),
}


@pytest.mark.parametrize("case", TRIED)
def test_what_a_child_refuses_is_not_loaded(folder, case, started, monkeypatch):
    monkeypatch.setattr(trial, "MEMORY", 2**28)
    change, said = TRIED[case]
    change(folder)
    loaders = [load, load_text_encoder] if case == "a length of text" else [load]
    for loader in loaders:  # a refusal is not remembered
        with pytest.raises(CheckpointError, match=f"(?s)({said}).*as an argument"):
            loader(folder)
    assert len(started) == len(loaders)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "x.jinja"])
def test_long_texts_are_refused_unread(folder, name, started):
    (folder / "tokenizer" / name).write_text(json.dumps({"a": [[]] * 400_000}))
    with pytest.raises(CheckpointError, match=f"{name} has 1600007 bytes; at most 1000000 are read"):
        load(folder)
    (folder / "tokenizer" / name).unlink()
    (folder / "text_encoder" / "generation_config.json").write_text(json.dumps({"a": [[]] * 400_000}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json has 1600007 bytes"):
        load(folder)
    assert not started


@pytest.mark.parametrize(
    "key", ["vocab_file", "vocab", "merges_file", "gguf_file", "init_inputs", "fast_tokenizer_files"]
)
def test_settings_cannot_name_other_files(folder, key, started):
    edit(folder / SETTINGS, **{key: ["../../tokenizer.4.0.json"]})
    with pytest.raises(CheckpointError, match=f"sets {key}"):
        load(folder)
    assert not started


# ------------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    "file, key, value, rule",
    [
        ("text_encoder/config.json", "eos_token_id", [1, 2], "must be an integer or null"),
        ("text_encoder/config.json", "pad_token_id", "1", "must be an integer or null"),
        ("vae/config.json", "scaling_factor", "2", "must be a number"),
        ("vae/config.json", "shift_factor", {}, "must be a number"),
    ],
)
def test_settings_that_fail_only_in_use_are_refused(file, key, value, rule, tmp_path):
    folder = shutil.copytree(EMOJI, tmp_path / "copy")
    edit(folder / file, **{key: value})
    with pytest.raises(CheckpointError, match=f"{key} in .*{file} {rule}"):
        latentia.DiffusionPipeline.from_pretrained(folder)


def test_what_was_accepted_is_remembered_by_its_content(folder, started):
    for _ in range(2):
        assert type(load(folder)) is latentia.TextToImagePipeline
        load_text_encoder(folder)
    assert len(started) == 1
    shutil.copytree(folder, folder.parent / "elsewhere")
    load(folder.parent / "elsewhere")
    assert len(started) == 1
    edit(folder / SETTINGS, model_max_length=11)
    assert load(folder).tokenizer.model_max_length == 11 and len(started) == 2


def test_several_parts_are_tried_in_one_process(folder, started):
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": "x"}, "crop_size": "y"}'
    )
    with pytest.raises(CheckpointError, match="feature_extractor cannot be loaded as CLIPImageProcessor"):
        load(folder)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    load(folder)
    assert len(started) == 2


def test_own_networks_and_the_shipped_pipeline_start_none(tmp_path, started, monkeypatch):
    monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path / "cache"))
    load(EMOJI)
    load_text_encoder(EMOJI)
    latentia.UnconditionalDiffusionPipeline(latentia.UNet2D(**UNET), diffusers.DDPMScheduler()).save_pretrained(
        tmp_path
    )
    load(tmp_path)
    assert not started


def test_a_cache_that_cannot_be_written_changes_nothing(folder, monkeypatch):
    (folder.parent / "file").touch()
    monkeypatch.setenv("LATENTIA_CACHE", str(folder.parent / "file"))
    assert type(load(folder)) is latentia.TextToImagePipeline


def test_it_works_in_threads_and_without_fork(folder, started, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("this process was forked"))
    folders = [shutil.copytree(folder, folder.parent / f"copy-{i}") for i in range(3)]
    for i, one in enumerate(folders):
        edit(one / SETTINGS, model_max_length=8 + i)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(load_text_encoder, folders))
    assert [tokenizer.model_max_length for tokenizer, _ in found] == [8, 9, 10] and len(started) == 3


LAUNCHED = """
import sys
from pathlib import Path
from accelerate import Accelerator
import latentia

accelerator = Accelerator(cpu=True)
pipe = latentia.DiffusionPipeline.from_pretrained(sys.argv[1])
total = accelerator.reduce(pipe.unet.conv_in.bias.detach().sum(), "sum")
Path(sys.argv[2], f"{accelerator.process_index}-of-{accelerator.num_processes}").write_text(str(total.item()))
"""


def test_it_works_under_accelerate_launch(folder, start, tmp_path):
    """Two processes try the same tokenizer at the same time, and communicate afterwards."""
    (tmp_path / "script.py").write_text(LAUNCHED)
    (tmp_path / "found").mkdir()
    config = EXAMPLES / "accelerate" / "two_cpu_processes.yaml"
    argv = ["--config_file", str(config), str(tmp_path / "script.py"), str(folder), str(tmp_path / "found")]
    code, text = ended(start(launch, argv, env={"LATENTIA_CACHE": str(tmp_path / "cache")}), 200)
    assert code == 0, text
    found = {path.name: path.read_text() for path in (tmp_path / "found").iterdir()}
    assert sorted(found) == ["0-of-2", "1-of-2"] and len({*found.values()}) == 1
    assert len([*(tmp_path / "cache" / "tried").iterdir()]) == 1


def test_a_child_that_cannot_start_is_an_error(folder, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CheckpointError, match="process of their own, and none can be started"):
        load(folder)


def test_the_child_has_no_token(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    seen, run = [], subprocess.run
    monkeypatch.setattr("subprocess.run", lambda *args, **options: seen.append(options["env"]) or run(*args, **options))
    load(folder)
    assert len(seen) == 1 and "hf_canary" not in seen[0].values()


# ----------------------------------------------------------------------------------------------------------- afterwards


def test_text_that_a_tokenizer_cannot_take_is_an_error(folder):
    tokenizer, encoder = load_text_encoder(folder)
    with pytest.raises(DataError, match="tokenizer cannot take"):
        embed_texts(tokenizer, encoder, "a \ud800")

    class Panic(BaseException):
        pass

    class Broken(type(tokenizer)):
        def __call__(self, *args, **options):
            raise Panic("index out of bounds")

    tokenizer.__class__ = Broken
    with pytest.raises(DataError, match=r"tokenizer cannot take.*index out of bounds"):
        embed_texts(tokenizer, encoder, "a")


def test_names_of_classes_must_be_text():
    pipe = latentia.UnconditionalDiffusionPipeline(latentia.UNet2D(**UNET), latentia.DDPMScheduler())
    with pytest.raises(UsageError, match=r"label_names must be a list of texts, one for each class; got \[None\]"):
        pipe._register_label_names({"0": None})
