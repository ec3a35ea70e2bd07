"""Settings reach the folds, and what they cannot keep is said."""

import logging
from dataclasses import replace

import pytest

from processors.agents import warn_of
from processors.configured import windowing
from processors.windows import STANDARD, Windowing
from streams import settings
from tests.support.rankings import policy


def test_event_time_is_cut_as_the_settings_say() -> None:
    usual = settings.load({})
    assert windowing(usual) == STANDARD
    other = replace(usual, pane_ms=1, bound_ms=2, grace_ms=3, longest_panes=4)
    assert windowing(other) == Windowing(1, 2, 3, 4)


def test_a_window_that_is_not_kept_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "roster.agents"):
        warn_of(policy(window_panes=288), 288)
        assert caplog.messages == []
        warn_of(policy(window_panes=289), 288)
    assert caplog.messages == [
        "policy policy of dialogue/PRODUCTION: window_panes is 289, above ROSTER_WINDOW_PANES,"
        " 288: facts are not kept for so long, and its final rankings may stop"
    ]
