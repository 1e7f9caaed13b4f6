"""Groups of alike regions, and how well they agree with the defect types where those are known.

Letters: n regions, D features, g groups.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adlight.types import UserError

COMPONENTS, MOST = 20, 10  # principal components; groups that silhouettes choose among
OTHERS = -1  # the group of what HDBSCAN calls noise
Method = Literal["kmeans", "hdbscan"]


class Grouping(NamedTuple):
    """Groups of n regions."""

    group: np.ndarray  # (n,) 0...g - 1, the largest first; OTHERS is none
    silhouette: float | None  # mean silhouette of those in groups; None where there are fewer than two groups


def group_features(
    features: np.ndarray, method: Method = "kmeans", groups: int | None = None, least: int = 5
) -> Grouping:
    """Cluster directions of features (n, D), reduced to their principal components.

    Args:
        features: what is unusual about each region; its length says how much, its direction in what.
        method: `kmeans`, whose number of groups has the best mean silhouette (Rousseeuw 1987) of 2 to 10; or `hdbscan`
            (Campello 2013), which leaves out what is in no group.
        groups: of `kmeans`; None: by silhouette.
        least: regions in a group of `hdbscan`.

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
        found = HDBSCAN(min_cluster_size=min(least, count), copy=True).fit_predict(x)
    elif groups is not None:
        found = k_means(groups)
    else:
        tried = [k_means(k) for k in range(2, min(MOST, count - 1) + 1)]
        found = max(tried, key=lambda one: silhouette_score(x, one) if len(set(one)) > 1 else -1.0)
    group, inside = _largest_first(found), found != OTHERS
    several = 1 < len(set(group[inside])) < inside.sum()
    return Grouping(group, float(silhouette_score(x[inside], group[inside])) if several else None)


def agreement(group: np.ndarray, defect: Sequence[str]) -> dict[str, float]:
    """Compare groups with true types: adjusted Rand index (Hubert & Arabie 1985), and purity.

    Purity is the share of regions that are of the most frequent type of their group. What is in no group counts as a
    group of its own.
    """
    from sklearn.metrics import adjusted_rand_score

    names = np.asarray(defect)
    most = [np.unique(names[group == one], return_counts=True)[1].max() for one in np.unique(group)]
    return {"adjusted_rand": float(adjusted_rand_score(names, group)), "purity": float(sum(most) / len(names))}


def _largest_first(group: np.ndarray) -> np.ndarray:
    known, counts = np.unique(group[group != OTHERS], return_counts=True)
    order = {old: new for new, old in enumerate(known[np.argsort(-counts, kind="stable")])}
    return np.array([order.get(one, OTHERS) for one in group])
