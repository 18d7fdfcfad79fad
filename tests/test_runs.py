"""Names of runs (stages/plan/run_names.py): one run has one name, and one name is one run."""

from __future__ import annotations

import random

import pytest

from stages.lib.errors import UserError
from stages.plan.run_names import decode, encode


@pytest.mark.parametrize(
    ("method", "overrides", "name"),
    [
        ("simpo", {}, "simpo"),
        ("simpo", {"gamma": 0.75, "beta": 2.5}, "simpo+beta=2.5+gamma=0.75"),
        ("simpo", {"seed": 1}, "simpo+seed=1"),
        ("dpo", {"learning_rate": 3e-7, "beta": 10.0}, "dpo+beta=10+learning_rate=3e-7"),
        ("simpo_no_ln", {"loss_type": "hinge", "beta": 0.0001}, "simpo_no_ln+beta=0.0001+loss_type=hinge"),
    ],
)
def test_names_are_the_documented_ones_and_read_back(method: str, overrides: dict, name: str) -> None:
    assert encode(method, overrides) == name
    assert decode(name) == (method, overrides)


def test_random_overrides_survive_the_round_trip() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        values = [
            rng.randint(-5, 500),
            rng.uniform(-1, 1) * 10 ** rng.randint(-12, 12),
            rng.random() < 0.5,
            rng.choice(["hinge", "a-b", "x1"]),
        ]
        overrides = {key: rng.choice(values) for key in rng.sample(["beta", "gamma", "seed", "loss_type"], rng.randint(0, 4))}
        name = encode("dpo", overrides)
        assert decode(name) == ("dpo", overrides)
        assert encode(*decode(name)) == name


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("simpo+beta=2.50", "simpo+beta=2.5"),
        ("simpo+gamma=1+beta=2", "simpo+beta=2+gamma=1"),
        ("dpo+learning_rate=3e-07", "dpo+learning_rate=3e-7"),
        ("dpo+learning_rate=0.0000003", "dpo+learning_rate=3e-7"),
        ("dpo+beta=1e1", "dpo+beta=10"),
    ],
)
def test_another_spelling_is_an_error_that_prints_the_canonical_name(name: str, canonical: str) -> None:
    with pytest.raises(UserError, match=canonical.replace("+", r"\+")):
        decode(name)


@pytest.mark.parametrize(
    "name", ["", "SimPO", "simpo+", "simpo+beta", "simpo+beta=1+beta=2", "simpo+beta=nan", "simpo+beta=../x", "simpo+b/c=1"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name|expected"):
        decode(name)
