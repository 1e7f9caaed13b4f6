"""Requests per second and latency of a served run at 1, 8 and 32 clients, over the loopback address.

    python experiments/serve/measure.py run=runs/pca images=data/synthetic/board/test category=board out=pca.csv

The server is `python -m adlight.serve` in a process of its own. Each client, a process too, sends image after image as
the body of POST /predict and waits for the answer. The first second is left out.
"""

import csv
import http.client
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

CLIENTS, SECONDS, WARM = (1, 8, 32), 10, 1
TIMES = ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms")  # the last: of the server, per request
COLUMNS = ("batch_size", "clients", *TIMES, "refused", "images_per_batch", "load")


def start(run, batch_size):
    """Start a server. -> its process and port."""
    words = [sys.executable, "-m", "adlight.serve", f"run={run}", "port=0", "device=cpu", f"batch_size={batch_size}"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        if found := re.match(r"page: http://127\.0\.0\.1:(\d+)/", line):
            port = int(found[1])
        if line.startswith("Ctrl-C"):
            return server, port
    raise SystemExit("the server did not start")


def send(port, path, images, end):
    """Send images one after the other. -> when each was answered, after how many seconds, and with which code."""
    connection, answers = http.client.HTTPConnection("127.0.0.1", port), []
    while (began := time.monotonic()) < end:
        connection.request("POST", path, images[len(answers) % len(images)])
        answer = connection.getresponse()
        answer.read()
        answers.append((time.monotonic(), time.monotonic() - began, answer.status))
    return answers


def batches(port):
    """Count the images and batches so far."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return [float(re.search(rf"^adlight_batch_images_{name} (\S+)", text, re.M)[1]) for name in ("sum", "count")]


def cpu_seconds(server):
    """Read the processor time that a process has used, which does not depend on what else the machine does."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def measure(server, port, path, images, clients):
    """Measure with some clients. -> a row without the batch size."""
    before, used, begin = batches(port), cpu_seconds(server), time.monotonic()
    with multiprocessing.get_context("fork").Pool(clients) as pool:
        jobs = [pool.apply_async(send, (port, path, images, begin + WARM + SECONDS)) for _ in range(clients)]
        answers = [one for job in jobs for one in job.get()]
    cpu = 1000 * (cpu_seconds(server) - used) / len(answers)
    images_done, batches_done = (after - there for after, there in zip(batches(port), before, strict=True))
    counted = [one for one in answers if one[0] > begin + WARM]
    took = sorted(1000 * seconds for _, seconds, code in counted if code == 200)
    p50, p99 = (took[int(share * (len(took) - 1))] for share in (0.5, 0.99))
    refused = sum(code != 200 for *_, code in counted)
    rate = len(took) / (max(one[0] for one in counted) - begin - WARM)
    times = [f"{value:.1f}" for value in (rate, p50, p99, cpu)]
    return clients, *times, refused, f"{images_done / batches_done:.2f}", f"{os.getloadavg()[0]:.1f}"


def main():
    settings = dict(word.split("=", 1) for word in sys.argv[1:])
    images = [path.read_bytes() for path in sorted(Path(settings["images"]).rglob("*.png"))]
    path = f"/predict?category={settings['category']}" if "category" in settings else "/predict"
    out = Path(__file__).with_name(settings["out"])
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for batch_size in (1, 32):
            server, port = start(settings["run"], batch_size)
            try:
                for clients in CLIENTS:
                    row = (batch_size, *measure(server, port, path, images, clients))
                    writer.writerow(row)
                    print(*row, flush=True)
            finally:
                server.terminate()
                server.wait()


if __name__ == "__main__":
    main()
