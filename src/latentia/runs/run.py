"""One training run: processes, folder, data, networks and optimizers, the loop, validation, and the exported pipeline.

run = Run(args, family="vae")
vae = run.prepare("vae", VAE(**run.image, **args.model))
return run.train([vae.phase(lambda batch, rng: elbo_loss(vae.network, batch, rng))], VAEPipeline)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentia.data import Dataset, StreamedImages
from latentia.errors import DataError, NumericsError, UsageError
from latentia.files.writing import write_json
from latentia.rng import Rng
from latentia.runs import profiling
from latentia.runs.command_line import flat_values, run_identity
from latentia.runs.compilation import can_compile, compile_network, uncompiled, uncompiled_hook
from latentia.runs.export import INTERRUPTED, check_push, component_names, export_run, write_summary
from latentia.runs.initial import load_initial_weights
from latentia.runs.pace import expected_end, only_measures, timed
from latentia.runs.start import check_room, checkpoint_gradients, load_data, start
from latentia.runs.validation import Sampler, Validation, sampler
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, Result, learning_rate_schedule, train
from latentia.training.ownership import RUN, claim, disk_errors
from latentia.training.progress import Progress
from latentia.training.sharding import make_whole


@dataclass
class Prepared:
    """A network of a run, ready to be trained.

    Args:
        name: of its phase.
        module: the network itself, to sample with and to save.
        network: the same as `accelerator.prepare` returned it: what a loss calls.
        optimizer: over its parameters.
        ema: its average, or None.
        defaults: of its phases: learning-rate schedule and clipping.
    """

    name: str
    module: Any
    network: Any
    optimizer: Any
    ema: EMA | None
    defaults: Mapping[str, Any]

    @property
    def final(self) -> Any:
        """The weights to sample with and to export: the average if there is one."""
        return self.module if self.ema is None else self.ema.module

    def phase(
        self, loss: Callable[[dict[str, Any], Rng], dict[str, Tensor]], name: str | None = None, **options: Any
    ) -> Phase:
        """A phase that trains this network by `loss`; a phase of another `name` leaves the average alone.

        Args:
            loss: (batch, rng) -> {"loss": scalar to minimise, **metrics}.
            name: of the phase; `None` (default): that of the network.
            **options: of `Phase`, such as `every` and `after`.
        """
        ema = self.ema if name is None else None
        return Phase(
            **{"name": name or self.name, "loss": loss, "trains": self.network, "optimizer": self.optimizer, "ema": ema}
            | {**self.defaults, **options}
        )


class Run:
    """One training run: what every training script shares. The idea stays in the script: networks, losses, phases.

    Args:
        args: the filled `Arguments` of a script: a `RunArguments` with groups of its own.
        family: what the run trains, for the model card.
        pipeline_tag: the Hub's task of the pipeline.
        data: the data set; `None` (default): the one that the flags name.
        unused: names of the groups of flags that other flags leave unused, which the card does not list.

    After construction the folder exists, the data set is open, and torch's generators are seeded.

    Raises:
        UsageError: a folder that cannot be written, flags that contradict each other, a stream without a length.
        DataError: fewer elements than one global batch.
        HubError: `--push_to_hub` without a login.
    """

    def __init__(
        self,
        args: Any,
        *,
        family: str,
        pipeline_tag: str = "unconditional-image-generation",
        data: Dataset | None = None,
        unused: Iterable[str] = (),
    ):
        self.args, self.family, self.pipeline_tag, self.unused = args, family, pipeline_tag, {*unused}
        self.folder = Path(args.output.output_dir)
        self.accelerator = start(args)
        self.device, self.compiles = self.accelerator.device, can_compile(args, self.accelerator)
        self.data: Dataset = load_data(args.data) if data is None else data
        self.inputs: Dataset = self.data  # what the networks see: a script may set latents or codes
        options = args.optimization
        self.global_batch = (
            options.train_batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.steps = self._steps()
        check_push(args)
        self.prepared: list[Prepared] = []
        self.checkpointed = False  # whether a network recomputes its activations
        self.initial: set[str] = set()  # networks that start from saved weights, and from which
        self.seed()

    def seed(self) -> None:
        """Seed torch's generators: before a network is built, so that its initial weights are the run's."""
        torch.manual_seed(self.args.optimization.seed)

    def claim(self, folders: Iterable[str], files: Iterable[str] = ()) -> None:
        """Reserve more names in the folder of the run, of what a script writes there: see `ownership.claim`."""
        if self.accelerator.is_main_process:
            claim(self.folder, RUN, files=files, folders=folders)

    @property
    def image(self) -> dict[str, Any]:
        """The shape of the inputs as networks take it: `sample_size` (H, W) and `in_channels`."""
        channels, *size = self.inputs.shape
        return {"sample_size": tuple(size), "in_channels": channels}

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes that the run is conditioned on; None without `--class_conditional`.

        Raises:
            UsageError: the data set has no labels.
        """
        condition = getattr(self.args, "condition", None)
        if condition is None or not condition.class_conditional:
            return None
        if self.data.label_names is None:
            columns = ", ".join(getattr(self.data, "source", {}).get("unused_columns") or ())
            raise UsageError(
                "class_conditional needs labels, and this data set has none. Put each class in a folder, or name a "
                f"column with label_column{f': {columns}' if columns else ''}."
            )
        return list(self.data.label_names)

    @property
    def num_classes(self) -> int | None:
        """How many classes the run is conditioned on; None without `--class_conditional`."""
        return None if self.label_names is None else len(self.label_names)

    def prepare(
        self,
        name: str,
        module: nn.Module,
        *,
        ema: bool = True,
        parameters: Iterable[nn.Parameter] | None = None,
        learning_rate: float | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        steps: int | None = None,
        compiled: bool = True,
    ) -> Prepared:
        """Put a network on the device, start its average, compile it if asked to, and give it an optimizer.

        Args:
            name: of its phase, in logs and checkpoints.
            module: the network.
            ema: whether it is averaged, if `--use_ema` says so. Default True.
            parameters: those that are trained; `None` (default): all.
            learning_rate: peak rate of AdamW; `None` (default): `--learning_rate`.
            optimizer: parameters -> optimizer; `None` (default): AdamW as the flags describe it.
            steps: length of the learning-rate schedule; `None` (default): of the run.
            compiled: whether `--compile` concerns it. Default True.
        """
        options, flags = self.args.optimization, self.args.ema
        if options.init_from is not None:
            self.initial |= {f"{name}: {part}" for part in load_initial_weights(module, options.init_from)}
        module.to(self.device)
        average = EMA(module, flags.ema_decay, flags.ema_warmup) if ema and flags.use_ema else None
        if options.gradient_checkpointing:
            self.checkpointed |= checkpoint_gradients(module)
        if self.compiles and compiled:
            compile_network(module)
        chosen = list(module.parameters() if parameters is None else parameters)
        made = self.adamw(chosen, learning_rate) if optimizer is None else optimizer(chosen)
        network, prepared_optimizer = self.accelerator.prepare(module, made)
        length = self.steps if steps is None else steps
        schedule = learning_rate_schedule(options.lr_scheduler, min(options.lr_warmup_steps, length), length)
        defaults = {"learning_rate": schedule, "max_grad_norm": options.max_grad_norm}
        prepared = Prepared(name, module, network, prepared_optimizer, average, defaults)
        self.prepared.append(prepared)
        return prepared

    def adamw(self, parameters: Iterable[nn.Parameter], learning_rate: float | None = None) -> torch.optim.AdamW:
        """AdamW as the flags describe it; with `--scale_lr` its rate is multiplied by the global batch.

        It is fused, one pass over all weights, but for fp16: a fused one would not notice overflows.
        """
        options = self.args.optimization
        rate = options.learning_rate if learning_rate is None else learning_rate
        return torch.optim.AdamW(
            parameters,
            lr=rate * (self.global_batch if options.scale_lr else 1),
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
            fused=self.accelerator.scaler is None,
        )

    def train(
        self,
        phases: Sequence[Phase],
        pipeline: Callable[[Any], Any],
        *,
        weights: Prepared | None = None,
        samplers: Mapping[str, Sampler] | None = None,
        validation: Any = None,
        hooks: Sequence[Hook] = (),
        limits: Callable[[], Sequence[str]] = tuple,
        **sampling: Any,
    ) -> int:
        """Train, validate on the way, and export the pipeline with its card.

        Args:
            phases: what one step consists of, see `Phase`.
            pipeline: network -> pipeline, around the weights in training and around those that are exported.
            weights: the network that the pipeline is built around; `None` (default): the one prepared first.
            samplers: name -> `Sampler`, see `Validation`; `None` (default): samples of the pipeline from the averaged
                weights, "ema", and beside them from the "raw" ones, conditioned on what the data have.
            validation: `None` (default): a `Validation` of the samplers; of other modalities one with its members.
            hooks: what else to do on the way.
            limits: called at the end: what the card says of the limits of the model.
            **sampling: options of the pipeline's call for the default samplers.

        Returns:
            The exit code of the process: 0, or 75 for an interrupted run.
        """
        weights = self.prepared[0] if weights is None else weights
        if validation is None:
            if samplers is None:
                samplers = {"ema": sampler(pipeline, weights.final, self.data, **sampling)}
                if weights.ema is not None:
                    samplers["raw"] = sampler(pipeline, weights.module, self.data, **sampling)
            validation = Validation(self.args, self.data, samplers)
        validation.trackers = self.accelerator.trackers
        whole = self.accelerator.is_main_process and not self.accelerator.is_fsdp2  # a shard cannot sample
        if whole and not only_measures(self.args):
            with uncompiled(self.compiles):
                validation.check()
        self.claim(component_names(pipeline))
        result = self.fit(phases, hooks=[*validation.hooks(), *hooks])
        return self.finish(result, partial(pipeline, weights.final), validation, limits)

    def fit(
        self,
        phases: Sequence[Phase],
        *,
        steps: int | None = None,
        hooks: Sequence[Hook] = (),
        folder: Path | None = None,
    ) -> Result:
        """Run the loop as the flags say; one part of several has steps and a folder of its own.

        Args:
            phases: what one step consists of, see `Phase`.
            steps: optimizer steps; `None` (default): those of the run.
            hooks: what else to do on the way.
            folder: of checkpoints and metrics; `None` (default): `--output_dir`.
        """
        options, output = self.args.optimization, self.args.output
        if only_measures(self.args):
            if folder is not None:  # a part, with steps of its own
                return Result("finished", Progress(), None, 0.0, 0.0)
            phases, hooks = timed(phases, self.device), []
        elif folder is None:
            self._announce()
        else:
            self.claim([folder.name])
            folder.mkdir(parents=True, exist_ok=True)
        data: Any = self.inputs
        if output.profile and self.accelerator.is_main_process and not only_measures(self.args):
            self.claim([profiling.FOLDER])
            where, batches = self.folder / profiling.FOLDER, options.gradient_accumulation_steps
            data = profiling.ProfiledData(data, batches, where, self.device, self.accelerator.print)
        try:
            result = train(
                self.accelerator,
                phases,
                data,
                output_dir=self.folder if folder is None else folder,
                max_steps=self.steps if steps is None else steps,
                batch_size=options.train_batch_size,
                accumulate=options.gradient_accumulation_steps,
                seed=options.seed,
                hooks=[uncompiled_hook(hook) for hook in hooks] if self.compiles else hooks,
                checkpoint_every=None if only_measures(self.args) else output.checkpointing_steps,
                checkpoints_limit=output.checkpoints_total_limit,
                resume=output.resume_from_checkpoint,
                config=run_identity(self.args),
                arguments=flat_values(self.args),
                log_every=output.logging_steps,
                max_skips=options.max_skips if options.on_nonfinite == "skip" else 0,
            )
            if result.status != "interrupted":  # else nothing is made of the weights
                networks = [self.accelerator.unwrap_model(phase.trains) for phase in phases]
                make_whole(networks + [phase.ema.module for phase in phases if phase.ema is not None])
            if data is not self.inputs:
                data.close()
            return result
        except (NumericsError, DataError) as error:  # of the run itself, not of a folder that may be another run's
            if self.accelerator.is_main_process:
                summary = {"status": "failed", "exit_code": error.exit_code, "error": str(error)}
                with disk_errors(self.folder):
                    write_json(self.folder / "run_summary.json", summary)
            raise

    def finish(
        self,
        result: Result,
        pipeline: Callable[[], Any] | None = None,
        validation: Any = None,
        limits: Callable[[], Sequence[str]] = tuple,
    ) -> int:
        """Export the pipeline with its card and curves, write the summary, and push if asked to.

        Args:
            result: of `fit`.
            pipeline: makes the pipeline; called only where it is exported. An interrupted run needs none.
            validation: scores the pipeline if that was not done.
            limits: what the card says of the limits of the model; called at the end.

        Returns:
            The exit code of the process.
        """
        self.accelerator.end_training()
        interrupted = result.status == "interrupted"
        if self.accelerator.is_main_process:
            with disk_errors(self.folder), uncompiled(self.compiles):
                if interrupted:
                    write_summary(self, result)
                    step = result.progress.step
                    print(f"Interrupted at step {step}; the checkpoint is whole. Start the same command again.")
                else:
                    assert pipeline is not None and validation is not None
                    export_run(self, result, pipeline, validation, limits)
        return INTERRUPTED if interrupted else 0

    def _steps(self) -> int:
        options = self.args.optimization
        self.data.require(self.global_batch)
        if only_measures(self.args):
            steps = 1000  # it ends before
        elif options.max_train_steps is not None:
            steps = options.max_train_steps
        elif self.data.endless:
            raise UsageError("max_train_steps must be given: the data set has no length to count epochs by.")
        else:
            steps = max(1, options.num_train_epochs * len(self.data) // self.global_batch)
        return steps

    def _announce(self) -> None:
        """Check the room for the checkpoints, and say what will be done."""
        options, world = self.args.optimization, self.accelerator.num_processes
        networks = [prepared.module for prepared in self.prepared]
        if options.gradient_checkpointing and not self.checkpointed:
            names = " and ".join(type(network).__name__ for network in networks)
            raise UsageError(f"gradient_checkpointing must be left out: {names} has no blocks that support it.")
        if options.init_from is not None:
            if not self.initial:
                names = " or ".join(type(network).__name__ for network in networks)
                raise UsageError(f"init_from {options.init_from} holds no {names}. Name a pipeline of this family.")
            self.accelerator.print(f"Initial weights of {options.init_from}: {', '.join(sorted(self.initial))}")
        parameters = [p for network in networks for p in network.parameters()]
        check_room(self.folder, parameters, self.args.output.checkpoints_total_limit)
        if isinstance(self.data, StreamedImages):
            self.accelerator.print(
                "A stream goes on at-least-once: it is read again up to where the run stands, so all is as without the "
                "break while the source stays as it is; one that changed shows some images twice or not at all."
            )
        if options.lr_warmup_steps > self.steps // 2:
            shorter = f"A tenth is usual: --lr_warmup_steps {max(1, self.steps // 10)}"
            self.accelerator.print(f"The learning rate rises for most of the {self.steps} steps. {shorter}")
        ending = "" if options.minutes is None else expected_end(self.args)
        epochs = f" ({self.steps * self.global_batch / len(self.data):.1f} epochs)" if not self.data.endless else ""
        self.accelerator.print(
            f"{self.inputs}\n{' and '.join(type(network).__name__ for network in networks)}: "
            f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters\n"
            f"{self.steps} steps of {self.global_batch}{epochs} on {world} x {self.device}, "
            f"precision {self.accelerator.mixed_precision}{ending}"
        )
