"""The web application: a page, predictions in JSON, and endpoints for monitoring."""

import asyncio
import os
import sys
import traceback
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adlight.data.images import PreparedImage
from adlight.detector import Detector
from adlight.serving import responses
from adlight.serving.batching import BatchQueue, QueueFull
from adlight.serving.labels import StoredLabels, decode_mask, select_files
from adlight.serving.middleware import CountRequests, Guard, Telemetry
from adlight.serving.uploads import FORMATS, Limits, Upload, decode, read_uploads
from adlight.types import Prediction, UserError, first_line

PATHS = frozenset({"/", "/health", "/detector", "/metrics", "/predict", "/labels"})


class Service:
    """A detector shared by many requests.

    Args:
        detector: Detector with its thresholds.
        name: Name shown on the page.
        limits: Limits of a request; `max_images` is also the capacity of the queue.
        labels: Labels stored with the run; None stores none.
    """

    def __init__(self, detector: Detector, name: str, limits: Limits, labels: StoredLabels | None = None) -> None:
        self.limits, self.telemetry, self.labels = limits, Telemetry(), labels or StoredLabels()
        self.detectors: dict[str | None, Detector] = {None: detector}
        self.detectors |= {category: detector.with_category(category) for category in responses.categories_of(detector)}
        self.queue = BatchQueue(self._predict, detector.batch_size, limits.max_images, self.telemetry.count_batch)
        self.telemetry.watch(self.queue)
        self.description = responses.describe_detector(detector, name) | {
            "formats": FORMATS,
            "limits": {"max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels, "max_images": limits.max_images},
        }
        self._decoding = asyncio.Semaphore(os.cpu_count() or 1)  # limits decoded images in memory

    def _predict(self, category: str | None, images: list[PreparedImage]) -> list[Prediction]:
        return self.detectors[category].predict(images, reconstruct=False)

    async def predict(self, request: Request, category: str | None, parts: list[str]) -> list[dict[str, Any]]:
        """Predict the images of a request, in order.

        Returns:
            One JSON object per image. If some but not all images cannot be read, their objects hold an `error`.

        Raises:
            HTTPException: The request or all of its images cannot be read.
            UserError: The category is unknown.
            QueueFull: There is no room for the images.
        """
        self._check_category(category)
        self.queue.check_room()  # before anything is read
        uploads = await read_uploads(request, self.limits)
        with self.queue.reserve(len(uploads)):
            predicting = (self._answer(upload, category, parts) for upload in uploads)
            answers = await asyncio.gather(*predicting, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in errors:
            if len(errors) == len(answers) or not isinstance(error, HTTPException | UserError):
                raise error
        return [
            {"path": upload.name, "error": _explain(answer)} if isinstance(answer, BaseException) else answer
            for upload, answer in zip(uploads, answers, strict=True)
        ]

    async def label(self, request: Request, category: str | None, word: str) -> dict[str, Any]:
        """Store a request's image and mask under the label `word`; see `StoredLabels.add`, and `predict` for errors."""
        self.labels.check(word)
        self._check_category(category)
        self.queue.check_room()
        uploads = await read_uploads(request, replace(self.limits, max_images=2))
        image, mask = select_files(uploads, word)
        with self.queue.reserve(1):
            async with self._decoding:
                picture, name = await anyio.to_thread.run_sync(self._examine, image, category)
                drawn = await anyio.to_thread.run_sync(decode_mask, mask, picture.size, self.limits.max_pixels)
            return await anyio.to_thread.run_sync(self.labels.add, image, picture, word, name, drawn)

    def _examine(self, upload: Upload, category: str | None) -> tuple[Image.Image, str]:
        """Check an image as for a prediction. -> the image, and its category, empty if it has none."""
        prepared, image = self._prepare(upload, category, keep=True)
        assert image is not None
        detector = self.detectors[category]
        size = np.array([detector.frame.fit(*prepared.size)]) if detector.frame.keep_shape else None  # (1, 2)
        (name,) = detector.category_rule([None], prepared.pixels[None], size)
        return image, name or ""

    def _check_category(self, category: str | None) -> None:
        if category not in self.detectors:
            self.detectors[None].with_category(category)  # raises an error that lists the known ones
        rule = self.detectors[category].category_rule
        if not rule.by_looks:
            rule.of_path(None)

    async def _answer(self, upload: Upload, category: str | None, parts: list[str]) -> dict[str, Any]:
        async with self._decoding:
            prepared, image = await anyio.to_thread.run_sync(self._prepare, upload, category, "picture" in parts)
        prediction = await asyncio.wrap_future(self.queue.submit(prepared, category))
        decision = "anomalous" if prediction.anomalous else "normal"
        self.telemetry.images.labels(decision, prediction.threshold_source).inc()
        arguments = prediction, upload.name, parts, self.detectors[category], prepared.content, image
        return await anyio.to_thread.run_sync(responses.describe_prediction, *arguments)

    def _prepare(self, upload: Upload, category: str | None, keep: bool) -> tuple[PreparedImage, Image.Image | None]:
        image = decode(upload, self.limits.max_pixels)
        try:
            prepared = self.detectors[category].prepare(image)  # the region of interest may depend on the category
        except UserError as error:
            raise HTTPException(422, f"{upload.name}: {error}") from error
        assert isinstance(prepared, PreparedImage)
        return prepared, image if keep else None


def build_app(service: Service, token: str | None) -> FastAPI:
    """Build the application of a service; see `Guard` for the token."""
    app = FastAPI(title="adlight", docs_url=None, redoc_url=None, openapi_url=None)  # these pages need a CDN
    page = HTMLResponse(responses.render_page(), headers=responses.SECURITY)

    @app.get("/")
    async def show_page() -> Response:
        return page

    @app.get("/health")
    async def health() -> Response:
        alive = service.queue.is_alive
        return JSONResponse({"status": "ok" if alive else "the detector has stopped"}, 200 if alive else 503)

    @app.get("/detector")
    async def detector() -> Response:
        return JSONResponse(service.description)

    @app.get("/metrics")
    async def metrics() -> Response:
        return service.telemetry.show()

    @app.post("/predict")
    async def predict(request: Request, category: str | None = None, include: str = "") -> Response:
        answers = await service.predict(request, category or None, responses.parse_parts(include))
        is_multipart = request.headers.get("content-type", "").lower().startswith("multipart/")
        return JSONResponse(answers if is_multipart else answers[0])

    @app.get("/labels")
    async def labels() -> Response:
        return JSONResponse(await anyio.to_thread.run_sync(service.labels.describe))

    @app.post("/labels")
    async def label(request: Request, label: str = "", category: str | None = None) -> Response:
        stored = await service.label(request, category or None, label)
        return JSONResponse(stored, 200 if stored["before"] else 201)

    for kind in (HTTPException, UserError, QueueFull, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(Guard, token=token)
    app.add_middleware(CountRequests, telemetry=service.telemetry, paths=PATHS)
    return app


def _explain(error: BaseException) -> str:
    return str(error.detail if isinstance(error, HTTPException) else error)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer with an error in one line; print the traceback of an unexpected error to stderr."""
    headers = None
    if isinstance(error, HTTPException):
        code, line, headers = error.status_code, _explain(error), error.headers
    elif isinstance(error, QueueFull):
        code, line, headers = 503, str(error), {"retry-after": str(error.seconds)}
    elif isinstance(error, ClientDisconnect):
        code, line = 400, "the client has gone"
    elif isinstance(error, UserError):
        code, line = 422, first_line(error)
    else:
        traceback.print_exception(error, file=sys.stderr)
        code, line = 500, f"the detector failed ({type(error).__name__}): see the server's output"
    return JSONResponse({"error": line}, code, headers)
