"""Pipelines of tables by family: VAE, GAN, and flow or another density of encoded rows."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import log_normal
from latentia.functional.tabular import draw_row, row_log_likelihood, split_row
from latentia.models.mlp_gan import MLPGenerator
from latentia.models.table_vae import TableVAE
from latentia.pipelines.arguments import Generators, draw_noise, draw_uniform, image_generators
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.tables import CHUNK, TablePipeline, check_width


class TableVAEPipeline(TablePipeline):
    """A VAE of tables: sampling, encoding, decoding, interpolation, and a lower bound of the log-likelihood.

    Args:
        encoder: a `TableEncoder` with the layout "one_hot".
        vae: a `TableVAE` of its rows.

    Example:
        >>> from latentia import TableEncoder, TableVAE
        >>> from latentia.data.mixed import load_mixed_table
        >>> table = load_mixed_table("iris")
        >>> encoder = TableEncoder.fit(table.columns, table.values)
        >>> pipe = TableVAEPipeline(encoder, TableVAE(encoder.width, encoder.categories))
        >>> pipe(3, generator=torch.Generator().manual_seed(0)).rows.shape
        (3, 5)
    """

    vae: Any

    model_cpu_offload_seq: Any = "vae->encoder"
    latents = "continuous"

    def __init__(self, encoder, vae):
        super().__init__()
        self._register_encoder(encoder)
        if not isinstance(vae, TableVAE):
            raise UsageError(f"vae must be a TableVAE; got {type(vae).__name__}.")
        check_width("vae", vae.config.in_dim, encoder)
        self.register_modules(encoder=encoder, vae=vae)

    @property
    def likelihood(self) -> Likelihood:
        """A lower bound, of rows."""
        return Likelihood("lower bound", "rows")

    def _draw(self, generators: list[torch.Generator], labels: Tensor | None, **options: Any) -> Tensor:
        device, config = self._execution_device, self.vae.config
        numbers = config.in_dim - sum(config.categories)
        noise = draw_noise(generators, (config.latent_dim + numbers,), device, torch.float32)
        u = draw_uniform(generators, (max(len(config.categories), 1),), device)
        z, eps = noise.split([config.latent_dim, numbers], 1)
        location = in_chunks(self.vae.decode, z.to(self.vae.dtype), size=CHUNK).float()
        x = draw_row(location, u, config.categories)
        x[:, :numbers] += self.vae.log_scale.float().exp() * eps
        return x

    @torch.no_grad()
    def encode(self, rows: Any) -> Tensor:
        """Means of q(z|x), (B, L), of rows."""
        return in_chunks(lambda x: self.vae.encode(x)[0], self._input(rows).to(self.vae.dtype), size=CHUNK)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, output_type: str = "pandas") -> Any:
        """Rows of latents (B, L): the means of the numbers and the likeliest categories."""
        location = in_chunks(self.vae.decode, latents.to(self._execution_device, self.vae.dtype), size=CHUNK).float()
        numbers, blocks = split_row(location, self.vae.config.categories)
        sure = [torch.nn.functional.one_hot(block.argmax(1), block.shape[1]).float() for block in blocks]
        return self._output(torch.cat([numbers, *sure], 1), output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, mode: str = "lerp", output_type: str = "pandas") -> Any:
        """Interpolate two rows in the latent space: `steps` rows, both ends included."""
        return self._between(a, b, steps, mode, output_type)

    @torch.no_grad()
    def log_likelihood(self, rows: Any, *, samples: int = 16, generator: Generators = None) -> Tensor:
        """A lower bound of log p(x) in nats, float64 (B,), by importance samples of q.

        A probability of classes, dates and numbers of finitely many decimals, a density of other numbers.

        Args:
            rows: those to measure.
            samples: importance samples, at least 1; more come nearer. Default 16.
            generator: of the samples, one or one per row.
        """
        check_range("samples", samples, 1, integer=True)
        values, config = self._values(rows), self.vae.config
        generators, bounds = image_generators(generator, len(values)), []
        for _ in range(samples):
            u = draw_uniform(generators, (values.shape[1],), values.device).double()
            noise = draw_noise(generators, (config.latent_dim,), values.device, torch.float32)

            def weight(x: Tensor, noise: Tensor) -> Tensor:
                out = self.vae(x, noise)
                joint = row_log_likelihood(x, out.location, out.log_scale, config.categories) + log_normal(out.z)
                return (joint - log_normal(out.z, out.mean, out.log_variance)).double()

            x = self.encoder.encode(values, u).to(self.vae.dtype)
            bounds.append(in_chunks(weight, x, noise.to(x.dtype), size=CHUNK) + self.encoder.log_det(values, u))
        return importance_weighted_bound(torch.stack(bounds, 1))


class TableFlowPipeline(TablePipeline):
    """A density of encoded rows, such as a normalizing flow or a Gaussian copula: sampling and a likelihood.

    Args:
        encoder: a `TableEncoder` with the layout "scores", in which each column is one number.
        flow: a `NormalizingFlow` of vectors; or another density with `sample(n, generators)` and `log_prob(x)`:
            `LatentMixture.fit(encoded rows, 1)` is the Gaussian copula.

    Example:
        >>> from latentia import LatentMixture, TableEncoder
        >>> from latentia.data.mixed import load_mixed_table
        >>> table = load_mixed_table("iris")
        >>> encoder = TableEncoder.fit(table.columns, table.values, layout="scores")
        >>> rows = encoder.encode(torch.from_numpy(table.values), torch.rand(150, 5).double())
        >>> copula = TableFlowPipeline(encoder, LatentMixture.fit(rows, 1))
        >>> copula(3, where="species=setosa", generator=torch.Generator().manual_seed(0)).rows.species.tolist()
        ['setosa', 'setosa', 'setosa']
    """

    flow: Any

    model_cpu_offload_seq: Any = "flow->encoder"

    def __init__(self, encoder, flow):
        super().__init__()
        self._register_encoder(encoder)
        if encoder.config.layout != "scores":
            raise UsageError(f'encoder must have the layout "scores" beside a density; got "{encoder.config.layout}".')
        if not hasattr(flow, "log_prob") or not hasattr(flow, "sample"):
            raise UsageError(f"flow must be a density with log_prob and sample; got {type(flow).__name__}.")
        config = flow.config
        check_width("flow", config.latent_dim if hasattr(config, "latent_dim") else config.in_channels, encoder)
        self.register_modules(encoder=encoder, flow=flow)

    @property
    def likelihood(self) -> Likelihood:
        """A lower bound, of rows; the density of encoded rows is exact."""
        return Likelihood("lower bound", "rows")

    @property
    def words(self) -> tuple[str, ...]:
        """A likelihood."""
        return ("log_likelihood",)

    def _draw(self, generators: list[torch.Generator], labels: Tensor | None, **options: Any) -> Tensor:
        return self.flow.sample(len(generators), generators).float()

    @torch.no_grad()
    def log_likelihood(self, rows: Any, *, samples: int = 16, generator: Generators = None) -> Tensor:
        r"""A lower bound of log p(x) in nats, float64 (B,): \(\log \frac1k \sum_i p(z(x, u_i))\, |\partial z|\).

        A probability of classes, dates and numbers of finitely many decimals, a density of other numbers.

        Args:
            rows: those to measure.
            samples: of u, the places within intervals, at least 1; more come nearer. Default 16.
            generator: of u, one or one per row.
        """
        check_range("samples", samples, 1, integer=True)
        values = self._values(rows)
        generators, bounds = image_generators(generator, len(values)), []
        for _ in range(samples):
            u = draw_uniform(generators, (values.shape[1],), values.device).double()
            x = self.encoder.encode(values, u).to(torch.promote_types(self.flow.dtype, torch.float32))
            density = in_chunks(lambda x: self.flow.log_prob(x).double(), x, size=CHUNK)
            bounds.append(density + self.encoder.log_det(values, u))
        return importance_weighted_bound(torch.stack(bounds, 1))


class TableGANPipeline(TablePipeline):
    """A GAN of tables: sampling, and rows with a category that is asked for.

    Args:
        encoder: a `TableEncoder` with the layout "one_hot".
        generator: an `MLPGenerator` of its rows; with `num_class_embeds` it is conditioned on one category of one
            column, numbered as `encoder.conditions`.
        discriminator: that it was trained against; `None` (default): none.

    Example:
        >>> from latentia import MLPGenerator, TableEncoder
        >>> from latentia.data.mixed import load_mixed_table
        >>> table = load_mixed_table("iris")
        >>> encoder = TableEncoder.fit(table.columns, table.values)
        >>> pipe = TableGANPipeline(encoder, MLPGenerator(8, encoder.width, categories=encoder.categories))
        >>> pipe(3).rows.shape
        (3, 5)
    """

    generator: Any
    discriminator: Any

    model_cpu_offload_seq: Any = "generator->encoder"
    _optional_components = ["discriminator"]  # noqa: RUF012 (diffusers reads a list)

    def __init__(self, encoder, generator, discriminator=None):
        super().__init__()
        self._register_encoder(encoder)
        if not isinstance(generator, MLPGenerator):
            raise UsageError(f"generator must be an MLPGenerator; got {type(generator).__name__}.")
        check_width("generator", generator.config.out_dim, encoder)
        self.register_modules(encoder=encoder, generator=generator, discriminator=discriminator)

    @property
    def num_classes(self) -> None:
        """None: rows are conditioned by `where`."""
        return None

    def _labels(self, generators: list[torch.Generator], tests: Any) -> Tensor | None:
        if self.generator.config.num_class_embeds is None:
            return None
        conditions, device = self.encoder.conditions, self._execution_device
        for name, value in tests.items():
            for text in (str(value), str(value).lower()):
                if f"{name}={text}" in conditions:
                    return torch.full((len(generators),), conditions.index(f"{name}={text}"), device=device)
        u = draw_uniform(generators, (1,), device)[:, 0]
        ends = self.encoder.condition_shares.cumsum(0)
        return torch.searchsorted(ends[:-1].contiguous(), u.double().to(ends.device), right=True).to(device)

    def _draw(self, generators: list[torch.Generator], labels: Tensor | None, **options: Any) -> Tensor:
        network = self.generator
        noise = draw_noise(generators, (network.config.latent_dim,), self._execution_device, network.dtype)
        return in_chunks(network.decode, noise, labels, size=CHUNK).float()
