"""Networks and losses on the meta device, which refuses tensors of the CPU: nothing is made on another device.

Its tensors have no values, so nothing may read one either: a loss that waits for a number stops the device it runs on.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from zoo import ZOO

from latentia import (
    VAE,
    VQVAE,
    Autoencoder,
    CycleTranslator,
    DCGANDiscriminator,
    DCGANGenerator,
    DDIMScheduler,
    DDPMScheduler,
    HashedWords,
    ImageTranslator,
    MLPDenoiser,
    MLPDiscriminator,
    PatchDiscriminator,
    RecurrentAutoencoder,
    TableVAE,
    UNet1D,
    UNet2D,
)
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss, gan_penalty_loss
from latentia.losses.augmentation import AdaptiveAugmentation, ReplayPool, random_affine, random_augment
from latentia.losses.autoregressive import code_loss
from latentia.losses.contrastive import contrastive_loss
from latentia.losses.cycle import cycle_discriminator_loss, cycle_loss
from latentia.losses.diffusion import diffusion_loss
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.losses.flow_maps import mean_flow_loss, shortcut_loss
from latentia.losses.flow_matching import flow_matching_loss, reflow_loss
from latentia.losses.perceptual_compression import patch_discriminator_loss, perceptual_compression_loss
from latentia.losses.quantisation import CodebookUpdate, vqvae_loss
from latentia.losses.reconstruction import autoencoder_loss
from latentia.losses.tables import table_diffusion_loss, table_elbo_loss
from latentia.losses.translation import StepImages, translation_discriminator_loss, translation_loss
from latentia.losses.vae_gan import vae_gan_discriminator_loss, vae_gan_loss
from latentia.losses.vae_objectives import OBJECTIVES
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.losses.weight_clipping import clip_weights
from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
from latentia.rng import Rng

META = torch.device("meta")
B = 4


def on_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: on_meta(each) for key, each in value.items()}
    if isinstance(value, torch.Tensor):
        return value.detach().to(META).requires_grad_(value.requires_grad)
    return value.to(META) if isinstance(value, torch.nn.Module) else value


def rng() -> Rng:
    return Rng(0, 0, B, 0, B, META)


def batch(channels: int = 1, **more: torch.Tensor) -> dict[str, Any]:
    return on_meta({"x": torch.zeros(B, channels, 8, 8), "labels": torch.zeros(B, dtype=torch.long), **more})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_networks_make_nothing_on_another_device(entry, training):
    network = on_meta(entry.build().train(training))
    out = network(**on_meta(entry.inputs(B)))
    assert all(value.is_meta for value in out.values() if isinstance(value, torch.Tensor))
    through = entry.through(out)
    if through.requires_grad:
        through.sum().backward()


def adversarial(loss: Callable, norm: str = "none", options: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A loss with `options` for a discriminator with `settings`, which is conditional unless it classifies."""
    classes = None if "num_aux_classes" in settings else 10
    discriminator = DCGANDiscriminator(
        sample_size=8, block_out_channels=(4, 8), norm=norm, num_class_embeds=classes, **settings
    )
    generator = DCGANGenerator(sample_size=8, block_out_channels=(4, 8), num_class_embeds=10)
    return loss(on_meta(discriminator), on_meta(generator), batch(), rng(), **(options or {}))


def adaptive() -> dict[str, torch.Tensor]:
    augmentation = on_meta(AdaptiveAugmentation())
    options = {"augment": augmentation, "collect": augmentation.collect}
    return adversarial(gan_discriminator_loss, options=options)


def diffused() -> dict[str, torch.Tensor]:
    augmentation = on_meta(AdaptiveAugmentation(DiffusionAugmentation(), most=1.0))
    options = {"augment": augmentation, "collect": augmentation.collect, "gp": 1.0}
    return adversarial(gan_discriminator_loss, options=options, num_timesteps=1000)


def hybrid(loss: Callable) -> dict[str, torch.Tensor]:
    network = on_meta(VAE(sample_size=8, latent_dim=3, likelihood="none", num_class_embeds=10))
    discriminator = on_meta(DCGANDiscriminator(8, block_out_channels=(4,), norm="spectral", num_class_embeds=10))
    networks = (network, discriminator) if loss is vae_gan_loss else (discriminator, network)
    return loss(*networks, batch(), rng())


def replayed() -> dict[str, torch.Tensor]:
    pool = on_meta(ReplayPool(8, (1, 8, 8)))
    networks = on_meta(DCGANDiscriminator(8, block_out_channels=(4,), norm="none")), on_meta(DCGANGenerator(8))
    return gan_discriminator_loss(*networks, batch(), rng(), replay=pool)


def vqvae(update: str = "ema", **config: Any) -> VQVAE:
    config = {"codebook_size": 6, "codebook_update": update} | config
    return on_meta(VQVAE(sample_size=8, in_channels=1, block_out_channels=(4,), **config))


def codebook() -> dict[str, torch.Tensor]:
    network = vqvae()
    update = CodebookUpdate(network)
    values = vqvae_loss(network, batch(), rng(), collect=update.collect)
    assert update(batch(), rng())["perplexity"].is_meta
    return values


def vae(loss: Callable, likelihood: str = "bernoulli", latent_dim: Any = 3, hidden_sizes: Any = (8,), **options: Any):
    network = VAE(
        sample_size=8, latent_dim=latent_dim, hidden_sizes=hidden_sizes, likelihood=likelihood, num_class_embeds=10
    )
    return loss(on_meta(network), batch(), rng(), **options)


def objective_of(network: VAE) -> dict[str, torch.Tensor]:
    return elbo_loss(on_meta(network), batch(), rng())


def vae_objective(name: str) -> dict[str, torch.Tensor]:
    objective = OBJECTIVES[name]
    options = {"dataset_size": 100} if "dataset_size" in objective.options else {}
    networks = on_meta(VAE(sample_size=8, latent_dim=3)), on_meta(MLPDiscriminator(in_dim=3))
    if objective.second is None:
        return objective.loss(networks[0], batch(), rng(), **options, **objective.fixed)
    objective.second(*reversed(networks), batch(), rng())["loss"].backward()
    return objective.loss(*networks, batch(), rng())


def unet(**config: Any) -> UNet2D:
    return on_meta(UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8, **config))


def kl_networks() -> tuple[Any, Any]:
    network = GaussianAutoencoder(autoencoder_kl(8, 1, block_out_channels=(8, 8)))
    return on_meta(network), on_meta(PatchDiscriminator(1, (8, 8)))


def translated(objective: str) -> dict[str, torch.Tensor]:
    """The translator's loss, or with hinge the discriminator's."""
    translator = on_meta(ImageTranslator(1, 1, block_out_channels=(4, 8), dropout=0.5))
    networks, pairs = (translator, on_meta(PatchDiscriminator(2, (4, 8)))), batch(condition=torch.zeros(B, 1, 8, 8))
    made, options = StepImages(), {"discriminator": networks[1], "feature_weight": 1.0, "objective": objective}
    values = translation_loss(translator, pairs, rng(), made=made, **options)
    if objective == "relativistic":
        return values
    return translation_discriminator_loss(networks[1], pairs, rng(), made=made, objective=objective)


def cycled(domain: str | None) -> dict[str, torch.Tensor]:
    translator = on_meta(CycleTranslator(1, 1, block_out_channels=(4, 8), num_res_blocks=1))
    patches, pairs = on_meta(PatchDiscriminator(1, (4, 8))), batch(condition=torch.zeros(B, 1, 8, 8))
    made, pool = StepImages(), on_meta(ReplayPool(8, (1, 8, 8)))
    values = cycle_loss(translator, patches, patches, pairs, rng(), made=made)
    return values if domain is None else cycle_discriminator_loss(patches, domain, pairs, rng(), made=made, replay=pool)


def masked_unet() -> tuple[UNet1D, dict[str, Any]]:
    """A network of sequences of unequal lengths, and a batch of them."""
    network = UNet1D(6, 2, block_out_channels=(8,), attention_head_dim=8, masked=True)
    sequences = {"x": torch.zeros(B, 2, 6), "step_mask": torch.ones(B, 6, dtype=torch.bool)}
    return on_meta(network), on_meta(sequences)


class Transformer(torch.nn.Embedding):
    """Stands for a `code_transformer`: that of transformers reads a value of its mask."""

    config = SimpleNamespace(codebook_size=6)

    def forward(self, input_ids, use_cache, logits_to_keep):
        return SimpleNamespace(logits=super().forward(input_ids)[:, -logits_to_keep:])


class Case(NamedTuple):
    name: str
    loss: Callable[[], dict[str, torch.Tensor]]


TEXT = {"text": torch.zeros(B, 5, 12), "text_mask": torch.ones(B, 5, dtype=torch.bool)}
EMPTY = (torch.zeros(5, 12), torch.ones(5, dtype=torch.bool))
LATENTS = (4, 4, 4)
CASES = [
    *(Case(f"gan-{loss.__name__}", lambda loss=loss: adversarial(loss)) for loss in (
        gan_discriminator_loss, gan_generator_loss, gan_penalty_loss
    )),
    Case("gan-batch-norm", lambda: adversarial(gan_discriminator_loss, "batch", {"r1": 0.0, "r2": 0.0})),
    Case("gan-spectral", lambda: adversarial(gan_discriminator_loss, "spectral", {"gp": 1.0, "mismatched": True})),
    Case("gan-aux", lambda: adversarial(gan_discriminator_loss, options={"instance_noise": 0.1}, num_aux_classes=10)),
    Case("gan-std", lambda: adversarial(
        gan_generator_loss, options={"top_k": 0.5, "matching_weight": 1.0}, minibatch_std=2
    )),
    Case("gan-labels", lambda: adversarial(gan_discriminator_loss, options={
        "objective": "least_squares", "real_label": (0.7, 1.2), "flip": 0.1, "prior": "uniform"
    })),
    Case("gan-augmented", lambda: adversarial(gan_generator_loss, options={"augment": random_augment})),
    Case("gan-adaptive", adaptive),
    Case("gan-diffusion", diffused),
    Case("gan-replay", replayed),
    Case("vae-gan", lambda: hybrid(vae_gan_loss)),
    Case("vae-gan-discriminator", lambda: hybrid(vae_gan_discriminator_loss)),
    Case("clip-weights", lambda: {"loss": clip_weights(kl_networks()[1])["at_limit"]}),
    Case("affine", lambda: {"loss": random_affine(batch()["x"], rng()).sum()}),
    Case("vqvae-ema", codebook),
    Case("vqvae-gradient", lambda: vqvae_loss(vqvae("gradient"), batch(), rng())),
    Case("vqvae-fsq", lambda: vqvae_loss(vqvae(quantizer="fsq", levels=(5, 4)), batch(), rng())),
    Case("elbo", lambda: vae(elbo_loss, free_bits=0.1)),
    Case("elbo-gaussian", lambda: vae(elbo_loss, "gaussian", capacity=1.0)),
    Case("elbo-hierarchy", lambda: vae(elbo_loss, "discretized_logistic", (3, 2), ((8,), (4,)))),
    Case("elbo-gamma", lambda: objective_of(VAE(8, posterior="gamma"))),
    Case("elbo-categories", lambda: objective_of(VAE(8, latent_dim=None, categories=(3, 4)))),
    Case("elbo-ladder", lambda: objective_of(VAE(8, 1, (3, 2), ((8,), (4,)), inference="top_down", prior="vamp"))),
    *(Case(f"vae-{name}", lambda name=name: vae_objective(name)) for name in OBJECTIVES),
    *(Case(f"iwae-{gradient}", lambda gradient=gradient: vae(iwae_loss, samples=3, gradient=gradient)) for gradient in (
        "standard", "doubly_reparameterised"
    )),
    *(Case(f"autoencoder-{corruption}", lambda corruption=corruption, sparsity=sparsity: autoencoder_loss(
        on_meta(Autoencoder(sample_size=8, latent_dim=4, latent_activation="sigmoid")), batch(), rng(),
        corruption=corruption, corruption_strength=0.5, sparsity=sparsity, sparsity_weight=0.1,
    )) for corruption, sparsity in (("gaussian", "kl"), ("masking", "l1"))),
    Case("autoencoder-recurrent", lambda: autoencoder_loss(
        on_meta(RecurrentAutoencoder(3, 2, 4)),
        on_meta({"x": torch.zeros(B, 6, 3), "mask": torch.ones(B, 6, dtype=torch.bool)}), rng(),
    )),
    Case("perceptual-compression", lambda: perceptual_compression_loss(
        kl_networks()[0], batch(), rng(), latent_shape=LATENTS, discriminator=kl_networks()[1],
        perceptual=lambda a, b: (a - b).square().flatten(1).mean(1),
    )),
    Case("patch-discriminator", lambda: patch_discriminator_loss(
        *reversed(kl_networks()), batch(), rng(), latent_shape=LATENTS
    )),
    *(Case(f"translation-{objective}", lambda objective=objective: translated(objective)) for objective in (
        "relativistic", "hinge"
    )),
    Case("cycle", lambda: cycled(None)),
    Case("cycle-discriminator", lambda: cycled("a")),
    *(Case(f"diffusion-{kind}", lambda kind=kind: diffusion_loss(
        unet(num_class_embeds=10), DDPMScheduler(prediction_type=kind).to(META), batch(), rng(),
        weighting="min_snr", time_sampling="logit_normal",
    )) for kind in ("epsilon", "sample", "v_prediction")),
    Case("diffusion-learned-variance", lambda: diffusion_loss(
        unet(out_channels=2), DDPMScheduler(variance_type="learned_range").to(META), batch(), rng()
    )),
    Case("diffusion-text", lambda: diffusion_loss(
        unet(cross_attention_dim=12), DDIMScheduler().to(META), batch(**TEXT), rng(), empty_text=EMPTY
    )),
    Case("flow-matching", lambda: flow_matching_loss(unet(), batch(), rng())),
    Case("mean-flow", lambda: mean_flow_loss(unet(target_time=True), batch(), rng())),
    Case("reflow", lambda: reflow_loss(unet(), batch(), rng(), teacher=lambda x, t, conditions: x, teacher_steps=1)),
    Case("shortcut", lambda: shortcut_loss(unet(target_time=True), batch(), rng())),
    Case("flow-matching-coupled", lambda: flow_matching_loss(unet(), batch(), rng(), coupling_size=B)),
    Case("diffusion-masked", lambda: diffusion_loss(
        masked_unet()[0], DDPMScheduler().to(META), masked_unet()[1], rng()
    )),
    Case("flow-matching-masked", lambda: flow_matching_loss(*masked_unet(), rng())),
    Case("codes", lambda: code_loss(
        on_meta(Transformer(7, 7)),
        on_meta({"prefix": torch.zeros(B, 1, dtype=torch.long), "codes": torch.zeros(B, 4, dtype=torch.long)}), rng(),
    )),
    Case("table-elbo", lambda: table_elbo_loss(on_meta(TableVAE(6, (2, 3))), on_meta({"x": torch.zeros(B, 6)}), rng())),
    Case("table-diffusion", lambda: table_diffusion_loss(
        on_meta(MLPDenoiser(6, (2, 3))), DDPMScheduler().to(META), on_meta({"x": torch.zeros(B, 6)}), rng()
    )),
    Case("contrastive", lambda: contrastive_loss(
        *(on_meta(torch.ones(B, 3)).requires_grad_() for _ in range(2)), on_meta(torch.tensor(2.0)),
        groups=on_meta(torch.zeros(B, dtype=torch.long)),
    )),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_make_nothing_on_another_device_and_read_no_value(case):
    values = case.loss()
    assert all(value.is_meta and value.ndim == 0 for value in values.values()), values
    if values["loss"].requires_grad:
        values["loss"].backward()


def test_captions_become_vectors_on_the_device_of_the_encoder():
    assert on_meta(HashedWords(16))(["a dog", "a cat"]).is_meta
