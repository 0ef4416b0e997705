from __future__ import annotations

from tests.integration.nodes.conftest import make_cluster, pytest_runtest_makereport

__all__ = ["make_cluster", "pytest_runtest_makereport"]
