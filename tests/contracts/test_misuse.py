"""Arguments that mean nothing are refused with an error that names them, in every room of the library."""

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import register_to_config
from helpers import linear, quiet, regression
from zoo import ZOO

import latentia
from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import CheckpointError, UsageError
from latentia.functional.interpolation import interpolate
from latentia.losses.diffusion import diffusion_loss
from latentia.losses.flow_matching import flow_matching_loss
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import train

SMALL = {"sample_size": 8, "in_channels": 1, "block_out_channels": (16,), "attention_head_dim": 16}
STEPS = {"num_inference_steps": 2}


def refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def pipeline(**options):
    return quiet(UnconditionalDiffusionPipeline(UNet2D(**SMALL, num_class_embeds=3), DDIMScheduler(), **options))


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_settings_are_checked_by_type_and_range(entry):
    network = entry.build()
    given = {key: value for key, value in network.config.items() if not key.startswith("_")}
    numbers = [key for key, value in given.items() if type(value) is int]
    assert numbers
    unused = set() if given.get("block_out_channels") else {"layers_per_block"}
    unused |= {"codebook_size", "latent_channels"} if given.get("levels") else set()  # finite scalar quantisation
    for name in numbers:
        for wrong in (1.5, "8", True):
            refused(lambda n=name, w=wrong: type(network)(**{**given, n: w}), f"^{name} must be an integer")
        for wrong in (0, -1):
            if name not in unused:
                refused(lambda n=name, w=wrong: type(network)(**{**given, n: w}), f"{name}.* must |must .*{name}")
    for name in ("block_out_channels", "norm", "dropout"):
        if given.get(name) is not None:
            refused(lambda n=name: type(network)(**{**given, n: 16}), name)


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"out_channels": 0}, {"num_class_embeds": -1}, {"cross_attention_dim": 0}], ids=str
)
def test_a_unet_that_cannot_be_is_refused(wrong):
    refused(lambda: UNet2D(**SMALL, **wrong), f"^{next(iter(wrong))} must be ")


def test_pipelines_save_variants_and_shards(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.fp16-*.safetensors"))) > 1
    for loader in (latentia.DiffusionPipeline, diffusers.DiffusionPipeline):
        again = loader.from_pretrained(tmp_path, variant="fp16").unet.state_dict()
        assert all(torch.equal(again[key], value) for key, value in pipe.unet.state_dict().items())
    refused(lambda: pipe.save_pretrained(tmp_path, safe_serialization=False), "safe_serialization must be True")
    refused(lambda: pipe.unet.save_pretrained(tmp_path, use_flashpack=True), "use_flashpack must be False")


class Derived(UNet2D):
    """A network of a user, with a constructor of its own."""

    @register_to_config
    def __init__(self, sample_size: int = 8, extra: int = 1):
        super().__init__(**{**SMALL, "sample_size": sample_size})


def test_a_class_derived_from_a_network_loads(tmp_path):
    Derived(extra=5).save_pretrained(tmp_path)
    assert Derived.from_pretrained(tmp_path).config.extra == 5
    refused(lambda: Derived.from_pretrained(tmp_path, in_channels=3), "in_channels is not known")


@pytest.mark.parametrize("strict", [True, False])
def test_unknown_keywords_of_loaders_are_refused(tmp_path, strict):
    UNet2D(**SMALL).save_pretrained(tmp_path)
    refused(lambda: UNet2D.from_pretrained(tmp_path, strict=strict, droput=0.3), 'Did you mean "dropout"')
    assert UNet2D.from_pretrained(tmp_path, strict=strict, dropout=0.3).config.dropout == 0.3
    DDIMScheduler().save_pretrained(tmp_path)
    refused(lambda: DDIMScheduler.from_pretrained(tmp_path, beta_strat=0.1), 'Did you mean "beta_start"')


# ------------------------------------------------------------------------------------------------------------ losses


def test_losses_name_what_a_batch_lacks():
    unet, rng, x = UNet2D(**SMALL, num_class_embeds=3), Rng(0, 0, 4, 0, 4), torch.zeros(4, 1, 8, 8)
    first = {"x": x, "labels": torch.tensor([1, 2, 3, 3])}
    for loss in (
        lambda batch: diffusion_loss(unet, DDPMScheduler(), batch, rng),
        lambda b: flow_matching_loss(unet, b, rng),
    ):
        refused(lambda of=loss: of({"x": x}), "labels are missing")
        refused(lambda of=loss: of(first), "labels must be from 0 to 2; got 1 to 3")
        refused(lambda of=loss: of({"images": x}), 'batch must hold "x"; it holds only "images"')
    good = {"x": x, "labels": torch.tensor([0, 1, 2, 0])}
    refused(lambda: diffusion_loss(unet, diffusers.DDPMScheduler(), good, rng), "got diffusers.DDPMScheduler")
    doubled = UNet2D(**SMALL, out_channels=2)
    refused(lambda: diffusion_loss(doubled, DDIMScheduler(), good, rng), "must be a DDPMScheduler of latentia")
    assert diffusion_loss(unet, DDPMScheduler(), good, rng, class_dropout=1.0)["loss"].isfinite()


@pytest.mark.parametrize("name", ["unet-classes", "vae-classes", "generator-resize", "discriminator-spectral"])
def test_labels_out_of_their_range_are_refused(name):
    entry = next(entry for entry in ZOO if entry.name == name)
    network = entry.build().eval()
    refused(lambda: network(**entry.inputs(2) | {"class_labels": torch.tensor([0, 11])}), "class_labels must be from 0")


# -------------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_schedulers_take_whole_times_only(kind, tmp_path):
    scheduler, x = kind(), torch.zeros(2, 3)
    for wrong in ([1.5, 0.5], [[5, 3]], 7, ["a"]):
        refused(lambda w=wrong: scheduler.set_timesteps(timesteps=w), "timesteps must be a list of integers")
    scheduler.set_timesteps(timesteps=np.array([900, 3]))
    assert scheduler.timesteps.tolist() == [900, 3]
    refused(lambda: scheduler.step(x, 5.7, x), "timestep must be an integer")
    refused(lambda: scheduler.add_noise(x, x, torch.tensor([-1, 3])), "timestep must be from 0 to 999; got -1 to 3")
    refused(lambda: scheduler.add_noise(x.to(torch.uint8), x, 3), "must be .*real numbers")
    expected = scheduler.add_noise(x, x + 1, torch.tensor([1, 3]))
    assert torch.equal(scheduler.add_noise(x, x + 1, [1, 3]), expected)
    assert torch.equal(scheduler.add_noise(x, x + 1, np.array([1, 3])), expected)
    refused(lambda: kind(beta_start="a"), "beta_start must be a number; got 'a'")
    kind(num_train_timesteps=3, trained_betas=torch.tensor([0.1, 0.2, 0.5])).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config.trained_betas == pytest.approx([0.1, 0.2, 0.5])


# --------------------------------------------------------------------------------------------------------- pipelines


@pytest.mark.parametrize("wrong", [1.0, [1.7], torch.tensor([1.0]), [], True, {0: 1}], ids=str)
def test_class_labels_are_integers_or_names(wrong):
    refused(lambda: pipeline()(class_labels=wrong, **STEPS), "class_labels must be integers from 0 to 2, or names")


def test_class_labels_of_numpy_are_taken():
    pipe = pipeline()
    assert pipe._class_indices(np.int64(2)).tolist() == [2]
    assert len(pipe(class_labels=np.array([0, 1]), **STEPS).images) == 2
    assert pipe._class_indices(np.array([0, 1])).tolist() == pipe._class_indices([0, np.int32(1)]).tolist() == [0, 1]


def test_ends_of_a_path_are_one_each():
    two = torch.zeros(2, 1, 8, 8)
    for steps in (2, 3):
        refused(lambda n=steps: pipeline().interpolate(two, two, n, **STEPS), "a must be one image or latent")
    refused(lambda: interpolate(torch.ones(1, 2), torch.ones(1, 3), 3), "a and b must be of one shape")
    refused(lambda: interpolate(torch.ones(1, 2), torch.ones(1, 2), 2.5), "steps must be an integer")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generator": 5}, r"generator must be a torch.Generator.*got 5"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"num_inference_steps": "3"}, "num_inference_steps must be an integer; got '3'"),
        ({"guidance_scale": float("nan"), "class_labels": 1}, "guidance_scale must be finite"),
        ({"timesteps": [900.5, 3]}, "timesteps must be a list of integers"),
        ({"timesteps": 7}, "timesteps must be a list"),
        ({"callback_on_step_end": lambda *a: 5}, "must return a dict of tensors, or None; got 5"),
        ({"callback_on_step_end": lambda *a: {"latents": None}}, "must return a tensor as latents; got None"),
        ({"callback_on_step_end": lambda *a: {"latent": a[3]["latents"]}}, 'Did you mean "latents"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_that_mean_nothing_are_refused(wrong, message):
    refused(lambda: pipeline()(**STEPS | wrong), message)


@pytest.mark.parametrize("wrong", [["a", "b"], ["a", "b", "b"], "abc", [1, 2, 3]], ids=str)
def test_label_names_are_one_text_for_each_class(wrong):
    refused(lambda: pipeline(label_names=wrong), "label_names must")


class OnlyEncodes(latentia.DiffusionPipeline):
    """A pipeline of a user."""

    latents = "continuous"

    def __init__(self, unet):
        super().__init__()
        self.register_modules(unet=unet)

    def encode(self, images):
        return images


def test_a_pipeline_class_of_a_user_is_explained(tmp_path):
    pipe = OnlyEncodes(UNet2D(**SMALL))
    refused(lambda: pipe.decode(1), "has no decode: define it in the class.*, and encode\\.$")
    pipe.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"OnlyEncodes\.from_pretrained"):
        latentia.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(OnlyEncodes.from_pretrained(tmp_path), OnlyEncodes)


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        *(((0, 0, 4, 2, 5), r"start \+ count"), ((0, 0, 4, -1, 2), "start"), ((0, -5, 4, 0, 2), "position")),
        (("a", 0, 4, 0, 4), "seed"),
    ],
)
def test_random_numbers_of_no_step_are_refused(wrong, name):
    refused(lambda: Rng(*wrong), f"^{name} must be ")


class Points:
    """A stream of equal points."""

    fingerprint = "points"

    def batch(self, start, stop, *, seed, device):
        return {"x": torch.ones(stop - start, 2).double(), "y": torch.ones(stop - start, 2).double()}


def run(folder, change=lambda values: values, **options):
    phase = regression(noise=0)[0]
    loss = phase.loss
    phase.loss = lambda batch, rng: change(loss(batch, rng))
    options = {"max_steps": 2, "batch_size": 2} | options
    return train(Accelerator(cpu=True), [phase], Points(), output_dir=folder, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["loss"], "must return a dict"),
        (lambda values: {"m": values["loss"]}, 'must hold "loss".*only m'),
        (lambda values: {"loss": values["loss"].expand(2)}, r"shape \(2,\)"),
        (lambda values: {"loss": values["loss"].detach()}, "without gradient"),
    ],
    ids=["tensor", "missing", "shape", "detached"],
)
def test_a_loss_that_cannot_be_minimised_names_its_phase(tmp_path, change, message):
    name = regression()[0].name
    refused(lambda: run(tmp_path, change), f'^loss of phase "{name}" must.*{message.removeprefix("must ")}')


def test_training_takes_whole_numbers_and_plain_metrics(tmp_path):
    refused(lambda: run(tmp_path, max_steps=2.5), "max_steps must be an integer")
    refused(lambda: run(tmp_path, checkpoints_limit=1), "checkpoints_limit must be at least 2; got 1")
    for decay in (1.5, -1):
        refused(lambda d=decay: EMA(linear(0), decay=d), r"decay must be in \[0, 1\)")
    assert run(tmp_path, lambda values: values | {"m": 1.5}, log_every=1).status == "finished"
    assert '"net/m": 1.5' in (tmp_path / "metrics.jsonl").read_text()
