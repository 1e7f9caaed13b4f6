import hashlib
import http.server
import io
import tarfile
import threading

import pytest
from makers import fake_archive, fake_mvtec

from adlight.data import download
from adlight.data.download import Archive
from adlight.data.mvtec import MVTecAD
from adlight.types import UserError


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, by Range if `server.ranges`; breaks off after `server.cuts.pop()` bytes."""

    def do_GET(self):
        body = self.server.files.get(self.path)
        first = self.headers.get("Range")
        self.server.requests.append((self.path, first))
        if body is None:
            return self.send_error(404)
        start = int(first[6:-1]) if first and self.server.ranges else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start : start + self.server.cuts.pop()] if self.server.cuts else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cuts, server.ranges = {}, [], [], True
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def screw(server, tmp_path_factory, monkeypatch):
    """The server has a category `screw`, and the counts are those of the fake."""
    made = fake_mvtec(tmp_path_factory.mktemp("made"), ("screw",))
    body = fake_archive(made / "screw.tar.xz", made / "screw").read_bytes()
    server.files["/screw.tar.xz"] = body
    monkeypatch.setitem(download.CATEGORIES, "screw", Archive(f"{server.url}/screw.tar.xz"))
    monkeypatch.setitem(download.COUNTS, "screw", (6, 3, 6))
    return body


def source_at(root):
    return MVTecAD(root, category="screw", download=True)


def refused(source, *parts):
    with pytest.raises(UserError) as caught:
        source.prepare()
    text = str(caught.value)
    assert "\n" not in text
    assert all(str(part) in text for part in parts), text
    assert not (source.root / "screw").exists()
    assert not list(source.root.glob(".unpack-*"))


def test_category_is_downloaded_once_and_the_licence_shown(server, screw, tmp_path, capsys):
    source = source_at(tmp_path / "root")
    source.prepare()
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().err
    assert (len(source.train()), len(source.test())) == (6, 9)
    assert sorted(path.name for path in source.root.iterdir()) == ["screw"]
    source.prepare()
    assert server.requests == [("/screw.tar.xz", None)]


def test_nothing_is_fetched_unless_asked(server, screw, tmp_path):
    MVTecAD(tmp_path / "root", category="screw").prepare()
    assert server.requests == []


def test_broken_download_is_resumed_by_range(server, screw, tmp_path):
    server.cuts = [500, 300]
    source_at(tmp_path).prepare()
    assert [first for _, first in server.requests] == [None, "bytes=300-", "bytes=800-"]
    assert len(source_at(tmp_path).train()) == 6


def test_later_run_goes_on_from_the_part(server, screw, tmp_path):
    server.cuts = [100] * download.ATTEMPTS
    refused(source_at(tmp_path), "run again", "screw.tar.xz", tmp_path)
    assert (tmp_path / "screw.tar.xz.part").stat().st_size == 100 * download.ATTEMPTS
    source_at(tmp_path).prepare()
    assert server.requests[-1] == ("/screw.tar.xz", f"bytes={100 * download.ATTEMPTS}-")


@pytest.mark.parametrize("extra", [b"", b"rubbish"])
def test_part_that_is_complete_or_too_long(server, screw, tmp_path, extra):
    (tmp_path / "screw.tar.xz.part").write_bytes(screw + extra)
    source_at(tmp_path).prepare()
    assert len(server.requests) == (2 if extra else 1)
    assert len(source_at(tmp_path).train()) == 6


def test_server_without_range_starts_again(server, screw, tmp_path):
    server.ranges = False
    (tmp_path / "screw.tar.xz.part").write_bytes(b"rubbish")
    source_at(tmp_path).prepare()
    assert len(source_at(tmp_path).train()) == 6


def test_missing_file_names_address_file_and_folder(server, screw, tmp_path):
    server.files.clear()
    refused(source_at(tmp_path), "404", f"{server.url}/screw.tar.xz", download.PAGE, tmp_path)


def test_no_connection_is_one_line(server, screw, tmp_path, monkeypatch):
    monkeypatch.setitem(download.CATEGORIES, "screw", Archive("http://127.0.0.1:9/screw.tar.xz"))
    refused(source_at(tmp_path), "refused", tmp_path)


def test_wrong_hash_is_refused_and_removed(server, screw, tmp_path, monkeypatch):
    archive = Archive(f"{server.url}/screw.tar.xz", sha256="0" * 64)
    monkeypatch.setitem(download.CATEGORIES, "screw", archive)
    refused(source_at(tmp_path), "SHA-256", hashlib.sha256(screw).hexdigest())
    assert not list(tmp_path.glob("screw.tar.xz*"))


def test_damaged_archive_is_refused(server, screw, tmp_path):
    server.files["/screw.tar.xz"] = screw[:200] + bytes([screw[200] ^ 1]) + screw[201:]
    refused(source_at(tmp_path), "screw.tar.xz")
    server.files["/screw.tar.xz"] = b"<html>the link has expired</html>"
    refused(source_at(tmp_path), "screw.tar.xz")


def test_archive_with_other_images_is_refused(server, screw, tmp_path, monkeypatch):
    monkeypatch.setitem(download.COUNTS, "screw", (320, 41, 119))
    refused(source_at(tmp_path), "(6, 3, 6)", "(320, 41, 119)")


def test_member_outside_of_the_folder_is_refused(server, screw, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.addfile(tarfile.TarInfo("screw/../../evil.png"), io.BytesIO())
    server.files["/screw.tar.xz"] = buffer.getvalue()
    refused(source_at(tmp_path / "root"), "outside")
    assert not list(tmp_path.rglob("evil.png"))


def test_archive_put_there_by_hand_is_used_and_kept(server, screw, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "screw.tar.xz").write_bytes(screw)
    source_at(tmp_path / "root").prepare()
    assert server.requests == []
    assert (tmp_path / "root" / "screw.tar.xz").exists()
    assert len(source_at(tmp_path / "root").train()) == 6


def test_all_is_one_archive(server, tmp_path, monkeypatch):
    made = fake_mvtec(tmp_path / "made")
    body = fake_archive(tmp_path / "whole.tar.xz", made).read_bytes()  # categories one folder down, too
    server.files["/whole.tar.xz"] = body
    monkeypatch.setattr(download, "WHOLE", Archive(f"{server.url}/whole.tar.xz", hashlib.sha256(body).hexdigest()))
    monkeypatch.setattr(download, "COUNTS", {"bottle": (6, 3, 6), "screw": (6, 3, 6)})
    source = MVTecAD(tmp_path / "root", download=True)
    source.prepare()
    assert source.categories() == ["bottle", "screw"]


def test_rest_of_a_category_is_not_overwritten(server, screw, tmp_path):
    (tmp_path / "screw" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=str(tmp_path / "screw")):
        source_at(tmp_path).prepare()
    assert server.requests == []


def test_unknown_category_is_not_downloaded(server, tmp_path):
    with pytest.raises(UserError, match="did you mean zipper"):
        MVTecAD(tmp_path, category="ziper", download=True).prepare()
    assert server.requests == []


def test_official_table_has_the_papers_totals():
    assert [sum(column) for column in zip(*download.COUNTS.values(), strict=True)] == [3629, 467, 1258]
    assert set(download.CATEGORIES) == set(download.COUNTS)
    assert len({archive.url for archive in download.CATEGORIES.values()}) == 15
