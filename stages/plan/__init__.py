"""From conf/, which owns every value, to what Snakemake makes. ``plan(scale)`` gives the ``Plan`` (planning.py) that the Snakefile asks.

schema         every key of conf/ with its type, range and meaning: `python -m stages.plan.schema` prints them
check          holds values to the schema
compose        reads conf/ with Hydra, a sweep of conf/sweep too
run_names      the name of a run, and what may vary between runs
stage_configs  the part of the configuration that each stage depends on
targets        the runs that a scale asks for, and their files; analysis/inventory.py has the tables and figures
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.plan.planning import Plan, plan

__all__ = ["Plan", "plan"]


def __getattr__(name: str) -> Any:
    """``Plan`` and ``plan`` on first use: a stage reads its runtime knobs (knobs.py), and needs neither Hydra nor a plan."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.plan import planning

    return getattr(planning, name)
