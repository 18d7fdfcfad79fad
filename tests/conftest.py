"""What several test files read, and none changes; and the garbage collector, which need not look at what stays."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from stages.lib import warm


def pytest_configure() -> None:
    warm.start()  # for the stages that the tests start as processes, in whichever folder
    gc.disable()  # torch and Transformers make a million objects that stay


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is left at the exit some libraries call a leak


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a finished mini scale (folder.py): made once, read by many. A test that changes them takes a copy."""
    from tests import folder

    results = tmp_path_factory.mktemp("finished") / "results"
    folder.make(results)
    return results
