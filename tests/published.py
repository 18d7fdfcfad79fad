"""The published figures and files: the folder in REFERENCE_DATA (default ../shared/reference_data beside the repository)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get("REFERENCE_DATA", Path(__file__).parents[2] / "shared/reference_data"))


def needed(part: str = "") -> pytest.MarkDecorator:
    """Skips a test where ``part`` of the folder is absent."""
    missing = f"no reference data in {REFERENCE}; set REFERENCE_DATA to its folder"
    return pytest.mark.skipif(not (REFERENCE / part).is_dir(), reason=missing)
