import pytest

from adlight.data.sampler import ExactSampler


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 3, 10, 83])
def test_processes_share_every_index_exactly_once(length, world):
    parts = [ExactSampler(length, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(length))
    sizes = [len(part) for part in parts]
    assert sizes == [len(list(part)) for part in parts] and max(sizes) - min(sizes) <= 1
    assert all(list(part) == sorted(part) for part in parts)


def test_one_process_has_all_in_order_every_time():
    sampler = ExactSampler(5)
    assert list(sampler) == list(sampler) == [0, 1, 2, 3, 4]


def test_indices_are_dealt_in_turn():
    assert [list(ExactSampler(7, rank, 3)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
