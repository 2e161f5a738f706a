"""latentia as a plugin of diffusers: light import, names in saved files, loading, strictness, conversions."""

import json
import os
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import pipeline_loading_utils
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file

import latentia
from latentia import registration
from latentia.errors import CheckpointError, NumericsError, UsageError
from latentia.pipelines.base import WORDS
from latentia.pipelines.images import check_output_type, from_input, to_output

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_unet(**changes):
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 1, "block_out_channels": (32,), "layers_per_block": 1, **changes}
    return latentia.UNet2D(**config).eval()


def tiny_pipeline(kind=None):
    kind = kind or latentia.UnconditionalDiffusionPipeline
    return kind(unet=tiny_unet(), scheduler=latentia.DDPMScheduler())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder of latentia's pipeline and one of diffusers' own around our network, not to be written to."""
    root = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(root / "ours")
    tiny_pipeline(diffusers.DDPMPipeline).save_pretrained(root / "theirs")
    return root


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / "ours", tmp_path / "copy")


def edit(folder, change, name=WEIGHTS):
    path = folder / "unet" / name
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


CHILD = """
import sys, time
before = set(sys.modules)
start = time.process_time()  # of this process, for other ones may keep the machine busy
import latentia
seconds = time.process_time() - start
heavy = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy &= {"torch", "diffusers", "numpy", "huggingface_hub", "PIL", "safetensors", "transformers"}
assert not heavy, heavy
assert seconds < 0.2, seconds
assert "UNet2D" in dir(latentia) and not hasattr(latentia, "Nonsense")
import diffusers
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
assert set(LOADABLE_CLASSES["latentia"]) == {"ModelMixin", "SchedulerMixin"}, LOADABLE_CLASSES.keys()
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipe.unet).__module__ == "latentia.models.unet", type(pipe.unet)
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[2])
assert type(pipe).__module__ == "latentia.pipelines.diffusion", type(pipe)
assert diffusers.DDPMScheduler.__module__.startswith("diffusers") and not hasattr(diffusers, "compare")
"""


def test_import_is_light_and_registers_with_diffusers_later(saved):
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(saved / "theirs"), str(saved / "ours")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


def test_registers_when_diffusers_came_first(monkeypatch):
    monkeypatch.delitem(pipeline_loading_utils.LOADABLE_CLASSES, "latentia")
    finders = list(sys.meta_path)
    registration.install()
    assert set(pipeline_loading_utils.LOADABLE_CLASSES["latentia"]) == {"ModelMixin", "SchedulerMixin"}
    assert sys.meta_path == finders


def test_diffusers_loads_what_latentia_saved(saved, tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved / "ours")
    assert type(pipe) is latentia.UnconditionalDiffusionPipeline and type(pipe.unet) is latentia.UNet2D
    assert len(pipe(2, num_inference_steps=2).images) == 2
    tiny_unet().save_pretrained(tmp_path)  # a folder whose config.json names no library
    network = diffusers.AutoModel.from_pretrained(str(tmp_path))
    assert type(network) is latentia.UNet2D
    for name in ("Nonsense", "compare", "unet"):
        with pytest.raises(AttributeError, match=f"diffusers has no attribute {name}"):
            getattr(diffusers, name)
    assert diffusers.DDPMScheduler is not latentia.DDPMScheduler


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")  # diffusers' own
def test_an_average_of_diffusers_is_read_back(tmp_path):
    """Training scripts of diffusers resume their averages so; the settings lie in the configuration of the network."""
    network = tiny_unet()
    average = EMAModel(network.parameters(), decay=0.7, model_cls=latentia.UNet2D, model_config=network.config)
    for parameter in network.parameters():
        parameter.data += 1
    average.step(network.parameters())
    average.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, latentia.UNet2D)
    assert again.decay == 0.7 and again.optimization_step == 1
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, average.shadow_params, strict=True))


def test_saved_files_name_the_library_and_no_module(saved):
    for name in ("ours", "theirs"):
        index = json.loads((saved / name / "model_index.json").read_text())
        assert index["unet"] == ["latentia", "UNet2D"]
        assert index["scheduler"] == ["latentia", "DDPMScheduler"]


def test_the_loader_returns_the_class_that_was_saved(saved):
    ours = latentia.DiffusionPipeline.from_pretrained(saved / "ours")
    theirs = latentia.DiffusionPipeline.from_pretrained(str(saved / "theirs"))
    assert type(ours) is latentia.UnconditionalDiffusionPipeline
    assert type(theirs) is diffusers.DDPMPipeline
    assert type(diffusers.DiffusionPipeline.from_pretrained(saved / "theirs").unet) is latentia.UNet2D
    want = tiny_unet().state_dict()
    for pipe in (ours, theirs):
        assert type(pipe.unet) is latentia.UNet2D and type(pipe.scheduler) is latentia.DDPMScheduler
        assert not pipe.unet.training
        assert all(torch.equal(value, want[key]) for key, value in pipe.unet.state_dict().items())


def test_the_loader_takes_a_component_and_a_dtype(saved):
    scheduler = latentia.DDIMScheduler()
    pipe = latentia.DiffusionPipeline.from_pretrained(saved / "ours", scheduler=scheduler, dtype=torch.bfloat16)
    assert pipe.scheduler is scheduler and pipe.unet.dtype == torch.bfloat16


def test_a_loaded_pipeline_saves_no_folder_of_this_machine(saved, tmp_path):
    latentia.DiffusionPipeline.from_pretrained(saved / "ours").save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(saved) not in path.read_text(), path


# Strict weights, through every loader.

LOADERS = {
    "network": lambda folder: latentia.UNet2D.from_pretrained(folder / "unet"),
    "subfolder": lambda folder: latentia.UNet2D.from_pretrained(folder, subfolder="unet"),
    "any pipeline": latentia.DiffusionPipeline.from_pretrained,
    "the pipeline": lambda folder: latentia.UnconditionalDiffusionPipeline.from_pretrained(folder),
    "diffusers": lambda folder: diffusers.DDPMPipeline.from_pretrained(folder),
}
DAMAGE = {
    "1 missing (conv_in.bias)": lambda weights: weights.pop("conv_in.bias"),
    "1 not part of the network (spare)": lambda weights: weights.update(spare=torch.zeros(3)),
    "1 of another shape (conv_in.bias (7,) instead of (32,))": lambda weights: weights.update(
        {"conv_in.bias": torch.zeros(7)}
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("said", DAMAGE)
def test_weights_that_do_not_fit_are_refused(folder, loader, said):
    edit(folder, DAMAGE[said])
    with pytest.raises(CheckpointError) as caught:
        LOADERS[loader](folder)
    assert said in str(caught.value) and "UNet2D" in str(caught.value)


def test_a_missing_file_is_an_os_error_too(saved):
    """`try: from_pretrained(variant="fp16") except OSError:` is how scripts of diffusers fall back."""
    for load in (latentia.UNet2D, latentia.DiffusionPipeline):
        with pytest.raises(OSError) as caught:
            load.from_pretrained(saved / "ours" / ("unet" if load is latentia.UNet2D else ""), variant="fp16")
        assert isinstance(caught.value, CheckpointError) and caught.value.exit_code == 5


def test_a_class_without_place_for_a_component_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    shutil.copytree(folder / "unet", folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["latentia", "UNet2D"]}))
    with pytest.raises(CheckpointError, match="with vae, for which UnconditionalDiffusionPipeline has no place"):
        latentia.UnconditionalDiffusionPipeline.from_pretrained(folder)


def test_a_scheduler_of_another_kind_is_refused(tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of a FlowMatchEulerDiscreteScheduler, whose noise a DDIMScheduler"):
        latentia.DDIMScheduler.from_pretrained(tmp_path)
    diffusers.EulerDiscreteScheduler(beta_end=0.03).save_pretrained(tmp_path)
    assert latentia.DDIMScheduler.from_pretrained(tmp_path).config.beta_end == 0.03


@pytest.mark.parametrize("name", ["/no/such", "./runs", "~/runs", "a/b/c", "runs\\x", "outputs/nothing"])
def test_a_path_that_is_not_there_is_not_asked_for_on_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    for load in (latentia.DiffusionPipeline, latentia.UNet2D, latentia.DDIMScheduler):
        with pytest.raises(UsageError, match=r"neither a folder nor the name of a Hub repository.*no such folder"):
            load.from_pretrained(name)


def test_long_lists_of_keys_are_cut(folder):
    edit(folder, lambda weights: [weights.pop(key) for key in sorted(weights)[:5]])
    with pytest.raises(CheckpointError, match=r"5 missing \(.*, .*, .* and 2 more\)"):
        latentia.UNet2D.from_pretrained(folder / "unet")


def test_strict_false_loads_what_fits_and_initialises_the_rest(folder):
    def change(weights):
        del weights["conv_in.weight"]
        weights["conv_in.bias"] = torch.zeros(7)

    edit(folder, change)
    torch.manual_seed(1)  # another one than the saved network's
    unet, info = latentia.UNet2D.from_pretrained(folder / "unet", strict=False, output_loading_info=True)
    assert info["missing_keys"] == ["conv_in.weight"]
    want = tiny_unet().state_dict()
    for key, value in unet.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, want[key]) == (key not in ("conv_in.weight", "conv_in.bias")), key
    bound = 1 / want["conv_in.weight"][0].numel() ** 0.5  # of a convolution's own initialisation
    assert 0 < unet.conv_in.weight.abs().max() <= bound
    assert not unet.training


@pytest.mark.parametrize("loader", LOADERS)
def test_damaged_weights_are_refused(folder, loader):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="unet"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_are_never_read(folder, loader, monkeypatch):
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("unpickled"))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*run arbitrary code"):
        LOADERS[loader](folder)


def test_asking_for_pickles_or_code_is_refused(saved):
    for load in (latentia.UNet2D.from_pretrained, latentia.DiffusionPipeline.from_pretrained):
        with pytest.raises(UsageError, match="use_safetensors"):
            load(saved / "ours", use_safetensors=False)
    for asked in ({"trust_remote_code": True}, {"custom_pipeline": "somebody/pipeline"}):
        with pytest.raises(UsageError, match="runs no code"):
            latentia.DiffusionPipeline.from_pretrained(saved / "ours", **asked)


# Hostile repositories: refused before anything is imported, and no file of theirs is run.

HOSTILE = {
    "library os": ({"unet": ["os", "UNet2D"]}, "with a library of"),
    "library antigravity": ({"unet": ["antigravity", "UNet2D"]}, "with a library of"),
    "dotted library": ({"unet": ["latentia.models.unet", "UNet2D"]}, "with a library of"),
    "parent library": ({"unet": ["../evil", "UNet2D"]}, "with a library of"),
    "local module": ({"unet": ["evil", "Evil"]}, "with a library of"),
    "pipeline module": ({"unet": ["stable_diffusion", "StableDiffusionSafetyChecker"]}, "with a library of"),
    "library number": ({"unet": [3, "UNet2D"]}, "with a library of"),
    "half a component": ({"unet": ["latentia"]}, "with a library of"),
    "class dotted": ({"unet": ["latentia", "models.UNet2D"]}, "class of unet .* must match"),
    "class private": ({"unet": ["latentia", "_EXPORTS"]}, "class of unet .* must match"),
    "class list": ({"unet": ["latentia", ["UNet2D"]]}, "class of unet .* must match"),
    "class module": ({"unet": ["diffusers", "utils"]}, "not on the list of reviewed classes"),
    "class function": ({"unet": ["latentia", "push_to_hub"]}, "not a network or scheduler"),
    "class unknown": ({"unet": ["latentia", "UNet3D"]}, 'Did you mean "UNet2D"'),
    "class pipeline": ({"unet": ["diffusers", "DDPMPipeline"]}, "not on the list of reviewed classes"),
    "class automatic": ({"unet": ["transformers", "AutoModel"]}, "not on the list of reviewed classes"),
    "pipeline that fetches others": ({"_class_name": "KandinskyCombinedPipeline"}, "downloads further repositories"),
    "flag of a loader": (
        {"trust_remote_code": True},
        "sets trust_remote_code, which only the caller of a loader",
    ),
    "number without bounds": ({"steps": 10**12}, "steps .* must be at most"),
    "component parent": ({"../evil": ["latentia", "UNet2D"]}, "component's name .* must match"),
    "component private": ({"_evil": ["latentia", "UNet2D"]}, "component's name .* must match"),
    "private list": ({"_name_or_path": ["evil", "Evil"]}, "must be plain text"),
    "pipeline list": ({"_class_name": ["evil", "Evil"]}, "_class_name .* must match"),
    "pipeline dotted": ({"_class_name": "os.system"}, "_class_name .* must match"),
    "pipeline private": ({"_class_name": "__getattr__"}, "_class_name .* must match"),
    "pipeline missing": ({"_class_name": None}, "_class_name .* must match"),
    "pipeline not one": ({"_class_name": "UNet2D"}, "neither latentia nor diffusers has"),
    "pipeline unknown": (
        {"_class_name": "UnconditionalDifusionPipeline"},
        'Did you mean "UnconditionalDiffusionPipeline"',
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_indexes_are_refused(folder, case, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    change, said = HOSTILE[case]
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **change}))
    for name in ("evil.py", "pipeline.py", "unet/evil.py"):
        (folder / name).write_text("open('ran', 'w').write('x')\nclass Evil: ...\n")
    before = set(sys.modules)
    with pytest.raises(CheckpointError, match=said):
        latentia.DiffusionPipeline.from_pretrained(folder)
    assert not (folder / "ran").exists()
    assert not {name for name in set(sys.modules) - before if "evil" in name or name == "antigravity"}


@pytest.mark.parametrize("key", ["items", "get", "__dict__", "__class__", "__reduce__", "_FrozenDict__frozen"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_settings_named_as_attributes_of_python_are_refused(folder, name, key):
    """diffusers sets each on the configuration that it makes, whose `items` would then be a number."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), key: {} if key == "__dict__" else 1}))
    with pytest.raises(CheckpointError, match=f"{path.name} has '{key}', which is no setting"):
        latentia.DiffusionPipeline.from_pretrained(folder)


SHARDS = {
    "../weights.safetensors": "names of .safetensors files in the same folder",
    "in/weights.safetensors": "names of .safetensors files in the same folder",
    "weights.bin": "names of .safetensors files in the same folder",
    "gone.safetensors": "names gone.safetensors, which is not there",
}


@pytest.mark.parametrize("name", [*SHARDS, "weights.safetensors"])
def test_shards_are_plain_files_of_their_folder(folder, name):
    """The weights themselves are honest, wherever they lie."""
    unet = folder / "unet"
    (unet / "in").mkdir()
    honest = (unet / WEIGHTS).rename(unet / "weights.safetensors")
    for place in (folder / "weights.safetensors", unet / "in" / "weights.safetensors", unet / "weights.bin"):
        shutil.copy(honest, place)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(honest), name)}
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    for load in LOADERS.values():
        if name in SHARDS:
            with pytest.raises(CheckpointError, match=SHARDS[name]):
                load(folder)
        else:
            load(folder)


def test_links_lead_only_into_the_cache_of_the_hub(folder, tmp_path):
    outside = (folder / "unet" / WEIGHTS).rename(tmp_path / "outside")
    (folder / "unet" / WEIGHTS).symlink_to(outside)
    for load in LOADERS.values():
        with pytest.raises(CheckpointError, match="is a symbolic link out of its folder"):
            load(folder)
    (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(tmp_path / "unet")
    for name in ("subfolder", "any pipeline"):
        with pytest.raises(CheckpointError, match="unet is a symbolic link out of its folder"):
            LOADERS[name](folder)
    (folder / "unet").unlink()
    (tmp_path / "unet").rename(folder / "unet")
    snapshot = tmp_path / "models--user--name" / "snapshots" / "ab12"
    shutil.copytree(folder, snapshot, symlinks=True)
    (snapshot / "unet" / WEIGHTS).unlink()
    (snapshot.parents[1] / "blobs").mkdir()
    outside.rename(snapshot.parents[1] / "blobs" / "cd34")
    (snapshot / "unet" / WEIGHTS).symlink_to("../../../blobs/cd34")
    for load in LOADERS.values():
        load(snapshot)


def test_code_beside_a_component_is_not_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "unet" / "latentia.py").write_text("open('ran', 'w').write('x')\nclass UNet2D: ...\n")
    with pytest.raises(CheckpointError):
        latentia.DiffusionPipeline.from_pretrained(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("content", [None, "", "[]", "{", "[" * 100_000, b"\xff\xfe"])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    if content is not None:
        path = tmp_path / "model_index.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        latentia.DiffusionPipeline.from_pretrained(tmp_path)


def test_a_name_that_is_no_repository_is_a_usage_error():
    with pytest.raises(UsageError, match="neither a folder nor"):
        latentia.DiffusionPipeline.from_pretrained("no/such/folder")


# The common words.


def test_a_word_that_a_family_has_not_says_so():
    class OnlyDecodes(latentia.DiffusionPipeline):
        words = ("decode",)

        def decode(self, latents):
            return latents

    pipe = OnlyDecodes()
    arguments = {"encode": (1,), "interpolate": (1, 2, 3), "log_likelihood": (1,)}
    for word in WORDS:
        if word != "decode":
            with pytest.raises(UsageError, match=f"OnlyDecodes has no {word}.*can sample.* and decode"):
                getattr(pipe, word)(*arguments[word])


# Pictures.


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_pixel_value_survives_the_way_there_and_back(channels):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=-1)
    x = from_input(pixels)
    assert x.shape == (1, channels, 16, 16) and x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    [picture] = to_output(x, "pil")
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert np.array_equal(np.asarray(picture).reshape(1, 16, 16, channels), pixels)
    assert torch.equal(from_input(picture), x)
    assert torch.equal(from_input(torch.from_numpy(pixels).movedim(-1, 1)), x)
    assert torch.allclose(from_input(to_output(x, "np")), x, atol=1e-6)
    assert torch.equal(from_input(x), x)


def test_outputs_have_the_ranges_and_shapes_of_diffusers():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 2, 3)
    unit = torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0])
    assert torch.equal(to_output(x, "pt").flatten(), unit)
    assert to_output(x, "np").shape == (1, 2, 3, 1)
    assert np.array_equal(to_output(x, "np").flatten(), unit.numpy())
    assert to_output(x, "latent") is x
    processor = diffusers.image_processor.VaeImageProcessor()
    wide = torch.linspace(-1.2, 1.2, 3 * 64).reshape(1, 3, 8, 8)
    for kind in ("np", "pt", "pil"):
        mine, theirs = to_output(wide, kind), processor.postprocess(wide, kind)
        mine, theirs = (np.asarray(one[0] if kind == "pil" else one) for one in (mine, theirs))
        assert np.array_equal(mine, theirs), kind
    assert torch.equal(to_output(x.bfloat16(), "pt"), to_output(x.bfloat16().float(), "pt"))


def test_unknown_output_types_and_bad_samples_are_refused():
    with pytest.raises(UsageError, match=r'"pil".*got .*Did you mean "pil"|pil, np, pt, latent, got .*Did you mean'):
        check_output_type("pill")
    with pytest.raises(UsageError, match="1, 3 or 4 channels, got 2"):
        to_output(torch.zeros(1, 2, 4, 4))
    assert to_output(torch.zeros(1, 2, 4, 4), "np").shape == (1, 4, 4, 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericsError, match="not finite"):
            to_output(torch.full((1, 1, 2, 2), bad))


WRONG = {
    "a string": ("x.png", "got str"),
    "nothing": ([], "got list"),
    "a palette": (Image.new("P", (4, 4)), "images must have mode L, RGB or RGBA; got P"),
    "unlike pictures": (
        [Image.new("L", (4, 4)), Image.new("L", (4, 5))],
        "images of one call must have one size and mode; got",
    ),
    "arrays in a list": ([np.zeros((4, 4, 1))], "images must be PIL images where they are a list; got ndarray"),
    "flat": (np.zeros((4, 4)), r"shape \(H, W, C\)"),
    "empty": (torch.zeros(0, 1, 4, 4), "not be empty"),
    "integers": (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "got torch.int64"),
    "[0, 255] floats": (np.full((4, 4, 1), 200.0), r"\[0, 1\], got values from 200 to 200"),
    "negative array": (np.full((4, 4, 1), -0.5), r"\[0, 1\]"),
    "wide tensor": (torch.full((1, 1, 4, 4), 1.5), r"\[-1, 1\], got values from 1.5"),
    "not a number": (torch.full((1, 1, 4, 4), float("nan")), "1 of 1 hold NaN"),
    "colour": (torch.zeros(1, 3, 4, 4), r'1 channel, got 3.*convert\("L"\)'),
    "size": (torch.zeros(1, 1, 4, 5), r"4 high and 4 wide, got 4 by 5.*resize\(\(4, 4\)\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_images_that_are_not_as_said_are_refused(case):
    images, said = WRONG[case]
    with pytest.raises(UsageError, match=said):
        from_input(images, channels=1, size=4)
