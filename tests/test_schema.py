"""All keys, as `python -m stages.plan.schema` prints them: none of the schema is missing, and what it says is what is checked."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from checkout import ROOT

from stages.plan import schema

Reference = dict[str, list[str]]


@pytest.fixture(scope="module")
def printed() -> Reference:
    """The lines of the command by key: type, values, default, meaning."""
    command = [sys.executable, "-m", "stages.plan.schema"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stderr
    found: Reference = {}
    columns: list[slice] = []
    for line in done.stdout.splitlines():
        if line.startswith("---"):
            starts = [match.start() for match in re.finditer("-+", line)]
            columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
        elif not line:
            columns = []
        elif columns:
            name, *rest = (line[column].strip() for column in columns)
            found[name] = rest
    return found


def test_every_key_is_printed_with_its_meaning(printed: Reference) -> None:
    for where, _ in schema.keys(schema.Config):
        assert printed[where][3], where
    for name, objective in schema.objectives().items():
        for parameter in objective.kinds:
            assert printed[f"method.{parameter}"][3], (name, parameter)
    assert set(printed) == {where for where, _ in schema.keys(schema.Config)} | {
        f"method.{parameter}" for objective in schema.objectives().values() for parameter in objective.kinds
    }
    assert printed["setting.sft.training.learning_rate"] == ["float", "(0, 1]", "required", "highest learning rate of AdamW"]
    assert printed["method.loss_type"][:3] == ["str", "sigmoid | hinge", "required"]
    assert printed["runtime.efficiency.batch"][:3] == ["int | null", "[4, ∞) by 4", "null"]


def test_no_part_of_the_schema_is_out_of_reach() -> None:
    """A dataclass that no key holds, and a hyperparameter that no objective has, would be words about nothing."""
    parts = {part for part in vars(schema).values() if isinstance(part, type) and is_dataclass(part)}
    reached = {id(each) for _, each in schema.keys(schema.Config)}
    for part in parts - {schema.Hyperparameters}:
        assert all(id(each) in reached for each in fields(part)), part
    parameters = {parameter for objective in schema.objectives().values() for parameter in objective.kinds}
    assert {each.name for each in fields(schema.Hyperparameters)} == parameters


def test_keys_of_one_name_have_one_range() -> None:
    """check_range finds a range by the last part of a key: another key of this name must print the same."""
    for where, each in schema.keys(schema.Config):
        if not where.startswith("runtime."):
            assert each.metadata["range"] == schema.RANGES.get(each.name), where


def test_an_objective_of_one_s_own_is_described_by_its_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objectives.py").write_text(
        'def own(sums, *, beta: float, width: float, plain):\n    """An own loss. A margin is ``width`` wide."""\n'
    )
    monkeypatch.setattr(schema, "OBJECTIVES", tmp_path / "objectives.py")
    schema.objectives.cache_clear()
    try:
        text = schema.reference()
    finally:
        schema.objectives.cache_clear()
    assert re.search(r"^method\.width +float +required +A margin is ``width`` wide\.$", text, re.MULTILINE)
    assert re.search(r"^method\.plain +any +required +stages/preference/objectives\.py: An own loss\.$", text, re.MULTILINE)
    assert re.search(r"^method\.beta +float +\(0, 10000\] +required +β: ", text, re.MULTILINE)
