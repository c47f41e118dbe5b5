"""Artifacts for the gate."""

import shutil
from pathlib import Path

import pytest

from .artifacts import Pair, make_pair


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("original"))


@pytest.fixture
def pair(original: Pair, tmp_path: Path) -> Pair:
    """A copy of the honest artifact, to be spoiled."""
    files = [shutil.copy(path, tmp_path) for path in (original.dense, original.pruned)]
    return Pair(Path(files[0]), Path(files[1]), original.data)
