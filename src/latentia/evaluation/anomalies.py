"""Anomaly detection: conformal p-values of anomaly scores, and how well scores rank anomalies above the normal."""

import torch
from torch import Tensor

from latentia.errors import UsageError


def conformal_p_values(scores: Tensor, reference: Tensor) -> Tensor:
    r"""Conformal p-values, \((1 + |\{j : r_j \ge s\}|) / (1 + n)\), of anomaly scores s.

    Where elements and reference are drawn from one distribution, a p-value is at most \(\alpha\) with probability at
    most \(\alpha\), whatever the score is. So elements with \(p \le \alpha\) are flagged at a false-positive rate of
    \(\alpha\).

    Args:
        scores: of the elements, larger is more anomalous, (N,).
        reference: scores of normal elements that the model was not trained on, (n,), n >= 1.

    Returns:
        float64 (N,), in (0, 1].

    Raises:
        UsageError: another shape, no reference, or a score that is not a number.

    Testing for Outliers with Conformal p-values (Bates et al., 2021, 2104.08279), section 1.3.

    Example:
        >>> conformal_p_values(torch.tensor([0.0, 2.5, 9.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 0.5, 0.25]
    """
    for name, values in (("scores", scores), ("reference", reference)):
        if values.ndim != 1 or not len(values) or values.isnan().any():
            raise UsageError(f"{name} must be a vector of at least one number, none of them NaN; got {values!r:.200}.")
    ordered = reference.double().sort().values
    below = torch.searchsorted(ordered, scores.double().contiguous())  # those that are smaller
    return (1 + len(ordered) - below).double() / (1 + len(ordered))


def ranking_scores(scores: Tensor, anomalous: Tensor) -> dict[str, float]:
    """Area under the ROC curve and average precision of scores that shall be larger for anomalies.

    Args:
        scores: (N,).
        anomalous: which elements are anomalies, bool (N,), some and not all of them.

    Returns:
        "AUROC", in [0, 1], .5 by chance, and "average precision", in (0, 1], the share of anomalies by chance.

    Raises:
        UsageError: shapes that differ, or all or no anomalies.

    Example:
        >>> ranking_scores(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
        {'AUROC': 0.75, 'average precision': 0.8333333333333333}
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if scores.shape != anomalous.shape or anomalous.dtype != torch.bool or not 0 < anomalous.sum() < len(anomalous):
        raise UsageError(
            f"anomalous must be bool, of the shape {tuple(scores.shape)} of scores, with some and not all True; got "
            f"{anomalous.dtype} {tuple(anomalous.shape)}, {int(anomalous.sum())} True."
        )
    truth, values = anomalous.cpu().numpy(), scores.double().cpu().numpy()
    return {
        "AUROC": float(roc_auc_score(truth, values)),
        "average precision": float(average_precision_score(truth, values)),
    }
