"""The published figures and files: the folder in REFERENCE_DATA (default ../shared/reference_data beside the repository)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., object])
REFERENCE = Path(os.environ.get("REFERENCE_DATA", Path(__file__).parents[2] / "shared/reference_data"))


def needed(part: str = "") -> Callable[[Test], Test]:
    """Marks a test ``reference``, and skips it where ``part`` of the folder is absent."""
    missing = f"no reference data in {REFERENCE}; set REFERENCE_DATA to its folder"
    skip = pytest.mark.skipif(not (REFERENCE / part).is_dir(), reason=missing)
    return lambda test: pytest.mark.reference(skip(test))
