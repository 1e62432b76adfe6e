"""Transferability: how well what an adapter has learnt suits another task, from one pass over its examples.

Notation: N examples, Z outputs of the adapter's head, K classes of the task, d width of the features.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from graftwork.errors import RecipeError

Array = npt.NDArray[np.floating]

Weighting = Literal["listing", "equation"]
"""How TransRate weighs its classes: alike, as the paper's listing does, or by their share, as its equation does."""

Scaling = Literal["none", "trace"]
"""Whether TransRate divides features by √trace(ZᵀZ), so that their scale does not decide."""

EPSILON = 1e-4
"""TransRate's distortion."""


def leep(probabilities: Array, labels: npt.NDArray[np.integer]) -> float:
    """LEEP (Nguyen et al. 2020, "LEEP: A New Measure to Evaluate Transferability of Learned Representations", eq. 2):
    mean over i of log Σ_z P(y_i | z) θ(x_i)_z, with P(y, z) = mean over i of θ(x_i)_z [y_i = y] and P(y | z) =
    P(y, z) / P(z). An output z without mass is left out.

    Args:
        probabilities: (N, Z), θ: what the head says of each example.
        labels: (N,), the classes of the other task.

    Raises:
        RecipeError: the head has one output, which is no probability.
    """
    theta = np.asarray(probabilities, dtype=np.float64)
    if theta.shape[1] < 2:
        raise RecipeError(
            "LEEP is undefined for a head with one output", expected="transrate or random", change="--selection"
        )
    theta = theta[:, theta.sum(axis=0) > 0]
    _, classes = np.unique(labels, return_inverse=True)
    joint = np.eye(classes.max() + 1)[classes].T @ theta / len(theta)
    conditional = joint / joint.sum(axis=0)
    return float(np.log((conditional[classes] * theta).sum(axis=1)).mean())


def transrate(
    features: Array,
    labels: npt.NDArray[np.integer],
    *,
    weighting: Weighting = "listing",
    scaling: Scaling = "none",
    epsilon: float = EPSILON,
) -> float:
    """TransRate (Huang et al. 2022, "Frustratingly Easy Transferability Estimation"): R(Z) - the mean over classes of
    R(Z_c), with R(Z) = ½ logdet(I + ZᵀZ / (n ε)) of n centred features.

    Args:
        features: (N, d).
        labels: (N,). A class without examples has no part.
        weighting: each class weighs 1/K (`listing`, of the paper's appendix) or n_c/N (`equation`). They are equal for
            classes of one size.
        scaling: `trace` divides the centred features by √trace(ZᵀZ).
        epsilon: ε.
    """
    z = np.asarray(features, dtype=np.float64)
    z = z - z.mean(axis=0, keepdims=True)
    if scaling == "trace":
        trace = np.sqrt((z**2).sum())
        z = z / trace if trace > 0 else z
    _, classes = np.unique(labels, return_inverse=True)
    counts = np.bincount(classes)
    shares = np.full(len(counts), 1 / len(counts)) if weighting == "listing" else counts / len(z)
    within = sum(share * _rate(z[classes == c], epsilon) for c, share in enumerate(shares))
    return float(_rate(z, epsilon) - within)


def _rate(z: Array, epsilon: float) -> float:
    """½ logdet(I + ZᵀZ / (n ε)), of the smaller of ZᵀZ and ZZᵀ, which have the same one."""
    product = z.T @ z if z.shape[1] <= len(z) else z @ z.T
    return float(0.5 * np.linalg.slogdet(np.eye(len(product)) + product / (len(z) * epsilon))[1])
