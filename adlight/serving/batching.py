"""A bounded queue of images, predicted in batches by a single thread.

Whenever the detector is free, it takes all waiting images up to its batch size, so a single image never waits for
others, and batches grow with the load.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Condition, Thread
from typing import TYPE_CHECKING, NamedTuple

from adlight.types import Prediction, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.images import PreparedImage

SMOOTHING = 0.8  # weight of earlier batches in the mean seconds per image


class QueueFull(Exception):
    """The queue is full; `seconds` estimates when there will be room."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many images are waiting: try again in {seconds} s")
        self.seconds = seconds


class Job(NamedTuple):
    """An image waiting for its prediction."""

    image: "PreparedImage"
    category: str | None
    future: "Future[Prediction]"


class BatchQueue:
    """Predicts the images of many requests, one batch at a time.

    Args:
        predict: Predicts a batch of images of one category; called in the queue's thread.
        batch_size: Largest number of images in a batch.
        capacity: Largest number of images in the queue, including those still being decoded.
        watch: Called with the size and the seconds of every batch.
    """

    def __init__(
        self,
        predict: "Callable[[str | None, list[PreparedImage]], list[Prediction]]",
        batch_size: int,
        capacity: int,
        watch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.predict, self.batch_size, self.capacity, self.watch = predict, batch_size, capacity, watch
        self.held, self.pace = 0, 0.1  # reserved places; mean seconds per image
        self._waiting, self._changed, self._closed = deque[Job](), Condition(), False
        self._thread = Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the queue's thread is running."""
        return self._thread.is_alive()

    def check_room(self, count: int = 1) -> None:
        """Raise `QueueFull` unless there is room for `count` images."""
        if self.held + count > self.capacity:
            raise QueueFull(max(1, math.ceil(self.held * self.pace)))

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Reserve room for `count` images within the context, or raise `QueueFull`."""
        with self._changed:
            self.check_room(count)
            self.held += count
        try:
            yield
        finally:
            with self._changed:
                self.held -= count

    def submit(self, image: "PreparedImage", category: str | None) -> "Future[Prediction]":
        """Queue an image for the next batch; its room must be reserved."""
        job = Job(image, category, Future())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self, seconds: float = 10) -> None:
        """Predict the waiting images and end the thread, waiting at most `seconds` for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._take():
            started = time.perf_counter()
            self._answer(batch)
            seconds = time.perf_counter() - started
            self.pace = SMOOTHING * self.pace + (1 - SMOOTHING) * seconds / len(batch)
            self.watch(len(batch), seconds)

    def _take(self) -> list[Job]:
        """Wait for images, and take the oldest with others of its category; an empty batch ends the thread."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                batch, rest = list[Job](), deque[Job]()
                for job in self._waiting:
                    fits = len(batch) < self.batch_size and (not batch or job.category == batch[0].category)
                    (batch if fits else rest).append(job)
                self._waiting = rest
                alive = [job for job in batch if job.future.set_running_or_notify_cancel()]  # the rest were cancelled
                if alive or not batch:
                    return alive

    def _answer(self, batch: list[Job]) -> None:
        try:
            predictions = self.predict(batch[0].category, [job.image for job in batch])
        except Exception as error:
            if isinstance(error, UserError) and len(batch) > 1:  # caused by one of the images
                for job in batch:
                    self._answer([job])
                return
            for job in batch:
                job.future.set_exception(error)
        else:
            for job, prediction in zip(batch, predictions, strict=True):
                job.future.set_result(prediction)
