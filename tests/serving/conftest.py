"""Servers of the shared tiny run, each in a thread, on a free port of this machine."""

import shutil
from contextlib import contextmanager
from threading import Thread

import httpx
import pytest

from adlight.detector import Detector
from adlight.runs.labels import LabelFolder
from adlight.serve import bind, make_server
from adlight.serving.app import Service, build_app
from adlight.serving.labels import StoredLabels
from adlight.serving.uploads import Limits

LIMITS = Limits(max_bytes=400_000, max_pixels=250_000, max_images=8, seconds=1)


class Served:
    """A server that answers at `url`; `client` asks it, and `images` are the run's test images by their category."""

    def __init__(self, service, url, data):
        self.service, self.url = service, url
        alone = httpx.Limits(
            max_keepalive_connections=0
        )  # uvicorn closes what has been idle, in the midst of a request
        self.client = httpx.Client(base_url=url, timeout=60, limits=alone)
        self.images = {name: sorted((data / name / "test").rglob("*.png")) for name in ("bottle", "screw")}

    def predict(self, content, **query):
        return self.client.post("predict", content=content, params=query)

    @property
    def address(self):
        return self.client.base_url.host, self.client.base_url.port


@contextmanager
def running(service, data, token=None):
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        server = make_server(build_app(service, token))
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        served = Served(service, f"http://127.0.0.1:{listener.getsockname()[1]}/", data)
        yield served
        served.client.close()
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(tiny_run):
    labels = StoredLabels(LabelFolder(tiny_run[0]))
    service = Service(Detector.load(tiny_run[0], device="cpu", batch_size=4), "tiny", LIMITS, labels)
    yield service
    service.queue.close()


@pytest.fixture(scope="module")
def served(service, adlight):
    with running(service, adlight.folder / "data") as served:
        yield served


@pytest.fixture(scope="module")
def with_token(service, adlight):
    with running(service, adlight.folder / "data", "a token of our own") as served:
        yield served


@pytest.fixture(scope="module")
def labelled_run(tiny_run, tmp_path_factory):
    """A copy of the tiny run, beside which labels may be kept."""
    run = tmp_path_factory.mktemp("labelled") / "run"
    shutil.copytree(tiny_run[0], run, ignore=shutil.ignore_patterns("evaluations", "predictions", "labels"))
    return run


@pytest.fixture(scope="module")
def labelling(labelled_run, adlight):
    """A server that keeps up to six labels."""
    labels = StoredLabels(LabelFolder(labelled_run), 6)
    service = Service(Detector.load(labelled_run, device="cpu", batch_size=4), "tiny", LIMITS, labels)
    with running(service, adlight.folder / "data") as served:
        yield served
    service.queue.close()
