"""Downloads of weights: cached, resumed, checked, and once for all ranks."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import torch
from filelock import FileLock
from mmengine.dist import broadcast_object_list, get_rank, is_distributed
from tqdm import tqdm

from mmseg_eomt.checkpoints.foreign.source_file import looks_like_page

ATTEMPTS = 4  # a connection that breaks is taken up again this often
TIMEOUT = 60.0  # seconds without an answer
CHUNK = 1 << 20
CACHE_VARIABLE = "MMSEG_EOMT_CACHE"


class IncompleteDownloadError(OSError):
    """The connection ended before the file did."""


def is_url(source: str) -> bool:
    """Whether ``source`` is an ``http(s)://`` or ``file://`` URL."""
    return source.startswith(("http://", "https://", "file://"))


def cache_folder() -> Path:
    """``$MMSEG_EOMT_CACHE``, or ``checkpoints`` in torch's hub folder (``$TORCH_HOME``)."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def fetch_url(url: str) -> Path:
    """Gives the local file of a URL, downloading it unless it is in the cache.

    In a distributed run rank 0 goes first; the others then find the file, or, on a machine that
    does not share the cache, fetch their own. A lock keeps two processes off one file. The name
    in the cache is the URL's path and a digest, so a signature in the query is never written down.

    Args:
        url (str): ``http(s)://`` or ``file://``, with ``#sha256=<64 hex digits>`` behind it to
            have the content checked. With a checksum another signature finds the same file.

    Returns:
        Path: The file.

    Raises:
        ValueError: If the checksum is none, or the content differs from it or is a web page.
        OSError: If the server refuses or the connection breaks for good.
    """
    return _rank_0_first(lambda: _fetch(url))


def fetch_hub(repository: str) -> Path:
    """Gives the local folder of a Hugging Face repository's weights.

    Args:
        repository (str): Such as ``'timm/vit_small_patch16_dinov3_qkvb.lvd1689m'``, with
            ``@revision`` behind it if not the newest is meant.

    Returns:
        Path: Folder with the weights, in the hub's own cache.

    Raises:
        OSError: If it cannot be had: no such repository, no access, no network.
    """
    return _rank_0_first(lambda: _fetch_hub(repository))


def _rank_0_first(fetch: Callable[[], Path]) -> Path:
    if not is_distributed():
        return fetch()
    result: list[Any] = [None]
    path: Path | None = None
    if get_rank() == 0:
        try:
            path = fetch()
        except Exception as error:
            # Raised on every rank, for a rank that waits for a dead one waits for ever.
            result = [error]
    broadcast_object_list(result, src=0)  # the others wait here until rank 0 is done
    if isinstance(result[0], Exception):
        raise result[0]
    if path is None:
        path = fetch()
    return path


def _fetch_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    for patterns in (["*.safetensors", "*.safetensors.index.json"], ["pytorch_model*"]):
        try:
            folder = Path(
                snapshot_download(name, revision=revision or None, allow_patterns=patterns)
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise OSError(
                f"The weights of {repository!r} cannot be had from the Hugging Face hub: "
                f"{str(error).splitlines()[0]} Check the name and the network; a gated "
                "repository needs its licence accepted there and `hf auth login` here. "
                "Or download the file elsewhere and give its path."
            ) from error
        if any(file for pattern in patterns for file in folder.glob(pattern)):
            return folder
    raise OSError(
        f"The Hugging Face repository {repository!r} holds neither *.safetensors nor "
        "pytorch_model* files. Give the path of a file instead."
    )


# --- one file ---------------------------------------------------------------------------------


def _fetch(url: str) -> Path:
    parts = urlsplit(url)
    checksum = _checksum(parts)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        if not path.exists():
            raise FileNotFoundError(f"There is no file {str(path)!r} (from {_shown(parts)}).")
        if checksum is not None:
            _check(path, checksum, _shown(parts))
        return path
    address = urlunsplit(parts._replace(fragment=""))
    name = Path(unquote(parts.path)).name or "weights"
    name = re.sub(r"[^\w.+-]", "_", name)[-100:]
    digest = (checksum or hashlib.sha256(address.encode()).hexdigest())[:12]
    stem, suffix = os.path.splitext(name)
    target = cache_folder() / f"{stem}-{digest}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            _download(address, part, shown=_shown(parts))
            _accept(part, checksum, _shown(parts))
            os.replace(part, target)
    return target


def _checksum(parts: SplitResult) -> str | None:
    if not parts.fragment:
        return None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if match is None:
        raise ValueError(
            f"The fragment {parts.fragment!r} of {_shown(parts)} is not understood: write "
            "#sha256= and 64 hexadecimal digits, or nothing."
        )
    return match[1].lower()


def _shown(parts: SplitResult) -> str:
    """The URL without its query and credentials, for messages and names."""
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _download(address: str, part: Path, *, shown: str) -> None:
    """Brings ``part`` up to the whole file, going on where an earlier try stopped."""
    for attempt in range(ATTEMPTS):
        try:
            _download_rest(address, part, shown=shown)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS - 1:
                raise OSError(f"{shown}: {_explained(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            # `from None`: the query of a signed URL stays out of tracebacks.
            if attempt == ATTEMPTS - 1:
                raise OSError(
                    f"{shown}: the download broke off ({error}). "
                    f"{_size(part)} bytes are kept in {str(part)!r}; run again to go on from there."
                ) from None
        time.sleep(0.2 * 4**attempt)


def _download_rest(address: str, part: Path, *, shown: str) -> None:
    start = _size(part)
    tag_file = part.with_name(f"{part.name}.etag")
    request = urllib.request.Request(address, headers={"User-Agent": "mmseg_eomt"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if tag_file.exists():  # otherwise a file that changed in between would be mixed
            request.add_header("If-Range", tag_file.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # Nothing lies beyond `start`: the file is whole, or not the one that was begun.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total != str(start):
            part.unlink()
            raise IncompleteDownloadError("the file on the server has changed") from None
        return
    with response:
        resumed = response.status == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(
            f"bytes {start}-"
        ):
            part.unlink()
            raise IncompleteDownloadError("the server sent another part than asked for")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total_size = None if length is None else start + int(length)
        tag = response.headers.get("ETag")
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag, encoding="utf-8")
        bar = tqdm(
            total=total_size,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=Path(shown).name,
            disable=not sys.stderr.isatty(),
        )
        with bar, part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total_size is not None and _size(part) != total_size:
        raise IncompleteDownloadError(f"{_size(part)} of {total_size} bytes came")


def _accept(part: Path, checksum: str | None, shown: str) -> None:
    """Deletes what is no weights file, and raises."""
    with part.open("rb") as file:
        head = file.read(512)
    try:
        if not head or looks_like_page(head):
            raise ValueError(
                f"{shown} sent {'nothing' if not head else 'a web page'} instead of weights. "
                "A signed link that has expired, or a page that wants a login, does so; ask for a "
                "new link."
            )
        if checksum is not None:
            _check(part, checksum, shown)
    except ValueError:
        part.unlink()
        raise
    finally:
        part.with_name(f"{part.name}.etag").unlink(missing_ok=True)


def _check(path: Path, checksum: str, shown: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"The content of {shown} has sha256 {digest.hexdigest()}, expected {checksum}. The "
            "file has been changed, or the checksum belongs to another one."
        )


def _explained(error: urllib.error.HTTPError) -> str:
    mends = {
        401: "it needs a login; download the file in a browser and give its path",
        403: "access is refused. A signed link expires after some time: ask for a new one",
        404: "there is no such file; check the address",
        410: "the file is gone; look for its new address",
    }
    return f"HTTP {error.code} {error.reason}; {mends.get(error.code, 'try again later')}."


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
