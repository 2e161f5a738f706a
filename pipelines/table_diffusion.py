"""Diffusion of tables: Gaussian of numbers, multinomial of categories."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.chunks import in_chunks
from latentia.functional.multinomial import posterior_probabilities
from latentia.functional.tabular import one_hot_of, split_row
from latentia.models.mlp_denoiser import MLPDenoiser
from latentia.pipelines.arguments import Generators, check_call, draw_noise, draw_uniform
from latentia.pipelines.tables import CHUNK, TableOutput, TablePipeline, Where, answer, check_width
from latentia.schedulers.ddpm import DDPMScheduler


class TableDiffusionPipeline(TablePipeline):
    """Diffusion of tables: Gaussian of numbers, multinomial of categories.

    Args:
        encoder: a `TableEncoder` with the layout "one_hot".
        denoiser: an `MLPDenoiser` of its rows.
        scheduler: the `DDPMScheduler` of the noise of the numbers; categories keep the same share of themselves.

    TabDDPM (Kotelnikov et al., 2023, 2209.15421), section 3.

    Example:
        >>> from latentia import DDPMScheduler, MLPDenoiser, TableEncoder
        >>> from latentia.data.mixed import load_mixed_table
        >>> table = load_mixed_table("iris")
        >>> encoder = TableEncoder.fit(table.columns, table.values)
        >>> denoiser = MLPDenoiser(encoder.width, encoder.categories)
        >>> pipe = TableDiffusionPipeline(encoder, denoiser, DDPMScheduler(clip_sample=False))
        >>> pipe(3, num_inference_steps=5).rows.shape
        (3, 5)
    """

    denoiser: Any
    scheduler: Any

    model_cpu_offload_seq: Any = "denoiser->encoder"

    def __init__(self, encoder, denoiser, scheduler):
        super().__init__()
        self._register_encoder(encoder)
        if not isinstance(denoiser, MLPDenoiser):
            raise UsageError(f"denoiser must be an MLPDenoiser; got {type(denoiser).__name__}.")
        if not isinstance(scheduler, DDPMScheduler) or scheduler.config.clip_sample:
            raise UsageError(
                "scheduler must be a DDPMScheduler with clip_sample=False: numbers of rows have no bounds."
            )
        check_width("denoiser", denoiser.config.in_dim, encoder)
        self.register_modules(encoder=encoder, denoiser=denoiser, scheduler=scheduler)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        where: Where = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pandas",
        return_dict: bool = True,
    ) -> TableOutput | tuple:
        """Sample rows by the reverse process.

        Args:
            batch_size: number of rows; `None` (default): 1.
            where: conditions by column, such as {"region": "north", "age": (20, 30)}, or as a text "region=north,
                age=20..30": rows are drawn until they meet them. `None` (default): none.
            num_inference_steps: evaluations of the network; `None` (default): all steps of training.
            generator: one `torch.Generator` or one per row. The same seed gives the same rows whatever the batch.
            output_type: "pandas" (default), "np", a dict of arrays by column, or "latent", encoded rows (B, D).
            return_dict: `False` returns the tuple `(rows,)`.

        Returns:
            `.rows`.

        Raises:
            UsageError: a column or category that is not known, or conditions that the model hardly ever meets.
        """
        found = self._sample(batch_size, where, generator, output_type, steps=num_inference_steps)
        return answer(found, return_dict)

    def _draw(self, generators: list[torch.Generator], labels: Tensor | None, **options: Any) -> Tensor:
        scheduler = DDPMScheduler.from_config(self.scheduler.config)  # of this call alone
        scheduler.set_timesteps(options["steps"] or len(scheduler), device=self._execution_device)
        parts = [generators[i : i + CHUNK] for i in range(0, len(generators), CHUNK)]
        return torch.cat([self._reverse(part, scheduler) for part in parts])

    def _reverse(self, generators: list[torch.Generator], scheduler: DDPMScheduler) -> Tensor:
        """Encoded rows of at most CHUNK generators."""
        device, network = self._execution_device, self.denoiser
        categories, visited = network.config.categories, scheduler.timesteps.tolist()
        width, drawn = network.config.in_dim - sum(categories), max(len(categories), 1)
        noise = draw_noise(generators, (len(visited) + 1, width), device, torch.float32)
        u = draw_uniform(generators, (len(visited) + 1, drawn), device)
        alpha_bar = scheduler.alphas_cumprod.to(device)
        numbers = noise[:, 0]
        blocks = [one_hot_of(u.new_full((len(u), k), 1 / k), u[:, 0, j]) for j, k in enumerate(categories)]
        for i, t in enumerate(visited, 1):

            def predict(x: Tensor, t: int = t) -> Tensor:
                return network(x.to(network.dtype), t).sample.float()

            prediction = in_chunks(predict, torch.cat([numbers, *blocks], 1), size=CHUNK)
            values, logits = split_row(prediction, categories)
            if width:
                numbers = scheduler.step(values, t, numbers, variance_noise=noise[:, i], return_dict=False)[0]
            before = scheduler.previous_timestep(t)
            previous = alpha_bar[before] if before >= 0 else torch.ones_like(alpha_bar[0])
            kept = (alpha_bar[t] / previous).expand(len(u)), previous.expand(len(u))
            blocks = [
                one_hot_of(posterior_probabilities(guess.softmax(1), block, *kept), u[:, i, j])
                for j, (guess, block) in enumerate(zip(logits, blocks))
            ]
        return torch.cat([numbers, *blocks], 1)
