"""The private names that the agents' consumer relies on."""

from textwrap import dedent

import pytest

from streams import compat
from streams.errors import BadConfiguration


def test_versions_names_and_lines_are_those_relied_on() -> None:
    compat.check()


def test_another_version_is_refused_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compat.VERSIONS, "aiokafka", "0.0.1")
    with pytest.raises(BadConfiguration, match=r"aiokafka is 0\.14\.0; allowed: 0\.0\.1"):
        compat.check()


def test_a_lost_name_or_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "NAMES", ((dict, ("lost",)),))
    with pytest.raises(BadConfiguration, match="dict lacks lost"):
        compat.check()
    monkeypatch.setattr(compat, "NAMES", ())
    monkeypatch.setattr(compat, "LINES", ((dedent, "a line of another time", "why"),))
    with pytest.raises(BadConfiguration, match="lacks the line"):
        compat.check()
