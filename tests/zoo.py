"""Every network of the house, tiny: a test that holds for all of them is written once over this list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from latentia import (
    MADE,
    VAE,
    VQVAE,
    Autoencoder,
    CausalTransformer,
    ControlNet2D,
    CycleTranslator,
    DCGANDiscriminator,
    DCGANGenerator,
    DigitClassifier,
    GatedPixelCNN,
    ImageTranslator,
    InceptionV3,
    LatentMixture,
    LatentVAE,
    MLPDenoiser,
    MLPDiscriminator,
    MLPGenerator,
    NormalizingFlow,
    PatchDiscriminator,
    PositionPrior,
    RecurrentAutoencoder,
    TableVAE,
    UNet1D,
    UNet2D,
)


@dataclass(frozen=True)
class Entry:
    """`build()` makes the network, `inputs(b)` its arguments for b samples, `shape(b)` what must come out first.

    `through(output)`: what all parameters must reach.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    shape: Callable[[int], tuple[int, ...]]
    through: Callable[[Any], torch.Tensor] = lambda out: out[0]


def _target(b: int) -> dict[str, Any]:
    return {"target_timestep": torch.randint(0, 1000, (b,))}


def _unet(name: str, image: tuple[int, int, int], out: int | None = None, extra: Callable = lambda b: {}, **config):
    channels, height, width = image

    def inputs(b: int) -> dict[str, Any]:
        return {"sample": torch.randn(b, *image), "timestep": torch.randint(0, 1000, (b,)), **extra(b)}

    config = {"block_out_channels": (8, 16), "attention_head_dim": 8, "layers_per_block": 1} | config
    size = height if height == width else (height, width)
    return Entry(
        name,
        lambda: UNet2D(sample_size=size, in_channels=channels, out_channels=out, **config),
        inputs,
        lambda b: (b, out or channels, height, width),
    )


def _condition(b: int) -> dict[str, Any]:
    return {"condition": torch.rand(b, 2, 16, 16) * 2 - 1}


def _control(b: int) -> dict[str, Any]:
    x = {"sample": torch.randn(b, 1, 8, 8), "timestep": torch.randint(0, 1000, (b,))}
    return {**x, **_labels(b), **_condition(b)}


def _unet_1d(name: str, shape: tuple[int, int], extra: Callable = lambda b: {}, **config):
    channels, steps = shape

    def inputs(b: int) -> dict[str, Any]:
        return {"sample": torch.randn(b, *shape), "timestep": torch.randint(0, 1000, (b,)), **extra(b)}

    config = {"block_out_channels": (8, 16), "attention_head_dim": 8} | config
    return Entry(f"unet-1d-{name}", lambda: UNet1D(steps, channels, **config), inputs, lambda b: (b, channels, steps))


def _labels_and_steps(b: int) -> dict[str, Any]:
    return {**_labels(b), "step_mask": torch.arange(12) < 3 + torch.arange(b)[:, None] % 10}


def _labels(b: int) -> dict[str, Any]:
    return {"class_labels": torch.arange(b) % 11}  # 10 is "no class"


def _context(b: int) -> dict[str, Any]:
    mask = torch.ones(b, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return {"encoder_hidden_states": torch.randn(b, 5, 12), "encoder_attention_mask": mask}


def _inception() -> InceptionV3:
    """47 layers amplify a perturbation of every weight: the norms' statistics keep the numbers near 1."""
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1.5)
    return network


def _autoencoder(name: str, image: tuple[int, ...], **config):
    channels, *size = image
    return Entry(
        f"autoencoder-{name}",
        lambda: Autoencoder(sample_size=tuple(size), in_channels=channels, **config),
        lambda b: {"images": torch.rand(b, *image) * 2 - 1},
        lambda b: (b, *image),
    )


def _sequences(b: int) -> dict[str, Any]:
    mask = torch.arange(6) < 1 + torch.arange(b)[:, None] % 6  # lengths 1 to 6
    return {"sequences": torch.randn(b, 6, 3), "mask": mask}


def _vqvae(name: str, image: tuple[int, ...], **config):
    channels, *size = image
    config = {"codebook_size": 12, "latent_channels": 6} | config
    return Entry(
        f"vqvae-{name}",
        lambda: VQVAE(sample_size=tuple(size), in_channels=channels, **config),
        lambda b: {"images": torch.rand(b, *image) * 2 - 1},
        lambda b: (b, *image),
    )


def _mixture() -> LatentMixture:
    return LatentMixture.fit(torch.randn(40, 5), num_components=3)


def _with_prior(out) -> torch.Tensor:
    return torch.cat([out.reconstruction.flatten(), out.log_prior.flatten()])


def _vae(
    name: str, image, samples=(), extra: Callable = lambda b: {}, through: Callable = lambda out: out[0], **config
):
    channels, *size = image
    config = {"latent_dim": 3, "hidden_sizes": (8,)} | config

    def inputs(b: int) -> dict[str, Any]:
        size = torch.tensor(config["latent_dim"]).sum()
        return {"x": torch.rand(b, *image) * 2 - 1, "noise": torch.randn(b, *samples, size), **extra(b)}

    return Entry(
        f"vae-{name}",
        lambda: VAE(sample_size=tuple(size), in_channels=channels, **config),
        inputs,
        lambda b: (b, *samples, *image),
        through,
    )


def _dcgan(name: str, extra: Callable = lambda b: {}, **config):
    return Entry(
        f"generator-{name}",
        lambda: DCGANGenerator(sample_size=(8, 16), out_channels=3, latent_dim=5, **config),
        lambda b: {"latents": torch.randn(b, 5), **extra(b)},
        lambda b: (b, 3, 8, 16),
    )


def _judge(name: str, extra: Callable = lambda b: {}, **config):
    return Entry(
        f"discriminator-{name}",
        lambda: DCGANDiscriminator(sample_size=(8, 16), in_channels=3, block_out_channels=(4, 8), **config),
        lambda b: {"sample": torch.rand(b, 3, 8, 16) * 2 - 1, **extra(b)},
        lambda b: (b,),
    )


def _told(b: int) -> dict[str, Any]:
    return {"class_labels": torch.arange(b) % 10, "text_embeds": torch.randn(b, 6)}


def _flow(architecture: str, extra: Callable = lambda b: {}, **config):
    config = {"sample_size": (8, 16), "num_layers": 3, "hidden_sizes": (8, 8)} | config
    return Entry(
        f"flow-{config.get('dequantization', architecture)}",
        lambda: NormalizingFlow(architecture=architecture, **config),
        lambda b: {"sample": torch.rand(b, 1, 8, 16) * 2 - 1, **extra(b)},
        lambda b: (b,),
    )


def _vector_flow(architecture: str, extra: Callable = lambda b: {}, **config):
    return Entry(
        f"vector-flow-{architecture}",
        lambda: NormalizingFlow(None, 3, architecture, num_layers=3, hidden_sizes=(8,), **config),
        lambda b: {"sample": torch.randn(b, 3), **extra(b)},
        lambda b: (b,),
    )


def _tokens(name: str, network, size: tuple[int, ...], extra: Callable = lambda b: {}, **config):
    return Entry(
        f"autoregressive-{name}",
        lambda: network(**config),
        lambda b: {"tokens": torch.randint(0, 5, (b, *size)), **extra(b)},
        lambda b: (b, *size, 5),
    )


def _ten(b: int) -> dict[str, Any]:
    return {"class_labels": torch.arange(b) % 10}


def _noise(b: int) -> dict[str, Any]:
    return {"noise": torch.randn(b, 1, 8, 16), "class_labels": torch.arange(b) % 10}


def _class_and_context(b: int) -> dict[str, Any]:
    return {"class_labels": torch.arange(b) % 10, "context": torch.randn(b, 2)}


def _dropout_seeds(b: int) -> dict[str, Any]:
    return {"dropout_seeds": torch.arange(b)}


def _times(b: int) -> dict[str, Any]:
    return {"timesteps": torch.arange(b) * 100}


ZOO = [
    _unet("unet-8", (1, 8, 8)),
    _unet("unet-28-patch", (1, 28, 28), patch_size=2),
    _unet("unet-rectangular-rgba", (4, 16, 24)),
    _unet("unet-64-deep", (3, 64, 64), block_out_channels=(4, 8, 8, 16), layers_per_block=2),
    _unet("unet-all-attend", (3, 16, 16), attention_stages=(True, True)),
    _unet("unet-no-attention", (3, 16, 16), attention_stages=(False, False), dropout=0.1),
    _unet("unet-learned-variance", (3, 16, 16), out=6),
    _unet("unet-classes", (1, 8, 8), extra=_labels, num_class_embeds=10),
    _unet("unet-target-time", (1, 8, 8), extra=_target, target_time=True),
    _unet("unet-condition", (4, 8, 8), extra=_condition, condition_channels=2, condition_scale=2),
    Entry(
        "controlnet",
        lambda: ControlNet2D(
            2, 2, 8, 1, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=8, num_class_embeds=10
        ),
        _control,
        lambda b: (b, 16, 4, 4),
        lambda out: torch.cat([part.flatten() for part in (out.middle, *out.down)]),
    ),
    _unet("unet-text", (3, 16, 16), extra=_context, cross_attention_dim=12),
    _unet_1d("odd", (2, 13), block_out_channels=(8, 16, 8)),
    _unet_1d("masked", (1, 12), _labels_and_steps, num_class_embeds=10, masked=True, attention_stages=(True, False)),
    _unet_1d("target-time", (3, 8), _target, target_time=True, dropout=0.1),
    *(
        Entry(
            f"translator-{config['architecture']}-{config['output']}",
            lambda config=config, size=size: ImageTranslator(*size[:2], block_out_channels=(4, 8), **config),
            lambda b, size=size: {"sample": torch.rand(b, size[0], 14, 18) * 2 - 1, **_dropout_seeds(b)},
            lambda b, size=size: (b, size[1], 14, 18),
        )
        for size, config in (
            ((3, 1), {"architecture": "unet", "output": "image", "norm": "group", "dropout": 0.5}),
            ((1, 1), {"architecture": "unet", "output": "residual", "dropout": 0.5, "keep_dropout": True}),
            ((1, 3), {"architecture": "resnet", "output": "luminance", "num_res_blocks": 1, "norm": "none"}),
            ((4, 3), {"architecture": "resnet", "output": "hole", "num_res_blocks": 2, "dropout": 0.5}),
        )
    ),
    Entry(
        "cycle-translator",
        lambda: CycleTranslator(2, 2, block_out_channels=(4, 8), num_res_blocks=1, dropout=0.5, keep_dropout=True),
        lambda b: {"a": torch.rand(b, 2, 12, 16), "b": torch.rand(b, 2, 12, 16), **_dropout_seeds(b)},
        lambda b: (b, 2, 12, 16),
        through=lambda out: torch.cat([*out.values()]),
    ),
    *(
        Entry(
            f"classifier-{size}",
            lambda size=size: DigitClassifier(sample_size=size),
            lambda b, size=size: {"images": torch.rand(b, 1, size, size) * 2 - 1},
            lambda b: (b, 10),
        )
        for size in (8, 28)
    ),
    Entry("inception", _inception, lambda b: {"images": torch.rand(b, 3, 75, 75) * 2 - 1}, lambda b: (b, 1008)),
    _autoencoder("sequence", (2, 15), latent_dim=5, block_out_channels=(4, 8), layers_per_block=2),
    _autoencoder("linear", (1, 8, 8), latent_dim=5),
    _autoencoder("tied", (1, 8, 8), latent_dim=5, hidden_sizes=(16, 8), tie_weights=True, latent_activation="sigmoid"),
    _autoencoder("pyramid", (3, 32, 16), latent_dim=7, hidden_sizes=(12,), block_out_channels=(4, 8)),
    _autoencoder("resize", (1, 28, 28), latent_dim=7, block_out_channels=(8, 8), layers_per_block=2, upsample="resize"),
    Entry("autoencoder-recurrent", lambda: RecurrentAutoencoder(3, 4, 8), _sequences, lambda b: (b, 6, 3)),
    _vqvae("ema", (1, 8, 8), block_out_channels=(8,), layers_per_block=1),
    _vqvae("sequence", (2, 15), block_out_channels=(8,), layers_per_block=2, upsample="resize"),
    _vqvae("fsq", (3, 16, 24), block_out_channels=(4, 8), quantizer="fsq", levels=(5, 4, 3)),
    Entry("mixture", _mixture, lambda b: {"latents": torch.randn(b, 5, requires_grad=True)}, lambda b: (b,)),
    Entry("latent-vae", lambda: LatentVAE(5, (8,), 3), lambda b: {"latents": torch.randn(b, 5)}, lambda b: (b,)),
    Entry(
        "position-prior",
        lambda: PositionPrior(6, (2, 3)),
        lambda b: {"codes": torch.randint(6, (b, 2, 3))},
        lambda b: (b,),
    ),
    _vae("dense", (1, 8, 8)),
    _vae("convolutional", (3, 16, 24), block_out_channels=(4, 8), likelihood="gaussian", observation_std=0.5),
    _vae(
        "levels",
        (1, 8, 8),
        (2,),
        latent_dim=(4, 3, 2),
        hidden_sizes=((8,), (), (6, 5)),
        through=lambda out: torch.cat([out.reconstruction.flatten(), out.z.flatten()]),
    ),
    Entry(
        "vae-categories",
        lambda: VAE(8, 1, 2, (8,), categories=(3,)),
        lambda b: {"x": torch.rand(b, 1, 8, 8) * 2 - 1, "noise": torch.randn(b, 5)},
        lambda b: (b, 1, 8, 8),
    ),
    Entry(
        "vae-gamma",
        lambda: VAE(8, 1, 2, (8,), posterior="gamma"),
        lambda b: {"x": torch.rand(b, 1, 8, 8) * 2 - 1, "noise": torch.randn(b, 28)},
        lambda b: (b, 1, 8, 8),
    ),
    _vae("mixture", (1, 8, 8), (2,), prior="mixture", prior_components=3, through=_with_prior),
    _vae(
        "ladder",
        (1, 8, 8),
        latent_dim=(4, 2),
        hidden_sizes=((8,), (6,)),
        inference="top_down",
        prior="vamp",
        prior_components=3,
        through=_with_prior,
    ),
    _vae("samples", (1, 8, 8), (2,), hidden_sizes=(), likelihood="discretized_logistic", observation_std=0.1),
    _vae("no-likelihood", (1, 8, 8), likelihood="none", block_out_channels=(4,), hidden_sizes=()),
    _vae("classes", (1, 8, 8), extra=lambda b: {"class_labels": torch.arange(b) % 10}, num_class_embeds=10),
    _dcgan("batch", block_out_channels=(4, 8)),
    _dcgan(
        "resize", _told, block_out_channels=(4,), norm="none", upsample="resize", num_class_embeds=10, text_embed_dim=6
    ),
    _judge("batch"),
    _judge("spectral", _told, norm="spectral", num_class_embeds=10, text_embed_dim=6),
    _judge("instance", norm="instance"),
    _judge("times", _times, norm="none", num_timesteps=1000),
    *(
        Entry(
            f"discriminator-patch-{norm}",
            lambda norm=norm: PatchDiscriminator(block_out_channels=(8, 16, 16), norm=norm),
            lambda b: {"sample": torch.rand(b, 3, 16, 24) * 2 - 1},
            lambda b: (b, 1, 2, 4),
        )
        for norm in ("group", "spectral", "none")
    ),
    _flow("nice"),
    _flow("realnvp", _noise, dequantization="variational", num_class_embeds=10),
    _flow("realnvp", num_stages=2),
    _flow("glow", _class_and_context, num_stages=2, num_class_embeds=10, context_dim=2),
    _flow("spline", num_stages=3, bins=4),
    _vector_flow("nice"),
    _vector_flow("realnvp", _class_and_context, num_class_embeds=10, context_dim=2),
    _vector_flow("spline"),
    _vector_flow("maf", _class_and_context, num_class_embeds=10, context_dim=2),
    _vector_flow("iaf"),
    _vector_flow("spline_maf"),
    Entry("generator-mlp", MLPGenerator, lambda b: {"latents": torch.randn(b, 2)}, lambda b: (b, 2)),
    Entry("discriminator-mlp", MLPDiscriminator, lambda b: {"sample": torch.randn(b, 2)}, lambda b: (b,)),
    Entry(
        "discriminator-mlp-times",
        lambda: MLPDiscriminator(num_timesteps=50),
        lambda b: {"sample": torch.randn(b, 2), "timesteps": torch.arange(b)},
        lambda b: (b,),
    ),
    Entry(
        "generator-mlp-table",
        lambda: MLPGenerator(3, 6, num_class_embeds=11, categories=(2, 3)),
        lambda b: {"latents": torch.randn(b, 3), **_labels(b)},
        lambda b: (b, 6),
    ),
    Entry(
        "discriminator-mlp-classes",
        lambda: MLPDiscriminator(6, num_class_embeds=11),
        lambda b: {"sample": torch.randn(b, 6), **_labels(b)},
        lambda b: (b,),
    ),
    Entry(
        "denoiser-mlp",
        lambda: MLPDenoiser(6, (2, 3), (8, 8), 8, num_class_embeds=11),
        lambda b: {"sample": torch.randn(b, 6), "timestep": torch.arange(b) * 10, **_labels(b)},
        lambda b: (b, 6),
    ),
    Entry(
        "table-vae",
        lambda: TableVAE(6, (2, 3), 3, (8,)),
        lambda b: {"rows": torch.randn(b, 6), "noise": torch.randn(b, 2, 3)},
        lambda b: (b, 2, 6),
        lambda out: torch.cat([out.location.flatten(), out.log_scale]),
    ),
    _tokens("text", CausalTransformer, (9,), levels=5, shape=(9,), width=16, layers=2, heads=2, dropout=0.1),
    _tokens("pixels", CausalTransformer, (3, 2, 4), _ten, levels=5, shape=(3, 2, 4), width=16, layers=1, heads=2,
            positions="learned", num_class_embeds=10),
    _tokens("pixelcnn", GatedPixelCNN, (1, 8, 16), sample_size=(8, 16), levels=5, hidden_channels=8, layers=3),
    _tokens("pixelcnn-colour", GatedPixelCNN, (3, 4, 4), _ten, sample_size=4, in_channels=3, levels=5, layers=2,
            hidden_channels=8, first_kernel_size=3, dropout=0.1, num_class_embeds=10),
    _tokens("made", MADE, (1, 4, 4), sample_size=4, levels=5, hidden_sizes=(32, 32)),
    _tokens("made-classes", MADE, (3, 2, 2), _ten, sample_size=2, in_channels=3, levels=5, hidden_sizes=(32,),
            num_class_embeds=10),
]  # fmt: skip
