"""Every pipeline, tiny: what is promised of one is tested of all, in pipelines/test_every_pipeline.py.

A new pipeline is an entry here; what it cannot do is data of its entry.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import quiet
from tiny_pipelines import COSINE, FLOW, WORDS, kl, text_pipeline, texts, unet, vqvae

from latentia import (
    MADE,
    VAE,
    VQVAE,
    Autoencoder,
    AutoencoderKLPipeline,
    AutoencoderPipeline,
    AutoregressivePipeline,
    CausalTransformer,
    CLIPPipeline,
    ControlNet2D,
    CyclePipeline,
    CycleTranslator,
    DCGANDiscriminator,
    DCGANGenerator,
    DDIMScheduler,
    DDPMScheduler,
    FlowPipeline,
    GANPipeline,
    GatedPixelCNN,
    HashedWords,
    ImageTranslator,
    LatentDiffusionPipeline,
    LatentMixture,
    NormalizingFlow,
    RecurrentAutoencoder,
    RecurrentAutoencoderPipeline,
    TranslationPipeline,
    UnconditionalDiffusionPipeline,
    VAEPipeline,
    VQPriorPipeline,
    VQVAEPipeline,
)
from latentia.models.clip import clip_towers
from latentia.models.vq_prior import code_transformer
from latentia.pipelines.images import to_output

NAMES = ["cat", "dog", "owl"]
STEPS = {"num_inference_steps": 2}


@dataclass(frozen=True)
class Entry:
    """A pipeline, what it is asked for, and what it refuses.

    Args:
        build: () -> the pipeline, the same whenever it is called.
        image: (C, H, W) of its images.
        latent: shape of one latent of `encode`, of one map of indices if they are that; `None`: it has no `encode`.
        ask: n -> arguments of the call for n samples that differ; `None`: its call does not sample.
        given: n -> the conditions of `encode`, `decode`, `interpolate` and `log_likelihood` for n images.
        short: arguments of each of these words that make them quick.
        search: arguments of an `encode` that is a search, so that it is a quick one.
        likelihood: n -> conditions of `log_likelihood`, if they are not those of `given`.
        refusals: what is called with a pipeline, and what the error says, a regular expression.
    """

    name: str
    build: Callable[[], Any]
    image: tuple[int, int, int]
    latent: tuple[int, ...] | None = None
    ask: Callable[[int], dict[str, Any]] | None = lambda n: {"batch_size": n}
    given: Callable[[int], dict[str, Any]] = lambda n: {}
    short: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    likelihood: Callable[[int], dict[str, Any]] | None = None
    refusals: tuple[tuple[Callable[[Any], Any], str], ...] = ()


def labels(n: int) -> dict[str, Any]:
    return {"class_labels": [i % 3 for i in range(n)]}


def prompts(n: int) -> dict[str, Any]:
    return {"prompt": [WORDS[i % len(WORDS)] for i in range(n)]}


def spread(network: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that images differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network.eval()


def seed(build: Callable[[], Any]) -> Callable[[], Any]:
    """The same pipeline whenever it is built, and quiet."""

    def seeded_build():
        torch.manual_seed(0)
        return quiet(build())

    return seeded_build


def random_images(n: int, *shape: int) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


# ------------------------------------------------------------ diffusion


def pixel_diffusion(classes=None, scheduler=None):
    names = NAMES if classes else None
    scheduler = scheduler or DDIMScheduler(**COSINE | {"clip_sample": True})
    return UnconditionalDiffusionPipeline(unet(1, 16, classes), scheduler, names)


def latent_diffusion(vae, scheduler, classes=3, guide=None, **config):
    network, names = unet(classes=classes, **config), NAMES if classes else None
    return LatentDiffusionPipeline(vae(), network, scheduler, names, guide=guide and guide())


def on_images(degradation=None, channels=3, scale=1, latent=False):
    """Diffusion that is conditioned on images, by a branch over latents and by more channels over pixels."""
    if not latent:
        network = unet(3, 16, condition_channels=channels)
        return UnconditionalDiffusionPipeline(network, DDIMScheduler(**COSINE), degradation=degradation)
    vae, network = kl(), unet(classes=3)
    branch = spread(ControlNet2D.from_unet(network, condition_channels=channels, condition_scale=scale))
    options = {"controlnet": branch, "degradation": degradation}
    return LatentDiffusionPipeline(vae, network, DDIMScheduler(**COSINE), NAMES, **options)


def with_control(n: int) -> dict[str, Any]:
    return {**labels(n), **control(n, 3)}


def control(n: int, channels: int = 1) -> dict[str, Any]:
    return {"control_image": to_output(random_images(n, channels, 16, 16))}


def guided(n: int) -> dict[str, Any]:
    return {"batch_size": n, **labels(n), **STEPS, "guidance_scale": 2.0}


def guided_by_a_network(n: int) -> dict[str, Any]:
    return guided(n) | {"autoguidance_scale": 1.5}


def guided_by_text(n: int) -> dict[str, Any]:
    return {**prompts(n), **STEPS, "guidance_scale": 2.0, "guidance_rescale": 0.5, "negative_prompt": "a black cat"}


# ------------------------------------------------------------ autoencoders, VAEs, GANs


def autoencoder():
    network = spread(Autoencoder(sample_size=8, latent_dim=5, hidden_sizes=(16,)))
    codes = AutoencoderPipeline(network).encode(random_images(60, 1, 8, 8))
    return AutoencoderPipeline(network, prior=LatentMixture.fit(codes, 3))


def recurrent_autoencoder():
    network = spread(RecurrentAutoencoder(in_features=8, latent_dim=5, hidden_size=8))
    codes = RecurrentAutoencoderPipeline(network, num_rows=8).encode(random_images(60, 1, 8, 8))
    return RecurrentAutoencoderPipeline(network, LatentMixture.fit(codes, 2), num_rows=8)


def autoencoder_kl_pipeline():
    pipe = AutoencoderKLPipeline(kl())
    latents = pipe.encode(random_images(60, 1, 16, 16))
    return AutoencoderKLPipeline(pipe.vae, prior=LatentMixture.fit(latents, 2))


def vae(prior=False, classes=None, learned="normal", **config):
    network = spread(
        VAE(
            **{"sample_size": 8, "latent_dim": 4, "hidden_sizes": (8,), "prior": learned} | config,
            num_class_embeds=classes,
        )
    )
    density = None
    if prior:
        density = LatentMixture.fit(VAEPipeline(network).encode(random_images(60, 1, 8, 8)), 2)
    return VAEPipeline(network, density, NAMES if classes else None)


def gan(**config):
    base = {"sample_size": 8, "block_out_channels": (8, 8)}
    generator = spread(DCGANGenerator(**base, out_channels=1, latent_dim=6, **config))
    discriminator = spread(DCGANDiscriminator(**base, in_channels=1, norm="none", **config))
    words = HashedWords(dim=16) if "text_embed_dim" in config else None
    return GANPipeline(generator, discriminator, words, NAMES if "num_class_embeds" in config else None)


def flow(size=8, classes=None, **config):
    """A flow of which every layer does something."""
    network = NormalizingFlow(sample_size=size, num_layers=2, hidden_sizes=(8, 8), num_class_embeds=classes, **config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return FlowPipeline(network.eval(), NAMES if classes else None)


# ------------------------------------------------------------ indices


def small_vqvae(**config):
    base = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    network = VQVAE(**base | {"codebook_size": 12, "latent_channels": 4} | config).eval()
    if "quantizer" not in config:
        torch.nn.init.normal_(network.quantize.codebook, std=0.5)
    return network


def vqvae_pipeline(**config):
    pipe = VQVAEPipeline(small_vqvae(**config))
    pipe.register_modules(prior=pipe.fit_prior(random_images(30, 1, 8, 8)))
    return pipe


def vq_prior(classes=None, text=False):
    tokenizer = texts(max_tokens=8)[0] if text else None
    transformer = code_transformer(12, (4, 4), num_classes=classes, tokenizer=tokenizer, width=32, layers=2)
    for weight in transformer.parameters():  # far from the start, where all codes are alike
        torch.nn.init.normal_(weight, std=0.3)
    return VQPriorPipeline(small_vqvae(), transformer.eval(), tokenizer, NAMES if classes else None)


def autoregressive(network, classes=None, **config):
    """Far from the start, where all levels are alike."""
    made = network(levels=5, num_class_embeds=classes, **config)
    return AutoregressivePipeline(spread(made), NAMES if classes else None)


def clip():
    tokenizer = texts(max_tokens=16)[0]
    sizes = {"width": 32, "text_layers": 1, "image_layers": 1, "projection_dim": 16}
    text, image = clip_towers(tokenizer, 16, **sizes)
    return CLIPPipeline(tokenizer, text.eval(), image.eval(), scale=20.0)


# ------------------------------------------------------------ image to image


def translation(degradation=None, channels=(1, 3), **config):
    small = {"block_out_channels": (4, 8), "dropout": 0.5, "keep_dropout": True}
    return TranslationPipeline(ImageTranslator(*channels, **small, **config).eval(), degradation)


def cycle():
    network = CycleTranslator(1, 3, block_out_channels=(4, 8), num_res_blocks=1, dropout=0.5, keep_dropout=True)
    return CyclePipeline(network.eval())


def inputs(n: int, channels: int = 1) -> dict[str, Any]:
    return {"image": random_images(n, channels, 16, 16)}


def holed(n: int) -> dict[str, Any]:
    return {**inputs(n, 3), "mask": torch.ones(16, 16).tril()}


GREY, SMALL = (1, 16, 16), (1, 8, 8)
PIPELINES = [
    Entry(
        "diffusion",
        seed(pixel_diffusion),
        GREY,
        GREY,
        lambda n: {"batch_size": n, **STEPS},
        short=STEPS,
    ),
    Entry(
        "diffusion-classes",
        seed(lambda: pixel_diffusion(3, DDPMScheduler(**COSINE | {"clip_sample": True}))),
        GREY,
        GREY,
        guided,
        labels,
        short=STEPS,
    ),
    Entry(
        "diffusion-ode",
        seed(lambda: pixel_diffusion(3, DDPMScheduler(**COSINE | {"prediction_type": "epsilon"}))),
        GREY,
        GREY,
        guided,
        labels,
        short=STEPS,
        likelihood=lambda n: {**labels(n), "method": "ode"},
    ),
    Entry(
        "flow",
        seed(lambda: pixel_diffusion(3, FLOW())),
        GREY,
        GREY,
        guided,
        labels,
        short=STEPS,
    ),
    Entry(
        "latent-diffusion",
        seed(lambda: latent_diffusion(kl, DDIMScheduler(**COSINE), guide=lambda: spread(unet(classes=3)))),
        GREY,
        (4, 8, 8),
        guided_by_a_network,
        labels,
        short=STEPS,
    ),
    Entry(
        "latent-flow",
        seed(lambda: latent_diffusion(vqvae, FLOW(shift=2.0), classes=None, target_time=True)),
        GREY,
        (4, 8, 8),
        lambda n: {"batch_size": n, **STEPS},
        short=STEPS,
    ),
    Entry(
        "latent-diffusion-control",
        seed(lambda: on_images(latent=True, scale=2)),
        GREY,
        (4, 8, 8),
        lambda n: {"batch_size": n, **with_control(n), **STEPS, "guidance_scale": 2.0},
        with_control,
        short=STEPS,
        refusals=(
            (lambda pipe: pipe(), "control_image must be given, as this network was trained on pairs; got none"),
            (lambda pipe: pipe(control_image=random_images(1, 3, 8, 8)), "control_image must be 16 high and 16 wide"),
            (lambda pipe: pipe(control_image=random_images(1, 1, 16, 16)), "control_image must have 3 channels, got 1"),
            (lambda pipe: pipe(control_image=9 * random_images(1, 3, 16, 16)), r"control_image must lie in \[-1, 1\]"),
            (lambda pipe: pipe(low_resolution=random_images(1, 1, 8, 8)), "low_resolution must be left out over"),
        ),
    ),
    Entry(
        "diffusion-edges",
        seed(lambda: on_images({"name": "edges"}, 1)),
        (3, 16, 16),
        (3, 16, 16),
        lambda n: {"batch_size": n, **control(n), **STEPS},
        control,
        short=STEPS,
        refusals=(
            (lambda pipe: pipe(), 'control_image must be given, as this network was trained with degrade "edges"'),
            (
                lambda pipe: pipe(control_image=random_images(1, 3, 16, 16)),
                r'control_image must have 1 channel, got 3. Convert them first: image.convert\("L"\)',
            ),
        ),
    ),
    Entry(
        "text-to-image",
        seed(text_pipeline),
        (3, 16, 16),
        (4, 8, 8),
        guided_by_text,
        prompts,
        short=STEPS,
    ),
    Entry(
        "text-to-image-pixels",
        seed(lambda: text_pipeline(False, unconditional=False)),
        (3, 16, 16),
        (3, 16, 16),
        lambda n: {**prompts(n), **STEPS},
        prompts,
        short=STEPS,
    ),
    Entry("autoencoder", seed(autoencoder), SMALL, (5,)),
    Entry(
        "recurrent-autoencoder",
        seed(recurrent_autoencoder),
        SMALL,
        (5,),
        refusals=(
            (lambda pipe: pipe.encode(random_images(2, 1, 8, 8), lengths=[8]), r"one for each of 2 images; got \(1,\)"),
            (lambda pipe: pipe.encode(random_images(2, 1, 8, 8), lengths=[8, 9]), "lengths must be from 1 to 8"),
            (lambda pipe: RecurrentAutoencoderPipeline(pipe.autoencoder, num_channels=3), "num_channels must divide 8"),
            (lambda pipe: RecurrentAutoencoderPipeline(VAE()), "autoencoder must be a RecurrentAutoencoder; got VAE"),
        ),
    ),
    Entry("autoencoder-kl", seed(autoencoder_kl_pipeline), GREY, (4, 8, 8)),
    Entry("vae", seed(vae), SMALL, (4,)),
    Entry(
        "vae-without-likelihood",
        seed(lambda: vae(likelihood="none", block_out_channels=(4,), hidden_sizes=())),
        SMALL,
        (4,),
        refusals=(
            (
                lambda pipe: pipe.log_likelihood(random_images(1, 1, 8, 8)),
                r'no density of pixels \(likelihood="none"\)',
            ),
        ),
    ),
    Entry("vae-prior", seed(lambda: vae(prior=True, likelihood="discretized_logistic")), SMALL, (4,)),
    Entry(
        "vae-hierarchy-classes",
        seed(lambda: vae(classes=3, likelihood="gaussian", latent_dim=(3, 2), hidden_sizes=((8,), ()))),
        SMALL,
        (5,),
        lambda n: {"batch_size": n, **labels(n)},
        labels,
    ),
    Entry("vae-gamma", seed(lambda: vae(posterior="gamma")), SMALL, (4,)),
    Entry("vae-categories", seed(lambda: vae(categories=(3,))), SMALL, (7,)),
    Entry(
        "vae-ladder-vamp",
        seed(
            lambda: vae(
                learned="vamp", prior_components=3, latent_dim=(3, 2), hidden_sizes=((8,), ()), inference="top_down"
            )
        ),
        SMALL,
        (5,),
    ),
    Entry("gan", seed(gan), SMALL, (6,), search={"steps": 4, "starts": 2}),
    Entry(
        "gan-classes",
        seed(lambda: gan(num_class_embeds=3)),
        SMALL,
        (6,),
        lambda n: {"batch_size": n, **labels(n), "rejection": True},
        labels,
        search={"steps": 4, "starts": 2},
    ),
    Entry("gan-text", seed(lambda: gan(text_embed_dim=16)), SMALL, (6,), prompts, prompts, search={"steps": 4}),
    Entry("normalizing-flow", seed(flow), SMALL, (64,)),
    Entry(
        "normalizing-flow-classes",
        seed(lambda: flow(16, classes=3, architecture="spline", num_stages=3, dequantization="variational")),
        GREY,
        (256,),
        lambda n: {"batch_size": n, **labels(n), "temperature": 0.8},
        labels,
    ),
    Entry("vqvae", seed(vqvae_pipeline), SMALL, (4, 4)),
    Entry("vqvae-fsq", seed(lambda: vqvae_pipeline(quantizer="fsq", levels=(5, 4, 3))), SMALL, (4, 4)),
    Entry(
        "vq-prior-classes",
        seed(lambda: vq_prior(classes=3)),
        SMALL,
        (4, 4),
        lambda n: {"batch_size": n, **labels(n), "top_k": 8, "temperature": 0.9},
        likelihood=labels,
    ),
    Entry("vq-prior-text", seed(lambda: vq_prior(text=True)), SMALL, (4, 4), prompts, likelihood=prompts),
    Entry(
        "pixelcnn",
        seed(lambda: autoregressive(GatedPixelCNN, sample_size=8, hidden_channels=8, layers=2)),
        SMALL,
        refusals=(
            (lambda pipe: pipe(known_rows=2), "known_rows are of image, which is missing; got 2"),
            (lambda pipe: pipe(image=random_images(1, 1, 8, 8), known_rows=9), "known_rows must be .*in .0, 8.; got 9"),
            (lambda pipe: pipe(top_p=0.0), "top_p must be in"),
            (lambda pipe: AutoregressivePipeline(CausalTransformer()), "got CausalTransformer of sequences"),
        ),
    ),
    Entry(
        "pixel-transformer-classes",
        seed(
            lambda: autoregressive(
                CausalTransformer, 3, shape=(3, 4, 4), width=16, layers=2, heads=2, positions="learned"
            )
        ),
        (3, 4, 4),
        ask=lambda n: {"batch_size": n, **labels(n), "temperature": 0.9},
        likelihood=labels,
    ),
    Entry("made", seed(lambda: autoregressive(MADE, sample_size=8, hidden_sizes=(64,))), SMALL),
    Entry("clip", seed(clip), (3, 16, 16), (16,), ask=None),
    Entry(
        "translation",
        seed(translation),
        (3, 16, 16),
        None,
        inputs,
        refusals=(
            (lambda pipe: pipe(), "image is missing: TranslationPipeline makes images from images"),
            (lambda pipe: pipe(random_images(1, 3, 16, 16)), r'must have 1 channel, got 3.*convert\("L"\)'),
            (lambda pipe: pipe(random_images(1, 1, 2, 16)), "at least 4 pixels each way"),
            (lambda pipe: pipe(**holed(1) | inputs(1)), "mask must be left out. This network was trained without"),
            (lambda pipe: pipe(**inputs(2), batch_size=3), "batch_size is 3, but image are given for 2"),
            (lambda pipe: TranslationPipeline(pipe.translator, {"name": "gray"}), 'Did you mean "grey"'),
            (lambda pipe: TranslationPipeline(pipe.translator, {"kind": "grey"}), 'must have a "name"'),
        ),
    ),
    Entry(
        "translation-masked",
        seed(lambda: translation({"name": "masked"}, (4, 3), output="hole")),
        (3, 16, 16),
        None,
        holed,
        refusals=(
            (lambda pipe: pipe(**inputs(1, 3)), "mask is missing: it says where new pixels are made"),
            (
                lambda pipe: pipe(**inputs(1, 3), mask=torch.ones(8, 8)),
                "mask must have the size of the image, 16 by 16",
            ),
            (lambda pipe: pipe(**inputs(3, 3), mask=torch.ones(2, 16, 16)), "one for each of 3 images; got 2"),
        ),
    ),
    Entry(
        "cycle",
        seed(cycle),
        (3, 16, 16),
        None,
        inputs,
        refusals=(
            (lambda pipe: pipe(**inputs(1), direction="back"), 'direction must be .*Did you mean "backward"'),
            (lambda pipe: pipe(**inputs(1), direction="backward"), "must have 3 channels, got 1"),
        ),
    ),
]
