"""Environment -> frozen Settings, read once. `roster init` writes the same names as a file.

Order: environment variable, then `roster.env` in the working directory, then the running system
that `roster up` recorded in {data}/run.json, then the default.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from streams.errors import BadConfiguration

FILE: Final = Path("roster.env")
NAMES: Final = (
    *("ROSTER_KAFKA", "ROSTER_REGISTRY", "ROSTER_DATA", "ROSTER_CACHE", "ROSTER_BIND"),
    *("ROSTER_REPLICATION", "ROSTER_API", "ROSTER_DEPLOYMENT"),
    *("ROSTER_GENERATION", "ROSTER_PANE_S", "ROSTER_BOUND_S", "ROSTER_GRACE_S"),
    "ROSTER_WINDOW_PANES",
)
"""What the file may set."""
DEFINING: Final = {
    "ROSTER_PANE_S": (300, 1, 86_400),
    "ROSTER_BOUND_S": (60, 0, 86_400),
    "ROSTER_GRACE_S": (600, 0, 7 * 86_400),
}
"""Default, least and most, in seconds. Another value than the default defines other facts, and so
needs a generation of its own."""
BROKER: Final = r"([^\s,:/\[\]]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}"
BROKERS: Final = re.compile(f"{BROKER}(,{BROKER})*")
URL: Final = re.compile(r"https?://[^\s/]+(/\S*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """kafka, registry: addresses, None where nothing is known. bind: where we listen. generation:
    of facts and rankings; pane_ms, bound_ms, grace_ms: how it cuts event time; longest_panes: of
    the longest window that is kept whole."""

    kafka: str | None
    registry: str | None
    data: Path
    cache: Path
    bind: str
    own_cluster: bool  # the two addresses were given: nothing is started or downloaded
    replication: int
    api: str | None  # address of the projector's read path, as the running system recorded it
    deployment: str
    generation: int = 2
    pane_ms: int = 300_000
    bound_ms: int = 60_000
    grace_ms: int = 600_000
    longest_panes: int = 288

    def need_kafka(self) -> str:
        """The broker's address. Raises BadConfiguration if none is known."""
        if self.kafka is None:
            raise BadConfiguration("no broker: start one with `roster up`, or set ROSTER_KAFKA")
        return self.kafka

    def need_registry(self) -> str:
        """The registry's address. Raises BadConfiguration if none is known."""
        if self.registry is None:
            raise BadConfiguration(
                "no schema registry: start one with `roster up`, or set ROSTER_REGISTRY"
            )
        return self.registry


def load(environ: dict[str, str] | None = None) -> Settings:
    """Settings from environment, file and running system. Raises BadConfiguration."""
    given = os.environ if environ is None else environ
    env = {**_file(FILE), **{name: value for name, value in given.items() if value}}
    data = Path(env.get("ROSTER_DATA") or ".roster").absolute()
    cache_home = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(env.get("ROSTER_CACHE") or cache_home / "roster").absolute()
    kafka = env.get("ROSTER_KAFKA") or None
    registry = env.get("ROSTER_REGISTRY") or None
    if kafka is not None and not BROKERS.fullmatch(kafka):
        raise BadConfiguration(
            f"ROSTER_KAFKA is {kafka!r}; allowed: host:port, more of them with commas between"
        )
    for name in ("ROSTER_REGISTRY", "ROSTER_API"):
        if env.get(name) and not URL.fullmatch(env[name]):
            raise BadConfiguration(f"{name} is {env[name]!r}; allowed: a URL, http(s)://host...")
    if (kafka is None) != (registry is None):
        missing = "ROSTER_REGISTRY" if registry is None else "ROSTER_KAFKA"
        raise BadConfiguration(f"{missing} is missing: set both addresses, or none of them")
    own = kafka is not None
    running = _running(data)
    cut = {name: _whole(env, name, *bounds) for name, bounds in DEFINING.items()}
    for name, (usual, *_) in DEFINING.items():
        if cut[name] != usual and "ROSTER_GENERATION" not in env:
            raise BadConfiguration(
                f"{name} is {cut[name]}, which makes other facts than {usual}: set"
                " ROSTER_GENERATION too, to a number that no other definition has used"
            )
    return Settings(
        kafka=kafka or running.get("kafka"),
        registry=(registry or running.get("registry") or "").rstrip("/") or None,
        data=data,
        cache=cache,
        bind=env.get("ROSTER_BIND") or "127.0.0.1",
        own_cluster=own,
        replication=_whole(env, "ROSTER_REPLICATION", 1, 1, 9999),
        api=env.get("ROSTER_API") or running.get("api"),
        deployment=env.get("ROSTER_DEPLOYMENT") or "main",
        generation=_whole(env, "ROSTER_GENERATION", 2, 2, 2**31 - 1),
        pane_ms=cut["ROSTER_PANE_S"] * 1000,
        bound_ms=cut["ROSTER_BOUND_S"] * 1000,
        grace_ms=cut["ROSTER_GRACE_S"] * 1000,
        longest_panes=_whole(env, "ROSTER_WINDOW_PANES", 288, 1, 10_000),
    )


def _whole(env: dict[str, str], name: str, usual: int, least: int, most: int) -> int:
    text = env.get(name) or str(usual)
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise BadConfiguration(
            f"{name} is {text!r}; allowed: a whole number from {least} to {most}"
        )
    return int(text)


def _file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadConfiguration(
            f"{path} is no text; allowed: lines ROSTER_NAME=value in UTF-8"
        ) from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().startswith("ROSTER_"):
            raise BadConfiguration(f"{path} line {number}: {text!r}; allowed: ROSTER_NAME=value")
        if name.strip() not in NAMES:
            raise BadConfiguration(
                f"{path} line {number}: {name.strip()}; allowed: {', '.join(NAMES)}"
            )
        if value.strip():
            found[name.strip()] = value.strip()
    return found


def is_near(url: str) -> bool:
    """Whether a URL leads to this machine: a proxy that the environment names is for others."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def projector_api(data: Path) -> str | None:
    """Address of the read path of the projector that is alive on this data folder, else None."""
    state = _state(data / "projector.json")
    address = state.get("api")
    return address if isinstance(address, str) and is_alive(state.get("pid")) else None


def _running(data: Path) -> dict[str, str]:
    """Addresses that the supervisor wrote into run.json; {} if it is no longer alive."""
    state = _state(data / "run.json")
    parent = state.get("parent")
    addresses = state.get("addresses")
    if not isinstance(parent, dict) or not isinstance(addresses, dict):
        return {}
    if not is_alive(parent.get("pid")):
        return {}
    return {k: v for k, v in addresses.items() if isinstance(v, str)}


def _state(path: Path) -> dict[str, object]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def is_alive(pid: object) -> bool:
    """Whether a process of this number lives. A port it once had may be another system's now."""
    if not isinstance(pid, (int, float)):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and is somebody else's
        return True
    return True
