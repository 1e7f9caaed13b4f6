import pytest
import torch

from adlight.mae.masking import draw_masks, num_views, partition_masks, random_mask

SIZES = [(2, 2), (3, 2), (7, 3), (16, 4), (16, 16), (49, 2), (49, 48), (49, 49), (64, 5), (196, 2), (196, 3)]
SIZES += [(196, 4), (196, 5), (196, 10), (196, 13), (196, 196)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("length", "n"), SIZES)
def test_complements_sum_to_one_and_sizes_differ_by_at_most_one(length, n):
    for seed in range(5):
        mask = partition_masks(length, n, rng(seed))
        assert mask.shape == (n, length) and mask.dtype == torch.bool
        assert (~mask).sum(0).tolist() == [1] * length
        sizes = (~mask).sum(1).tolist()
        assert sizes == [length // n + 1] * (length % n) + [length // n] * (n - length % n)


def test_groups_of_196_patches_in_5_and_10_views():
    assert (~partition_masks(196, 5, rng())).sum(1).tolist() == [40, 39, 39, 39, 39]
    assert (~partition_masks(196, 10, rng())).sum(1).tolist() == [20] * 6 + [19] * 4


@pytest.mark.parametrize("n", [-1, 0, 1, 17])
def test_impossible_number_of_views_is_refused(n):
    with pytest.raises(ValueError, match=rf"16 patches, got {n}$"):
        partition_masks(16, n, rng())


@pytest.mark.parametrize("scheme", ["complementary", "single"])
def test_masks_come_from_the_generator_alone(scheme):
    before = torch.get_rng_state()
    first, again, other = (draw_masks(scheme, 0.75, 196, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    draws = rng(3)
    assert torch.equal(draw_masks(scheme, 0.75, 196, draws), first)
    assert not torch.equal(draw_masks(scheme, 0.75, 196, draws), first)


def test_every_patch_is_seen_by_every_view_equally_often():
    draws = rng()
    share = torch.stack([~partition_masks(10, 4, draws) for _ in range(2000)]).float().mean(0)
    sizes = torch.tensor([3.0, 3.0, 2.0, 2.0]) / 10
    assert (share - sizes[:, None]).abs().max() < 0.05  # about five standard deviations


@pytest.mark.parametrize(("ratio", "n"), [(0.5, 2), (0.75, 4), (0.8, 5), (0.9, 10), (2 / 3, 3), (0.6666667, 3)])
def test_number_of_views_of_a_ratio(ratio, n):
    assert num_views(ratio, 196) == n


def test_every_number_of_views_has_a_ratio():
    assert [num_views(1 - 1 / n, 196) for n in range(2, 197)] == list(range(2, 197))


@pytest.mark.parametrize(
    ("ratio", "length", "nearest"),
    [
        (0.7, 196, ["0.666667 (n = 3)", "0.75 (n = 4)"]),
        (0.6667, 196, ["0.666667 (n = 3)", "0.75 (n = 4)"]),  # off by more than 1e-6
        (0.85, 196, ["0.833333 (n = 6)", "0.857143 (n = 7)"]),
        (0.3, 196, ["0.5 (n = 2)", "0.666667 (n = 3)"]),
        (0.9, 4, ["0.75 (n = 4)"]),
        (0.999, 196, ["0.994898 (n = 196)"]),
    ],
)
def test_ratio_without_whole_number_names_the_nearest(ratio, length, nearest):
    with pytest.raises(ValueError) as caught:
        num_views(ratio, length)
    text = str(caught.value)
    assert str(ratio) in text and f"2..{length}" in text and text.count("(n = ") == len(nearest)
    assert all(one in text for one in nearest), text


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 1.0, 1.5, float("nan")])
def test_ratio_outside_of_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio.* {ratio}$"):
        num_views(ratio, 196)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 98), (0.75, 147), (0.8, 157), (0.9, 176), (0.7, 137)])
def test_random_mask_hides_the_share(ratio, hidden):
    mask = random_mask(196, ratio, rng())
    assert mask.shape == (1, 196) and mask.dtype == torch.bool and int(mask.sum()) == hidden


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.999, 1.0])
def test_random_mask_leaves_some_and_hides_some(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio.*{ratio}"):
        random_mask(16, ratio, rng())


def test_schemes_by_name():
    assert torch.equal(draw_masks("complementary", 0.8, 49, rng(1)), partition_masks(49, 5, rng(1)))
    assert torch.equal(draw_masks("single", 0.8, 49, rng(1)), random_mask(49, 0.8, rng(1)))
