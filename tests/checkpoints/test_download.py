"""Downloads from a server on this machine: cut off, wrong, refused, resumed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmseg_eomt.checkpoints import download
from mmseg_eomt.checkpoints.backbone_weights import load_pretrained
from mmseg_eomt.checkpoints.download import fetch_hub, fetch_url
from mmseg_eomt.models.backbones import DINOv3

CONTENT = bytes(range(1, 256)) * 2000
SECRET = "Signature=do-not-write-me-down"


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` bytes of the next body are sent, then the line goes dead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/weights.pth": CONTENT}
        self.refusals: dict[str, int] = {}
        self.cut: list[int] = []
        self.etag: str | None = None
        self.ranges: list[str | None] = []

    def url(self, path: str = "/weights.pth", query: str = "", fragment: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}{query}{fragment}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if path in self.server.refusals or path not in self.server.files:
            self.send_error(self.server.refusals.get(path, 404))
            return
        content = self.server.files[path]
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        condition = self.headers.get("If-Range")
        if condition is not None and condition != self.server.etag:
            start = 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: self.server.cut.pop(0)] if self.server.cut else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    server = Server()
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cached(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")


def test_file_is_fetched_once_and_its_query_is_not_written_down(
    server: Server, tmp_path: Path
) -> None:
    url = server.url(query=f"?{SECRET}")
    path = fetch_url(url)
    assert path.read_bytes() == CONTENT
    assert path.name.startswith("weights-") and path.suffix == ".pth"
    assert cached(tmp_path) == [path.name]
    assert not any("do-not" in str(p) for p in (tmp_path / "cache").iterdir())
    server.files.clear()
    assert fetch_url(url) == path
    assert len(server.ranges) == 1


def test_other_query_is_another_file_unless_the_checksum_says_otherwise(server: Server) -> None:
    assert fetch_url(server.url(query="?id=1")) != fetch_url(server.url(query="?id=2"))
    checksum = f"#sha256={hashlib.sha256(CONTENT).hexdigest()}"
    first = fetch_url(server.url(query="?Signature=monday", fragment=checksum))
    assert fetch_url(server.url(query="?Signature=friday", fragment=checksum)) == first
    assert len(server.ranges) == 3


def test_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000, 50_000]
    server.etag = '"v1"'
    assert fetch_url(server.url()).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert len(cached(tmp_path)) == 1


def test_download_given_up_goes_on_in_the_next_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cut = [100_000]
    url = server.url(query=f"?{SECRET}")
    with pytest.raises(OSError, match="100000 bytes are kept") as caught:
        fetch_url(url)
    assert "do-not" not in str(caught.value)
    assert any(name.endswith(".part") for name in cached(tmp_path))
    assert fetch_url(url).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=100000-"


def test_file_that_changed_in_between_is_not_mixed(server: Server) -> None:
    server.cut = [100_000]
    server.etag = '"v1"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(OSError, match="broke off"):
            fetch_url(server.url())
    server.etag, server.files["/weights.pth"] = '"v2"', CONTENT[::-1]
    assert fetch_url(server.url()).read_bytes() == CONTENT[::-1]


def test_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path) -> None:
    whole = fetch_url(server.url())
    part = whole.with_name(f"{whole.name}.part")
    whole.rename(part)
    assert fetch_url(server.url()) == whole
    assert whole.read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(CONTENT)}-"


def test_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=hashlib.sha256(CONTENT).hexdigest()):
        fetch_url(server.url(fragment=f"#sha256={'0' * 64}"))
    assert cached(tmp_path) == []
    with pytest.raises(ValueError, match="64 hexadecimal"):
        fetch_url(server.url(fragment="#sha256=abc"))


@pytest.mark.parametrize(
    ("code", "told"), [(403, "ask for a new one"), (404, "no such file"), (401, "login")]
)
def test_refusals_say_why_and_hide_the_query(server: Server, code: int, told: str) -> None:
    server.refusals["/weights.pth"] = code
    with pytest.raises(OSError, match=told) as caught:
        fetch_url(server.url(query=f"?{SECRET}"))
    assert "/weights.pth" in str(caught.value)
    assert "do-not" not in str(caught.value)
    assert len(server.ranges) == 1  # no use in asking again


def test_web_page_is_no_weights(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"] = b"\n<!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(ValueError, match="web page"):
        fetch_url(server.url())
    assert cached(tmp_path) == []


def test_file_url_and_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a file.pth"
    path.write_bytes(CONTENT)
    assert fetch_url(path.as_uri()) == path
    with pytest.raises(ValueError, match="sha256"):
        fetch_url(f"{path.as_uri()}#sha256={'0' * 64}")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a file\.pth"):
        fetch_url(path.as_uri())


def test_hub_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"not/a/repository.*give its path"):
        fetch_hub("not/a/repository")


def tiny() -> DINOv3:
    arch = {"embed_dims": 16, "depth": 2, "num_heads": 2, "patch_size": 16}
    return DINOv3(arch=arch, image_size=32, num_joint_blocks=1)


def _rank(rank: int, folder: str, url: str, expect_error: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=2)
    torch.manual_seed(rank)
    backbone = tiny()
    try:
        load_pretrained(backbone.vit, url)
    except OSError as error:
        assert expect_error and "no such file" in str(error)
        (Path(folder) / f"error{rank}").touch()
    torch.save(backbone.state_dict(), Path(folder) / f"rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes import everything
@pytest.mark.parametrize("exists", [True, False])
def test_two_ranks_get_the_same_from_one_download(
    server: Server, tmp_path: Path, exists: bool
) -> None:
    source = tiny()
    torch.save(source.vit.state_dict(), tmp_path / "w.pth")
    if exists:
        server.files["/tiny.pth"] = (tmp_path / "w.pth").read_bytes()
    mp.spawn(_rank, args=(str(tmp_path), server.url("/tiny.pth"), not exists), nprocs=2)
    assert len(server.ranges) == 1
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]
    if exists:
        for weights in ranks:
            assert all(torch.equal(weights[n], v) for n, v in source.state_dict().items())
    else:
        assert (tmp_path / "error0").exists() and (tmp_path / "error1").exists()
