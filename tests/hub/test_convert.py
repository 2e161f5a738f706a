"""Old weights to safetensors: values survive, and what hides in a pickle does not run."""

import json
import os
import shutil
import struct
import subprocess
import zipfile

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import latentia
from latentia.commands.main import main
from latentia.errors import CheckpointError, UsageError
from latentia.hub.convert import convert
from latentia.hub.unpickle import select

UNET = {"sample_size": 8, "in_channels": 1, "block_out_channels": (32,), "layers_per_block": 1}


@pytest.fixture
def unet():
    return latentia.UNet2D(**UNET).eval()


def old_network(network, folder, name="diffusion_pytorch_model.bin"):
    """As diffusers once saved it."""
    network.save_config(folder)
    torch.save(network.state_dict(), folder / name)
    return folder


def nothing_left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_values_names_and_shared_memory_survive(tmp_path):
    w = torch.randn(4, 6)
    weights = {
        "whole": w, "same": w, "turned": w.t(), "part": w[1:2], "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5),
        "half": torch.randn(3).bfloat16(), "integers": torch.arange(5), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    torch.save(weights, tmp_path / "old.bin")
    lines = convert(tmp_path / "old.bin", tmp_path / "new.safetensors").lines
    found = load_file(tmp_path / "new.safetensors")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    text = "\n".join(lines)
    assert "whole  [4, 6]  96 bytes" in text and "half  [3]  6 bytes" in text
    assert "shared one memory, now each by itself: whole, same, turned, part" in text
    assert nothing_left(tmp_path) == ["new.safetensors", "old.bin"]


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def test_the_weights_of_a_checkpoint_are_found_or_asked_for(tmp_path):
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    checkpoint = {"epoch": 3, "state_dict": one, "optimizer": {"state": {0: two}}}
    assert select(checkpoint, "", is_tensor) == (one, ["epoch", "optimizer"], "state_dict")
    assert select({**one, "epoch": 3}, "", is_tensor) == (one, ["epoch"], "")
    for value, key, said in (
        ({"model": one, "ema": two}, "", "not clear .* ema, model. Name one as `key`"),
        ({"model": one}, "emma", 'no weights under "emma"; entries with weights: model'),
        ([1, 2], "", "a list instead of a mapping"),
        ({}, "", "entries with weights: none"),
    ):
        with pytest.raises(ValueError, match=said):
            select(value, key, is_tensor)
    torch.save({"model": one, "ema": two}, tmp_path / "b.pth")
    text = convert(tmp_path / "b.pth", tmp_path / "b.safetensors", key="ema").text()
    assert torch.equal(load_file(tmp_path / "b.safetensors")["w"], two["w"])
    assert "its entry ema" in text and "left out, no weights: model" in text


class Runs:
    """A pickle of this runs a shell command when it is read."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_weights_that_are_links_out_of_the_folder(tmp_path):
    old_network(latentia.MLPGenerator(), tmp_path / "old")
    (tmp_path / "old" / "diffusion_pytorch_model.bin").rename(tmp_path / "other.bin")
    (tmp_path / "old" / "diffusion_pytorch_model.bin").symlink_to("../other.bin")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a symbolic link out of its folder"):
        convert(tmp_path / "old", tmp_path / "new")
    assert nothing_left(tmp_path) == ["old", "other.bin"]


@pytest.mark.parametrize(("call", "way"), [("os.system", "nested"), ("builtins.eval", "legacy")])
def test_what_hides_in_a_pickle_does_not_run(tmp_path, call, way, capsys):
    sentinel = tmp_path / "ran"
    evil = {
        "os.system": Runs(os.system, f"touch {sentinel}"),
        "builtins.eval": Runs(eval, f"__import__('pathlib').Path({str(sentinel)!r}).touch()"),
    }[call]
    path = tmp_path / "evil.bin"
    content = {"w": torch.ones(2), "x": evil} if way == "nested" else evil
    torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
    torch.load(path, weights_only=False)
    assert sentinel.exists(), "the file is harmless, so this test would show nothing"
    sentinel.unlink()
    with pytest.raises(SystemExit) as exit:
        main(["convert", str(path), str(tmp_path / "new.safetensors")])
    named = {"os.system": "posix.system", "builtins.eval": "eval"}[call]
    said = capsys.readouterr().err
    assert exit.value.code == 5 and f"evil.bin is refused: it names {named}" in said
    assert "weights_only" not in said  # no advice to trust it
    assert not sentinel.exists() and nothing_left(tmp_path) == ["evil.bin"]


def as_archive(path, pickled, data=b""):
    """A file as torch saves it, around a pickle written by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", data)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def test_a_pickle_that_never_ends_is_stopped(tmp_path):
    """t = ((t, t), (t, t)) ... as a key: its hash takes 2^64 steps, with no word of code in the file."""
    pickled = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 64 + b"K\x01s."
    as_archive(tmp_path / "loop.bin", pickled)
    with pytest.raises(CheckpointError, match=r"refused: reading it took more than 1 s.*see max_seconds"):
        convert(tmp_path / "loop.bin", tmp_path / "new.safetensors", max_seconds=1)
    assert nothing_left(tmp_path) == ["loop.bin"]


def bomb(rows):
    """A tensor of `rows` x 1e6 numbers that lie on one."""
    numbers = b"(J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", 10**6) + b"t"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers + b"(K\x00K\x00t\x89}tR"
    return b"\x80\x02}" + text("w") + tensor + b"s."


def test_a_file_that_asks_for_too_much_memory_is_refused(tmp_path):
    as_archive(tmp_path / "bomb.bin", bomb(10**6), struct.pack("<f", 7))
    with pytest.raises(CheckpointError, match="refused: it needs more memory than the limit"):
        convert(tmp_path / "bomb.bin", tmp_path / "new.safetensors")
    # One that swells while it is unpacked, and would be read if it were given the memory.
    with zipfile.ZipFile(tmp_path / "zeros.bin", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (("data.pkl", bomb(1)), ("version", b"3\n"), ("data/0", bytes(6 * 10**7))):
            file.writestr(f"archive/{name}", content)
    with pytest.raises(CheckpointError, match=r"refused.*ee max_memory_gb"):
        convert(tmp_path / "zeros.bin", tmp_path / "new.safetensors", max_memory_gb=0.03)
    assert nothing_left(tmp_path) == ["bomb.bin", "zeros.bin"]


@pytest.mark.parametrize("content", [b"<html>"])
def test_what_is_no_weights_is_refused(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.bin is refused"):
        convert(tmp_path / "a.bin", tmp_path / "new.safetensors")
    assert nothing_left(tmp_path) == ["a.bin"]


def test_a_weight_named_as_the_format_names_its_own_is_refused(tmp_path):
    torch.save({"__metadata__": torch.ones(1), "a": torch.ones(2)}, tmp_path / "old.bin")
    with pytest.raises(CheckpointError, match=r"cannot be kept as safetensors: .*__metadata__.* Rename them"):
        convert(tmp_path / "old.bin", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_the_reader_has_no_token_and_runs_nothing_beside_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    monkeypatch.chdir(tmp_path)
    for name in ("torch.py", "psutil.py", "safetensors.py", "json.py"):
        (tmp_path / name).write_text("import os; open('ran', 'w').write(os.environ.get('HF_TOKEN', ''))")
    torch.save({"\x1b[2Jw\n": torch.ones(1)}, tmp_path / "a.bin")
    seen = []
    run = subprocess.run
    monkeypatch.setattr("subprocess.run", lambda *a, **k: seen.append(k["env"]) or run(*a, **k))
    lines = convert("a.bin", "new.safetensors").lines
    assert lines[0] == r"\x1b[2Jw\n  [1]  4 bytes"  # nor may a name write to the terminal
    assert not (tmp_path / "ran").exists() and seen and not any("canary" in value for value in seen[0].values())


def test_a_network_folder_loads_afterwards(unet, tmp_path, capsys):
    old = old_network(unet, tmp_path / "old")
    (old / "optimizer.bin").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="latentia convert"):
        latentia.UNet2D.from_pretrained(old)
    main(["convert", str(old), str(tmp_path / "new")])
    assert "UNet2D" in capsys.readouterr().out
    assert nothing_left(tmp_path / "new") == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert (tmp_path / "new" / "config.json").read_bytes() == (old / "config.json").read_bytes()
    again = latentia.UNet2D.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(again[key], value) for key, value in unet.state_dict().items())


def test_shards_stay_shards(unet, tmp_path):
    (tmp_path / "old").mkdir()
    unet.save_config(tmp_path / "old")
    weights = sorted(unet.state_dict().items())
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    half = len(weights) // 2
    for name, part in zip(names, (weights[:half], weights[half:])):
        torch.save(dict(part), tmp_path / "old" / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(dict(weights), "../../elsewhere.bin")}  # is not believed
    (tmp_path / "old" / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(tmp_path / "old", tmp_path / "new")
    again = latentia.UNet2D.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(again[key], value) for key, value in weights)
    assert len(nothing_left(tmp_path / "new")) == 4


def test_a_whole_pipeline_of_diffusers(tmp_path):
    transformers = pytest.importorskip("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    shape = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=100, **shape))
    old = tmp_path / "old"
    index = {
        "_class_name": "LDMTextToImagePipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "AutoencoderKL"], "bert": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "DDIMScheduler"], "tokenizer": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    for name, part in (("unet", unet), ("vqvae", vae)):
        old_network(part, old / name)
    words = {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}, "merges": []}
    transformers.CLIPTokenizer(**words).save_pretrained(old / "tokenizer")
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(old / "bert")
    torch.save(encoder.state_dict(), old / "bert" / "pytorch_model.bin")
    diffusers.DDIMScheduler().save_pretrained(old / "scheduler")
    for name in ("evil.py", "unet/evil.py", "README.md"):
        (old / name).write_text("# mine")
    (old / "model_index.json").write_text(json.dumps(index))
    lines = convert(old, tmp_path / "new").lines
    assert "LDMTextToImagePipeline" in lines[-1]
    new = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert not [name for name in new if name.endswith((".bin", ".py"))]
    assert {"README.md", "bert/model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"} <= new
    again = transformers.CLIPTextModel.from_pretrained(tmp_path / "new" / "bert").state_dict()
    assert all(torch.equal(again[key], value) for key, value in encoder.state_dict().items())


def test_weights_unlike_their_configuration_leave_no_folder(tmp_path):
    network = diffusers.AutoencoderKL(block_out_channels=(32,))  # diffusers itself would only warn
    old = old_network(network, tmp_path / "old")
    weights = network.state_dict()
    weights.pop(sorted(weights)[0])
    torch.save(weights, old / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="1 missing keys"):
        convert(old, tmp_path / "new")
    assert nothing_left(tmp_path) == ["old"]


def test_nonsense_is_refused_with_a_way_out(unet, tmp_path):
    old = old_network(unet, tmp_path / "old")
    shutil.copy(old / "diffusion_pytorch_model.bin", tmp_path / "a.bin")
    (tmp_path / "there.safetensors").write_text("mine")
    cases = {
        "does not exist": (tmp_path / "no.bin", tmp_path / "x.safetensors", {}),
        "must end in .safetensors": (tmp_path / "a.bin", tmp_path / "x.bin", {}),
        " exists": (tmp_path / "a.bin", tmp_path / "there.safetensors", {}),
        "is not empty": (old, tmp_path, {}),
        "key selects an entry of a file": (old, tmp_path / "x", {"key": "w"}),
        "max_memory_gb must be": (tmp_path / "a.bin", tmp_path / "x.safetensors", {"max_memory_gb": 0}),
        "max_seconds must be": (tmp_path / "a.bin", tmp_path / "x.safetensors", {"max_seconds": float("nan")}),
    }
    for said, (source, target, options) in cases.items():
        with pytest.raises(UsageError, match=said):
            convert(source, target, **options)
    (tmp_path / "secret").write_text((old / "config.json").read_text())
    (old / "config.json").unlink()
    (old / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="symbolic link out of its folder"):
        convert(old, tmp_path / "x")
    (old / "config.json").unlink()
    (tmp_path / "secret").unlink()
    (old / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(CheckpointError, match="_class_name"):
        convert(old, tmp_path / "x")
    (old / "config.json").unlink()
    with pytest.raises(CheckpointError, match="Give the file of weights"):
        convert(old, tmp_path / "x")
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert nothing_left(tmp_path) == ["a.bin", "old", "there.safetensors"]
