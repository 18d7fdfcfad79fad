"""stages/lib/errors.py: only the user's mistake becomes a sentence; a bug of ours or of a library's keeps its traceback and a status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import scorecard
from stages.lib import files
from stages.lib.errors import NotFinite, UserError


@pytest.mark.parametrize(("error", "status"), [(UserError("method.beta=-1"), 1), (NotFinite("step 3"), 3)])
def test_the_users_mistake_is_a_sentence_and_a_status(
    error: UserError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files.signal, "signal", lambda *_: None)  # pytest keeps its own handlers

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        files.run(main)
    said = capsys.readouterr().err
    assert (caught.value.code, said) in (((f"error: {error}"), ""), (status, f"error: {error}\n"))  # a text is printed, with status 1


@pytest.mark.parametrize("error", [ValueError("shapes (2,) and (3,)"), KeyError("x"), FileNotFoundError("f"), ImportError("no name y")])
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.signal, "signal", lambda *_: None)

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        files.run(main)


def test_a_bug_in_a_claim_is_not_called_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """analysis/scorecard.py: a claim that lacks its files is "not measured"; one whose arithmetic fails stops the scorecard."""

    class Evidence:
        def __init__(self, study: Any) -> None:
            pass

    claim = next(claim for claim in scorecard.CLAIMS if claim.where == scorecard.IN_SETTINGS)
    study = type("Study", (), {"config": {"settings": ["mini_base"], "analysis": {"about": 0.1}}, "results": Path("results")})()
    for error in (UserError("results/x does not exist"), ValueError("shapes (2,) and (3,)")):

        def measured(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(scorecard, "Evidence", Evidence)
        monkeypatch.setattr(scorecard, "CLAIMS", (claim._replace(measured=measured),))
        if isinstance(error, UserError):
            assert list(scorecard.rows(study)["verdict"]) == [scorecard.NOT_MEASURED]
        else:
            with pytest.raises(ValueError, match="shapes"):
                scorecard.rows(study)
