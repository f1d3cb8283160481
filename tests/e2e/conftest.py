"""Meshes that several tests share."""

from collections.abc import Iterator

import pytest
from mesh import Mesh


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of two stages, for tests that leave it as it was."""
    with Mesh(tmp_path_factory.mktemp("two-stages"), num_stages=2) as mesh:
        yield mesh
