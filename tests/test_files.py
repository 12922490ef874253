"""Files are whole or absent, and archives cannot write outside their folder."""

from __future__ import annotations

import errno
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pooch
import pytest
import requests

from superb_lite import files
from superb_lite.types import CorpusMissing, SuperbLiteError


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------------------------------- cache root


def test_cache_root_argument_then_environment_then_system(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERB_LITE_CACHE", str(tmp_path / "env"))
    assert files.cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert files.cache_root() == tmp_path / "env"
    assert not (tmp_path / "env").exists()
    monkeypatch.setenv("SUPERB_LITE_CACHE", "")
    assert files.cache_root() == Path(pooch.os_cache("superb_lite"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_root("~/x") == tmp_path / "x"


# ------------------------------------------------------------------------------------- atomic writes


def test_write_bytes_and_by_function(tmp_path):
    path = files.write_atomically(tmp_path / "new" / "a.npy", b"old")
    assert path.read_bytes() == b"old"
    files.write_atomically(path, lambda part: part.write_bytes(part.suffix.encode()))
    assert path.read_bytes() == b".npy"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npy"]


def test_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    path = files.write_atomically(tmp_path / "a.bin", b"old")

    def fail(part):
        part.write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_full_disk_names_the_folder(tmp_path):
    with pytest.raises(SuperbLiteError, match=rf"{tmp_path}: cannot write \(No space left"):
        files.write_atomically(tmp_path / "a.bin", full_disk)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- download


URL = "https://example.invalid/corpus.tar.gz"


def served(data):
    def download(self, url, output_file, pooch):
        Path(output_file).write_bytes(data)

    return download


def test_fetch_keeps_the_right_file_and_asks_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", served(b"corpus"))
    sha256 = hashlib.sha256(b"corpus").hexdigest()
    path = files.fetch(URL, sha256, name="c.tar.gz", root=tmp_path)
    assert path == tmp_path / "downloads" / "c.tar.gz"
    assert path.read_bytes() == b"corpus"
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full_disk)
    assert files.fetch(URL, sha256, name="c.tar.gz", root=tmp_path) == path


def test_fetch_refuses_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", served(b"<html>log in</html>"))
    with pytest.raises(CorpusMissing, match=r"is not the file we know"):
        files.fetch(URL, "0" * 64, name="c.tar.gz", root=tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_fetch_without_network_says_what_to_do(tmp_path, monkeypatch):
    def offline(self, url, output_file, pooch):
        raise requests.exceptions.ConnectionError("name resolution failed")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    with pytest.raises(CorpusMissing, match=rf"no network.*download {URL} in a browser and save it as {tmp_path}"):
        files.fetch(URL, None, name="c.tar.gz", root=tmp_path)


def test_fetch_on_a_full_disk_is_not_called_a_network_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full_disk)
    with pytest.raises(SuperbLiteError, match="cannot write"):
        files.fetch(URL, None, name="c.tar.gz", root=tmp_path)


# ------------------------------------------------------------------------------------------ unpacking


def make_tar(path, members, mode="w:gz"):
    """members: {name: bytes | TarInfo}."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


GOOD = {"top/a.txt": b"A" * 5000, "top/sub/b.txt": b"B"}


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_good_archives(kind, tmp_path):
    path = tmp_path / "good"
    path = make_zip(path, GOOD) if kind == "zip" else make_tar(path, GOOD, kind)
    folder = files.unpack(path, tmp_path / "out")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.txt")} == GOOD
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["good", "out"]


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


UNSAFE_NAMES = ["../evil.txt", "/evil.txt", "top/../../evil.txt", "C:/evil.txt", "..\\evil.txt", "a\nb"]


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_names_that_point_outside_are_refused(name, make, tmp_path):
    path = make(tmp_path / "bad.archive", {"top/a.txt": b"fine", name: b"evil"})
    folder = tmp_path / "deep" / "out"
    with pytest.raises(SuperbLiteError, match=r"bad\.archive: member .*unsafe name"):
        files.unpack(path, folder)
    assert not folder.exists()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["bad.archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    path = make_tar(tmp_path / "bad.tar", {"link": special("link", kind, "/etc/passwd")}, "w")
    with pytest.raises(SuperbLiteError, match=r"bad\.tar: member 'link' is a link or device"):
        files.unpack(path, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SuperbLiteError, match=r"bad\.zip: member 'link' is a link or device"):
        files.unpack(path, tmp_path / "out")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_bombs_are_refused(make, tmp_path):
    path = make(tmp_path / "bomb", {"a": b"0" * 600_000, "b": b"0" * 600_000})
    assert path.stat().st_size < 10_000
    with pytest.raises(SuperbLiteError, match=r"bomb: too big unpacked \(at member 'b'\)"):
        files.unpack(path, tmp_path / "out", max_bytes=1_000_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bomb"]


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBERS", 3)
    path = make_zip(tmp_path / "many", {str(number): b"" for number in range(4)})
    with pytest.raises(SuperbLiteError, match="many: more than 3 members"):
        files.unpack(path, tmp_path / "out")


def test_the_same_member_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("./a", b"2")
    with pytest.raises(SuperbLiteError, match="is there twice"):
        files.unpack(tmp_path / "z", tmp_path / "out")


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w", "zip", "text"])
def test_broken_archives_are_named(kind, tmp_path):
    noise = {f"{n}.bin": b"".join(hashlib.sha256(bytes([n, m])).digest() for m in range(256)) for n in range(4)}
    path = tmp_path / "broken"
    if kind == "text":
        path.write_text("404: Not Found")
    else:
        make_zip(path, noise) if kind == "zip" else make_tar(path, noise, kind)
        path.write_bytes(path.read_bytes()[:12_000])
    with pytest.raises(CorpusMissing, match="broken: broken archive"):
        files.unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_a_flipped_bit_is_noticed(tmp_path):
    path = make_tar(tmp_path / "flipped", {"a": bytes(range(256)) * 40})
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in gzip's checksum
    path.write_bytes(data)
    with pytest.raises(CorpusMissing, match="flipped: broken archive"):
        files.unpack(path, tmp_path / "out")


def test_missing_archive_and_used_folder(tmp_path):
    with pytest.raises(CorpusMissing, match="there is no such archive"):
        files.unpack(tmp_path / "none.zip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "homework.txt").write_text("mine")
    with pytest.raises(SuperbLiteError, match="exists and is not empty"):
        files.unpack(make_zip(tmp_path / "z", GOOD), tmp_path / "out")
    assert (tmp_path / "out" / "homework.txt").read_text() == "mine"


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_copy", full_disk)
    with pytest.raises(SuperbLiteError, match="cannot write .No space left"):
        files.unpack(make_zip(tmp_path / "z", GOOD), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["z"]
