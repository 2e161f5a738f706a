"""Scores of codes (n, D) whose images' known factors (n, K) are given beside them. In float64."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features
from latentia.rng import seed_from

BINS = 20  # of equal width per dimension, as in Locatello et al. 2019
QUANTILE = 0.99  # stands for the largest deviation in `interventional_robustness`
TREES = 10


class DCI(NamedTuple):
    """`disentanglement`, `completeness` and `informativeness`, each in [0, 1], higher is better."""

    disentanglement: float
    completeness: float
    informativeness: float


def mutual_information(codes: torch.Tensor, factors: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    """I(z_j; v_k) in nats, float64 (D, K), of codes cut into bins of equal width over the range of each dimension.

    Example:
        >>> v = torch.arange(4)[:, None]
        >>> round(mutual_information(10.0 * v, v).item() / math.log(4), 9)
        1.0
    """
    codes, factors = _check(codes, factors)
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, 1)
    binned = ((codes - low) / width * bins).long().clamp(max=bins - 1)  # (n, D)
    table = torch.empty(codes.shape[1], factors.shape[1], dtype=torch.float64)
    for k, v in enumerate(factors.T):
        size = int(v.max()) + 1
        for j, z in enumerate(binned.T):
            joint = torch.bincount(z * size + v, minlength=bins * size).view(bins, size).double() / len(codes)
            entropies = [torch.special.entr(p).sum() for p in (joint.sum(0), joint.sum(1), joint)]
            table[j, k] = entropies[0] + entropies[1] - entropies[2]
    return table.clamp(min=0)


def mutual_information_gap(codes: torch.Tensor, factors: torch.Tensor) -> float:
    """MIG: `1/K sum_k (I(z_first; v_k) - I(z_second; v_k)) / H(v_k)`, the two dimensions that know most of v_k.

    Mutual information comes from 20 bins of equal width on the codes given, the estimate of Locatello et al. 2019, not
    from the posterior densities that Chen et al. use. With one dimension the second information is 0.

    Args:
        codes: (n, D).
        factors: integers (n, K), each with at least two values among the n.

    Returns:
        0 (no dimension stands out) to 1 (each factor is in one dimension and in no other).

    References:
        "Isolating Sources of Disentanglement in Variational Autoencoders", Chen et al. 2018, arXiv:1802.04942,
        equation 6.

    Example:
        >>> v = torch.cartesian_prod(torch.arange(4), torch.arange(3))
        >>> round(mutual_information_gap(v.float(), v), 9), mutual_information_gap(v.float()[:, [0, 0, 1, 1]], v)
        (1.0, 0.0)
    """
    codes, factors = _check(codes, factors)
    information = mutual_information(codes, factors).sort(0, descending=True).values  # (D, K)
    second = information[1] if len(information) > 1 else torch.zeros_like(information[0])
    entropy = torch.stack([torch.special.entr(torch.bincount(v).double() / len(v)).sum() for v in factors.T])
    return float(((information[0] - second) / entropy).mean())


def attribute_predictability_gap(
    codes: torch.Tensor, factors: torch.Tensor, ordered: Sequence[bool], *, seed: int = 0
) -> float:
    """SAP: mean over factors of the gap between the two dimensions that predict it best, each on its own.

    An ordered factor is predicted by a line; the score is the squared correlation. Kinds are predicted by size - 1
    thresholds, found by a tree on one random half; the score is the balanced accuracy on the other. That accuracy is
    rescaled so that chance is 0, as a squared correlation has it: the gap is size / (size - 1) times the published one.

    Args:
        codes: (n, D).
        factors: integers (n, K), each with at least two values among the n.
        ordered: K times whether the factor is a scale rather than kinds.
        seed: of the halves.

    Returns:
        0 to 1, higher is better.

    References:
        "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations", Kumar et al. 2018,
        arXiv:1711.00848, section 3.

    Example:
        >>> v = torch.cartesian_prod(torch.arange(4), torch.arange(3))
        >>> round(attribute_predictability_gap(v.float(), v, (True, True)), 9)
        1.0
    """
    from sklearn.tree import DecisionTreeClassifier

    codes, factors = _check(codes, factors, ordered)
    fit, test = _halves(len(codes), seed)
    scores = torch.empty(codes.shape[1], factors.shape[1], dtype=torch.float64)
    for k, v in enumerate(factors.T):
        if ordered[k]:
            scores[:, k] = _correlation(torch.cat([codes, v[:, None].double()], 1))[-1, :-1].square()
            continue
        for j, z in enumerate(codes.T[..., None].numpy()):
            tree = DecisionTreeClassifier(
                max_leaf_nodes=len(v.unique()), class_weight="balanced", random_state=seed % 2**32
            )
            scores[j, k] = _above_chance(v[test], tree.fit(z[fit], v[fit].numpy()).predict(z[test]))
    best = scores.sort(0, descending=True).values
    return float((best[0] - (best[1] if len(best) > 1 else 0)).mean())


def dci(codes: torch.Tensor, factors: torch.Tensor, ordered: Sequence[bool], *, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness, from how much each dimension helps to predict each factor.

    The importances R (D, K) are those of random forests (10 trees, all dimensions at each split, at least 3 samples a
    leaf; a regression for ordered factors, a classification for kinds), fitted on one random half. With P the rows of R
    made to sum to 1, dimension j counts `1 - H_K(P_j)` with the weight of its row; factor k counts
    `1 - H_D(column k)`. Informativeness is the mean over factors of R^2 (ordered) or of the balanced accuracy above
    chance (kinds) on the other half, at least 0; the paper states an error instead.

    Args:
        codes: (n, D).
        factors: integers (n, K), each with at least two values among the n.
        ordered: K times whether the factor is a scale rather than kinds.
        seed: of the halves and the forests.

    References:
        "A Framework for the Quantitative Evaluation of Disentangled Representations", Eastwood and Williams 2018
        (ICLR), section 2, with the random forests of its section 4.

    Example:
        >>> v = torch.cartesian_prod(torch.arange(8), torch.arange(8)).repeat(3, 1)
        >>> tuple(round(value, 2) for value in dci(v.float(), v, (True, True)))
        (1.0, 1.0, 1.0)
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    codes, factors = _check(codes, factors, ordered)
    fit, test = _halves(len(codes), seed)
    x = codes.float().numpy()
    importances, informed = [], []
    for k, v in enumerate(factors.T):
        kind = RandomForestRegressor if ordered[k] else RandomForestClassifier
        forest = kind(n_estimators=TREES, max_features=None, min_samples_leaf=3, random_state=seed % 2**32)
        forest.fit(x[fit], v[fit].double().numpy() if ordered[k] else v[fit].numpy())
        importances.append(torch.from_numpy(forest.feature_importances_))
        guess, truth = torch.from_numpy(forest.predict(x[test])), v[test]
        if ordered[k]:
            value = 1 - float((guess - truth).square().sum() / (truth - truth.double().mean()).square().sum())
        else:
            value = _above_chance(truth, guess.numpy())
        informed.append(max(value, 0.0))
    return DCI(*_disentanglement_completeness(torch.stack(importances, 1)), sum(informed) / len(informed))


def _disentanglement_completeness(importances: torch.Tensor) -> tuple[float, float]:
    """The two entropies of importances (D, K) >= 0."""
    rows, columns = importances.sum(1), importances.sum(0)
    if rows.sum() == 0:
        return 0.0, 0.0
    per_dimension = 1 - _entropy(importances, rows[:, None], 1)
    per_factor = 1 - _entropy(importances, columns, 0)
    # A dimension or factor that nothing is known of has no weight, respectively counts 0.
    return float((per_dimension * rows).sum() / rows.sum()), float(torch.where(columns > 0, per_factor, 0).mean())


def _entropy(importances: torch.Tensor, total: torch.Tensor, axis: int) -> torch.Tensor:
    """Between 0 and 1: divided by its largest value, or 0 where there is only one choice."""
    p = importances / torch.where(total > 0, total, 1)
    return torch.special.entr(p).sum(axis) / max(math.log(importances.shape[axis]), 1e-300)


def interventional_robustness(codes: torch.Tensor, factors: torch.Tensor) -> float:
    """IRS: how little a dimension moves while the factor that fixes it best is held and all others change.

    With `d(k, v)` the largest deviation of z_j from its mean among the images with v_k = v, a dimension counts
    `1 - min_k mean_v d(k, v) / d`, d being its largest deviation among all images, and has the weight d. As "largest"
    the 99 % quantile is taken in both places, so that the number of images plays no part.

    Args:
        codes: (n, D).
        factors: integers (n, K), each with at least two values among the n.

    Returns:
        0 to 1, higher is better.

    References:
        "Robustly Disentangled Causal Mechanisms", Suter et al. 2019, arXiv:1811.00007.

    Example:
        >>> v = torch.cartesian_prod(torch.arange(4), torch.arange(3))
        >>> interventional_robustness(v.float(), v)
        1.0
    """
    codes, factors = _check(codes, factors)

    def largest(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(0)).abs().sort(0).values[math.ceil(QUANTILE * (len(z) - 1))]

    overall = largest(codes)  # (D,)
    within = torch.stack(
        [torch.stack([largest(codes[v == value]) for value in v.unique()]).mean(0) for v in factors.T]
    )  # (K, D)
    score = 1 - within.amin(0) / torch.where(overall > 0, overall, 1)
    return float((score.clamp(min=0) * overall).sum() / overall.sum()) if overall.sum() > 0 else 0.0


def off_diagonal_correlation(codes: torch.Tensor) -> tuple[float, float]:
    """Mean and largest |correlation| of two different dimensions of codes (n, D), here the aggregated posterior.

    0 is best; both are 0 for a single dimension. It needs no factors and says nothing of what a dimension means.

    Example:
        >>> x = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 0.0], [2.0, 4.0, 1.0]])
        >>> tuple(round(value, 6) for value in off_diagonal_correlation(x))
        (0.333333, 1.0)
    """
    check_features(codes)
    correlation = _correlation(codes.cpu().double()).abs()
    pairs = correlation[torch.ones_like(correlation).triu(1).bool()]
    return (float(pairs.mean()), float(pairs.max())) if len(pairs) else (0.0, 0.0)


def _correlation(x: torch.Tensor) -> torch.Tensor:
    """(D, D); a constant column correlates with nothing."""
    centred = x - x.mean(0)
    norm = centred.norm(dim=0)
    return (centred.T @ centred) / torch.outer(norm, norm).clamp(min=1e-300)


def _above_chance(truth: torch.Tensor, guess) -> float:
    """Mean recall of the classes, rescaled so that chance is 0; never negative."""
    from sklearn.metrics import recall_score

    classes = len(truth.unique())
    recall = recall_score(truth.numpy(), guess, labels=truth.unique().numpy(), average="macro", zero_division=0)
    return max(0.0, (recall * classes - 1) / max(classes - 1, 1))


def _halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed_from(seed, "halves")))
    first, second = order.tensor_split(2)
    return first, second


def _check(
    codes: torch.Tensor, factors: torch.Tensor, ordered: Sequence[bool] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in float64 and factors in int64, or an error."""
    check_features(codes)
    factors = torch.as_tensor(factors)
    if factors.ndim != 2 or factors.is_floating_point() or len(factors) != len(codes) or (factors < 0).any():
        raise UsageError(
            f"`factors` must be integers (n, K) >= 0 with a row for each of the {len(codes)} codes. Got "
            f"{factors.dtype} {tuple(factors.shape)}; give the index of each factor's value, not the value."
        )
    if flat := [k for k, v in enumerate(factors.T) if v.min() == v.max()]:
        raise UsageError(
            f"Each factor must take at least two values. Factor {flat[0]} takes one in all {len(codes)} rows."
        )
    if ordered is not None and len(ordered) != factors.shape[1]:
        raise UsageError(f"`ordered` must say of each of the {factors.shape[1]} factors. Got {len(ordered)} entries.")
    return codes.double().cpu(), factors.long().cpu()
