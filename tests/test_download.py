"""Downloads from a server of our own: whole and checked, or one line that says why not."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import BODY, Server, git_blob, names, serving, sha256
from scenes import interruptible

from segearth_cli.errors import ModelError, OutputError
from segearth_cli.model import download as downloads
from segearth_cli.model.download import RemoteFile, download, fetch


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "SEGEARTH_MODELS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)


def remote(url: str, body: bytes = BODY) -> RemoteFile:
    return RemoteFile(url=url, sha256=sha256(body))


class TestDownload:
    def test_good_file_arrives_whole(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        download(remote(url), tmp_path / "new" / "a.bin")
        assert (tmp_path / "new" / "a.bin").read_bytes() == BODY
        assert names(tmp_path / "new") == {"a.bin"}

    def test_git_blob_digest(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        download(RemoteFile(url=url, git_blob=git_blob(BODY)), tmp_path / "a.bin")
        with pytest.raises(ModelError, match=git_blob(b"other")):
            download(RemoteFile(url=url, git_blob=git_blob(b"other")), tmp_path / "b.bin")

    def test_dropped_connection_continues_by_range(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin", drop_after=[300_000, 200_000])
        download(remote(url), tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == BODY
        assert server.ranges() == [None, "bytes=300000-", "bytes=500000-"]

    def test_server_without_ranges_starts_again(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin", drop_after=[300_000], ranges=False)
        download(remote(url), tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == BODY

    def test_truncated_file_is_not_taken_for_whole(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin", claimed=len(BODY) + 1000)
        with pytest.raises(ModelError, match=f"dropped after {len(BODY)} of {len(BODY) + 1000}"):
            download(remote(url), tmp_path / "a.bin")
        assert names(tmp_path) == {"a.bin.part"}

    def test_wrong_digest_deletes_and_names_both(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        expected = remote(url, b"other")
        with pytest.raises(ModelError) as caught:
            download(expected, tmp_path / "a.bin")
        assert sha256(BODY) in str(caught.value)
        assert expected.sha256 in str(caught.value)
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == set()

    def test_wrong_size(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        with pytest.raises(ModelError, match=f"{len(BODY)} bytes instead of 7"):
            download(RemoteFile(url=url, sha256=sha256(BODY), size=7), tmp_path / "a.bin")

    def test_missing_file(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"there is no http://.*/gone.bin \(404\)"):
            download(remote(server.address + "/gone.bin"), tmp_path / "gone.bin")
        assert names(tmp_path) == set()
        assert len(server.requests) == 1

    def test_busy_server_is_asked_again(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin", status=503)
        with pytest.raises(ModelError, match="503"):
            download(remote(url), tmp_path / "a.bin")
        assert len(server.requests) == downloads.ATTEMPTS

    def test_no_network(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        with pytest.raises(ModelError, match="cannot reach"):
            download(remote(f"http://127.0.0.1:{port}/a.bin"), tmp_path / "a.bin")

    def test_no_digest_no_download(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        with pytest.raises(ModelError, match="no known digest"):
            download(RemoteFile(url=url), tmp_path / "a.bin")
        assert names(tmp_path) == set()

    def test_interrupted_run_leaves_a_part_that_the_next_continues(
        self, server: Server, tmp_path: Path
    ) -> None:
        url = server.serve("/a.bin", stall=True)
        code = (
            "import sys; from pathlib import Path; from segearth_cli.model.download import *;"
            "download(RemoteFile(url=sys.argv[1], sha256=sys.argv[2]), Path(sys.argv[3]))"
        )
        target = tmp_path / "a.bin"
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, sha256(BODY), str(target)],
            stderr=subprocess.DEVNULL,
            preexec_fn=interruptible,
        )
        assert server.half_sent.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert names(tmp_path) <= {"a.bin.part"}
        got = sum(path.stat().st_size for path in tmp_path.iterdir())
        server.release.set()
        download(remote(url), target)
        assert server.ranges()[-1] == (f"bytes={got}-" if got else None)
        assert target.read_bytes() == BODY

    def test_part_of_another_file_is_replaced(self, server: Server, tmp_path: Path) -> None:
        url = server.serve("/a.bin")
        (tmp_path / "a.bin.part").write_bytes(b"old" * 1000)
        download(remote(url), tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == BODY

    def test_unwritable_folder(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match="SEGEARTH_CACHE"):
            download(remote(server.serve("/a.bin")), tmp_path / "file" / "a.bin")

    def test_mirror(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        server.serve("/mirror/a.bin")
        monkeypatch.setenv("SEGEARTH_MODELS_URL", server.address + "/mirror/")
        path, _ = fetch(remote("https://example.invalid/x/a.bin"), tmp_path)
        assert path.read_bytes() == BODY

    def test_offline_refuses_before_connecting(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = server.serve("/a.bin")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
            fetch(remote(url), tmp_path)
        assert server.requests == []


class TestHub:
    """Files of a Hugging Face Hub: its headers, its token, its cache."""

    FILE = RemoteFile(repo="someone/clip", file="ckpt/a.bin")
    PATH = "/someone/clip/resolve/main/ckpt/a.bin"

    @pytest.fixture(autouse=True)
    def hub(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def redirect(self, server: Server, etag: str) -> None:
        other = server.address.replace("127.0.0.1", "localhost") + "/cdn/a.bin"
        headers = {"Location": other, "X-Linked-Etag": f'"{etag}"'}
        server.serve(self.PATH, b"", status=302, headers=headers)
        server.serve("/cdn/a.bin", headers={"ETag": '"of-the-store"'})

    def test_the_hubs_digest_is_used_and_its_token_kept(
        self, server: Server, tmp_path: Path
    ) -> None:
        self.redirect(server, sha256(BODY))
        path, checked = fetch(self.FILE, tmp_path)
        assert path.read_bytes() == BODY
        assert checked.sha256 == sha256(BODY)
        (_, first), (_, second) = server.requests
        assert first["Authorization"] == "Bearer hf_secret"
        assert "Authorization" not in second

    def test_bytes_other_than_the_hubs_digest(self, server: Server, tmp_path: Path) -> None:
        self.redirect(server, sha256(b"other"))
        with pytest.raises(ModelError, match=sha256(BODY)):
            fetch(self.FILE, tmp_path)

    def test_small_file_has_a_git_digest(self, server: Server, tmp_path: Path) -> None:
        server.serve(self.PATH, headers={"ETag": f'W/"{git_blob(BODY)}"'})
        _, checked = fetch(self.FILE, tmp_path)
        assert checked.git_blob == git_blob(BODY)

    def test_closed_repository(self, server: Server, tmp_path: Path) -> None:
        server.serve(self.PATH, status=401)
        with pytest.raises(ModelError, match="set HF_TOKEN"):
            fetch(self.FILE, tmp_path)

    def test_hub_cache_serves_an_offline_machine(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        repo = tmp_path / "models--someone--clip"
        for folder in ("blobs", "refs", "snapshots/123/ckpt"):
            (repo / folder).mkdir(parents=True)
        blob = repo / "blobs" / sha256(BODY)
        blob.write_bytes(BODY)
        (repo / "refs" / "main").write_text("123")
        os.symlink(blob, repo / "snapshots" / "123" / "ckpt" / "a.bin")
        path, _ = fetch(self.FILE, tmp_path / "downloads")
        assert path.read_bytes() == BODY
        blob.write_bytes(BODY[:-1])
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
            fetch(self.FILE, tmp_path / "downloads")
        assert server.requests == []
