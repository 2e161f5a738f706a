"""Promises of every pipeline, over the list of `pipeline_list.py`: bytes, types, words, files, devices, errors."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from devices import DEVICE, separate_device
from helpers import pixels, seeded
from PIL import Image
from pipeline_list import PIPELINES, Entry, random_images
from tiny_pipelines import WORDS, texts

import latentia
from latentia.errors import LatentiaError, UsageError
from latentia.hub.load import read_index
from latentia.hub.push import diffusers_pipeline
from latentia.pipelines.base import WORDS as METHODS
from latentia.pipelines.capabilities import CONDITIONS, capabilities
from latentia.pipelines.texts import embed_texts

BUILT = {entry.name: entry.build() for entry in PIPELINES}  # shared by tests that leave a pipeline as it is


def over(able=lambda entry: True):
    return pytest.mark.parametrize("entry", [e for e in PIPELINES if able(e)], ids=lambda entry: entry.name)


every = over()
THREADS_AT_NIGHT = {  # which share their pipeline with another entry
    *("diffusion-classes", "diffusion-ode", "latent-flow", "text-to-image-pixels", "vae-without-likelihood"),
    *("flow", "latent-diffusion-control", "diffusion-edges"),
    *("vae-prior", "vae-gamma", "vae-categories", "gan-classes", "normalizing-flow", "vqvae-fsq", "vq-prior-classes"),
}
samplers = over(lambda entry: entry.ask)


# ------------------------------------------------------------ what is asked of each


def sample(entry: Entry, pipe, n: int, seed=7, output_type: str = "latent", **options):
    generator = seeded(seed) if isinstance(seed, int) else seed
    return pipe(**entry.ask(n) | options, generator=generator, output_type=output_type).images


def encode(entry: Entry, pipe, x: torch.Tensor, **options) -> torch.Tensor:
    return pipe.encode(x, **entry.given(len(x)), **entry.short, **entry.search, **options)


def decode(entry: Entry, pipe, z: torch.Tensor) -> torch.Tensor:
    return pipe.decode(z, **entry.given(len(z)), **entry.short, output_type="latent")


def interpolate(entry: Entry, pipe, a: torch.Tensor, b: torch.Tensor, steps: int = 4, **options) -> torch.Tensor:
    given = {key: values[0] for key, values in entry.given(1).items()}
    return pipe.interpolate(a, b, steps, **given, **entry.short, output_type="latent", **options)


def log_likelihood(entry: Entry, pipe, x: torch.Tensor) -> torch.Tensor:
    given = (entry.likelihood or entry.given)(len(x))
    options = {"num_inference_steps": 4} if entry.short else {}
    options |= {"generator": seeded(3)} if "generator" in inspect.signature(pipe.log_likelihood).parameters else {}
    return pipe.log_likelihood(x, **given, **options)


def read(entry: Entry, pipe, x: torch.Tensor) -> torch.Tensor:
    """What the first of its words that takes images gives of them."""
    return (encode if "encode" in pipe.words else log_likelihood)(entry, pipe, x)


def random_latents(entry: Entry, pipe, n: int) -> torch.Tensor:
    if pipe.latents == "indices":
        return torch.randint(0, 12, (n, *entry.latent), generator=seeded(1))
    return torch.randn(n, *entry.latent, generator=seeded(1))


def ends(entry: Entry, pipe) -> tuple[torch.Tensor, torch.Tensor]:
    """What is interpolated between: images, or latents where encoding is a search."""
    return (random_latents(entry, pipe, 2) if entry.search else random_images(2, *entry.image)).split(1)


def results(entry: Entry, pipe, n: int = 3) -> dict[str, torch.Tensor]:
    """What the call and each word give of the same seeds, images and latents."""
    x, found = random_images(n, *entry.image), {}
    if entry.ask:
        found["sample"] = sample(entry, pipe, n)
    if "encode" in pipe.words:
        found["encode"] = encode(entry, pipe, x)
    if "decode" in pipe.words:
        found["decode"] = decode(entry, pipe, random_latents(entry, pipe, n))
        found["interpolate"] = interpolate(entry, pipe, *ends(entry, pipe))
    if "log_likelihood" in pipe.words:
        found["log_likelihood"] = log_likelihood(entry, pipe, x)
    return found


# ------------------------------------------------------------ threads


@pytest.fixture
def eager_threads():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield ThreadPoolExecutor(4)
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, id=e.name, marks=[pytest.mark.nightly] * (e.name in THREADS_AT_NIGHT)) for e in PIPELINES],
)
def test_threads_get_what_calls_in_turn_get(entry, eager_threads):
    pipe = entry.build()
    for network in pipe.components.values():
        if "gan" in entry.name and isinstance(network, torch.nn.Module):
            network.train()  # which a call ends and restores

    def ask(i: int) -> dict[str, torch.Tensor]:
        steps = {"num_inference_steps": 2 + i} if entry.short else {}
        found = {f"sample {k}": sample(entry, pipe, 1 + i, seed=k, **steps) for k in range(2) if entry.ask}
        return found | results(entry, pipe, 1 + i)

    in_turn = [ask(i) for i in range(4)]
    for i, found in enumerate(eager_threads.map(ask, range(4))):
        for what, values in found.items():
            assert torch.equal(values, in_turn[i][what]), (i, what)


def test_threads_load_at_once(eager_threads, tmp_path):
    """The loader of diffusers replaces methods of torch.nn.Module, and two at once left them replaced for good."""
    unet = latentia.UNet2D(sample_size=8, block_out_channels=(32,))
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler()).save_pretrained(tmp_path)
    for _ in range(5):
        for pipe in eager_threads.map(lambda _: latentia.DiffusionPipeline.from_pretrained(tmp_path), range(8)):
            assert {weight.device.type for weight in pipe.unet.parameters()} == {"cpu"}
        for unet in eager_threads.map(lambda _: latentia.UNet2D.from_pretrained(tmp_path / "unet"), range(8)):
            assert {weight.device.type for weight in unet.parameters()} == {"cpu"}
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"


def test_threads_share_a_tokenizer(eager_threads):
    """Which keeps padding and truncation of its last call, and refuses a change while it is in use."""
    parts = texts()

    def ask(i: int) -> torch.Tensor:
        return torch.cat([embed_texts(*parts, WORDS[: 1 + i])[0] for _ in range(50)])

    in_turn = [ask(i) for i in range(4)]
    assert all(map(torch.equal, eager_threads.map(ask, range(4)), in_turn))


# ------------------------------------------------------------ declarations


def test_the_list_has_every_public_pipeline():
    public = {name for name in latentia.__all__ if name.endswith("Pipeline")} - {"DiffusionPipeline"}
    public = {name for name in public if getattr(latentia, name).modality == "image"}  # others have tests of their own
    assert {type(pipe).__name__ for pipe in BUILT.values()} == public


WITHOUT_LIKELIHOOD = {"vae-without-likelihood"}  # of a class whose other pipelines have one


@every
def test_declarations_are_what_the_methods_are(entry):
    pipe = BUILT[entry.name]
    kind, able = type(pipe), capabilities(pipe)
    own = tuple(word for word in METHODS if getattr(kind, word) is not getattr(latentia.DiffusionPipeline, word))
    if entry.name in WITHOUT_LIKELIHOOD:  # as its weights have none
        own = tuple(word for word in own if word != "log_likelihood")
    assert able.words == pipe.words == own
    call = inspect.signature(kind.__call__).parameters
    assert {name for name in CONDITIONS if name in call} == set(kind.conditions) <= set(CONDITIONS)
    assert set(able.conditions) <= set(able.options) and ("class_labels" in able.conditions) == bool(pipe.num_classes)
    assert set(pipe.latent_conditions) <= set(pipe.conditions)
    assert set(able.latent_conditions) == set(entry.given(1))
    for word in set(own) - {"log_likelihood"}:
        known = inspect.signature(getattr(kind, word)).parameters
        assert set(kind.latent_conditions) <= set(known)
        assert ("num_inference_steps" in call) == ("num_inference_steps" in known)
    assert (pipe.likelihood is not None) == ("log_likelihood" in own)
    assert all(option.help for option in able.options.values())


@every
def test_words_have_their_shapes_and_others_an_error(entry):
    pipe = BUILT[entry.name]
    found = results(entry, pipe, 2)
    shapes = {"sample": (2, *entry.image), "encode": (2, *(entry.latent or ())), "decode": (2, *entry.image),
              "interpolate": (4, *entry.image), "log_likelihood": (2,)}  # fmt: skip
    assert {key: tuple(value.shape) for key, value in found.items()} == {key: shapes[key] for key in found}
    assert all(value.isfinite().all() for value in found.values())
    if pipe.latents == "indices":
        x = random_images(2, *entry.image)
        before = encode(entry, pipe, x, continuous=True)
        assert found["encode"].dtype == torch.int64 and before.is_floating_point() and before.ndim == 4
        torch.testing.assert_close(decode(entry, pipe, before), decode(entry, pipe, found["encode"]))
    for word in set(METHODS) - set(pipe.words):
        with pytest.raises(UsageError, match=f"{type(pipe).__name__} has no {word}: .* It can sample"):
            getattr(pipe, word)(*[0] * (3 if word == "interpolate" else 1))


# ------------------------------------------------------------ bytes


@samplers
def test_a_sample_has_the_same_bytes_in_every_batch(entry):
    pipe = BUILT[entry.name]
    many = sample(entry, pipe, 19)  # chunks of 8
    assert len(many.flatten(1).unique(dim=0)) > 17
    for n in (1, 2, 9):
        assert torch.equal(sample(entry, pipe, n), many[:n]), n
    assert not torch.equal(sample(entry, pipe, 2, seed=8), many[:2])


@pytest.mark.parametrize("name", ["diffusion", "gan", "vae"])
def test_so_it_has_in_chunks_as_users_have_them(name, real_chunks):
    """Kernels are chosen by the shape of a batch, so the size that is shipped counts."""
    entry = next(one for one in PIPELINES if one.name == name)
    many = sample(entry, BUILT[name], 67)
    for n in (1, 33, 65):
        assert torch.equal(sample(entry, BUILT[name], n), many[:n]), n


@samplers
def test_one_generator_or_one_for_each_image(entry):
    """Four images of a list of seeds, one of which is drawn again by its seed alone: a habit of diffusers' users."""
    pipe, seeds = BUILT[entry.name], (7, 8, 9)
    many = sample(entry, pipe, 3, seed=[seeded(seed) for seed in seeds])
    assert torch.equal(many[:1], sample(entry, pipe, 1, seed=7))
    alone = sample(entry, pipe, 3, seed=[seeded(seed) for seed in (5, 6, 9)])
    assert torch.equal(many[2], alone[2]) and not torch.equal(many[1], alone[1])
    with pytest.raises(UsageError, match="generator must be one or a list of batch_size=3; got 2"):
        sample(entry, pipe, 3, seed=[seeded(7), seeded(8)])


def test_from_pipe_refuses_to_drop_an_autoencoder():
    """Else its latents would be taken for images."""
    for name in ("latent", "vq-prior"):
        pipe = next(built for key, built in BUILT.items() if key.startswith(name))
        with pytest.raises(UsageError, match="for which UnconditionalDiffusionPipeline has no place"):
            latentia.UnconditionalDiffusionPipeline.from_pipe(pipe)


@every
def test_from_pipe_takes_every_component_over(entry):
    pipe = BUILT[entry.name]
    again = type(pipe).from_pipe(pipe)
    assert {key: id(part) for key, part in again.components.items()} == {
        key: id(part) for key, part in pipe.components.items()
    }
    assert getattr(again.config, "label_names", None) == getattr(pipe.config, "label_names", None)


@over(lambda entry: entry.name in ("diffusion-classes", "latent-diffusion", "text-to-image", "vae", "gan", "vqvae"))
def test_wrapped_components_do_all_that_they_do(entry, tmp_path):
    """`torch.compile`, PEFT and others wrap a network, so that its class is another one."""
    pipe = BUILT[entry.name]
    networks = {key: part for key, part in pipe.components.items() if isinstance(part, diffusers.ModelMixin)}
    wrapped = {key: torch.compile(part, backend="eager") for key, part in networks.items()}
    held = type(pipe).from_pipe(pipe, **wrapped)
    held.set_progress_bar_config(disable=True)
    for key, part in wrapped.items():
        assert getattr(held, key) is part
    with torch.compiler.set_stance("force_eager"):  # the wrapper is what is tested
        found = results(entry, held, 2)
    for word, value in results(entry, pipe, 2).items():
        torch.testing.assert_close(found[word], value)
    for kind, folder in ((held, tmp_path / "wrapped"), (pipe, tmp_path / "plain")):
        kind.save_pretrained(folder)
    assert read_index(tmp_path / "wrapped") == read_index(tmp_path / "plain")


@over(lambda entry: entry.latent)
def test_words_give_the_same_bytes_in_every_batch(entry):
    pipe, n = BUILT[entry.name], 10
    x, z = random_images(n, *entry.image), random_latents(entry, pipe, n)
    for word, call, values in (("encode", encode, x), ("decode", decode, z), ("log_likelihood", log_likelihood, x)):
        if word in pipe.words:
            assert torch.equal(call(entry, pipe, values)[:2], call(entry, pipe, values[:2])), word


@over(lambda entry: "decode" in BUILT[entry.name].words)
def test_interpolation_begins_and_ends_at_the_reconstructions(entry):
    pipe = BUILT[entry.name]
    a, b = ends(entry, pipe)
    z = torch.cat([a, b]) if entry.search else torch.cat([encode(entry, pipe, x) for x in (a, b)])
    given = {key: values * 2 for key, values in entry.given(1).items()}
    whole = pipe.decode(z, **given, **entry.short, output_type="latent")
    for options in (
        [{"mode": "lerp"}, {"mode": "slerp"}] if "mode" in inspect.signature(pipe.interpolate).parameters else [{}]
    ):
        path = interpolate(entry, pipe, a, b, 5, **options)
        torch.testing.assert_close(path[[0, -1]], whole, atol=1e-4, rtol=1e-4)
        assert len(path) == 5 and not torch.allclose(path[2], path[0], atol=1e-4)
    with pytest.raises(UsageError, match="steps must be at least 2"):
        interpolate(entry, pipe, a, b, 1)


# ------------------------------------------------------------ what is given and returned


@samplers
def test_output_types_agree(entry):
    pipe = BUILT[entry.name]
    out = {kind: sample(entry, pipe, 2, output_type=kind) for kind in ("pil", "np", "pt", "latent")}
    channels, height, width = entry.image
    assert out["np"].shape == (2, height, width, channels) and out["np"].dtype == np.float32
    np.testing.assert_array_equal(out["np"], out["pt"].permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(out["pt"], (out["latent"].clamp(-1, 1) + 1) / 2)
    for image, array in zip(out["pil"], out["np"]):
        np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), (array * 255).round())
    single = pipe(**entry.ask(1), generator=seeded(7), return_dict=False)
    assert isinstance(single, tuple) and pixels(single[0]) == pixels(out["pil"][:1])
    with pytest.raises(UsageError, match=r'output_type must be one of .*Did you mean "pil"'):
        sample(entry, pipe, 1, output_type="pill")


@over(lambda entry: entry.latent)
def test_bytes_arrays_tensors_and_files_are_the_same_images(entry):
    pipe, shape = BUILT[entry.name], (2, *entry.image[1:], entry.image[0])
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = [Image.fromarray(one.squeeze()) for one in array]
    kinds = [array, array.astype(np.float32) / 255, torch.from_numpy(array).permute(0, 3, 1, 2), images]
    found = [read(entry, pipe, kind) for kind in kinds]
    assert all(torch.equal(one, found[0]) for one in found[1:])


@over(lambda entry: BUILT[entry.name].num_classes)
def test_labels_by_index_and_by_name(entry):
    pipe = BUILT[entry.name]
    names = list(pipe.config.label_names.values())
    by_name = sample(entry, pipe, 3, class_labels=names)
    assert torch.equal(by_name, sample(entry, pipe, 3, class_labels=torch.arange(3)))
    assert torch.equal(by_name[1:2], sample(entry, pipe, 3, class_labels=names[1])[1:2])  # one for all
    assert not torch.equal(by_name[0], sample(entry, pipe, 3, class_labels=names[1])[0])
    for wrong, text in ((3, "class_labels must be from 0 to 2; got 3"), ("dgo", 'Did you mean "dog"')):
        with pytest.raises(UsageError, match=text):
            sample(entry, pipe, 3, class_labels=wrong)
    with pytest.raises(UsageError, match="batch_size is 3, but class_labels are given for 2"):
        sample(entry, pipe, 3, class_labels=[0, 1])


@over(lambda entry: BUILT[entry.name].num_classes)
def test_names_keep_their_indices_in_files(entry, tmp_path, monkeypatch):
    pipe, names = entry.build(), [f"c{i:02d}" for i in range(12)]
    with pytest.raises(UsageError, match="label_names must be 3, one for each class; got 12"):
        pipe._register_label_names(names)
    monkeypatch.setattr(type(pipe), "num_classes", 12)
    pipe._register_label_names(names)
    for place in ("once", "twice"):
        pipe.save_pretrained(tmp_path / place)
        pipe = type(pipe).from_pretrained(tmp_path / place)
        assert list(pipe.config.label_names.items()) == [(str(i), name) for i, name in enumerate(names)]
    with pytest.raises(UsageError, match=r"keys 0 to 1.*0 is missing among 1, 2"):
        pipe._register_label_names({"1": "a", "2": "b"})


@over(lambda entry: "class_labels" in BUILT[entry.name].conditions and not BUILT[entry.name].num_classes)
def test_labels_without_classes_are_refused(entry):
    with pytest.raises(UsageError, match="trained without classes; leave them out"):
        sample(entry, BUILT[entry.name], 1, class_labels=1)


@over(lambda entry: "callback_on_step_end" in inspect.signature(type(BUILT[entry.name]).__call__).parameters)
def test_a_callback_sees_every_step_and_may_change_it(entry):
    pipe, seen = entry.build(), []
    assert "latents" in pipe._callback_tensor_inputs

    def look(pipeline, i, t, tensors):
        assert pipeline is pipe and tensors["latents"].shape == (2, *entry.latent)
        seen.append((i, float(t)))

    same = sample(entry, pipe, 2, callback_on_step_end=look)
    assert torch.equal(same, sample(entry, pipe, 2))
    assert [i for i, _ in seen] == [0, 1] and [t for _, t in seen] == pipe.scheduler.timesteps.tolist()
    zeros = sample(entry, pipe, 2, callback_on_step_end=lambda p, i, t, x: {"latents": 0 * x["latents"]})
    assert torch.equal(zeros[0], zeros[1]) and not torch.equal(zeros, same)


@over(lambda entry: entry.short)
def test_the_progress_bar_can_be_switched_off(entry, capsys):
    pipe = entry.build()
    pipe.set_progress_bar_config(disable=False)
    sample(entry, pipe, 1)
    assert "2/2" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    sample(entry, pipe, 1)
    assert capsys.readouterr().err == ""


@every
def test_what_makes_no_sense_is_refused(entry):
    pipe = BUILT[entry.name]
    channels, height, width = entry.image
    wrong = torch.zeros(1, channels + 1, height, width)
    calls = [*entry.refusals]
    if {"encode", "log_likelihood"} & {*pipe.words}:
        calls.append((lambda p: read(entry, p, wrong), "must have .* channel"))
    if entry.ask and "batch_size" in inspect.signature(type(pipe).__call__).parameters:
        calls.append((lambda p: p(**entry.ask(1) | {"batch_size": 0}), "batch_size must be at least 1; got 0"))
    for call, text in calls:
        with pytest.raises(UsageError, match=text):
            call(pipe)


# ------------------------------------------------------------ files


FRESH = """
import hashlib, json, sys
import diffusers, numpy as np, torch
from PIL import Image
torch.set_num_threads(1)
def drawn(pipe, asked):
    pipe.set_progress_bar_config(disable=True)
    images = pipe(**asked, generator=torch.Generator().manual_seed(7), output_type="latent").images
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()
def restored(x):
    if {*x} == {"PIL"}:
        return Image.fromarray(np.array(x["PIL"], dtype=np.uint8))
    return torch.tensor(x["tensor"]) if {*x} == {"tensor"} else x
jobs = json.load(open(sys.argv[1]), object_hook=restored)
theirs = [drawn(diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True),
                asked) for folder, asked in jobs]
import latentia
ours = [drawn(latentia.DiffusionPipeline.from_pretrained(folder), asked) for folder, asked in jobs]
print("\\n" + json.dumps([ours, theirs]))
"""


def _plain(value):
    """A tensor or an image of a call as JSON."""
    key = "PIL" if isinstance(value, Image.Image) else "tensor"
    return {key: np.asarray(value).tolist()}


@pytest.fixture(scope="session")
def saved(make_once):
    """Every pipeline saved, and what a fresh process samples from each: through latentia, and through diffusers."""
    asked = [entry for entry in PIPELINES if entry.ask]

    def make(root):
        for entry in PIPELINES:
            folder = root / entry.name
            BUILT[entry.name].save_pretrained(folder)
            (folder / "pipeline.py").write_text(diffusers_pipeline(read_index(folder), str(folder)))
        jobs = [(str(root / entry.name), entry.ask(2)) for entry in asked]
        (root / "jobs.json").write_text(json.dumps(jobs, default=_plain))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
        command = [sys.executable, "-W", "ignore", "-c", FRESH, str(root / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        (root / "fresh.json").write_text(done.stdout.splitlines()[-1])

    root = make_once("pipelines", make)
    ours, theirs = json.loads((root / "fresh.json").read_text())
    return root, {entry.name: [*each] for entry, *each in zip(asked, ours, theirs)}


@every
def test_saved_and_loaded_it_gives_the_same_bytes(entry, saved, real_chunks):
    root, fresh = saved
    pipe, loaded = BUILT[entry.name], latentia.DiffusionPipeline.from_pretrained(root / entry.name)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipe) is type(type(pipe).from_pretrained(root / entry.name))
    assert type(diffusers.DiffusionPipeline.from_pretrained(root / entry.name)) is type(pipe)
    assert capabilities(loaded) == capabilities(pipe)
    here, there = results(entry, pipe, 2), results(entry, loaded, 2)
    for word, value in here.items():  # not to the last bit: loaded weights are aligned otherwise in memory
        torch.testing.assert_close(there[word], value)
    if entry.ask:
        digest = hashlib.sha256(there["sample"].numpy().tobytes()).hexdigest()
        assert fresh[entry.name] == [digest, digest]
    index = json.loads((root / entry.name / "model_index.json").read_text())
    for name, part in pipe.components.items():
        library = index[name][0]
        assert library in ("latentia", "diffusers", "transformers") if part is not None else library is None


@every
def test_saved_again_it_names_no_folder_of_this_machine(entry, saved, tmp_path):
    root, _ = saved
    latentia.DiffusionPipeline.from_pretrained(root / entry.name).save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.json"):
        assert str(root) not in path.read_text(), path


# ------------------------------------------------------------ precision and devices


# Mean distance from float32 on the CPU, over the spread of the values; of a bound in nats, which sums over pixels, over
# its size. bfloat16 has 8 bits, of which two steps through ten layers cost about two. Latents near two rows of a
# codebook may take the other one.
TOLERANCES = {"continuous": 0.05, "indices": 0.1, "embeddings": 0.05, None: 0.05}
GPU = [("cuda", torch.float32), ("cuda", torch.bfloat16)] if torch.cuda.is_available() else []


@pytest.mark.parametrize("device, dtype", [("cpu", torch.bfloat16), *GPU])
@every
def test_other_precisions_and_devices_are_near_float32(entry, device, dtype):
    full, other = results(entry, BUILT[entry.name]), results(entry, entry.build().to(device, dtype))
    limit = TOLERANCES[BUILT[entry.name].latents]
    for word, value in other.items():
        expected, found = full[word].double(), value.cpu().double()
        assert value.device.type == device and found.isfinite().all()
        if word == "log_likelihood":
            assert value.dtype == full[word].dtype and ((found - expected) / expected).abs().mean() < limit, word
        elif value.is_floating_point():
            assert (found - expected).abs().mean() / expected.std() < limit, word
        else:
            assert value.dtype == torch.int64 and (found == expected).double().mean() > 0.9, word


@every
def test_nothing_mixes_devices(entry):
    """On a second device every word gives the numbers of the CPU, and no operation takes tensors of both."""
    expected = results(entry, BUILT[entry.name])
    pipe = entry.build()
    with separate_device():
        pipe.to(DEVICE)
        for word, value in results(entry, pipe).items():
            assert value.device == DEVICE, word
            torch.testing.assert_close(value.cpu(), expected[word])
        if entry.ask:
            assert len(sample(entry, pipe, 1, output_type="pil")) == len(sample(entry, pipe, 1, output_type="np")) == 1


@pytest.mark.parametrize("name", sorted({type(pipe).__name__ for pipe in BUILT.values()}))
def test_another_class_takes_every_component_or_is_refused(name, tmp_path):
    """diffusers drops components that a class has no place for, such as the autoencoder of latent diffusion."""
    saved = next(pipe for pipe in BUILT.values() if type(pipe).__name__ == name)
    saved.save_pretrained(tmp_path)
    parts = {key for key, part in saved.components.items() if part is not None}
    for kind in {type(pipe) for pipe in BUILT.values()} - {type(saved)}:
        try:
            loaded = kind.from_pretrained(tmp_path)
        except LatentiaError:
            continue
        assert parts <= {key for key, part in loaded.components.items() if part is not None}, kind
