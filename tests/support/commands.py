"""The command line as a stranger runs it, on a data folder of one's own."""

import os
import subprocess
import sys
from pathlib import Path

from streams import settings


def environ(data: Path) -> dict[str, str]:
    """This environment without any setting of ours, but for the data folder and the cache."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROSTER_")}
    cache = {"ROSTER_CACHE": str(settings.load().cache)}
    return {**kept, **cache, "ROSTER_DATA": str(data)}


def roster(data: Path, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tools", *words],
        env=environ(data),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
