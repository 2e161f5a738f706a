"""Repositories of strangers: what each does, how it is loaded, and a process that loads them all within little memory.

`BASES` are honest folders, `LOADERS` every way to load one, `CASES` what a stranger changes. A case that is not refused
on purpose (`"no effect"`) may load, and must run nothing either.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import diffusers
import torch
import transformers
from children import enter
from safetensors.torch import load_file, save_file

import latentia

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEMORY = 2 * 2**30  # bytes beyond what the process has before the first case
SECONDS = 120  # on a busy machine
UNET = {"sample_size": 8, "in_channels": 1, "block_out_channels": (32,), "layers_per_block": 1}


# --------------------------------------------------------------------------------------------------------------- bases


def texts():
    from latentia.models.clip import clip_towers, train_tokenizer

    tokenizer = train_tokenizer(["a red heart", "a green bus"], 300, 12)
    return tokenizer, clip_towers(tokenizer, 16, width=32, text_layers=1, image_layers=1)[0].eval()


def theirs():
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())


def told():
    unet = latentia.UNet2D(**UNET | {"sample_size": 16, "in_channels": 3}, cross_attention_dim=32)
    return latentia.TextToImagePipeline(*texts(), unet, latentia.DDIMScheduler(clip_sample=False), None)


def ours():
    return latentia.UnconditionalDiffusionPipeline(latentia.UNet2D(**UNET), latentia.DDPMScheduler())


def vae():
    return diffusers.AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4)


def vision():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTModel(transformers.ViTConfig(**small, image_size=28, patch_size=14))


def make_bases(root: Path) -> None:
    torch.manual_seed(0)
    for make in (ours, theirs, told, vae, vision):
        make().save_pretrained(root / make.__name__)
    latentia.DigitClassifier(sample_size=8).save_pretrained(root / "classifier")
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 28, "width": 28}}
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps(normal))
    train(root / "run")
    shutil.copytree(root / "run" / "checkpoints" / "checkpoint-2", root / "checkpoint")


def train(output: Path, resume: str = "none") -> None:
    from accelerate import Accelerator
    from helpers import Points, regression

    from latentia.training.loop import train

    options = {"max_steps": 2 if resume == "none" else 3, "batch_size": 2, "resume": resume}
    train(Accelerator(cpu=True), regression(), Points(), output_dir=output, **options)


# ------------------------------------------------------------------------------------------------------------- loaders


def command(*words: str):
    def run(folder: Path) -> None:
        from latentia.commands.main import main

        argv = [word.replace("{}", str(folder)) for word in words]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([*argv, "--output_dir", str(folder.parent / words[0])] if words[0] != "verify" else argv)

    return run


def source(folder: Path) -> None:
    from latentia.commands.sources import open_source
    from latentia.data import load_images

    open_source(str(folder), load_images("digits"))


def text_encoder(folder: Path) -> None:
    from latentia.pipelines.texts import load_text_encoder

    load_text_encoder(folder)


def autoencoder(folder: Path) -> None:
    from latentia.pipelines.latents import load_autoencoder

    load_autoencoder(str(folder))


def extractor(folder: Path) -> None:
    from latentia.evaluation import load_extractor

    load_extractor(folder)


def inception(folder: Path) -> None:
    from latentia.evaluation import load_extractor

    load_extractor(f"inception:{folder}")


def checkpoint(folder: Path) -> None:
    from latentia.training.checkpoint import load_checkpoint

    load_checkpoint(folder)


PIPELINE = {
    "any pipeline": lambda folder: latentia.DiffusionPipeline.from_pretrained(folder),
    "generate": command("generate", "{}", "--num_images", "1", "--num_inference_steps", "1", "--overwrite"),
    "embed": command("embed", "{}", "--data", "digits", "--max_samples", "16", "--points", "16", "--overwrite"),
    "evaluate, compare, sheet": source,
    "verify": command("verify", "{}"),
}
OWN = {"the pipeline": lambda folder: latentia.UnconditionalDiffusionPipeline.from_pretrained(folder)}
NETWORK = {
    "network": lambda folder: latentia.UNet2D.from_pretrained(folder / "unet"),
    "subfolder": lambda folder: latentia.UNet2D.from_pretrained(folder, subfolder="unet"),
    "not strict": lambda folder: latentia.UNet2D.from_pretrained(folder / "unet", strict=False),
    "diffusers": lambda folder: diffusers.DDPMPipeline.from_pretrained(folder),
    "verify alone": command("verify", "{}/unet"),
}
SCHEDULER = {
    "scheduler": lambda folder: latentia.DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
    "other scheduler": lambda folder: latentia.DDIMScheduler.from_pretrained(folder / "scheduler"),
    "verify alone": command("verify", "{}/scheduler"),
}
TOLD = {key: load for key, load in PIPELINE.items() if key != "embed"} | {"text encoder": text_encoder}
LOADERS = {
    "index": {**PIPELINE, **OWN},
    "unet": {**PIPELINE, **OWN, **NETWORK},
    "scheduler": {**PIPELINE, **OWN, **SCHEDULER},
    "theirs": PIPELINE,
    "told": TOLD
    | {
        "generate": command(
            "generate", "{}", "--num_images", "1", "--num_inference_steps", "1", "--prompt", "red", "--overwrite"
        )
    },
    "vae": {"autoencoder": autoencoder, "verify": command("verify", "{}")},
    "classifier": {"extractor": extractor},
    "vision": {"extractor": extractor},
    "inception": {"inception": inception},
    "checkpoint": {
        "checkpoint": checkpoint,
        "verify": command("verify", "{}"),
        "resume": lambda folder: train(folder.parent / "resumed", str(folder)),
    },
}
BASE_OF = {"index": "ours", "unet": "ours", "scheduler": "ours", "inception": "classifier"}

# ------------------------------------------------------------------------------------------------------------- changes

EVIL = "open('{ran}', 'w').write('x')\nclass Evil:\n    pass\n"


def edit(path: str, **changes):
    """Put values into a JSON file, Python's NaN and Infinity included."""

    def change(folder: Path) -> None:
        file = folder / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def raw(path: str, content: bytes | str):
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / path).write_bytes(data)


def remove(path: str):
    return lambda folder: (folder / path).unlink()


def code(path: str = "evil.py"):
    return lambda folder: (folder / path).write_text(EVIL.format(ran=folder.parent / "ran"))


def both(*changes):
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def linked(path: str):
    """The honest file, but outside of the folder, and a link to it."""

    def change(folder: Path) -> None:
        (folder / path).rename(folder.parent / "outside")
        (folder / path).symlink_to(folder.parent / "outside")

    return change


def pipe(path: str):
    def change(folder: Path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    return change


def tensors(change, path: str = f"unet/{WEIGHTS}"):
    def apply(folder: Path) -> None:
        weights = load_file(folder / path)
        change(weights)
        save_file(weights, folder / path, metadata={"format": "pt"})

    return apply


def header(change, path: str = f"unet/{WEIGHTS}"):
    """The file with another header: `change` takes it as a dict and returns what to write."""

    def apply(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        new = change(json.loads(data[8 : 8 + length]))
        text = new if isinstance(new, bytes) else json.dumps(new).encode()
        (folder / path).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def first(key: str, value):
    """Another value in the first tensor's entry of a header."""

    def change(entries: dict) -> dict:
        name = next(name for name in entries if name != "__metadata__")
        return {**entries, name: {**entries[name], key: value}}

    return change


def cut(to, path: str = f"unet/{WEIGHTS}"):
    def apply(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(to(data))

    return apply


def shards(place, path: str = "unet", stem: str = "diffusion_pytorch_model"):
    """All weights honest, in the file that an index names: `place`, or whatever else weight_map is."""

    def apply(folder: Path) -> None:
        outside = folder.parent / "outside.safetensors"
        (folder / path / f"{stem}.safetensors").rename(folder / path / "part.safetensors")
        (folder / path / "in").mkdir()
        for copy in (outside, folder / path / "in" / "part.safetensors"):
            shutil.copy(folder / path / "part.safetensors", copy)
        named = place.replace("{outside}", str(outside)) if isinstance(place, str) else place
        weight_map = dict.fromkeys(load_file(outside), named) if isinstance(named, str) else named
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))

    return apply


def pickled(path: str = f"unet/{WEIGHTS}", name: str = "diffusion_pytorch_model.bin"):
    """A pickle that would write the sentinel."""

    def apply(folder: Path) -> None:
        (folder / path).unlink()
        call = f"cposix\nsystem\n(S'touch {folder.parent / 'ran'}'\ntR."
        (folder / path).with_name(name).write_bytes(call.encode())

    return apply


def sealed(change):
    """A change of a checkpoint whose hashes are right again."""

    def apply(folder: Path) -> None:
        change(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in list(manifest["files"]) if isinstance(manifest["files"], dict) else []:
            if (folder / name).is_file():
                data = (folder / name).read_bytes()
                manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        manifest["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def moments(folder: Path) -> None:
    [file] = folder.glob("*.optimizer.json")
    file.write_text(file.read_text().replace('[0, {"__items__"', '[77, {"__items__"'))


DEEP = "[" * 100_000
NESTED = '{"a":' * 900 + "1" + "}" * 900
NAN, HUGE = float("nan"), 10**9
EVIL_MAP = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
INDEX = "model_index.json"
CONFIG, SCHEDULE, WORDS = "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
TEXT, MODEL = "text_encoder/config.json", "text_encoder/model.safetensors"


def nested(folder: Path) -> None:
    """A pipeline within the pipeline, with an index of its own."""
    edit(INDEX, unet=["diffusers", "DDPMPipeline"])(folder)
    (folder / "unet" / INDEX).write_text('{"_class_name": "DDPMPipeline", "unet": ["antigravity", "x"]}')


def connected(folder: Path) -> None:
    edit(INDEX, _class_name="KandinskyCombinedPipeline")(folder)
    (folder / "README.md").write_text("---\nprior:\n- evil/prior\n---\n")


# name -> (whose loaders, change)
CASES = {
    # the index
    "library os": ("index", edit(INDEX, unet=["os", "system"])),
    "library antigravity": ("index", edit(INDEX, unet=["antigravity", "UNet2D"])),
    "local module": ("index", both(code(), edit(INDEX, unet=["evil", "Evil"]))),
    "dotted library": ("index", edit(INDEX, unet=["latentia.models.unet", "UNet2D"])),
    "library in the parent": ("index", edit(INDEX, unet=["../evil", "Evil"])),
    "class that is a list": ("index", both(code("pipeline.py"), edit(INDEX, _class_name=["pipeline", "Evil"]))),
    "class with a dot": ("index", edit(INDEX, _class_name="os.system")),
    "component in the parent": ("index", edit(INDEX, **{"../evil": ["latentia", "UNet2D"]})),
    "private class": ("index", edit(INDEX, unet=["diffusers", "_import_structure"])),
    "class of no component": ("index", edit(INDEX, unet=["diffusers", "AutoModel"])),
    "any class of transformers": ("index", edit(INDEX, unet=["transformers", "AutoModel"])),
    "runtime of ONNX": ("index", edit(INDEX, unet=["diffusers", "OnnxRuntimeModel"])),
    "pipeline in the pipeline": ("index", nested),
    "pipeline that fetches others": ("theirs", connected),
    "code beside a component": ("index", both(code("unet/latentia.py"), edit(INDEX, unet=["latentia", "Evil"]))),
    "index allows code": ("index", edit(INDEX, trust_remote_code=True)),
    "index names a custom pipeline": ("index", both(code("pipeline.py"), edit(INDEX, custom_pipeline="pipeline"))),
    "index forbids safetensors": ("index", edit(INDEX, use_safetensors=False)),
    "index of brackets": ("index", raw(INDEX, DEEP)),
    "index nested deeply": ("index", raw(INDEX, NESTED)),
    "index of two megabytes": ("index", edit(INDEX, note="x" * 2 * 10**6)),
    "index with NaN": ("index", edit(INDEX, eta=NAN)),
    "index with 1e999": ("index", raw(INDEX, '{"_class_name": "DDPMPipeline", "eta": 1e999}')),
    "index with 5000 digits": ("index", raw(INDEX, '{"_class_name": "DDPMPipeline", "eta": 1' + "0" * 5000 + "}")),
    "index that is a list": ("index", raw(INDEX, "[]")),
    "index that is empty": ("index", raw(INDEX, "")),
    "index in UTF-16": ("index", raw(INDEX, '{"_class_name": "x"}'.encode("utf-16"))),
    "index that is a pipe": ("index", pipe(INDEX)),
    "index that is a link": ("index", linked(INDEX)),
    "component that is a link": ("index", linked("unet")),
    # the configuration of a network
    **{
        f"network: {key} {str(value)[:20]}": ("unet", edit(CONFIG, **{key: value}))
        for key, value in (
            *(("layers_per_block", n) for n in (HUGE, 10**18, 1_000_000, -1, 1.5, "2", None)),
            *(("block_out_channels", c) for c in ([HUGE], [2**20] * 8, [32] * 100_000, [], "32", [0], [[32]], [-32])),
            *(("sample_size", s) for s in (HUGE, [HUGE, 8], 0, "8", [8, 8, 8], NAN)),
            *(("dropout", d) for d in (NAN, float("inf"), "x", 7)),
            *(("in_channels", n) for n in (HUGE, 2**20, 0)),
            *(("num_class_embeds", n) for n in (2**20, -5)),
            *(("cross_attention_dim", n) for n in (2**20, -1)),
            ("attention_head_dim", 0),
            ("attention_stages", [True] * 4096),
            ("patch_size", 2**19),
        )
    },
    **{
        f"network: unknown {key}": ("unet", edit(CONFIG, **{key: value}))
        for key, value in (
            *(
                ("trust_remote_code", True),
                ("use_safetensors", False),
                ("torch_dtype", "float64"),
                ("auto_map", EVIL_MAP),
            ),
            *(("quantization_config", {"quant_method": "torchao"}), ("device_map", "auto"), ("layers_per_blok", 1)),
        )
    },
    "network: class that is a list": ("unet", both(code(), edit(CONFIG, _class_name=["evil", "Evil"]))),
    "network: no configuration": ("unet", remove(CONFIG)),
    "network: configuration of brackets": ("unet", raw(CONFIG, DEEP)),
    "network: configuration of a number": ("unet", raw(CONFIG, "1")),
    "network: configuration that is a pipe": ("unet", pipe(CONFIG)),
    "network: configuration that is a link": ("unet", linked(CONFIG)),
    "network: configuration of two megabytes": ("unet", edit(CONFIG, _note="x" * 2 * 10**6)),
    # its weights
    "weights: a pickle": ("unet", pickled()),
    "weights: a pickle named safetensors": ("unet", pickled(name=WEIGHTS)),
    "weights: none": ("unet", remove(f"unet/{WEIGHTS}")),
    "weights: a link": ("unet", linked(f"unet/{WEIGHTS}")),
    "weights: a pipe": ("unet", pipe(f"unet/{WEIGHTS}")),
    **{
        f"weights: {name}": ("unet", cut(to))
        for name, to in {
            "0 bytes": lambda data: b"",
            "7 bytes": lambda data: data[:7],
            "8 bytes": lambda data: data[:8],
            "half": lambda data: data[: len(data) // 2],
            "last byte gone": lambda data: data[:-1],
            "one byte more": lambda data: data + b"x",
            "a header of 2^63 bytes": lambda data: struct.pack("<Q", 2**63) + data[8:],
            "a header beyond the end": lambda data: struct.pack("<Q", len(data)) + data[8:],
            "a header of no bytes": lambda data: struct.pack("<Q", 0) + data[8:],
            "a header of 20 MB": lambda data: struct.pack("<Q", 20 * 2**20) + b"{" + b" " * 20 * 2**20,
        }.items()
    },
    **{
        f"weights: header with {name}": ("unet", header(change))
        for name, change in {
            "overlapping tensors": lambda entries: {
                k: dict(v, data_offsets=[0, 128]) if "bias" in k else v for k, v in entries.items()
            },
            "offsets backwards": first("data_offsets", [128, 0]),
            "offsets beyond the end": first("data_offsets", [0, 2**40]),
            "negative offsets": first("data_offsets", [-8, 8]),
            "an unknown type": first("dtype", "PICKLE"),
            "another shape": first("shape", [1]),
            "a shape of 2^80": first("shape", [2**40, 2**40]),
            "a negative shape": first("shape", [-32]),
            "a shape of floats": first("shape", [NAN]),
            "a list": lambda entries: list(entries),
            "brackets": lambda entries: DEEP.encode(),
            "nesting": lambda entries: NESTED.encode(),
            "nothing": lambda entries: {},
        }.items()
    },
    "weights: header with another type": ("fit", header(first("dtype", "I32"))),
    "weights: one missing": ("fit", tensors(lambda weights: weights.pop("conv_in.bias"))),
    "weights: one too many": ("fit", tensors(lambda weights: weights.update(spare=torch.zeros(3)))),
    "weights: integers": ("fit", tensors(lambda weights: weights.update({"conv_in.bias": torch.zeros(32).int()}))),
    "weights: another shape": ("fit", tensors(lambda weights: weights.update({"conv_in.bias": torch.zeros(31)}))),
    **{
        f"shards: {name}": ("unet", shards(weight_map))
        for name, weight_map in {
            "in the parent": "../../outside.safetensors",
            "absolute": "{outside}",
            "in a folder": "in/part.safetensors",
            "not there": "gone.safetensors",
            "a pickle": "part.bin",
            "a number": {"conv_in.bias": 7},
            "a list": ["part.safetensors"],
            "none": {},
        }.items()
    },
    # schedulers
    **{
        f"scheduler: {key} {str(value)[:20]}": ("scheduler", edit(SCHEDULE, **{key: value}))
        for key, value in (
            *(("num_train_timesteps", n) for n in (10**12, 2**20 + 1, 1e12, 0, -1, "x", None, NAN, 3.5)),
            *(("beta_start", b) for b in (NAN, "x", -1)),
            *(("trained_betas", b) for b in ([0.1] * 100_000, [NAN] * 1000, "x", [[0.1]])),
            *(("steps_offset", n) for n in (-5, 10**12, 0.5)),
            *(("sample_max_value", NAN), ("clip_sample_range", NAN), ("beta_schedule", ["linear"])),
            *(("prediction_type", "evil"), ("trust_remote_code", True)),
        )
    },
    "scheduler: none": ("scheduler", remove(SCHEDULE)),
    "scheduler: brackets": ("scheduler", raw(SCHEDULE, DEEP)),
    "scheduler: a link": ("scheduler", linked(SCHEDULE)),
    # networks and schedulers of diffusers
    **{
        f"diffusers: {key} {str(value)[:20]}": ("theirs", edit(CONFIG, **{key: value}))
        for key, value in (
            *(("layers_per_block", n) for n in (HUGE, 1_000_000)),
            *(("block_out_channels", c) for c in ([2**20, 2**20], [NAN, 8])),
            *(("down_block_types", [word] * 2) for word in ("os.system", "evil")),
            *(("quantization_config", {"quant_method": "torchao"}), ("trust_remote_code", True)),
        )
    },
    "diffusers: a pickle": ("theirs", pickled()),
    "diffusers: half the weights": ("theirs", cut(lambda data: data[: len(data) // 2])),
    "diffusers: shards in the parent": ("theirs", shards("../../outside.safetensors")),
    "diffusers: an adapter": ("theirs", raw("unet/adapter_config.json", '{"base_model_name_or_path": "evil/evil"}')),
    **{
        f"diffusers: time steps {n}": ("theirs", edit(SCHEDULE, num_train_timesteps=n))
        for n in (10**12, 1e10, "x", NAN)
    },
    # text encoders of transformers
    **{
        f"text: {key} {str(value)[:20]}": ("told", edit(TEXT, **{key: value}))
        for key, value in (
            *(("num_hidden_layers", n) for n in (HUGE, 1_000_000, "x")),
            *(("hidden_size", n) for n in (2**20, HUGE, NAN)),
            *(("trust_remote_code", True), ("attn_implementation", "evil/kernel"), ("use_safetensors", False)),
            *(("_attn_implementation", "evil/kernel"), ("quantization_config", {"quant_method": "bitsandbytes"})),
        )
    },
    "text: a pickle": ("told", pickled(MODEL, "pytorch_model.bin")),
    "text: half the weights": ("told", cut(lambda data: data[: len(data) // 2], MODEL)),
    "text: a weight missing": ("encoder", tensors(lambda w: w.pop("text_projection.weight"), MODEL)),
    "text: shards in the parent": ("told", shards("../../outside.safetensors", "text_encoder", "model")),
    "text: an adapter": ("told", raw("text_encoder/adapter_config.json", '{"base_model_name_or_path": "evil/evil"}')),
    "text: configuration of brackets": ("told", raw(TEXT, DEEP)),
    "words: none": ("told", both(remove(WORDS), remove("tokenizer/tokenizer.json"))),
    "words: half": ("told", cut(lambda data: data[: len(data) // 2], "tokenizer/tokenizer.json")),
    "words: brackets": ("told", raw("tokenizer/tokenizer.json", DEEP)),
    "words: no vocabulary": ("told", raw("tokenizer/tokenizer.json", "{}")),
    "words: settings of brackets": ("told", raw(WORDS, DEEP)),
    "words: a pipe": ("told", pipe("tokenizer/tokenizer.json")),
    "words: a link": ("told", linked("tokenizer/tokenizer.json")),
    "no effect: code of a text encoder": ("told", both(code("text_encoder/evil.py"), edit(TEXT, auto_map=EVIL_MAP))),
    "no effect: code of a tokenizer": (
        "told",
        both(code("tokenizer/evil.py"), edit(WORDS, auto_map=EVIL_MAP, tokenizer_class="evil.Evil")),
    ),
    "no effect: template of a chat": (
        "told",
        edit(WORDS, chat_template="{{ cycler.__init__.__globals__.os.system('touch {ran}') }}"),
    ),
    "no effect: files of words elsewhere": (
        "told",
        edit(WORDS, vocab_file="/etc/passwd", tokenizer_file="/etc/passwd"),
    ),
    # an autoencoder alone, and what evaluation measures with
    "vae: channels": ("vae", edit("config.json", block_out_channels=[2**20])),
    "vae: layers": ("vae", edit("config.json", layers_per_block=1_000_000)),
    "vae: shards": ("vae", shards("../outside.safetensors", ".")),
    "vae: a pickle": ("vae", pickled(WEIGHTS)),
    "vae: class that is a list": ("vae", edit("config.json", _class_name=["evil", "Evil"])),
    "classifier: sizes": ("classifier", edit("config.json", hidden_channels=HUGE)),
    "classifier: unknown class": ("classifier", edit("config.json", _class_name="os.system")),
    "classifier: statement of brackets": ("classifier", raw("evaluation.json", DEEP)),
    "classifier: half the weights": ("classifier", cut(lambda data: data[: len(data) // 2], WEIGHTS)),
    "vision: layers": ("vision", edit("config.json", num_hidden_layers=1_000_000)),
    "vision: width": ("vision", edit("config.json", hidden_size=2**20)),
    "vision: kernels": ("vision", edit("config.json", attn_implementation="evil/kernel")),
    "vision: pictures": ("vision", edit("preprocessor_config.json", size={"height": HUGE, "width": HUGE})),
    "vision: pictures of text": ("vision", edit("preprocessor_config.json", size={"shortest_edge": "x"})),
    "vision: code": ("vision", both(code(), edit("config.json", model_type="evil", auto_map=EVIL_MAP))),
    "vision: a pickle": ("vision", pickled("model.safetensors", "pytorch_model.bin")),
    "vision: shards": ("vision", shards("../outside.safetensors", ".", "model")),
    "inception: other weights": ("inception", lambda folder: None),
    "inception: a pickle": ("inception", pickled(WEIGHTS, "inception.pth")),
    # checkpoints
    "checkpoint: brackets": ("checkpoint", raw("manifest.json", DEEP)),
    "checkpoint: a list": ("checkpoint", raw("manifest.json", "[]")),
    "checkpoint: manifest that is a pipe": ("checkpoint", pipe("manifest.json")),
    "checkpoint: manifest that is a link": ("checkpoint", linked("manifest.json")),
    "checkpoint: files in the parent": (
        "checkpoint",
        sealed(edit("manifest.json", files={"../outside.json": {"size": 0, "sha256": ""}})),
    ),
    **{
        f"checkpoint: {key} {str(value)[:20]}": ("checkpoint", sealed(edit("manifest.json", **{key: value})))
        for key, value in (
            *(("files", files) for files in ([], None, {"a.json": 3})),
            *(("run_id", name) for name in ("../../x", None, 7)),
            ("step", "two"),
            ("format", {}),
        )
    },
    "checkpoint: state of brackets": ("state", sealed(raw("net.model.json", DEEP))),
    "checkpoint: state that is no state": ("state", sealed(raw("net.model.json", '{"__tensor__": []}'))),
    "checkpoint: tensors that are none": ("state", sealed(raw("net.model.safetensors", b"\x80\x04."))),
    "checkpoint: half a file": ("checkpoint", cut(lambda data: data[: len(data) // 2], "net.model.safetensors")),
}
RESUMED = {  # whole as a checkpoint, and nothing that a run goes on from
    "progress": sealed(edit("manifest.json", progress={"step": "x"})),
    "no progress": sealed(edit("manifest.json", progress=None)),
    "progress of another kind": sealed(edit("manifest.json", progress={"step": 1, "evil": 2})),
    "configuration": sealed(edit("manifest.json", config=[])),
    "moments of nothing": sealed(moments),
    "another network": sealed(raw("net.model.json", '{"__items__": [["evil", 1]]}')),
}
LOADERS["resumed"] = {"resume": LOADERS["checkpoint"]["resume"]}
LOADERS["state"] = {key: load for key, load in LOADERS["checkpoint"].items() if key != "verify"}  # it reads hashes only
LOADERS["fit"] = {key: load for key, load in LOADERS["unet"].items() if key != "not strict"}
LOADERS["encoder"] = {"text encoder": text_encoder}
BASE_OF |= {"resumed": "checkpoint", "state": "checkpoint", "fit": "ours", "encoder": "told"}
CASES |= {f"resumed: {name}": ("resumed", change) for name, change in RESUMED.items()}
UNABLE = {
    ("inception", "inception"),
    ("theirs", "embed"),
    ("told", "evaluate, compare, sheet"),
}  # what is refused of an honest folder too
PAIRS = [(case, loader) for case, (group, _) in CASES.items() for loader in LOADERS[group]]


# every network of the house, with each of its numbers out of all bounds


def networks(place: Path) -> dict[str, dict]:
    """What comes of every setting of every network: refused, or loaded where a number sizes nothing."""
    from zoo import ZOO

    found, seen = {}, set()
    for entry in ZOO:
        network = entry.build()
        if isinstance(network, latentia.InceptionV3) or (type(network), str(network.config)) in seen:
            continue  # it has no settings
        network.save_pretrained(place / "honest")
        for key in network.config:
            if key.startswith("_") or (type(network), key) in seen:
                continue
            seen.add((type(network), key))
            for wrong in (HUGE, 2**20, -1, "x", NAN, [2**20] * 3, [[[1]]]):
                folder = shutil.copytree(place / "honest", place / "network" / "copy")
                edit("config.json", **{key: wrong})(folder)
                found[f"{entry.name} {key} {str(wrong)[:20]}"] = refused(type(network).from_pretrained, folder)
                shutil.rmtree(folder.parent)
        shutil.rmtree(place / "honest")
    return found


# --------------------------------------------------------------------------------------------------------- the process


class TooLong(BaseException):
    pass


def refused(load, folder: Path) -> dict:
    """What one loader does with one folder."""

    def ring(*_):
        raise TooLong

    before, started = set(sys.modules), time.perf_counter()
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        load(folder)
        end = "loaded"
    except latentia.errors.LatentiaError as error:
        end = f"refused {error.exit_code}: {error}"
    except SystemExit as error:
        end = f"refused {error.code}"
    except TooLong:
        end = "took too long"
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    new = set(sys.modules) - before
    places = {name: str(getattr(sys.modules[name], "__file__", "")) for name in new}
    wrong = [
        name
        for name, place in places.items()
        if place.startswith(str(folder.parent)) or name in ("antigravity", "evil")
    ]
    ran = (folder.parent / "ran").exists()
    return {"end": end[:500], "imported": wrong, "ran": ran, "seconds": time.perf_counter() - started}


def go_through(log: str, env: dict[str, str], root: str, answers: str) -> None:
    """Every case through every loader, in one process whose memory is bounded."""
    enter(log, env)
    place, found = Path(root), {}
    os.chdir(place)
    make_bases(place / "bases")
    for group, loaders in LOADERS.items():  # honest folders load, and all libraries are imported
        for name, load in loaders.items():
            folder = shutil.copytree(place / "bases" / BASE_OF.get(group, group), place / "honest" / "checkpoint-2")
            end = refused(load, folder)["end"]
            assert end == "loaded" or (group, name) in UNABLE, (group, name, end)
            shutil.rmtree(folder.parent)
    before = peak()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    for i, (case, (group, change)) in enumerate(CASES.items()):
        for j, (loader, load) in enumerate(LOADERS[group].items()):
            folder = place / f"{i}-{j}" / "checkpoint-2"  # a folder of its own, and a name that a checkpoint may have
            shutil.copytree(place / "bases" / BASE_OF.get(group, group), folder)
            change(folder)
            sys.path.insert(0, str(folder))
            os.chdir(folder)
            found[f"{case} | {loader}"] = refused(load, folder)
            os.chdir(place)
            sys.path.remove(str(folder))
            shutil.rmtree(folder.parent)
    answer = {"found": found, "networks": networks(place), "grown": 1024 * (peak() - before)}
    Path(answers).write_text(json.dumps(answer))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
