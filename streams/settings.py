"""Environment -> frozen Settings, read once. `roster init` writes the same names as a file.

Order: environment variable, then `roster.env` in the working directory, then the running system
that `roster up` recorded in {data}/run.json, then the default.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streams.errors import BadConfiguration

FILE: Final = Path("roster.env")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """kafka, registry: addresses, None where nothing is known. bind: where we listen."""

    kafka: str | None
    registry: str | None
    data: Path
    cache: Path
    bind: str
    own_cluster: bool  # the two addresses were given: nothing is started or downloaded
    replication: int
    api: str | None  # address of the projector's read path, as the running system recorded it
    deployment: str

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
    env = {**_file(FILE), **(dict(os.environ) if environ is None else environ)}
    data = Path(env.get("ROSTER_DATA") or ".roster").absolute()
    cache_home = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(env.get("ROSTER_CACHE") or cache_home / "roster").absolute()
    kafka = env.get("ROSTER_KAFKA") or None
    registry = env.get("ROSTER_REGISTRY") or None
    if kafka is not None and (":" not in kafka or any(c.isspace() for c in kafka)):
        raise BadConfiguration(
            f"ROSTER_KAFKA is {kafka!r}; allowed: host:port, more of them with commas"
        )
    if registry is not None and not registry.startswith(("http://", "https://")):
        raise BadConfiguration(f"ROSTER_REGISTRY is {registry!r}; allowed: a URL, http(s)://...")
    if (kafka is None) != (registry is None):
        missing = "ROSTER_REGISTRY" if registry is None else "ROSTER_KAFKA"
        raise BadConfiguration(f"{missing} is missing: set both addresses, or none of them")
    own = kafka is not None
    running = _running(data)
    replication = env.get("ROSTER_REPLICATION") or "1"
    if not replication.isdigit() or int(replication) < 1:
        raise BadConfiguration(
            f"ROSTER_REPLICATION is {replication!r}; allowed: a whole number from 1"
        )
    return Settings(
        kafka=kafka or running.get("kafka"),
        registry=(registry or running.get("registry") or "").rstrip("/") or None,
        data=data,
        cache=cache,
        bind=env.get("ROSTER_BIND") or "127.0.0.1",
        own_cluster=own,
        replication=int(replication),
        api=env.get("ROSTER_API") or running.get("api"),
        deployment=env.get("ROSTER_DEPLOYMENT") or "main",
    )


def _file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().startswith("ROSTER_"):
            raise BadConfiguration(f"{path} line {number}: {text!r}; allowed: ROSTER_NAME=value")
        found[name.strip()] = value.strip()
    return found


def _running(data: Path) -> dict[str, str]:
    """Addresses that the supervisor wrote into run.json; {} if nothing runs."""
    try:
        state = json.loads((data / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    addresses = state.get("addresses", {}) if isinstance(state, dict) else {}
    return {k: v for k, v in addresses.items() if isinstance(v, str)}
