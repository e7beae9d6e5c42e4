"""Fetching from an archive: a local server stands for it, with and without its tempers."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlip.cli.main import main
from mlip.data import download
from mlip.data.download import RemoteFile, fetch, figshare_files, hugging_face_files
from mlip.errors import ConfigError, DataError

CONTENT: bytes = bytes(range(256)) * 20_000  # 5 MB


class Archive(BaseHTTPRequestHandler):
    """Serves `CONTENT`, whole or from an offset, and listings."""

    stop_after: int | None = None  # bytes, then the connection breaks
    ranges = True
    base = ""
    served: list[str | None] = []

    def do_GET(self):
        if "secret" in self.path:
            return self.send_error(403)
        if "files" in self.path or "tree" in self.path:
            return self._send(json.dumps(self.listing()).encode("utf-8"), 200)
        begin = self.headers.get("Range")
        self.served.append(begin)
        if begin and self.ranges:
            return self._send(CONTENT[int(begin[6:-1]) :], 206)
        return self._send(CONTENT, 200)

    def listing(self):
        base = f"http://{self.headers['Host']}"
        if "articles" in self.path:
            entry = {
                "download_url": f"{base}/data",
                "computed_md5": hashlib.md5(CONTENT).hexdigest(),
            }
            return [{**entry, "name": "MPtrj_2022.9_full.json", "size": len(CONTENT)},
                    {**entry, "name": "notes.txt", "size": 1}]  # fmt: skip
        oid = hashlib.sha256(CONTENT).hexdigest()
        return [{"path": "README.md"}, {"path": "a b.json", "lfs": {"size": 7, "oid": oid}}]

    def _send(self, body: bytes, status: int):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(memoryview(body)[: self.stop_after])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def archive(monkeypatch):
    class Own(Archive):
        served = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(download, "FIGSHARE", base)
    monkeypatch.setattr(download, "HUGGING_FACE", base)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Own.base = base
    yield Own
    server.shutdown()
    server.server_close()


def remote(archive, **more):
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = {"name": "a.json", "url": f"{archive.base}/data", "size": len(CONTENT)}
    return RemoteFile(**{**known, "algorithm": "sha256", "digest": digest, **more})


def test_a_file_arrives_and_is_not_fetched_twice(archive, tmp_path):
    seen = []
    path = fetch(remote(archive), tmp_path, seen.append)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == len(CONTENT)
    assert fetch(remote(archive), tmp_path) == path
    assert archive.served == [None], "the second time its checksum was enough"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(archive, tmp_path, ranges):
    archive.stop_after = 3_000_000
    with pytest.raises(DataError, match=r"of 5 MB are kept, give the command again"):
        fetch(remote(archive), tmp_path)
    kept = (tmp_path / "a.json.partial").stat().st_size
    assert 0 < kept <= 3_000_000
    archive.stop_after, archive.ranges = None, ranges
    assert fetch(remote(archive), tmp_path).read_bytes() == CONTENT
    assert archive.served[-1] == f"bytes={kept}-", "it asked for the rest only"


def test_other_content_than_listed_is_refused(archive, tmp_path):
    with pytest.raises(DataError, match="the archive lists"):
        fetch(remote(archive, digest="0" * 64), tmp_path)
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"b\.json: has 14 bytes"):
        fetch(remote(archive, name="b.json"), tmp_path)


def test_refusals_say_what_to_do(archive, tmp_path):
    with pytest.raises(ConfigError, match="outside"):
        fetch(remote(archive, name="../evil"), tmp_path)
    with pytest.raises(DataError, match="access is refused"):
        fetch(remote(archive, url=f"{archive.base}/secret"), tmp_path)
    with pytest.raises(DataError, match="https://"):
        fetch(remote(archive, url="file:///etc/passwd"), tmp_path)
    with pytest.raises(DataError, match="no network"):
        fetch(remote(archive, url="http://127.0.0.1:9/data"), tmp_path)
    with pytest.raises(DataError, match="GB; name another folder"):
        fetch(remote(archive, size=10**18), tmp_path)


def test_listings(archive):
    names = [f.name for f in figshare_files(1)]
    assert names == ["MPtrj_2022.9_full.json", "notes.txt"]
    (file,) = hugging_face_files("some/data")
    assert (file.name, file.size, file.algorithm) == ("a b.json", 7, "sha256")
    assert file.url.endswith("/datasets/some/data/resolve/main/a%20b.json")


def test_the_command(archive, tmp_path, capsys):
    assert main(["data", "download", "mptrj", "--list"]) == 0
    assert "notes.txt" in capsys.readouterr().out
    assert main(["data", "download", "mptrj", "--out-dir", str(tmp_path)]) == 0
    assert (tmp_path / "MPtrj_2022.9_full.json").read_bytes() == CONTENT
    assert not (tmp_path / "notes.txt").exists()
    assert main(["data", "download", "omol25"]) == 1
    assert "accept the conditions" in capsys.readouterr().err
    assert main(["data", "download", "matpes"]) == 1
    assert "it has a b.json" in capsys.readouterr().err
