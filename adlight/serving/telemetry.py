"""Counters of a served detector, for `GET /metrics` in Prometheus's text format."""

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adlight.serving.batching import BatchQueue

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Telemetry:
    """Counters of requests, images and batches."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()  # not the global one: a process may run several servers
        self.requests = Counter("adlight_requests", "Requests answered.", ["path", "code"], registry=registry)
        self.duration = Histogram(
            "adlight_request_seconds", "Seconds per request.", ["path"], buckets=SECONDS, registry=registry
        )
        self.images = Counter(
            "adlight_images", "Images predicted.", ["decision", "threshold_source"], registry=registry
        )
        self.batch_images = Histogram("adlight_batch_images", "Images per batch.", buckets=SIZES, registry=registry)
        self.batch_seconds = Histogram(
            "adlight_batch_seconds", "Seconds per batch.", buckets=SECONDS, registry=registry
        )
        self.queue_images = Gauge("adlight_queue_images", "Images on their way through the queue.", registry=registry)
        self.queue_capacity = Gauge("adlight_queue_capacity", "Images that the queue may hold.", registry=registry)

    def watch(self, queue: BatchQueue) -> None:
        """Report the size and capacity of a queue."""
        self.queue_images.set_function(lambda: queue.held)
        self.queue_capacity.set(queue.capacity)

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_images.observe(size)
        self.batch_seconds.observe(seconds)

    def show(self) -> Response:
        """Return all counters in Prometheus's text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class CountRequests:
    """Counts requests by path and status code, and measures their durations.

    Args:
        app: Application that answers the requests.
        telemetry: Counters.
        paths: Paths counted by name; all others are counted as `other`, since scanners invent any number of paths.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, paths: frozenset[str]) -> None:
        self.app, self.telemetry, self.paths = app, telemetry, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, code = time.perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            await self.app(scope, receive, observe)
        finally:
            self.telemetry.requests.labels(path, code).inc()
            self.telemetry.duration.labels(path).observe(time.perf_counter() - started)
