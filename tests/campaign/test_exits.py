"""Test that the chip is safe after every exit, with every driver."""

from collections.abc import Iterator
from typing import Any

import pytest

from ..chips import KINDS
from ..exits import EXITS, check_exit

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("name", EXITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chip_is_safe(kind: str, name: str) -> None:
    check_exit(kind, name)


REMOTE = (
    "return",
    "exception in with",
    "SIGINT",
    "SIGINT twice",
    "SIGTERM",
    "SIGTERM, session in a thread, main sleeps",
    "out of scope",
    "cycle collected",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a cluster of Ray on this machine, and yield its address."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster.address
    cluster.shutdown()


# Warnings of Ray itself.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("name", REMOTE)
def test_the_chip_of_another_host_is_safe(cluster: str, name: str) -> None:
    check_exit("remote", name, cluster)
