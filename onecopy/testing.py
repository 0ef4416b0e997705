"""Tests of one's own services: `ServiceRunner` in one process, `LocalCluster` with real nodes."""

from __future__ import annotations

from cluster.testing.local_cluster import LocalCluster, cluster_fixture
from cluster.testing.runner import ServiceRunner

__all__ = ["LocalCluster", "ServiceRunner", "cluster_fixture"]
