"""The workers' client: which model plays a role, answered from memory.

with ProfilesReader("localhost:9092", "http://localhost:8081/apis/ccompat/v7") as profiles:
    profiles.wait_ready(10)
    found = profiles.get("chat", "prod", tenant="acme")
    print(found.profile.model, found.layer, found.version, found.offset, found.staleness_ms)
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import Message

from schemas import ModelProfileActive, Recorded
from schemas.values import canonical_mode, canonical_role
from streams.codec import Tombstone, position
from streams.live_reader import LiveReader
from streams.patient_decoder import PatientDecoder
from streams.topics import MODEL_PROFILE_ACTIVE

LAYERS: Final = ("user", "tenant", "mode", "system")
"""The most particular one that has a profile decides."""

Key = tuple[str, str, str]  # scope, canonical role, canonical mode


class Resolved(NamedTuple):
    """A profile, why it is this one, and how far it can be trusted.

    layer: one of LAYERS. partition, offset: where it stands in model.profile.active.
    staleness_ms: since the reader last had all there is and the broker said so; None: it has
    not yet read the whole table.
    """

    profile: ModelProfileActive
    layer: str
    version: int
    partition: int
    offset: int
    staleness_ms: int | None


@dataclass(frozen=True, slots=True)
class _Held:
    profile: ModelProfileActive
    record: bytes  # key of the record
    partition: int
    offset: int


class ProfilesReader:
    """Follows model.profile.active into a dictionary. Any thread may call any method."""

    def __init__(self, bootstrap: str, registry: str) -> None:
        """bootstrap: the broker, host:port. registry: URL of an API like Confluent's.

        Returns at once; what cannot be reached is tried again until `close`.
        """
        self._profiles: dict[Key, _Held] = {}
        self._of_record: dict[bytes, Key] = {}  # a tombstone names the record, not its parts
        self._skipped = 0
        self._decoder = PatientDecoder(registry)
        self._reader = LiveReader(bootstrap, [MODEL_PROFILE_ACTIVE.name], self._take)

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether the whole table has been read within timeout_s."""
        return self._reader.wait_ready(timeout_s)

    def get(
        self, role: str, mode: str, tenant: str | None = None, user: str | None = None
    ) -> Resolved | None:
        """The profile in force, by the first of LAYERS that has one; None if none has.

        role, mode: canonical name or any alias. user: within the tenant.
        No network. Raises ValueError for a user without a tenant.
        """
        role, mode = canonical_role(role), canonical_mode(mode)
        profiles = self._profiles
        held, layer = None, ""
        if tenant is not None:
            if user is not None:
                held, layer = profiles.get((f"user:{tenant}/{user}", role, mode)), "user"
            if held is None:
                held, layer = profiles.get((f"tenant:{tenant}", role, mode)), "tenant"
        elif user is not None:
            raise ValueError("user needs tenant")
        if held is None:
            held, layer = profiles.get(("mode", role, mode)), "mode"
        if held is None:
            held, layer = profiles.get(("system", role, mode)), "system"
        if held is None:
            return None
        return Resolved(
            held.profile,
            layer,
            held.profile.version,
            held.partition,
            held.offset,
            self._reader.staleness_ms(),
        )

    def profiles(self) -> list[ModelProfileActive]:
        """All profiles as they are now, by scope, role and mode."""
        held = dict(self._profiles)
        return [held[key].profile for key in sorted(held)]

    @property
    def skipped(self) -> int:
        """Records that could not be taken; the profile before them stays in force."""
        return self._skipped

    @property
    def staleness_ms(self) -> int | None:
        """As in Resolved; None until the whole table has been read."""
        return self._reader.staleness_ms()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be read just now; None if all is well."""
        return self._reader.trouble

    def close(self) -> None:
        """Ends thread and connections; may be called twice."""
        self._decoder.stop()
        self._reader.close()
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            found = self._decoder.decode(message)
            if found is None:
                return  # closing
            if isinstance(found, Tombstone):
                key = self._of_record.pop(found.key, None)
                held = None if key is None else self._profiles.get(key)
                if key is not None and held is not None and held.record == found.key:
                    del self._profiles[key]
            elif isinstance(found, Recorded) and isinstance(found.event, ModelProfileActive):
                self._put(found.event, message)
            else:
                self._skipped += 1

    def _put(self, profile: ModelProfileActive, message: Message) -> None:
        role, mode = canonical_role(profile.role), canonical_mode(profile.deployment_mode)
        key = (profile.scope, role, mode)
        at = position(message)
        record = message.key()
        assert isinstance(record, bytes)  # codec takes none without
        # One lookup sees the old profile or the new one, whole: the entry is replaced, not changed.
        self._profiles[key] = _Held(profile, record, at.partition, at.offset)
        self._of_record[record] = key
