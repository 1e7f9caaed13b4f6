"""The queue alone, with numbers in the place of images."""

from threading import Event

import pytest

from adlight.serving.batching import BatchQueue, QueueFull
from adlight.types import UserError


class Predictor:
    """Notes its batches; the first waits until `go` is set, so that the others gather."""

    def __init__(self):
        self.batches, self.go, self.begun = [], Event(), Event()

    def __call__(self, category, images):
        self.begun.set()
        self.go.wait(60)
        self.batches.append((category, list(images)))
        if "broken" in images:
            raise RuntimeError("out of order")
        if "bad" in images:
            raise UserError("one is bad")
        return [f"{category}: {image}" for image in images]


@pytest.fixture
def predictor():
    return Predictor()


@pytest.fixture
def queue(predictor):
    queue = BatchQueue(predictor, batch_size=3, capacity=5)
    yield queue
    predictor.go.set()
    queue.close()
    assert not queue.is_alive


def gather(queue, predictor, *jobs):
    """Submit jobs while the first is being predicted."""
    futures = [queue.submit("first", "x")]
    predictor.begun.wait(60)
    futures += [queue.submit(image, category) for category, image in jobs]
    predictor.go.set()
    return futures[1:]


def test_what_waits_is_one_batch(queue, predictor):
    futures = gather(queue, predictor, *(("a", i) for i in range(5)))
    assert [future.result(60) for future in futures] == [f"a: {i}" for i in range(5)]
    assert predictor.batches == [("x", ["first"]), ("a", [0, 1, 2]), ("a", [3, 4])]


def test_a_batch_is_of_one_category_and_the_oldest_comes_first(queue, predictor):
    jobs = [("b", 1), ("a", 2), ("b", 3), (None, 4), ("a", 5)]
    assert gather(queue, predictor, *jobs)[-1].result(60) == "a: 5"
    queue.close()
    assert predictor.batches[1:] == [("b", [1, 3]), ("a", [2, 5]), (None, [4])]


def test_an_image_at_fault_fails_alone(queue, predictor):
    futures = gather(queue, predictor, ("a", 1), ("a", "bad"), ("a", 2))
    assert [futures[0].result(60), futures[2].result(60)] == ["a: 1", "a: 2"]
    with pytest.raises(UserError, match="one is bad"):
        futures[1].result(60)


def test_an_error_of_ours_ends_neither_the_thread_nor_other_batches(queue, predictor):
    futures = gather(queue, predictor, ("a", "broken"), ("b", 1))
    with pytest.raises(RuntimeError, match="out of order"):
        futures[0].result(60)
    assert futures[1].result(60) == "b: 1" and queue.is_alive


def test_room_is_held_until_it_is_given_back(queue):
    with queue.reserve(3), queue.reserve(2):
        for count in (1, 5):
            with pytest.raises(QueueFull) as caught, queue.reserve(count):
                pass
            assert caught.value.seconds >= 1
    with queue.reserve(5):
        assert queue.held == 5
    assert queue.held == 0


def test_what_was_given_up_is_not_predicted(queue, predictor):
    futures = [queue.submit("first", "x")]
    predictor.begun.wait(60)
    futures += [queue.submit(i, "a") for i in range(3)]
    assert futures[2].cancel()
    predictor.go.set()
    assert futures[3].result(60) == "a: 2" and predictor.batches[1:] == [("a", [0, 2])]


def test_what_waits_when_it_closes_is_still_predicted(predictor):
    queue = BatchQueue(predictor, batch_size=1, capacity=5)
    futures = [queue.submit(i, "a") for i in range(3)]
    predictor.go.set()
    queue.close()
    assert [future.result(0) for future in futures] == ["a: 0", "a: 1", "a: 2"] and not queue.is_alive
