"""The endpoints over real sockets: the same answers as in Python, limits, hostile uploads, tokens."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
import socket
import struct
import subprocess
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
from makers import write_image, write_mask
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from readers import one_line

from adlight.detector import Detector
from adlight.runs.tables import COLUMNS


def png(width, height, color="grey"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def bomb(side):
    """A tiny PNG whose header promises side x side pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000)))
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def pages():
    file, images = io.BytesIO(), [Image.new("L", (32, 32)) for _ in range(2)]
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
    return file.getvalue()


def gif():
    file = io.BytesIO()
    Image.new("L", (32, 32)).save(file, "GIF")
    return file.getvalue()


def counted(served):
    """All numbers of /metrics, by name and labels."""
    families = text_string_to_metric_families(served.client.get("metrics").text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_answers_are_those_of_the_detector(served, tiny_run):
    for category, paths in served.images.items():
        wanted = Detector.load(tiny_run[0], device="cpu", category=category)(paths)
        for path, prediction in zip(paths, wanted, strict=True):
            found = served.predict(path.read_bytes(), category=category).json()
            assert set(found) == {"path", *COLUMNS}
            expected = prediction.as_dict()
            for name in ("score", "area"):
                assert found.pop(name) == pytest.approx(expected.pop(name), rel=1e-5)
            assert {**found, "path": None} == {**expected, "path": None}
        form = [("image", (path.name, path.read_bytes())) for path in paths[:8]]
        answers = served.client.post("predict", files=form, params={"category": category}).json()
        assert [one["path"] for one in answers] == [path.name for path in paths[:8]]
        assert [one["score"] for one in answers] == pytest.approx([one.score for one in wanted[:8]], rel=1e-5)


def test_categories(served):
    image = served.images["screw"][0].read_bytes()
    sources = {
        name: served.predict(image, category=name).json()["threshold_source"] for name in ("bottle", "screw", "pooled")
    }
    assert sources == {"bottle": "bottle", "screw": "screw", "pooled": "all categories"}
    assert served.predict(image, category="auto").json()["threshold_source"] in ("bottle", "screw")
    assert "bottle, screw" in one_line(served.predict(image), 422)
    assert "did you mean screw" in one_line(served.predict(image, category="scrw"), 422)


def test_pictures_and_the_map(served, tiny_run, adlight):
    path = write_image(adlight.folder / "wide.png", 3, (40, 90))
    (wanted,) = Detector.load(tiny_run[0], device="cpu", category="screw")([path])
    found = served.predict(path.read_bytes(), category="screw", include="mask, map,heat_map,picture").json()

    def picture(name):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name]))))

    assert (picture("mask") == wanted.mask).all() and (picture("picture") == np.asarray(Image.open(path))).all()
    assert picture("heat_map").shape == (*wanted.anomaly_map.shape, 3)
    values = np.frombuffer(base64.b64decode(found["map"]["values"]), "<f4").reshape(found["map"]["shape"])
    assert np.allclose(values, wanted.anomaly_map, rtol=1e-5) and found["map"]["image_size"] == [90, 40]
    assert "did you mean heat_map" in one_line(served.predict(b"x", category="screw", include="heatmap"), 422)


def test_detector_and_health(served):
    found = served.client.get("detector").json()
    assert found["categories"] == ["bottle", "screw", "auto", "pooled"] and found["name"] == "tiny"
    calibration = served.service.detectors[None].calibration
    assert found["thresholds"]["screw"]["threshold"] == calibration.of("screw").image
    assert found["limits"]["max_images"] == 8 and found["image_size"] == [32, 32]
    assert served.client.get("health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 400, "no image"),
        (b"<?xml version='1.0'?><svg/>", 415, "PNG, JPEG"),
        (gif(), 415, "PNG, JPEG"),
        (png(64, 64)[:90], 422, "truncated"),
        (pages(), 422, "several pictures"),
        (png(5, 5), 422, "5x5"),
        (png(600, 600), 413, "0.25 million pixels"),
        (bomb(20_000), 413, "0.25 million pixels"),
        (bomb(400), 422, "cannot be read"),
        (bytes(500_000), 413, "0.4 MB"),
    ],
    ids=["empty", "svg", "gif", "truncated", "pages", "tiny", "large", "bomb", "cut bomb", "huge"],
)
def test_a_bad_upload_is_one_line(served, content, code, said):
    assert said in one_line(served.predict(content, category="screw"), code)
    form = {"image": ("<b>.png", content)}
    line = one_line(
        served.client.post("predict", files=form, params={"category": "screw"}), 415 if not content else code
    )
    assert "<b>.png" in line or code == 413


def test_a_huge_body_without_a_length_is_cut_off(served):
    def parts():
        for _ in range(20):
            yield bytes(50_000)

    assert "0.4 MB" in one_line(served.predict(parts(), category="screw"), 413)


def test_a_broken_form_is_one_line(served):
    for content, kind in (
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nno file\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ):
        answer = served.client.post(
            "predict", content=content, headers={"content-type": kind}, params={"category": "screw"}
        )
        one_line(answer, 400)
    form = [("image", (f"{i}.png", png(32, 32))) for i in range(9)]
    one_line(served.client.post("predict", files=form, params={"category": "screw"}), 400)


def test_a_bad_image_among_several_does_not_fail_them(served):
    good = served.images["screw"][0].read_bytes()
    form = [("image", (name, one)) for name, one in (("a.png", good), ("b.png", good[:99]), ("c.png", good))]
    answers = served.client.post("predict", files=form, params={"category": "screw"}).json()
    assert [one["path"] for one in answers] == ["a.png", "b.png", "c.png"]
    assert "b.png" in answers[1]["error"] and answers[0]["score"] == answers[2]["score"]


def test_other_paths_and_methods_are_one_line(served):
    assert one_line(served.client.get("nowhere"), 404) and one_line(served.client.get("predict"), 405)
    assert served.client.get("docs").status_code == served.client.get("openapi.json").status_code == 404


def test_a_slow_client_holds_nobody_up(served):
    image = served.images["screw"][0].read_bytes()
    with socket.create_connection(served.address) as slow:
        slow.sendall(b"POST /predict?category=screw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
        slow.sendall(image[:50])
        assert served.predict(image, category="screw").status_code == 200
        slow.settimeout(60)
        assert b" 408 " in slow.recv(4096).splitlines()[0]
    with socket.create_connection(served.address) as gone:  # and one that goes away
        gone.sendall(b"POST /predict?category=screw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nx")
    assert served.predict(image, category="screw").status_code == 200 and served.service.queue.held == 0


@pytest.fixture
def held_up(served, monkeypatch):
    """The detector waits until the event is set, and notes the sizes of its batches."""
    go, sizes, queue = Event(), [], served.service.queue
    predict = queue.predict

    def wait(category, images):
        go.wait(60)
        sizes.append(len(images))
        return predict(category, images)

    monkeypatch.setattr(queue, "predict", wait)
    yield go, sizes
    go.set()


def test_a_full_queue_answers_503_and_what_waits_is_a_batch(served, held_up):
    (go, sizes), image = held_up, served.images["screw"][0].read_bytes()
    with ThreadPoolExecutor(9) as pool:
        waiting = [
            pool.submit(httpx.post, f"{served.url}predict?category=screw", content=image, timeout=60) for _ in range(8)
        ]
        end = time.monotonic() + 60
        while served.service.queue.held < 8 and time.monotonic() < end:
            time.sleep(0.01)
        answer = served.predict(image, category="screw")
        assert "too many" in one_line(answer, 503) and int(answer.headers["retry-after"]) >= 1
        assert counted(served)["adlight_queue_images",] == 8
        go.set()
        scores = {one.result().json()["score"] for one in waiting}
    assert len(scores) == 1 or max(scores) == pytest.approx(min(scores), rel=1e-5)
    assert sum(sizes) == 8 and len(sizes) <= 4 and max(sizes) == 4
    assert served.predict(image, category="screw").status_code == 200


def test_many_at_once(served):
    images = [served.images["screw"][i % 9].read_bytes() for i in range(40)]
    wanted = [served.predict(one, category="screw").json()["score"] for one in images[:9]]

    def send(i):
        answer = httpx.post(f"{served.url}predict?category=screw", content=images[i], timeout=60)
        return answer.json().get("score"), answer.status_code, answer.headers.get("retry-after")

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(send, range(40)))
    for i, (score, code, retry) in enumerate(answers):
        assert (code == 200 and score == pytest.approx(wanted[i % 9], rel=1e-5)) or (code == 503 and int(retry) >= 1)
    assert served.service.queue.held == 0 and any(code == 200 for _, code, _ in answers)


def test_a_mistake_of_ours_is_one_line_and_its_traceback_stays_here(served, monkeypatch, capsys):
    image = served.images["screw"][0].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(served.service.queue, "predict", lambda category, images: 1 // 0)
        assert "ZeroDivisionError" in one_line(served.predict(image, category="screw"), 500)
    assert "Traceback" in capsys.readouterr().err
    assert served.predict(image, category="screw").status_code == 200


def test_a_token_opens_all_but_the_page_and_health(with_token):
    get, image = with_token.client.get, with_token.images["screw"][0].read_bytes()
    assert get("").status_code == get("health").status_code == 200
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer ä".encode("latin-1")}):
        for path in ("detector", "metrics", "nowhere"):
            assert one_line(get(path, headers=header), 401)
        answer = with_token.client.post("predict", content=image, headers=header)
        assert one_line(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    right = {"authorization": "Bearer a token of our own", "host": "parts.example.com"}
    assert get("detector", headers=right).status_code == 200
    answer = with_token.client.post("predict?category=screw", content=image, headers=right)
    assert answer.status_code == 200


def test_pages_of_others_are_refused_without_a_token(served):
    post, image = served.client.post, served.images["screw"][0].read_bytes()
    port = served.address[1]
    for headers in ({"host": "evil.example"}, {"host": f"evil.example:{port}"}, {"host": "127.0.0.1.evil.example"}):
        assert "Host" in one_line(served.client.get("detector", headers=headers), 403)
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1:1"):
        assert "pages of" in one_line(post("predict?category=screw", content=image, headers={"origin": origin}), 403)
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "localhost"):
        headers = {"host": host, "origin": f"http://{host}"}
        assert post("predict?category=screw", content=image, headers=headers).status_code == 200


def test_metrics_count_requests_images_and_batches(served):
    before = counted(served)
    for _ in range(3):
        served.predict(served.images["screw"][0].read_bytes(), category="screw")
    served.predict(b"x", category="screw")
    served.client.get("a/scanner/was/here")
    after = counted(served)

    def more(*key):
        return after[key] - before.get(key, 0)

    assert more("adlight_requests_total", "200", "/predict") == 3 == more("adlight_batch_images_sum")
    assert more("adlight_requests_total", "415", "/predict") == more("adlight_requests_total", "404", "other") == 1
    assert sum(more(*key) for key in after if key[0] == "adlight_images_total") == 3
    assert not [key for key in after if "a/scanner/was/here" in key]


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_the_readme_s_requests(labelling, tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = re.findall(r"^curl .*", readme, re.M)
    write_mask(tmp_path / "mask.png")
    for name in ("part.png", "a.png", "b.png"):
        (tmp_path / name).write_bytes(labelling.images["bottle"][0].read_bytes())
    found = []
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000/", labelling.url))
        done = subprocess.run([*words, "--silent", "--fail"], cwd=tmp_path, capture_output=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0]["path"] == "image" and found[0]["threshold_source"] == "bottle"
    assert [one["path"] for one in found[1]] == ["a.png", "b.png"] and {"heat_map", "mask"} <= set(found[1][0])
    assert found[2]["label"] == "anomalous" and found[2]["mask"]


def test_the_page_needs_no_network_and_runs_nothing_else(served):
    answer = served.client.get("")
    policy, html = answer.headers["content-security-policy"], answer.text
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", html) and "default-src 'none'" in policy
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", html)
