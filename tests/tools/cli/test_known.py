"""Names that no ranking has."""

import pytest

from tests.support.rankings import entries, evidence, final, policy
from tools.cli.known import hint

RULES = policy()
RANKING = final(entries({"llama-2": evidence([1_500_000] * 80)}, RULES), RULES)


def test_a_name_that_is_likely_mistyped_is_said_and_a_known_one_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hint([RANKING], "dialogue", ["p/llama-2"])
    hint([RANKING], "chat", [])  # an alias
    hint([], "dialogue", ["p/llama-2"])  # nothing is ranked yet
    assert capsys.readouterr() == ("", "")
    hint([RANKING], "dialogg", ["p/lama-2", "q/other"])
    assert capsys.readouterr().err.splitlines() == [
        "roster: note: no ranking has the role dialogg; there are dialogue",
        "roster: note: no ranking has the model p/lama-2; did you mean p/llama-2?",
        "roster: note: no ranking has the model q/other",
    ]
