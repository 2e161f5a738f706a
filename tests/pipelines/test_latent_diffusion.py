"""Latent diffusion: any autoencoder, any scheduler, the shared words, cached latents, flow matching, the example."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import diffusers
import pytest
import torch
from helpers import load_example, pixels, quiet, seeded
from safetensors.torch import load_file
from tiny_pipelines import COSINE, FLOW, SCHEDULERS, kl, unet, vqvae

import latentia
from latentia import VAE, VQVAE, AutoencoderKLPipeline, DDIMScheduler, LatentDiffusionPipeline, UNet2D
from latentia.data import ImageData, cached_latents, load_images
from latentia.errors import CheckpointError, DataError, UsageError
from latentia.losses.flow_matching import flow_matching_loss
from latentia.losses.times import sample_times
from latentia.pipelines import latents as autoencoders
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments


def tiny():
    return diffusers.AutoencoderTiny(
        1, 1, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=4,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=1.5, shift_factor=0.2,
    ).eval()  # fmt: skip


def vq_model():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(
        1, 1, **blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=6, vq_embed_dim=4,
        num_vq_embeddings=16,
    ).eval()  # fmt: skip


def fsq():
    return VQVAE(sample_size=16, in_channels=1, block_out_channels=(8,), quantizer="fsq", levels=(5, 5, 5, 4)).eval()


AUTOENCODERS = [kl, tiny, vq_model, vqvae, fsq]


def pipeline(vae=kl, classes=None, scheduler=None, names=None):
    return quiet(LatentDiffusionPipeline(vae(), unet(classes=classes), scheduler or DDIMScheduler(**COSINE), names))


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_the_same_seed_gives_the_same_bytes_whatever_the_batch(scheduler):
    pipe = pipeline(classes=3, scheduler=scheduler)

    def sample(n, seed=7):
        labels = [i % 3 for i in range(n)]
        asked = {"class_labels": labels, "guidance_scale": 2.0, "num_inference_steps": 3, "generator": seeded(seed)}
        return pixels(pipe(n, **asked).images)

    many = sample(35)
    assert len(set(many)) == 35
    for n in (1, 2, 33):
        assert sample(n) == many[:n]
    assert sample(2, seed=8) != many[:2]


@pytest.mark.parametrize("vae", AUTOENCODERS)
def test_any_autoencoder_with_its_shift_and_scaling(vae):
    pipe = pipeline(vae)
    images = torch.rand(3, 1, 16, 16, generator=seeded(0)) * 2 - 1
    mean, std = autoencoders.posterior(pipe.vae, images)
    assert mean.shape == (3, 4, 8, 8) and (std is not None) == (vae is kl)
    # There and back is what the autoencoder itself does, whatever the scaling.
    with torch.no_grad():
        if vae in (vqvae, fsq):
            again = pipe.vae(images).reconstruction
        elif vae is kl:
            again = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mean).sample
            raw = pipe.vae.encode(images).latent_dist
            torch.testing.assert_close(mean, (raw.mean - 0.1) * 2)
            torch.testing.assert_close(std, raw.std * 2)
        else:
            again = pipe.vae.decode(pipe.vae.encode(images).latents).sample
    torch.testing.assert_close(autoencoders.decode_latents(pipe.vae, mean), again, atol=1e-4, rtol=1e-4)
    assert pipe(2, num_inference_steps=2, generator=seeded(0)).images[0].size == (16, 16)


def test_the_network_of_diffusers_runs_too_but_cannot_be_guided():
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, num_class_embeds=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = quiet(LatentDiffusionPipeline(kl(), theirs, DDIMScheduler(**COSINE)))
    assert pipe(2, class_labels=[0, 2], num_inference_steps=2).images[0].size == (16, 16)
    with pytest.raises(UsageError, match="guidance_scale must be 1 with a UNet2DModel"):
        pipe(2, class_labels=[0, 2], num_inference_steps=2, guidance_scale=2.0)


def test_it_saves_and_loads_with_its_class_names(tmp_path):
    for vae, scheduler in [(kl, DDIMScheduler(**COSINE)), (vqvae, FLOW(shift=2.0))]:
        pipe = pipeline(vae, classes=3, scheduler=scheduler, names=["cat", "dog", "owl"])
        asked = {"class_labels": "owl", "num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
        expected = pipe(2, generator=seeded(3), **asked).images
        folder = tmp_path / vae.__name__
        pipe.save_pretrained(folder)
        again = quiet(latentia.DiffusionPipeline.from_pretrained(folder))
        assert type(again) is LatentDiffusionPipeline and type(again.vae) is type(pipe.vae)
        found = again(2, generator=seeded(3), **asked).images
        torch.testing.assert_close(found, expected)  # not to the last bit: loaded weights lie elsewhere in memory
        again.save_pretrained(tmp_path / "twice")
        assert not [p for p in (tmp_path / "twice").rglob("*.json") if str(tmp_path) in p.read_text()]


def test_schedulers_can_be_swapped_and_agree_on_a_fine_grid():
    pipe = pipeline()
    noise = torch.randn(2, 4, 8, 8, generator=seeded(0))

    def sample(kind, steps):
        pipe.scheduler = kind.from_config(COSINE)
        return pipe(latents=noise, num_inference_steps=steps, output_type="latent").images

    fine = sample(DDIMScheduler, 200)
    torch.testing.assert_close(sample(diffusers.DPMSolverMultistepScheduler, 40), fine, atol=0.02, rtol=0)
    torch.testing.assert_close(sample(diffusers.UniPCMultistepScheduler, 40), fine, atol=0.02, rtol=0)


class GaussianVelocity(torch.nn.Module):
    """The exact network for latents from N(mean, std^2): of diffusion (v) or of rectified flow."""

    def __init__(self, scheduler, mean=0.3, std=0.4):
        super().__init__()
        self.scheduler, self.mean, self.std = scheduler, mean, std
        self.dtype, self.device = torch.float64, torch.device("cpu")
        config = {"in_channels": 4, "out_channels": 4, "sample_size": 8, "num_class_embeds": None}
        self.config = type("Config", (), config)()

    def forward(self, x, t):
        if isinstance(self.scheduler, FLOW):
            noise = t.double().view(-1, 1, 1, 1) / 1000
            signal = 1 - noise
        else:
            a = self.scheduler.alphas_cumprod[t]
            signal, noise = a.sqrt(), (1 - a).sqrt()
        x0 = self.mean + signal * self.std**2 / (signal**2 * self.std**2 + noise**2) * (x - signal * self.mean)
        eps = (x - signal * x0) / noise
        velocity = eps - x0 if isinstance(self.scheduler, FLOW) else signal * eps - noise * x0
        return type("Output", (), {"sample": velocity})()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(**COSINE), FLOW()], ids=["ddim", "flow"])
def test_an_exact_network_makes_the_gaussian_and_is_inverted(scheduler):
    pipe = pipeline(lambda: kl().double(), scheduler=scheduler)
    pipe.unet = GaussianVelocity(scheduler)
    noise = torch.randn(8, 4, 8, 8, generator=seeded(0), dtype=torch.float64)
    seen = []
    pipe(
        latents=noise,
        num_inference_steps=200,
        callback_on_step_end=lambda p, i, t, values: seen.append(values["latents"]) and None,
    )
    # Both probability flows carry the noise to mean + std * noise.
    torch.testing.assert_close(seen[-1], 0.3 + 0.4 * noise, atol=0.02, rtol=0)
    images = pipe.decode(noise, num_inference_steps=200, output_type="latent").clamp(-1, 1)
    found = pipe.encode(images, num_inference_steps=50, refinements=4)
    again = pipe.decode(found, num_inference_steps=50, output_type="latent")
    direct = autoencoders.decode_latents(pipe.vae, autoencoders.posterior(pipe.vae, images)[0])
    torch.testing.assert_close(again, direct, atol=1e-3, rtol=0)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_the_flow_loss_of_the_exact_velocity_is_its_closed_form(density):
    """Of x_t the velocity is known up to the variance s^2 / ((1 - t)^2 s^2 + t^2), and nothing is better."""
    network, s = GaussianVelocity(FLOW()), 0.4
    rng = Rng(0, 0, 4000, 0, 4000)
    x0 = 0.3 + s * torch.randn(4000, 4, 8, 8, generator=seeded(1))
    t = sample_times(rng, density).double()
    if density == "logit_normal":  # a logit-normal time is a Gaussian under the logit
        z = torch.special.logit(t)
        assert abs(z.mean()) < 1e-3 and abs(z.std() - 1) < 0.01
    least = (s**2 / ((1 - t) ** 2 * s**2 + t**2)).mean()

    def loss():
        return flow_matching_loss(network, {"x": x0}, rng, time_sampling=density)["loss"].double()

    found = loss()
    torch.testing.assert_close(found, least, rtol=0.01, atol=0)
    for change in ({"mean": 0.4}, {"std": 0.5}):
        for name, value in change.items():
            before = getattr(network, name)
            setattr(network, name, value)
            assert loss() > found + 1e-3
            setattr(network, name, before)


def test_the_flow_loss_hides_labels_and_moves_only_the_network():
    network, seen = unet(classes=3).train(), []
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    batch = {"x": torch.randn(400, 4, 8, 8), "labels": torch.arange(400) % 3}
    flow_matching_loss(network, batch, Rng(0, 0, 400, 0, 400), class_dropout=0.25)["loss"].backward()
    (_, t), labels = seen[0][0], seen[0][1]["class_labels"]
    assert 0.2 < (labels == 3).float().mean() < 0.3 and ((labels == 3) | (labels == batch["labels"])).all()
    assert t.is_floating_point() and 0 <= t.min() and t.max() < 1000
    assert all(p.grad is not None for p in network.parameters())


def test_interpolation_begins_and_ends_at_the_reconstructions():
    pipe = pipeline(lambda: kl().double())
    pipe.unet = GaussianVelocity(pipe.scheduler)
    a, b = torch.rand(2, 1, 1, 16, 16, generator=seeded(0), dtype=torch.float64) * 2 - 1
    path = pipe.interpolate(a, b, 4, num_inference_steps=50, output_type="latent")
    ends = autoencoders.decode_latents(pipe.vae, autoencoders.posterior(pipe.vae, torch.cat([a, b]))[0])
    torch.testing.assert_close(path[[0, -1]], ends, atol=0.01, rtol=0)
    assert path.shape == (4, 1, 16, 16)


def test_what_does_not_fit_says_so():
    scheduler = DDIMScheduler(**COSINE)
    for wrong, words in [
        ((kl(), unet(channels=3), scheduler), ["in_channels", "4", "got 3"]),
        ((VAE(sample_size=8), unet(), scheduler), ["AutoencoderKL", "VQVAE", "got VAE"]),
        ((kl(), kl(), scheduler), ["unet", "UNet2D", "got AutoencoderKL"]),
        ((kl(), unet(), kl()), ["scheduler", "got AutoencoderKL"]),
        ((kl(), unet(), DDIMScheduler()), ["clip_sample=False", "DDIMScheduler.from_config"]),
    ]:
        with pytest.raises(UsageError) as error:
            LatentDiffusionPipeline(*wrong)
        assert all(word in str(error.value) for word in words), error.value
    pipe = pipeline()
    for call, words in [
        (lambda: pipe(latents=torch.zeros(2, 3, 8, 8)), r"\(B, 4, h, w\).*got \(2, 3, 8, 8\)"),
        (lambda: pipe.decode(torch.zeros(4, 8, 8)), r"\(B, 4, h, w\)"),
        (lambda: pipe.encode(torch.zeros(1, 1, 32, 32)), r"\(4, 8, 8\).*32 by 32 have \(4, 16, 16\)"),
        (lambda: pipe.encode(torch.zeros(1, 3, 16, 16)), "1 channel, got 3"),
        (lambda: pipe(class_labels=1), "trained without classes"),
        (lambda: pipe(num_inference_steps=0), "1 to 1000"),
        (lambda: pipe.log_likelihood(torch.zeros(1, 1, 16, 16)), "no log_likelihood"),
        (lambda: pipe.interpolate(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), 1), "at least 2"),
    ]:
        with pytest.raises(UsageError, match=words):
            call()
    pipe.scheduler = diffusers.DDPMScheduler()
    with pytest.raises(UsageError, match="clip_sample=False"):
        pipe(num_inference_steps=2)


def pictures(n=20, **options):
    images = torch.randint(0, 256, (n, 1, 16, 16), generator=seeded(0), dtype=torch.uint8)
    return ImageData(images, labels=torch.arange(n) % 3, **options)


def latents_of(vae, data, **options):
    return cached_latents(data, partial(autoencoders.posterior, vae), autoencoders.fingerprint(vae), **options)


@pytest.mark.parametrize("flip", [False, True])
def test_cached_latents_are_those_of_the_batches_of_pictures(tmp_path, flip):
    vae, data = kl(), pictures(random_flip=flip, captions=[f"picture {i}" for i in range(20)])
    latents = latents_of(vae, data, cache_dir=tmp_path)
    assert latents.shape == (4, 8, 8) and len(latents) == 20
    batch, same = latents.batch(15, 47, seed=3), data.batch(15, 47, seed=3)
    assert torch.equal(batch["labels"], same["labels"]) and batch["captions"] == same["captions"]
    mean, std = autoencoders.posterior(vae, same["x"])
    z = (batch["x"] - mean) / std
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03  # a sample of q(z|x), and a new one in each epoch
    again = latents.batch(35, 55, seed=3)["x"]
    assert torch.equal(again[:12], batch["x"][20:]) and not torch.equal(again, batch["x"][:20])
    assert torch.equal(torch.cat([latents.batch(k, k + 8, seed=3)["x"] for k in (15, 23, 31, 39)]), batch["x"])
    quantised = vqvae()
    plain = latents_of(quantised, data, cache_dir=tmp_path).batch(15, 47, seed=3)["x"]
    torch.testing.assert_close(plain, autoencoders.posterior(quantised, same["x"])[0])


def test_cached_latents_are_computed_once_for_each_autoencoder(tmp_path):
    calls = []

    def encode(vae, images):
        calls.append(len(images))
        return autoencoders.posterior(vae, images)

    def latents(vae, data, **options):
        found = cached_latents(data, partial(encode, vae), autoencoders.fingerprint(vae), batch_size=8, **options)
        return found.mean, found.fingerprint

    vae, data = kl(), pictures()
    first, name = latents(vae, data, cache_dir=tmp_path)
    assert calls == [8, 8, 4]
    again, same = latents(kl(), pictures(), cache_dir=tmp_path)
    assert torch.equal(first, again) and name == same and len(calls) == 3
    # A damaged file is made again.
    [path] = tmp_path.glob("latents/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert torch.equal(latents(vae, data, cache_dir=tmp_path)[0], first) and len(calls) == 6
    # Another scaling, other weights, other pictures, mirrored ones: other latents.
    scaled, weighed = kl(), kl()
    scaled.register_to_config(scaling_factor=4.0)
    weighed.encoder.conv_in.bias.data[0] += 1e-3
    names = {latents(other, data, cache_dir=tmp_path)[1] for other in (scaled, weighed)}
    names |= {latents(vae, other, cache_dir=tmp_path)[1] for other in (pictures(19), pictures(random_flip=True))}
    assert len(names | {name}) == 5
    # A file that is named is refused with both names if it is of another autoencoder.
    file = tmp_path / "mine.safetensors"
    assert torch.equal(latents(vae, data, file=file)[0], first)
    with pytest.raises(DataError) as error:
        latents(scaled, data, file=file)
    assert all(autoencoders.fingerprint(vae) in str(error.value) for vae in (vae, scaled)), error.value
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        latents(vae, data, file=file)
    with pytest.raises(UsageError, match="random crops"):
        sizes = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
        uneven = ImageData(sizes)
        uneven._uneven = object()
        latents(vae, uneven, cache_dir=tmp_path)


def test_processes_that_start_together_compute_the_latents_once(tmp_path):
    calls = []

    def work():
        def encode(images):
            calls.append(len(images))
            return images, None

        return cached_latents(pictures(), encode, "identity", cache_dir=tmp_path).mean

    with ThreadPoolExecutor(4) as pool:
        found = [job.result() for job in [pool.submit(work) for _ in range(4)]]
    assert calls == [20] and all(torch.equal(found[0], other) for other in found)


# ------------------------------------------------------------ the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_latent_diffusion")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    pipe = AutoencoderKLPipeline(kl(sample_size=8))
    pipe.calibrate(load_images("digits").images[:200])
    pipe.save_pretrained(folder)
    return folder


def run(example, autoencoder, folder, *argv):
    words = f"""--dataset_name digits --max_train_samples 60 --autoencoder {autoencoder} --output_dir {folder}
        --train_batch_size 8 --block_out_channels 8 --attention_head_dim 8 --checkpointing_steps 2 --logging_steps 1
        --lr_scheduler constant --lr_warmup_steps 2 --eval_num_samples 8 --num_inference_steps 2""".split()
    return example.main(parse_arguments(example.Arguments, [*words, *map(str, argv)], description="test", prog="train"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--class_conditional", "--prediction_type", "epsilon", "--loss_weighting", "min_snr"),
        pytest.param(("--prediction_type", "flow"), marks=pytest.mark.nightly),
    ],
    ids=["classes", "flow"],
)
def test_the_example_resumes_bit_equal_and_leaves_a_pipeline(example, autoencoder, tmp_path, capsys, flags):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(example, autoencoder, straight, *flags, "--max_train_steps", 6) == 0
    assert run(example, autoencoder / "vae", broken, *flags, "--max_train_steps", 3) == 0
    moved = tmp_path / "moved"
    shutil.copytree(autoencoder, moved)  # a run is known by the weights of its autoencoder, not by where they lie
    assert run(example, moved, broken, *flags, "--max_train_steps", 6) == 0
    one, other = (load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (straight, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    pipe = quiet(latentia.DiffusionPipeline.from_pretrained(straight))
    assert type(pipe) is LatentDiffusionPipeline and pipe.num_classes == (
        10 if "--class_conditional" in flags else None
    )
    assert isinstance(pipe.scheduler, FLOW if "flow" in flags else DDIMScheduler)
    assert pipe(2, num_inference_steps=2).images[0].size == (8, 8)
    before = latentia.DiffusionPipeline.from_pretrained(autoencoder).vae
    assert autoencoders.fingerprint(pipe.vae) == autoencoders.fingerprint(before)
    summary = json.loads((straight / "run_summary.json").read_text())
    assert summary["steps"] == 6 and "fd" in str(summary["score"]) and (straight / "samples" / "grid.png").is_file()
    assert "LatentDiffusionPipeline" in (straight / "README.md").read_text()
    said = capsys.readouterr().out
    assert "Latents of shape (4, 4, 4), standard deviation" in said and "calibrate" not in said
    saved = [straight / "README.md", *straight.rglob("*config.json"), straight / "model_index.json"]
    private = [path for path in saved if str(autoencoder) in path.read_text() and path.name != "training_config.json"]
    assert not private


def test_another_autoencoder_and_contradicting_flags_are_refused(example, autoencoder, tmp_path):
    run(example, autoencoder, tmp_path / "run", "--max_train_steps", 2)
    other = tmp_path / "other"
    vae = kl(sample_size=8)
    vae.save_pretrained(other)
    with pytest.raises(CheckpointError, match="data"):
        run(example, other, tmp_path / "run", "--max_train_steps", 4)
    file = tmp_path / "latents.safetensors"
    run(example, autoencoder, tmp_path / "file", "--max_train_steps", 1, "--latents_file", file)
    nothing = tmp_path / "nothing"
    UNet2D(sample_size=8, block_out_channels=(8,), attention_head_dim=8).save_pretrained(nothing)
    for words, flags, kind in [
        ("autoencoder is", ("--latents_file", file, "--autoencoder", other), DataError),
        ("prediction_type.*Did you mean", ("--prediction_type", "flows"), UsageError),
        ("loss_weighting must be none", ("--prediction_type", "flow", "--loss_weighting", "min_snr"), UsageError),
        ("must hold an autoencoder", ("--autoencoder", nothing), UsageError),
        ("must have 1 channel.*got 3", ("--dataset_name", "emoji", "--resolution", "8"), UsageError),
        (r"resolution must.*\(1, 9, 9\).*\(1, 8, 8\)", ("--resolution", "9"), UsageError),
        ("StreamedImages.*without streaming", ("--streaming", "--max_train_steps", 2), UsageError),
    ]:
        with pytest.raises(kind, match=words):
            run(example, autoencoder, tmp_path / "refused", *flags)
    (other / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        autoencoders.load_autoencoder(str(other))
