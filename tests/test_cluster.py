"""The same competition on a Dask cluster: a scheduler and two worker processes on this machine, one of them killed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

import pytest
from test_rounds import OneLayer, comparable, toys

from superb_lite import engines
from superb_lite.features import FeatureStore
from superb_lite.rounds import olympics
from superb_lite.types import SuperbLiteError, UnknownName

pytest.importorskip("distributed")


def short(task, recipe):
    return replace(recipe, name="short", steps=20, eval_every=10)


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as found:
        yield found


def processes(cluster):
    return [nanny.process.pid for nanny in cluster.workers.values()]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_a_cluster_finds_the_same_table_though_a_worker_is_killed(cluster, tmp_path):
    """Keys go to the cluster, the object is trained here; five folds, two rates each, and what a kill has lost."""
    mine = OneLayer()
    options = {"upstreams": ["fbank", mine], "tasks": ["er"], "adjust": short, "lr_factors": (0.1, 1.0)}
    before, heard = processes(cluster), []

    def kill(score):
        heard.append(score)
        if len(heard) == 1:
            os.kill(before[0], signal.SIGKILL)

    together = olympics(
        **options, engine="dask", address=cluster.scheduler_address, on_score=kill, out=tmp_path / "together",
        store=FeatureStore(tmp_path / "here"),
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["one-seed0"]  # fbank's are where the workers are
    alone = olympics(**options, out=tmp_path / "alone")
    assert len(alone) == 2 * 2 * 5  # upstreams, rounds, folds
    assert comparable(together.scores) == comparable(alone.scores)
    assert sorted(map(repr, heard)) == sorted(map(repr, together.scores))


def test_another_version_on_a_worker_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("superb_lite.__version__", "0.0.1", raising=False)
    with pytest.raises(SuperbLiteError, match="has superb_lite .*, and 0.0.1 is running: install the same"):
        olympics(["fbank"], ["er"], adjust=short, engine="dask", address=cluster.scheduler_address, out=tmp_path)


def test_no_scheduler_no_address_no_dask_no_engine(tmp_path, monkeypatch):
    def run(**options):
        olympics([OneLayer()], toys("ks"), corpus="toy", out=tmp_path, **options)

    monkeypatch.setattr(engines, "ANSWER_SEC", 0.5)
    with pytest.raises(SuperbLiteError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'.*dask scheduler"):
        run(engine="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(SuperbLiteError, match="needs address=.*tcp://HOST:8786"):
        run(engine="dask")
    with pytest.raises(UnknownName, match="did you mean 'dask'"):
        run(engine="dusk")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SuperbLiteError, match=r"pip install 'superb-lite\[cluster\]'"):
        run(engine="dask", address="tcp://127.0.0.1:9")
