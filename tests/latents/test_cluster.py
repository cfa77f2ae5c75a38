"""Encoding on a cluster of this machine: the store of one process, though one of the cluster's is killed on the way."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from encoding import contents, encode
from pooled import KilledOnce, Pooled
from videos import write_waves

from mmdit.errors import Refused
from mmdit.latents.cluster import ray_engine

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    for name, value in {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PYTHONPATH": str(HELPERS),
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_waves(tmp_path / "videos", 12)
    return tmp_path / "videos"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_makes_the_store_of_one_process(videos: Path, tmp_path: Path) -> None:
    encode(videos, tmp_path / "one")
    mark = tmp_path / "killed"
    report = encode(videos, tmp_path / "store", engine=ray_engine(partial(KilledOnce, mark), 2))
    assert mark.exists() and report.kept == 12
    assert contents(tmp_path / "store") == contents(tmp_path / "one")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refused, match=r"no Ray here; pip install 'mmdit-video\[ray\]'"):
        ray_engine(Pooled, 1)
