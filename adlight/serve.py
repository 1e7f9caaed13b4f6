"""Serve a finished run as a web page and a JSON endpoint: `adlight serve run=<folder>`."""

import logging
import os
import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli.words import require
from adlight.runs.exported import check_exists, is_exported, name_of
from adlight.types import UserError

if TYPE_CHECKING:  # slow imports: not for --help
    from fastapi import FastAPI
    from uvicorn import Server

    from adlight.serving.labels import StoredLabels

CONNECTIONS = 500  # largest number at once
SHUTDOWN = 10  # seconds for the images in the queue when the server stops


def serve(config: DictConfig) -> None:
    """Load the run, print the page's address, and answer requests until the process is stopped.

    Raises:
        UserError: there is no run, the address is not available, a package is missing, or a setting is out of range.
        KeyboardInterrupt: the server was stopped.
    """
    from adlight.runs.programs import check_values

    check_values(config)
    check_packages()
    from adlight.serving.middleware import is_local, make_token

    labels, host, token = open_labels(str(config.run), config.max_labels), str(config.host), config.token
    if token is None and not is_local(host):
        token = make_token()
    with bind(host, config.port) as listener:
        from adlight.detector import Detector
        from adlight.prediction.batches import override_attributes
        from adlight.serving.app import Service, build_app
        from adlight.serving.uploads import Limits

        detector = Detector.load(
            config.run, config.ckpt, config.device, batch_size=config.batch_size, category=config.category
        )
        override_attributes(detector, config, "threshold", "pixel_threshold")
        limits = Limits(int(config.max_mb * 1e6), int(config.max_megapixels * 1e6), config.queue, config.timeout)
        service = Service(detector, name_of(config.run), limits, labels)
        port = listener.getsockname()[1]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        fragment, header = (f"#token={token}", f"-H 'Authorization: Bearer {token}' ") if token else ("", "")
        listener.listen()  # early clients wait
        print(f"page: {place}{fragment}")
        rule = detector.category_rule
        query = "?category=auto" if rule.is_decisive and rule.asked is None else ""
        print(f"from a shell: curl {header}--data-binary @<image> '{place}predict{query}'")
        if labels.most:
            print(f"labels: up to {labels.most} images are stored in {labels.folder}")
        print("press Ctrl-C to stop", flush=True)
        try:
            make_server(build_app(service, token)).run([listener])
        finally:
            service.queue.close(SHUTDOWN)


def check_packages() -> None:
    """Raise a UserError if a package of the extra `serve` is missing."""
    for package in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        if find_spec(package) is None:
            raise UserError(f"serving needs {package}: pip install 'adlight[serve]'")


def open_labels(run: str, most: int) -> "StoredLabels":
    """Open a run's labels, to store up to `most` images; raise a UserError if labels cannot be stored there."""
    from adlight.serving.labels import StoredLabels

    if is_exported(run):
        if most:
            raise UserError(
                f"max_labels={most}: labels are stored in a run folder, and {run} is a graph: serve the run"
            )
        return StoredLabels()
    from adlight.runs.folder import RunFolder
    from adlight.runs.labels import LabelFolder, source_run
    from adlight.runs.restore import frozen_config

    if not most:
        return StoredLabels(LabelFolder(run))
    origin = source_run(RunFolder(run))
    frozen_config(origin)
    LabelFolder(origin.path).read()
    if not os.access(origin.path, os.W_OK):
        raise UserError(f"max_labels={most}: {origin} cannot be written to")
    return StoredLabels(LabelFolder(origin.path), most)


def bind(host: str, port: int) -> socket.socket:
    """Bind an address before the detector is loaded; raise a UserError if it is in use or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm, which costs 40 ms per answer, only if the protocol is given
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={host} port={port}: {reason} (port=0 takes any free port)") from error
    return listener


def make_server(app: "FastAPI") -> "Server":
    """Make a server that finishes the requests in progress when it shuts down."""
    from uvicorn import Config, Server

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the application reports its own errors
    silent = {"log_config": None, "access_log": False, "server_header": False}
    limits = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": SHUTDOWN}
    return Server(Config(app, http="h11", ws="none", lifespan="off", **silent, **limits))  # type: ignore[arg-type]


def arguments(argv: list[str]) -> list[str]:
    """Check `run` before anything is loaded."""
    check_exists(require(argv, "run", "serve run=<run folder>"))
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(serve, "serve", arguments)


if __name__ == "__main__":
    main()
