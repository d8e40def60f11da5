"""Shared by all tests: one thread, the real data's folder, no GPU tests without a GPU."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("registry") is None:  # plain `pytest` leaves the repository root out of sys.path
    sys.path.insert(0, str(ROOT))

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `pytest &`; what the tests start would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real datasets: $BALANCEBENCH_DATA, else ../shared/data beside the repository."""
    given = os.environ.get("BALANCEBENCH_DATA")
    root = Path(given) if given else ROOT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"real data needed: {root} is not a folder; point BALANCEBENCH_DATA at it")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch finds none"))
