"""Middleware between clients and the application: access control, and counters for `GET /metrics`.

Requests need a token; if none is set, they must come from this server's own page under a local name. Otherwise any page
open in a browser on this machine could send images here and, if its domain name resolves to 127.0.0.1 (DNS rebinding),
read the answers. The headers Host and Origin, which a page cannot forge, reveal both.
"""

import ipaddress
import secrets
import time
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adlight.serving.batching import BatchQueue

OPEN = ("/", "/health")  # the page itself holds no data; load balancers ask for the health
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def is_local(host: str) -> bool:
    """Return whether a host is a loopback address or name, which no other machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def make_token() -> str:
    """Draw a random token."""
    return secrets.token_urlsafe(24)


class Guard:
    """Answers forbidden requests with 401 or 403 before reading their bodies.

    Args:
        app: Application that answers all other requests.
        token: Expected in `Authorization: Bearer <token>`; None requires requests from this machine and page.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        refusal = self.refuse(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refuse(self, headers: Headers, path: str) -> JSONResponse | None:
        """Return the answer to a forbidden request, or None for an allowed one."""
        if self.token is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if path in OPEN or secrets.compare_digest(given.encode(), self.token.encode()):
                return None
            line = "a token is needed: send Authorization: Bearer <token>, as printed by adlight serve"
            return JSONResponse({"error": line}, 401, {"www-authenticate": "Bearer"})
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_local(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host):
            return JSONResponse({"error": f"Host {host!r} is not a name of this machine: set a token"}, 403)
        if origin not in (None, f"http://{host}"):
            return JSONResponse({"error": f"requests from pages of {origin!r} are refused: set a token"}, 403)
        return None


class Telemetry:
    """Counters of requests, images and batches."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()  # not the global one: a process may run several servers
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("adlight_requests", "Requests answered.", ["path", "code"])
        self.duration = histogram("adlight_request_seconds", "Seconds per request.", ["path"], buckets=SECONDS)
        self.images = counter("adlight_images", "Images predicted.", ["decision", "threshold_source"])
        self.batch_images = histogram("adlight_batch_images", "Images per batch.", buckets=SIZES)
        self.batch_seconds = histogram("adlight_batch_seconds", "Seconds per batch.", buckets=SECONDS)
        self.queue_images = gauge("adlight_queue_images", "Images on their way through the queue.")
        self.queue_capacity = gauge("adlight_queue_capacity", "Images that the queue may hold.")

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
        paths: Paths counted by name; all others are counted as `other`, as scanners invent any number of paths.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, paths: frozenset[str]) -> None:
        self.app, self.telemetry, self.paths = app, telemetry, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer."""
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
