"""Train a model of the rows of a table, a CSV or parquet file: a VAE, GAN, normalizing flow or diffusion model.

    python examples/train_table.py --train_data_dir people.csv --family flow --output_dir outputs/people

Columns of numbers, whole numbers, classes, truth values and dates are found, with missing values. A run that was killed
goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/people")`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from latentia import (
    DDPMScheduler,
    MLPDenoiser,
    MLPDiscriminator,
    MLPGenerator,
    NormalizingFlow,
    TableDiffusionPipeline,
    TableEncoder,
    TableFlowPipeline,
    TableGANPipeline,
    TableVAE,
    TableVAEPipeline,
)
from latentia.data.mixed import EncodedRows, MixedTable
from latentia.errors import Size, UsageError, Weight
from latentia.functional.adversarial import Objective
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.likelihood import flow_loss
from latentia.losses.tables import table_diffusion_loss, table_elbo_loss
from latentia.runs.arguments import (
    EMAArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
    check_unused,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Prepared, Run
from latentia.runs.tables import TableArguments, TableEvaluationArguments, TableValidation, open_table
from latentia.training.loop import Phase

INITIAL_ROWS = 1000  # from which the scales of a flow's activation normalisation are set


@dataclass(frozen=True)
class FamilyArguments:
    """The model."""

    family: Literal["flow", "vae", "gan", "diffusion"] = "flow"
    """What is trained."""
    hidden_sizes: tuple[Size, ...] | None = None
    """Width of each dense layer; not given: 128 128, of a GAN 256 256, of diffusion 256 256 256."""
    components: Size = 8
    """Gaussians of the mixture of each column of numbers, at most."""


@dataclass(frozen=True)
class LatentArguments:
    """Latents of --family vae and gan."""

    latent_dim: Size | None = None
    """Dimensions of the latents; not given: 16 of a VAE, 64 of a GAN."""


@dataclass(frozen=True)
class VAEArguments:
    """Of --family vae."""

    beta: Weight = 1.0
    """Weight of the KL."""


@dataclass(frozen=True)
class GANArguments:
    """Of --family gan."""

    objective: Objective = "relativistic"
    """Adversarial objective."""
    r1: Weight = 0.5
    """Weight of the discriminator's squared gradient at real rows; 0: none."""
    r2: Weight = 0.5
    """The same at generated rows."""
    by_category: bool = True
    """Draw rows by their categories, rare ones more often, and condition both networks on them."""


@dataclass(frozen=True)
class FlowArguments:
    """Of --family flow."""

    architecture: Literal["spline", "realnvp", "maf", "spline_maf"] = "spline"
    """Its transforms: couplings or, slower to sample, autoregressive ones."""
    num_layers: Size = 6
    """How many there are."""
    bins: Size = 8
    """Bins of splines, from 2 to 100."""


@dataclass(frozen=True)
class TableDiffusionArguments:
    """Of --family diffusion."""

    num_train_timesteps: Size = 200
    """Steps of the noise, with a cosine schedule."""


@dataclass(frozen=True)
class Arguments:
    data: TableArguments = TableArguments()
    model: FamilyArguments = FamilyArguments()
    latents: LatentArguments = LatentArguments()
    vae: VAEArguments = VAEArguments()
    gan: GANArguments = GANArguments()
    flow: FlowArguments = FlowArguments()
    diffusion: TableDiffusionArguments = TableDiffusionArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=100, max_train_steps=3000, learning_rate=2e-3, adam_weight_decay=0.0, max_grad_norm=10.0
    )
    ema: EMAArguments = EMAArguments(ema_decay=0.995)
    evaluation: TableEvaluationArguments = TableEvaluationArguments()
    output: OutputArguments = OutputArguments()
    hub: HubArguments = HubArguments()


Built = tuple[Sequence[Phase], Callable[[Any], Any], Prepared]


def build_vae(run: Run, encoder: TableEncoder, args: Arguments, data: EncodedRows) -> Built:
    widths = args.model.hidden_sizes or (128, 128)
    network = TableVAE(encoder.width, encoder.categories, args.latents.latent_dim or 16, widths)
    vae = run.prepare("vae", network)

    def pipeline(weights) -> TableVAEPipeline:
        return TableVAEPipeline(encoder, weights)

    return [vae.phase(lambda batch, rng: table_elbo_loss(vae.network, batch, rng, beta=args.vae.beta))], pipeline, vae


def build_gan(run: Run, encoder: TableEncoder, args: Arguments, data: EncodedRows) -> Built:
    widths, classes = args.model.hidden_sizes or (256, 256), len(data.label_names or ()) or None
    made = MLPGenerator(
        args.latents.latent_dim or 64, encoder.width, widths, num_class_embeds=classes, categories=encoder.categories
    )
    generator = run.prepare("generator", made)
    network = MLPDiscriminator(encoder.width, widths, num_class_embeds=classes)
    discriminator = run.prepare("discriminator", network, ema=False)
    networks, objective = (discriminator.network, generator.network), args.gan.objective
    penalised = {"objective": objective, "r1": args.gan.r1, "r2": args.gan.r2}

    def pipeline(weights) -> TableGANPipeline:
        return TableGANPipeline(encoder, weights, discriminator.module)

    phases = [
        discriminator.phase(partial(gan_discriminator_loss, *networks, **penalised)),
        generator.phase(partial(gan_generator_loss, *networks, objective=objective)),
    ]
    return phases, pipeline, generator


def build_flow(run: Run, encoder: TableEncoder, args: Arguments, data: EncodedRows) -> Built:
    kind, widths = args.flow, args.model.hidden_sizes or (128, 128)
    network = NormalizingFlow(
        None,
        encoder.width,
        kind.architecture,
        num_layers=kind.num_layers,
        hidden_sizes=widths,
        bins=kind.bins,
        activation="silu",
    )
    network.initialize(data.batch(0, INITIAL_ROWS, seed=args.optimization.seed)["x"])
    flow = run.prepare("flow", network)

    def pipeline(weights) -> TableFlowPipeline:
        return TableFlowPipeline(encoder, weights)

    return [flow.phase(partial(flow_loss, flow.network))], pipeline, flow


def build_diffusion(run: Run, encoder: TableEncoder, args: Arguments, data: EncodedRows) -> Built:
    widths = args.model.hidden_sizes or (256, 256, 256)
    denoiser = run.prepare("denoiser", MLPDenoiser(encoder.width, encoder.categories, widths))
    steps = args.diffusion.num_train_timesteps
    scheduler = DDPMScheduler(
        steps, beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="v_prediction"
    )
    scheduler.to(run.device)

    def pipeline(weights) -> TableDiffusionPipeline:
        return TableDiffusionPipeline(encoder, weights, scheduler)

    return [denoiser.phase(partial(table_diffusion_loss, denoiser.network, scheduler))], pipeline, denoiser


# family -> what builds it, the layout of its rows, and the groups of flags that it uses
FAMILIES: dict[str, tuple[Callable[..., Built], str, tuple[str, ...]]] = {
    "vae": (build_vae, "one_hot", ("latents", "vae")),
    "gan": (build_gan, "one_hot", ("latents", "gan")),
    "flow": (build_flow, "scores", ("flow",)),
    "diffusion": (build_diffusion, "one_hot", ("diffusion",)),
}


def check(args: Arguments) -> tuple[str, ...]:
    """Refuse flags of other families; the groups of flags that are left unused."""
    family, default = args.model.family, Arguments()
    groups = dict.fromkeys(group for _, _, used in FAMILIES.values() for group in used)
    unused = tuple(group for group in groups if group not in FAMILIES[family][2])
    for group in unused:
        users = " or ".join(name for name, (_, _, used) in FAMILIES.items() if group in used)
        reason = f"is of --family {users}, not of {family}; leave it out"
        check_unused(getattr(args, group), getattr(default, group), reason)
    if family == "gan" and args.optimization.compile:
        raise UsageError("--compile must be left out: the penalties need second derivatives, which it does not have.")
    return unused


def split(args: Arguments) -> tuple[MixedTable, MixedTable]:
    return open_table(args.data).parts(args.data.held_out_share)


def main(args: Arguments) -> int:
    unused = check(args)
    build, layout, _ = FAMILIES[args.model.family]
    train, held_out = split(args)
    encoder = TableEncoder.fit(train.columns, train.values, layout, args.model.components)
    by_category = args.model.family == "gan" and args.gan.by_category and bool(encoder.counts)
    data = EncodedRows(train, encoder, by_category)
    run = Run(args, family=f"tabular-{args.model.family}", pipeline_tag="other", data=data, unused=unused)
    phases, pipeline, weights = build(run, encoder, args, data)
    validation: Any = TableValidation(args, train, held_out, encoder, pipeline, weights.final)
    return run.train(phases, pipeline, weights=weights, validation=validation)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
