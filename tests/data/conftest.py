"""A small pack, its source, and what of it is read in full."""

import pytest

from balancebench_udi.data.pack import digests
from tests.unit.test_pack import prepare, write


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", {2: "bad", 5: "5 quiet"})


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def folder(source, root):
    """A whole pack."""
    return prepare(source, root).folder


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were read in full, in order."""
    seen, real = [], digests.compute_digests

    def spy(folder, manifest, names, quiet):
        names = list(names)
        seen.extend(names)
        return real(folder, manifest, names, quiet)

    monkeypatch.setattr(digests, "compute_digests", spy)
    return seen
