"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["SMALL", "two_nodes"]

SMALL: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
"""A node, as ``Cluster.add_node`` takes it."""


@contextmanager
def two_nodes() -> Iterator[Any]:
    """While it is open, this process is connected to the cluster, and those it starts find it."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(True, head_node_args={**SMALL, "include_dashboard": False})
        cluster.add_node(**SMALL)
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()
