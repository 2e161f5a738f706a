"""Probes of a learned code beside those of its baselines: untrained network, raw pixels, pixel sums."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_images, known_range
from latentia.evaluation.representation.probes import Labelled, Probe, few_label_probe, knn_probe, linear_probe
from latentia.functional.pixels import from_uint8
from latentia.rng import seed_from

_CHUNK = 500  # images that are encoded at once

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ProbeReport:
    """Result of `probe_report`: three probes of each code, all on the same splits and labelled images.

    Args:
        codes: name of the code ("code", "untrained", "raw pixels", "pixel sums") to its probes by name ("linear",
            "knn", "few labels").
        dimensions: name of the code to its number of dimensions.
        n: images in all, without the separate test set.
        n_few: labelled images of the few-label probe.
        seeds: number of runs.
        seed: of the first run.
    """

    codes: dict[str, dict[str, Probe]]
    dimensions: dict[str, int]
    n: int
    n_few: int
    seeds: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON and model cards."""
        return asdict(self)

    def text(self) -> str:
        """A table for the terminal: accuracy and its 95 % interval."""
        width = max(map(len, self.codes))
        lines = [f"{'':{width}}    dims  {'linear':22}{'kNN':22}{self.n_few} labels"]
        for name, probes in self.codes.items():
            cells = "".join(
                f"{f'{probe.mean:.3f} [{probe.low:.3f}, {probe.high:.3f}]':22}" for probe in probes.values()
            )
            lines.append(f"{name:{width}}  {self.dimensions[name]:6}  {cells.rstrip()}")
        notes = {
            f"{name}, {kind}: {probe.note}" for name, probes in self.codes.items() for kind, probe in probes.items()
            if probe.note
        }  # fmt: skip
        return "\n".join([*lines, *sorted(notes)])


def probe_report(
    encode: Encode | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    untrained: Encode | nn.Module | None = None,
    test: Labelled | None = None,
    n_few: int = 100,
    seeds: int = 5,
    seed: int = 0,
) -> ProbeReport:
    """Three probes of a learned code and of its baselines, on the same splits.

    Beside "code" stand "untrained", the same architecture with fresh weights; "raw pixels"; and "pixel sums", the sums
    of each row and each column, a hand-made feature. A code is worth its training only where it beats all three.

    Args:
        encode: images (B, C, H, W) in [-1, 1] to codes (B, D) or (B, ...), which are flattened.
        images: float (n, C, H, W) in [-1, 1], or uint8. None that the encoder was trained on, unless `test` is given.
        labels: integers (n,).
        untrained: the same as `encode` with fresh weights. Made by `untrained_like` if `encode` is itself a network
            with a config; else, without it, the row is left out.
        test: images and labels of a test set, likewise.
        n_few: labels of the few-label probe.
        seeds: runs per probe.
        seed: of the splits, and of the fresh weights.

    Raises:
        UsageError, DataError: images or labels of a wrong shape, type or range; see `linear_probe`.

    Example:
        >>> images, labels = torch.rand(60, 1, 8, 8) * 2 - 1, torch.arange(3).repeat(20)
        >>> report = probe_report(lambda x: x[:, :, 2:4], images, labels, n_few=9, seeds=2)
        >>> report.dimensions
        {'code': 16, 'raw pixels': 64, 'pixel sums': 16}
    """
    if isinstance(encode, nn.Module) and encode.training:
        raise UsageError("`encode` must be in evaluation mode, where its output is deterministic. Call .eval() first.")
    encoders: dict[str, Encode | nn.Module] = {"code": encode}
    if untrained is None and isinstance(encode, nn.Module) and hasattr(encode, "config"):
        untrained = untrained_like(encode, seed)
    if untrained is not None:
        encoders["untrained"] = untrained
    encoders |= {"raw pixels": lambda x: x.flatten(1), "pixel sums": pixel_sums}
    codes: dict[str, dict[str, Probe]] = {}
    dimensions = {}
    for name, encoder in encoders.items():
        z = _encode(encoder, images, name)
        held_out = None if test is None else (_encode(encoder, test[0], name), test[1])
        dimensions[name] = z.shape[1]
        codes[name] = {
            "linear": linear_probe(z, labels, test=held_out, seeds=seeds, seed=seed),
            "knn": knn_probe(z, labels, test=held_out, seeds=seeds, seed=seed),
            "few labels": few_label_probe(z, labels, n_few=n_few, test=held_out, seeds=seeds, seed=seed),
        }
    return ProbeReport(codes, dimensions, len(images), n_few, seeds, seed)


def untrained_like(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network of `model`'s class and config with fresh weights, on its device, in evaluation mode.

    Args:
        model: a `ModelMixin`.
        seed: of the weights. The global random state is left as it was.

    Raises:
        UsageError: the model has no config to be built from.

    Example:
        >>> from latentia import DigitClassifier
        >>> fresh = untrained_like(DigitClassifier(sample_size=8, block_out_channels=(8, 16)))
        >>> type(fresh).__name__, fresh.config.sample_size
        ('DigitClassifier', 8)
    """
    from_config = getattr(type(model), "from_config", None)
    if not hasattr(model, "config") or from_config is None:
        raise UsageError(
            f"`model` must be a ModelMixin with a config. Got {type(model).__name__}; build the fresh network yourself "
            "and pass it as `untrained`."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed, "untrained"))
        fresh: nn.Module = from_config(model.config)
    return fresh.to(next(model.parameters()).device).eval()


def pixel_sums(images: torch.Tensor) -> torch.Tensor:
    """Sums of the rows and of the columns of each channel: (N, C, H, W) to (N, C (H + W)).

    Example:
        >>> pixel_sums(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist()
        [[3.0, 7.0, 4.0, 6.0]]
    """
    return torch.cat([images.sum(3), images.sum(2)], 2).flatten(1)


@torch.no_grad()
def _encode(encode: Encode | nn.Module, images: torch.Tensor, name: str) -> torch.Tensor:
    """Codes (n, D) of images given as floats in [-1, 1] or as bytes."""
    parts = []
    for batch in images.split(_CHUNK):
        if batch.dtype == torch.uint8:
            batch = from_uint8(batch)
            with known_range():
                check_images(batch)
        else:
            check_images(batch)
        code = encode(batch)
        if not isinstance(code, torch.Tensor) or code.ndim < 2 or len(code) != len(batch):
            given = f"shape {tuple(code.shape)}" if isinstance(code, torch.Tensor) else type(code).__name__
            raise UsageError(
                f"`{'untrained' if name == 'untrained' else 'encode'}` must return a tensor (B, ...) for B = "
                f"{len(batch)} images. Got {given}; wrap it, as in `lambda images: model(images).features`."
            )
        parts.append(code.flatten(1).cpu())
    return torch.cat(parts)
