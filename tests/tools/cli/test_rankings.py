"""What `roster rankings` and its commands refuse before they look for anything."""

import pytest
from typer.testing import CliRunner

from streams.errors import BadConfiguration
from tools.__main__ import app


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--watch --at 2025-01-01", "--watch and --at"),
        ("--at soon", "--at is 'soon'; allowed: an ISO 8601 time"),
        ("--role code explain --role code", "--role stands before explain"),
        ("--json what-if --role code", "--json stands before what-if"),
        ("explain some-id --role code", "an ID names one ranking"),
        ("what-if --role code", "nothing is assumed"),
        ("what-if --role code --weights 1,2", "--weights is '1,2'; allowed"),
        ("what-if --role code --price p/m", "--price is 'p/m'; allowed: provider/model=FACTOR"),
        ("what-if --role code --drop m", "--drop is 'm'; allowed: provider/model"),
        ("what-if --role code --window 7min", "--window is '7min'; allowed: whole panes of 300 s"),
        ("what-if --role code --window 40d", "--window is '40d'; allowed"),
        ("what-if --drop p/m --chart x.png", "allowed: a file ending with .svg"),
        ("what-if --drop p/m --from 2025-01-02 --to 2025-01-01", "--to is 2025-01-01; allowed"),
        ("route --persona a --success 2", "--success is '2'; allowed"),
        ("route --persona a --latency 2", "--latency is '2'; allowed: a duration"),
        ("route --persona a --cost x", "--cost is 'x'; allowed"),
        ("route --persona a --only p/m", "--only is 'p/m'; allowed: provider/model=persona"),
        ("route --persona a --avoid m", "--avoid is 'm'; allowed: provider/model"),
    ],
)
def test_a_mistake_is_one_line_that_names_option_value_and_what_is_allowed(
    words: str, said: str
) -> None:
    result = CliRunner().invoke(app, ["rankings", *words.split()])
    assert isinstance(result.exception, BadConfiguration), (result.output, result.exception)
    text = str(result.exception)
    assert said in text
    assert "\n" not in text
