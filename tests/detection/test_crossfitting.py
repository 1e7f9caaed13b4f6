"""Folds of training images."""

import pytest
import torch

from adlight.detection.crossfitting import check_folds, split_folds


@pytest.mark.parametrize(("count", "folds"), [(10, 5), (11, 5), (4, 5), (7, 2)])
def test_each_image_is_scored_once_by_what_has_not_seen_it(count, folds):
    parts, fewest = list(split_folds(torch.arange(count), folds)), []
    assert torch.cat([fold for _, fold in parts]).sort().values.tolist() == list(range(count))
    assert all(sorted([*rest.tolist(), *fold.tolist()]) == list(range(count)) for rest, fold in parts)
    assert min(len(rest) for rest, _ in parts) == len(parts[0][0])
    check_folds(fewest.append, count, folds)
    assert fewest == [len(parts[0][0])]


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_folds(processes):
    images = torch.arange(11)
    shared = [part for rank in range(processes) for part in split_folds(images, 5, rank, processes)]
    key = lambda part: part[1].tolist()  # noqa: E731
    assert sorted(map(key, shared)) == sorted(map(key, split_folds(images, 5)))
