"""What the README names exists. Its commands and its snippet are run by test_system.py."""

import re
import subprocess
from pathlib import Path

from tests.support import readme

ROOT = Path(__file__).parents[1]


def test_every_make_target_of_the_readme_is_one() -> None:
    found = readme.commands("make") + [
        text.split() for text in re.findall(r"`make ([^`]+)`", readme.TEXT)
    ]
    assert len(found) >= 5
    for words in found:
        done = subprocess.run(
            ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`([a-z][a-z_/]+\.(?:py|md|yaml|toml))`", readme.TEXT)
    named += re.findall(r"`([A-Za-z_/]+/README\.md)`", readme.TEXT)
    assert len(named) >= 4
    assert not [n for n in named if not (ROOT / n).exists() and not (ROOT / "tests" / n).exists()]


def test_the_file_map_names_every_package() -> None:
    for package in ("schemas", "streams", "processors", "projections", "tools", "tests"):
        assert f"| `{package}/` |" in readme.TEXT
