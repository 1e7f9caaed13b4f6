"""Clusters of similar regions, and their agreement with known defect types.

Letters: n regions, D features, g groups.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adlight.types import UserError

COMPONENTS, MOST = 20, 10  # principal components; largest number of groups to choose from
OTHERS = -1  # label of what HDBSCAN calls noise
Method = Literal["kmeans", "hdbscan"]


class Grouping(NamedTuple):
    """Groups of n regions."""

    group: np.ndarray  # (n,) 0...g - 1, the largest group first; OTHERS for regions in no group
    silhouette: float | None  # mean silhouette of the regions in groups; None with fewer than two groups


def group_features(
    features: np.ndarray, method: Method = "kmeans", groups: int | None = None, least: int = 5
) -> Grouping:
    """Cluster regions by the directions of their features, reduced to principal components.

    Args:
        features: (n, D) residual features of each region. Their length is the degree of anomaly, their direction its
            kind.
        method: `kmeans`, with the number of groups from 2 to 10 that has the best mean silhouette (Rousseeuw 1987); or
            `hdbscan` (Campello 2013), which leaves outliers ungrouped.
        groups: Number of groups for `kmeans`; None chooses it by silhouette.
        least: Smallest number of regions in a group for `hdbscan`.

    Raises:
        UserError: scikit-learn is missing, or there are too few regions.
    """
    try:
        from sklearn.cluster import HDBSCAN, KMeans
        from sklearn.decomposition import PCA
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise UserError("grouping needs scikit-learn: pip install 'adlight[group]'") from error
    count = len(features)
    if count < 3 or (groups is not None and groups > count):
        raise UserError(f"{count} regions are too few for {groups or 'several'} groups: give more anomalous images")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    x = features / np.maximum(length, 1e-12)
    x = PCA(min(COMPONENTS, *x.shape), random_state=0).fit_transform(x)

    def k_means(k: int) -> Any:
        return KMeans(k, n_init=10, random_state=0).fit_predict(x)

    if method == "hdbscan":
        labels = HDBSCAN(min_cluster_size=min(least, count), copy=True).fit_predict(x)
    elif groups is not None:
        labels = k_means(groups)
    else:
        candidates = [k_means(k) for k in range(2, min(MOST, count - 1) + 1)]
        labels = max(candidates, key=lambda labels: silhouette_score(x, labels) if len(set(labels)) > 1 else -1.0)
    group, inside = _largest_first(labels), labels != OTHERS
    is_defined = 1 < len(set(group[inside])) < inside.sum()
    return Grouping(group, float(silhouette_score(x[inside], group[inside])) if is_defined else None)


def agreement(group: np.ndarray, defect: Sequence[str]) -> dict[str, float]:
    """Compare groups with true types by the adjusted Rand index (Hubert & Arabie 1985) and purity.

    Purity is the share of regions whose type is the most frequent one in their group. Ungrouped regions count as one
    more group.
    """
    from sklearn.metrics import adjusted_rand_score

    names = np.asarray(defect)
    most = [np.unique(names[group == label], return_counts=True)[1].max() for label in np.unique(group)]
    return {"adjusted_rand": float(adjusted_rand_score(names, group)), "purity": float(sum(most) / len(names))}


def _largest_first(group: np.ndarray) -> np.ndarray:
    labels, counts = np.unique(group[group != OTHERS], return_counts=True)
    order = {old: new for new, old in enumerate(labels[np.argsort(-counts, kind="stable")])}
    return np.array([order.get(label, OTHERS) for label in group])
