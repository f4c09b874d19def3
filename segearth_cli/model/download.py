"""One file from the internet, whole and checked, or an error: resume, digests, offline machines."""

import errno
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from segearth_cli import __version__
from segearth_cli.errors import ModelError, OutputError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE_S = 0.5  # before another attempt when the last brought nothing; doubles each time
TIMEOUT_S = 30.0
CHUNK = 1 << 18  # bytes
TEMPORARY = (429, 500, 502, 503, 504)  # HTTP status codes worth another attempt


@dataclass(frozen=True)
class RemoteFile:
    """A file of the internet and what its bytes must be.

    Either ``url``, or ``repo`` and ``file`` (at ``revision``) on the Hugging Face Hub. Of the
    digests, ``git_blob`` is git's name of the content: sha1 over ``blob <size>\\0`` and the bytes.
    """

    url: str = ""
    repo: str = ""
    file: str = ""
    revision: str = "main"
    sha256: str = ""
    git_blob: str = ""
    size: int | None = None  # bytes

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return (self.file or urlsplit(self.url).path).rsplit("/", 1)[-1]

    @property
    def address(self) -> str:
        """Where the file is downloaded from.

        ``HF_ENDPOINT`` names another Hub; ``SEGEARTH_MODELS_URL`` the folder of a mirror that
        holds the files which do not come from a Hub.
        """
        if self.repo:
            endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
            revision = quote(self.revision, safe="")
            return f"{endpoint}/{self.repo}/resolve/{revision}/{quote(self.file)}"
        mirror = os.environ.get("SEGEARTH_MODELS_URL", "").rstrip("/")
        return f"{mirror}/{self.name}" if mirror else self.url

    @property
    def is_checkable(self) -> bool:
        """Whether a digest says what the bytes must be."""
        return bool(self.sha256 or self.git_blob)


class _DroppedError(Exception):
    """The connection ended early; another may continue."""


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch(remote: RemoteFile, folder: Path) -> tuple[Path, RemoteFile]:
    """The file, from the Hugging Face cache or downloaded into ``folder``, and its digest.

    The digest comes back as a ``RemoteFile``; one that ``remote`` lacks is the Hub's own.

    Raises:
        ModelError: no network, no such file, or other bytes than expected.
        OutputError: the disk is full or not writable.
    """
    cached = _in_hub_cache(remote)
    if cached is not None:
        return cached
    destination = folder / remote.name
    if remote.is_checkable and destination.is_file() and not mismatch(destination, remote):
        return destination, remote
    if is_offline():
        raise ModelError(f"HF_HUB_OFFLINE forbids downloading {remote.address}")
    return download(remote, destination)


def download(remote: RemoteFile, destination: Path) -> tuple[Path, RemoteFile]:
    """Download into ``<destination>.part``, check, rename; goes on where an earlier run stopped.

    Raises:
        ModelError: no network, no such file, or other bytes than expected (which are deleted).
        OutputError: the disk is full or not writable.
    """
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        resumed = _size(part) > 0
        expected = _transfer(remote, part)
        problem = mismatch(part, expected)
        if problem and resumed:  # the file may have changed between the two runs
            part.unlink()
            expected = _transfer(remote, part)
            problem = mismatch(part, expected)
        if problem:
            part.unlink()
            raise ModelError(f"what {remote.address} sent {problem}, and was deleted")
        os.replace(part, destination)
    except OSError as error:
        todo = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise OutputError(
            f"cannot write {part}: {error.strerror or error}; {todo}, or name another cache folder "
            "with SEGEARTH_CACHE"
        ) from error
    return destination, expected


def mismatch(path: Path, expected: RemoteFile) -> str:
    """What is wrong with the file's bytes, in words that follow its name; empty when right."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"has {size} bytes instead of {expected.size}"
    if expected.sha256:
        known, digest = expected.sha256, hashlib.sha256()
    else:
        known, digest = expected.git_blob, hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    return "" if found == known else f"has the digest {found} instead of {known}"


def _transfer(remote: RemoteFile, part: Path) -> RemoteFile:
    """Fill ``part`` over as many connections as it takes; what the file must be."""
    trouble = ""
    before = -1
    for attempt in range(ATTEMPTS):
        start = _size(part)
        if start == before:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        before = start
        try:
            return _continue(remote, part, start)
        except _DroppedError as drop:
            trouble = str(drop)
            logger.info("%s: %s (attempt %d of %d)", remote.name, trouble, attempt + 1, ATTEMPTS)
    raise ModelError(f"{remote.address}: {trouble}; the same command continues from there")


def _continue(remote: RemoteFile, part: Path, start: int) -> RemoteFile:
    """Append the bytes from ``start`` on, over one connection; what the whole file must be."""
    if start and start == remote.size and remote.is_checkable:
        return remote
    try:
        response, hub_etag = _open(remote, start)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            part.unlink()  # of another file: begin anew
        elif error.code not in TEMPORARY:
            raise ModelError(_refusal(remote, error)) from error
        raise _DroppedError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if start or isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise _DroppedError(f"the connection dropped ({error.reason})") from error
        raise ModelError(f"cannot reach {remote.address}: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        raise _DroppedError(f"the connection dropped ({error})") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends the whole file again
        expected = _expectation(remote, response, start, hub_etag)
        _receive(response, part, start, expected)
    return expected


def _open(remote: RemoteFile, start: int) -> tuple[http.client.HTTPResponse, str]:
    """The response with the bytes from ``start`` on, and the digest that the Hub names."""
    headers = {"User-Agent": f"segearth/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    token = _hub_token() if remote.repo else None
    if token:
        headers["Authorization"] = f"Bearer {token}"
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    response = opener.open(
        urllib.request.Request(remote.address, headers=headers), timeout=TIMEOUT_S
    )
    return response, redirects.linked_etag or response.headers.get("ETag", "")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; notes the Hub's digest and shows the token to no other host."""

    linked_etag = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.linked_etag = headers.get("X-Linked-Etag") or self.linked_etag
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def _expectation(
    remote: RemoteFile, response: http.client.HTTPResponse, start: int, hub_etag: str
) -> RemoteFile:
    """What the whole file must be: ``remote``, completed by what the server says of it."""
    length = response.headers.get("Content-Length")
    size = start + int(length) if length else remote.size
    if remote.size not in (None, size):
        raise ModelError(f"{remote.address} has {size} bytes instead of {remote.size}")
    expected = replace(remote, size=size)
    if not remote.is_checkable and remote.repo:
        etag = (response.headers.get("X-Linked-Etag") or hub_etag).removeprefix("W/").strip('"')
        expected = replace(expected, **_digest_named(etag))
    if not expected.is_checkable:
        raise ModelError(f"{remote.address} has no known digest, so it is not downloaded")
    return expected


def _digest_named(name: str) -> dict[str, Any]:
    """The digest that the Hub calls a file by: large ones' sha256, small ones' of git."""
    kinds = {64: "sha256", 40: "git_blob"}
    return {kinds[len(name)]: name} if re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", name) else {}


def _receive(
    response: http.client.HTTPResponse, part: Path, start: int, expected: RemoteFile
) -> None:
    """Write the response's body behind the first ``start`` bytes of ``part``."""
    progress = tqdm(
        desc=expected.name,
        total=expected.size,
        initial=start,
        unit="B",
        unit_scale=True,
        disable=None,  # only on a terminal
    )
    with part.open("ab" if start else "wb") as file, progress:
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (http.client.HTTPException, OSError) as error:
                raise _DroppedError(f"the connection dropped ({error})") from error
            if not chunk:
                break
            file.write(chunk)
            progress.update(len(chunk))
        received = file.tell()
    if expected.size is not None and received < expected.size:
        raise _DroppedError(f"the connection dropped after {received} of {expected.size} bytes")


def _refusal(remote: RemoteFile, error: urllib.error.HTTPError) -> str:
    """What a final HTTP error means for the user."""
    if error.code in (401, 403) and remote.repo:
        return (
            f"{remote.address} is not open to you ({error.code}); accept its terms on the web "
            "page of the model and set HF_TOKEN"
        )
    if error.code == http.HTTPStatus.NOT_FOUND:
        return f"there is no {remote.address} (404)"
    return f"{remote.address} answers {error.code} {error.reason}"


def _hub_token() -> str | None:
    """The user's Hugging Face token, from ``HF_TOKEN`` or a login."""
    from huggingface_hub import get_token

    return get_token()


def _in_hub_cache(remote: RemoteFile) -> tuple[Path, RemoteFile] | None:
    """The file in the Hugging Face cache, where it is whole."""
    if not remote.repo:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(remote.repo, remote.file, revision=remote.revision)
    if not isinstance(found, str):
        return None
    path = Path(found).resolve()  # blobs are named by their digest
    expected = remote if remote.is_checkable else replace(remote, **_digest_named(path.name))
    if not expected.is_checkable or mismatch(path, expected):
        logger.warning("%s in the Hugging Face cache is not whole; downloading it", remote.file)
        return None
    logger.info("taking %s from the Hugging Face cache", path)
    return path, expected


def _size(path: Path) -> int:
    """Bytes of the file, 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0
