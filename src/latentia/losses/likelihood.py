"""Maximum likelihood of a normalizing flow, in nats per sample; images are dequantised."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latentia.functional.bounds import bits_per_dim
from latentia.functional.checks import check_values
from latentia.losses.conditions import item_of, labels_of
from latentia.losses.networks import config_of
from latentia.rng import Rng


def flow_loss(flow: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    r"""The negative log-likelihood of a flow: \(-\log N(f(x); 0, I) - \log |\det \partial f / \partial x|\).

    Images get noise of the width of a byte, anew at each step (`latentia.functional.flows.dequantize`), uniform or
    learned: the mean over it bounds the log-probability of the bytes from below. Points and vectors are taken as they
    are.

    Args:
        flow: `NormalizingFlow`, called through `forward` alone; may be wrapped for several processes.
        batch: "x", images (B, C, H, W) in [-1, 1] or vectors (B, D); "labels" (B,) if the flow has classes; "context"
            (B, context_dim) if it has a context.
        rng: the randomness of this micro-batch.

    Returns:
        "loss" = "nats"; "bits_per_dim" of images; "log_det", its second term.

    Raises:
        UsageError: images outside [-1, 1]; labels or a context that are missing.

    Real NVP (Dinh et al., 2016, 1605.08803), eq. 3; dequantisation: Theis et al., 2015, 1511.01844, section 3.1.

    Example:
        >>> import torch
        >>> from latentia import NormalizingFlow
        >>> values = flow_loss(NormalizingFlow(None, 2, "spline"), {"x": torch.zeros(4, 2)}, Rng(0, 0, 4, 0, 4))
        >>> round(values["nats"].item(), 4)  # log 2 pi: a new flow is a permutation
        1.8379
    """
    config, x = config_of(flow), item_of(batch, "x")
    conditions = {}
    if config.num_class_embeds is not None:
        conditions["class_labels"] = labels_of(batch, config.num_class_embeds)
    if config.context_dim is not None:
        conditions["context"] = item_of(batch, "context")
    is_image = x.ndim == 4
    if is_image:
        check_values("images", x, -1, 1, advice="Scale pixels v of 0 to 255 by v / 127.5 - 1.")
        draw = rng.normal if config.dequantization == "variational" else rng.uniform
        conditions["noise"] = draw("dequantize", x.shape[1:]).to(x.dtype)
    out = flow(x, **conditions)
    nats = -out.log_prob.mean()
    values = {"nats": nats, "log_det": out.log_det.mean()}
    if is_image:
        values["bits_per_dim"] = bits_per_dim(nats, x[0].numel(), density=True)
    return {"loss": nats, **{key: value.detach() for key, value in values.items()}}
