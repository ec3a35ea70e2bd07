"""Questions in SQL: to the running projector, or to its file where none runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx

from streams.errors import BadConfiguration, Unreachable
from streams.settings import Settings, projector_api

TIMEOUT_S: Final = 30.0


def api_address(settings: Settings) -> str | None:
    """The projector's read path: ROSTER_API's, the running system's, or that of a projector that
    was started alone on this data folder; None: none is known."""
    if settings.api is not None:
        return settings.api.rstrip("/")
    return projector_api(settings.data)


def answer(settings: Settings, sql: str, max_rows: int) -> dict[str, Any]:
    """columns, types, rows, more (there were more rows), offsets (topic -> partition -> next).

    Raises BadConfiguration for a question that is not answered, Unreachable if there is neither
    a projector nor a file.
    """
    address = api_address(settings)
    if address is not None:
        try:
            return post(address, sql, max_rows)
        except httpx.TransportError as error:
            if settings.api is not None and settings.own_cluster:
                raise Unreachable(f"the projector at {address} does not answer: {error}") from None
    return _from_file(settings.data / "roster.duckdb", sql, max_rows)


def post(address: str, sql: str, max_rows: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Asks the projector. Raises BadConfiguration if it refuses, httpx.TransportError if it does
    not answer."""
    body = {"sql": sql, "max_rows": max_rows}
    response = httpx.post(f"{address}/v1/sql", json=body, timeout=timeout_s, trust_env=False)
    found = response.json()
    if response.status_code == 503:
        raise Unreachable(f"the projector cannot answer now: {found['error']}")
    if response.status_code != 200:
        raise BadConfiguration(str(found["error"]))
    assert isinstance(found, dict)
    return found


def _from_file(path: Path, sql: str, max_rows: int) -> dict[str, Any]:
    import duckdb

    from projections.queries import Refused, ask
    from projections.store import CONFIG, SETTINGS

    if not path.exists():
        raise Unreachable(f"no projector answers, and there is no {path}: start `roster up`")
    try:
        with duckdb.connect(str(path), read_only=True, config=CONFIG) as db:
            for setting in SETTINGS:
                db.execute(setting)
            return asdict(ask(db.cursor(), sql, max_rows))
    except Refused as error:
        raise BadConfiguration(str(error)) from None
    except duckdb.Error as error:
        text = " ".join(str(error).split())
        raise Unreachable(f"no projector answers, and {path} cannot be opened: {text}") from None
