"""What all tests share: a cache folder of their own, and results that are not written next to the code."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: threads would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """The notebooks first: they take longest, and the other process does the rest meanwhile."""
    slow = [item for item in items if item.path.name == "test_notebooks.py"]
    rest = [item for item in items if item.path.name != "test_notebooks.py"]
    # every process gets two tests to begin with; a quick one behind each notebook keeps notebooks apart
    mixed = [item for pair in zip(reversed(slow), rest, strict=False) for item in pair]
    items[:] = mixed + rest[len(slow) :]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The cache of this test run: features, toys and downloads go to a temporary folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERB_LITE_CACHE", str(folder))
        yield folder


@pytest.fixture
def file_limit():
    """Call it with a number of bytes: from then on no file can grow beyond (a full disk, as a process sees it)."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        soft = before[0] if size is None else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
