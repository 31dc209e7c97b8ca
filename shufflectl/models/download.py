"""Published files: fetched once into the user's cache, resumed where a connection broke, checked by hash.

A file is downloaded beside its place under another name, and moved there when its SHA-256 is right: what is
in the cache under its own name is whole. Nothing here imports torch.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Final, Protocol

import platformdirs

from shufflectl import __version__
from shufflectl.errors import InputError, OutputError, UnavailableError

__all__ = ["CACHE_VARIABLE", "Notify", "Patience", "Published", "cache_folder", "cached", "fetch"]

CACHE_VARIABLE: Final = "SHUFFLECTL_CACHE"
"""The environment variable that names another folder for the cache."""

_CHUNK = 1 << 16
_SLACK = 0.01  # published sizes are rounded to 3 decimals of a MiB: nothing honest is 1 % larger
_LARGEST = 1 << 30  # of a file whose size nobody publishes

Notify = Callable[[str, int, int], None]
"""Told what is done, how much of it, and how much it will be; 0 where that is not known."""


class Published(Protocol):
    """A file that somebody publishes."""

    @property
    def url(self) -> str:
        """Where it is."""

    @property
    def file(self) -> str:
        """Its name in the cache."""

    @property
    def sha256(self) -> str:
        """Its SHA-256 in hexadecimal, or the beginning of it."""

    @property
    def size(self) -> int:
        """In bytes, to 1 %; 0 where nobody says."""

    @property
    def wrong(self) -> type[InputError]:
        """What is raised when the server gives another file."""

    @property
    def otherwise(self) -> str:
        """What to do when it cannot be downloaded, for a hint."""


@dataclass(frozen=True)
class Patience:
    """How long a download is waited for.

    Attributes:
        timeout_s: For a connection, and for the next bytes.
        attempts: How often a download that broke is taken up again; each begins where the last one ended.
        pause_s: Between two attempts; it doubles each time.
    """

    timeout_s: float = 20.0
    attempts: int = 4
    pause_s: float = 0.5


class _BrokenError(Exception):
    """The connection ended, stalled or never came to be; another attempt may succeed."""


class _WrongError(Exception):
    """The server gave something that is not the file."""


def cache_folder(kind: str = "weights") -> Path:
    """Return the folder of a kind of downloaded files."""
    named = os.environ.get(CACHE_VARIABLE)
    root = Path(named) if named else platformdirs.user_cache_path("shufflectl", appauthor=False)
    return root / kind


def cached(item: Published, folder: Path | None = None) -> Path | None:
    """Return where a file is in the cache, or None where it is not, or is not whole."""
    path = (folder or cache_folder()) / item.file
    try:
        return path if _digest(path).startswith(item.sha256) else None
    except OSError:
        return None


def fetch(
    item: Published,
    notify: Notify = lambda _what, _done, _total: None,
    *,
    folder: Path | None = None,
    patience: Patience | None = None,
) -> Path:
    """Return a published file, downloaded unless it is in the cache.

    Args:
        item: What is published.
        notify: Told about progress, in bytes.
        folder: The cache; by default the user's.
        patience: How long to wait.

    Raises:
        UnavailableError: The server cannot be reached, does not have the file, or goes silent again and
            again. What came so far is kept, and the next call takes it up.
        InputError: The server gave another file: its hash or size is wrong. Of the item's own type.
        OutputError: The cache cannot be written.
    """
    folder = folder or cache_folder()
    path = folder / item.file
    found = cached(item, folder)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{item.file}.lock"):
            found = cached(item, folder)  # another process may have fetched it meanwhile
            return found or _download(item, path, notify, patience or Patience())
    except OSError as error:
        raise OutputError(
            f"{item.file} cannot be stored in {folder}: {error.strerror or error}",
            hint=f"make room or give rights there, or name another folder in {CACHE_VARIABLE}",
        ) from error


def _download(item: Published, path: Path, notify: Notify, patience: Patience) -> Path:
    part = path.with_name(f"{path.name}.part")
    pause, last, restarted = patience.pause_s, "", False
    attempt = 0
    while attempt < patience.attempts:
        if attempt:
            time.sleep(pause)
            pause *= 2
        attempt += 1
        begun = part.stat().st_size if part.exists() else 0
        try:
            if not (begun and _digest(part).startswith(item.sha256)):
                _transfer(item, part, notify, patience.timeout_s)
            if _digest(part).startswith(item.sha256):
                part.replace(path)
                return path
            raise _WrongError(f"its SHA-256 is {_digest(part)[:12]}, not {item.sha256}")  # noqa: TRY301
        except _BrokenError as error:
            last = str(error)
            if part.exists() and part.stat().st_size > begun:
                attempt = 1  # as long as bytes come, it is worth going on
        except _WrongError as error:
            part.unlink(missing_ok=True)
            if begun and not restarted:  # what was taken up may have been the beginning of another file
                restarted = True
                continue
            raise item.wrong(
                f"{item.url} is not the file that was published: {error}",
                hint=f"a proxy may have answered in its place; {_by_hand(item, path)}",
            ) from error
    kept = f"; {part.stat().st_size} bytes are kept, and the next call goes on from there" if begun else ""
    raise UnavailableError(f"{item.url} cannot be downloaded: {last}{kept}", hint=_by_hand(item, path))


def _by_hand(item: Published, path: Path) -> str:
    return f"get it elsewhere and put it at {path}, or {item.otherwise}"


def _transfer(item: Published, part: Path, notify: Notify, timeout: float) -> None:
    """Append to a partial file what is missing of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"shufflectl/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(item.url, headers=headers)  # noqa: S310  the registry's own URLs
    limit = int(item.size * (1 + _SLACK)) if item.size else _LARGEST
    try:
        with _opener(item.url).open(request, timeout=timeout) as response:
            resumed = response.status == 206 and _starts_at(response, have)
            have = have if resumed else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length and length.isdecimal() else 0
            if total > limit:
                raise _WrongError(f"it has {total} bytes, and {item.size or limit} were expected")
            with part.open("ab" if resumed else "wb") as stream:
                have = _copy(response, stream, have, total or item.size, limit, item, notify)
            expected = total or int(item.size * (1 - _SLACK))
            if have < expected:
                raise _BrokenError(f"the connection ended after {have} of {total or item.size} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing behind what is here
            part.unlink(missing_ok=True)
            raise _BrokenError("the server refuses to go on from what is here") from error
        if error.code >= 500 or error.code in (408, 429):
            raise _BrokenError(f"the server answers {error.code} {error.reason}") from error
        raise UnavailableError(
            f"{item.url} cannot be downloaded: the server answers {error.code} {error.reason}",
            hint=_by_hand(item, part.with_name(item.file)),
        ) from error
    except TimeoutError as error:
        raise _BrokenError(f"nothing came for {timeout:g} seconds") from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, TimeoutError):
            raise _BrokenError(f"no answer within {timeout:g} seconds") from error
        why = "the name cannot be resolved" if isinstance(reason, socket.gaierror) else str(reason)
        raise _BrokenError(f"{why} (is this machine offline?)") from error
    except (ConnectionError, HTTPException, ssl.SSLError) as error:
        raise _BrokenError(f"the connection broke: {str(error) or type(error).__name__}") from error


def _copy(
    response: HTTPResponse,
    stream: IO[bytes],
    have: int,
    total: int,
    limit: int,
    item: Published,
    notify: Notify,
) -> int:
    """Append a response's bytes, and return how many there are then."""
    while chunk := response.read1(_CHUNK):
        have += len(chunk)
        if have > limit:
            raise _WrongError(f"it goes on after {limit} bytes, and {item.size or limit} were expected")
        stream.write(chunk)
        notify(f"downloading {item.file}, {have / 1e6:.1f} of {total / 1e6:.1f} MB", have, total)
    return have


def _starts_at(response: HTTPResponse, have: int) -> bool:
    return (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request for the new address; its Range travels along.

        Raises:
            HTTPError: It is less safe than the old one.
        """
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.HTTPError(req.full_url, code, "redirect to an unsafe address", headers, None)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    if not url.startswith(("https:", "http:")):
        raise ValueError(f"{url} is not an address of the web")
    return urllib.request.build_opener(_SafeRedirects)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes from writing the same partial file, where the system can lock files.

    Where it cannot, two downloads at once spoil each other's file, which the hash then tells.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
