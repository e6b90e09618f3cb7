"""What all tests share: the network is blocked except for loopback, and real data is found or skipped with a reason."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no failure: what a test may take is said where it is measured.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=30)
hypothesis.settings.load_profile("unhurried")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]


LONGEST = ("test_small_study", "test_loop", "test_kill", "test_gpu_world")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: no worker is left with a long test when the other has ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path not in slow))


def _is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that would leave this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: Any) -> None:
        if not _is_local(address):
            raise PermissionError(f"tests do not use the network: {address}")
        return connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        if not _is_local(address):
            raise PermissionError(f"tests do not use the network: {address}")
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded_ex)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real public data beside the checkout; tests that want it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder with real data, ../shared/data, is not here")
    return folder


@pytest.fixture(scope="session")
def study_data(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real public data with what a user makes of it: the templates behind the paper's prompts."""
    from tools.recover_templates import main

    folder = tmp_path_factory.mktemp("study_data")
    for path in data_dir.iterdir():
        (folder / path.name).symlink_to(path)
    with (folder / "lrm_safety_study_templates.jsonl").open("w") as file, contextlib.redirect_stdout(file):
        main(str(data_dir / "lrm_safety_study_nocot.json"), str(data_dir / "harmbench200.txt"))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with a process each; the second, `cluster.second`, may be lost."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.second = made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False, runtime_env={"working_dir": None})
        yield made
        ray.shutdown()
        made.shutdown()
