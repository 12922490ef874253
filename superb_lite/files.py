"""Files that are either whole or absent: the cache folder, atomic writes, downloads, safe unpacking.

A course runs on laptops that sleep, disks that fill and networks that stop. So nothing here leaves half a
file under its final name, and nothing from the outside is trusted before it has been checked.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pooch

from superb_lite.types import CorpusMissing, SuperbLiteError

MAX_UNPACKED = 4 * 2**30  # bytes; an archive that grows beyond it is refused
MAX_MEMBERS = 200_000
MAX_TAIL = 2**26  # bytes of padding behind the last member of a tar archive
CHUNK = 2**20

_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)


def cache_root(path: str | Path | None = None) -> Path:
    """The folder where everything that can be fetched or computed again is kept.

    It is `path` if given, else the environment variable SUPERB_LITE_CACHE, else the system's usual cache place.
    The folder is not made here. Taught in notebook 00.
    """
    if path is None:
        path = os.environ.get("SUPERB_LITE_CACHE")
    if path is None or str(path) == "":
        return Path(pooch.os_cache("superb_lite"))
    return Path(path).expanduser()


def write_atomically(path: str | Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file so that it is never seen half done, not even after a crash.

    content: the bytes, or a function that writes to the temporary path it is given (same folder and suffix).
    Returns the path. Raises SuperbLiteError naming the folder if the disk is full or not writable; an older file of
    that name is then untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{_token()}.tmp{path.suffix}")
    with disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if callable(content):
                content(part)
            else:
                part.write_bytes(content)
            with part.open("rb+") as file:  # the name must not reach the disk before the bytes
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path


def fetch(url: str, sha256: str | None, *, name: str, root: str | Path | None = None) -> Path:
    """Download a file into the cache, once, and check it.

    url: plain HTTPS; sha256: hex digest of the file, or None if its bytes are not fixed (then the caller must check the
    content and delete the file when done); name: file name under ``<cache>/downloads``; root: see `cache_root`.
    Raises CorpusMissing, saying what to download to where, without a network or if the file is not the expected one.
    """
    folder = cache_root(root) / "downloads"
    known = None if sha256 is None else f"sha256:{sha256}"
    by_hand = f"download {url} in a browser and save it as {folder / name}"
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        loader = pooch.HTTPDownloader(timeout=30)
        return Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=loader))
    except ValueError as error:  # pooch's word for a wrong checksum; it has deleted the file
        raise CorpusMissing(f"{url} is not the file we know ({error}); {by_hand}") from error
    except OSError as error:  # requests' errors are OSErrors too
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SuperbLiteError(_disk_message(folder, error)) from error
        reason = type(error).__name__
        why = f"{reason}: no network, or the address is gone"
        raise CorpusMissing(f"cannot download {name} ({why}); {by_hand}") from error


def unpack(archive: str | Path, folder: str | Path, *, max_bytes: int = MAX_UNPACKED) -> Path:
    """Unpack a tar (gz, bz2, xz) or zip archive into a new folder, safely.

    The folder appears only when complete. Only plain files and folders are made: absolute names, ``..``, links and
    devices are refused, and so is an archive of more than `max_bytes` unpacked. Returns the folder.
    Raises CorpusMissing if the archive is missing or broken, SuperbLiteError naming archive and member if it is
    unsafe, or if the folder exists and is not empty.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise CorpusMissing(f"{archive}: there is no such archive; check the path")
    if folder.is_dir() and any(folder.iterdir()):
        raise SuperbLiteError(f"{folder}: exists and is not empty, so nothing is unpacked there; name a new folder")
    with temporary_folder(folder.parent) as part:
        inside = part / "unpacked"
        inside.mkdir()
        try:
            _copy_members(archive, inside, max_bytes)
        except (*_BROKEN, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the machine's trouble; decompressors raise an OSError without a number
            raise CorpusMissing(f"{archive}: broken archive ({error}); download it again") from error
        with disk(folder.parent):
            os.replace(inside, folder)
    return folder


@contextlib.contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """A fresh folder under `parent`, on the same disk, so that what is made in it can be renamed into place."""
    part = Path(parent) / f".{_token()}.tmp"
    with disk(Path(parent)):
        part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a SuperbLiteError that names `folder`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise SuperbLiteError(_disk_message(folder, error)) from error
        raise


# ------------------------------------------------------------------------------------------ inside


def _disk_message(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot write ({error.strerror}); make room or choose another folder with SUPERB_LITE_CACHE"


def _token() -> str:
    return uuid.uuid4().hex[:12]  # from the operating system: does not touch anybody's random state


def _copy_members(archive: Path, folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for count, (name, stream) in enumerate(_members(archive)):
        if count >= MAX_MEMBERS:
            raise SuperbLiteError(f"{archive}: more than {MAX_MEMBERS} members; this is not one of our corpora")
        target = folder.joinpath(*_safe_parts(archive, name))
        with disk(folder.parent.parent):
            if stream is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            left -= _copy(archive, name, stream, target, left)


def _copy(archive: Path, name: str, stream: IO[bytes], target: Path, left: int) -> int:
    """Copy a member to a new file and count its bytes as they come: sizes in headers may lie."""
    if target.exists():
        raise SuperbLiteError(f"{archive}: member {name!r} is there twice; download the archive again")
    size = 0
    with stream, target.open("xb") as file:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > left:
                raise SuperbLiteError(f"{archive}: too big unpacked (at member {name!r}); is it the right archive?")
            file.write(chunk)
    return size


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, open stream) of every file and (name, None) of every folder, one after the other."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for item in file.infolist():
                kind = stat.S_IFMT(item.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise SuperbLiteError(f"{archive}: member {item.filename!r} is a link or device; not unpacked")
                yield item.filename, None if item.is_dir() else file.open(item)
        return
    with tarfile.open(archive, "r:*") as file:
        for item in file:
            if not (item.isfile() or item.isdir()):
                raise SuperbLiteError(f"{archive}: member {item.name!r} is a link or device; not unpacked")
            yield item.name, file.extractfile(item) if item.isfile() else None
        for _ in range(MAX_TAIL // CHUNK):  # a compressor's checksum is at the very end, behind tar's last block
            if not file.fileobj.read(CHUNK):
                return
        raise SuperbLiteError(f"{archive}: more than {MAX_TAIL} bytes follow the last member; download it again")


def _safe_parts(archive: Path, name: str) -> list[str]:
    """The path's parts below the target folder; refuses whatever could point elsewhere on any system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or re.search(r'[\\:\x00-\x1f<>"|?*]', name):
        raise SuperbLiteError(f"{archive}: member {name!r} has an unsafe name or points outside; not unpacked")
    return parts
