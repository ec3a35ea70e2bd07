"""A header of published rankings: status, as_of, revision and generation, so that whoever wants
only the newest of each key need not decode them all."""

from typing import Any, Final, NamedTuple

from confluent_kafka import Message

from schemas import ModelProfileScored

HEADER: Final = "roster-status"
LONGEST: Final = 64


class Summary(NamedTuple):
    """What a ranking is. status: value of RankingStatus."""

    status: str
    as_of_ms: int
    revision: int
    generation: int


def header(scored: ModelProfileScored) -> tuple[str, bytes]:
    """The header of a ranking."""
    parts = (scored.status.value, scored.as_of_ms, scored.revision, scored.generation)
    return HEADER, "/".join(map(str, parts)).encode()


def summary(message: Message) -> Summary | None:
    """What the header says; None if there is none, or it is no header of ours: then decode."""
    headers: Any = message.headers() or ()  # a list of pairs; the stub says more
    for name, value in headers:
        if name == HEADER and isinstance(value, bytes) and len(value) <= LONGEST:
            parts = value.decode("ascii", errors="replace").split("/")
            if len(parts) == 4 and all(part.isdecimal() for part in parts[1:]):
                return Summary(parts[0], int(parts[1]), int(parts[2]), int(parts[3]))
    return None
