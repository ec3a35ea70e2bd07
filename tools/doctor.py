"""Is everything there and well? Each answer is a Check; a red one says what to do."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from streams import status
from streams.errors import RosterError
from streams.settings import Settings
from tools import jars, stack
from tools.supervisor import explained, running

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

PINS: Final = Path(__file__).parent.parent / "requirements.txt"
ROOM_BYTES: Final = 2_000_000_000  # jars and class data take 0.4 GB, an hour of the trace about 0.1
IDLE_LAG: Final = 0  # records that may wait in a group which nobody reads for
TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """remedy: what to do if ok is False."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings, deep: bool = True) -> list[Check]:
    """All checks, in the order in which one would repair. deep: hash the jars (about 1 s)."""
    checks: list[Check] = [python_version(), packages()]
    if not settings.own_cluster:
        checks += [java(), jar_files(settings.cache, deep), ports(settings.data)]
    checks += [writable("data folder", settings.data), disk(settings.data)]
    checks += cluster(settings)
    return checks


def python_version() -> Check:
    """CPython 3.11 to 3.13."""
    found = sys.version_info[:3]
    ok = (3, 11) <= found[:2] <= (3, 13) and sys.implementation.name == "cpython"
    name = f"{sys.implementation.name} {'.'.join(map(str, found))}"
    return Check("python", ok, name, "use CPython 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...")


def packages(pins: Path = PINS) -> Check:
    """Installed versions are those of requirements.txt."""
    from packaging.requirements import Requirement

    if not pins.is_file():
        return Check("packages", True, "not a checkout: no requirements.txt to compare with")
    lines = pins.read_text(encoding="utf-8").splitlines()
    wrong, count = [], 0
    for line in lines:
        if not line or line[0] in " #-":
            continue
        pin = Requirement(line.removesuffix("\\"))
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        count += 1
        try:
            found = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if not pin.specifier.contains(found if found != "missing" else "0", prereleases=True):
            wrong.append(f"{pin.name} is {found}, pinned{pin.specifier}")
    detail = "; ".join(wrong[:5]) if wrong else f"{count} as pinned"
    return Check("packages", not wrong, detail, "rm .venv/.installed && make install")


def java() -> Check:
    """A Java that can run both servers."""
    try:
        version = stack.java_version()
    except RosterError as error:
        return Check("java", False, str(error), "unset JAVA_HOME to use the packaged one")
    ok = version >= 17
    return Check("java", ok, f"{version} at {stack.java()}", "set JAVA_HOME to Java 17 or newer")


def jar_files(cache: Path, deep: bool = True) -> Check:
    """The cache holds what jars.lock says. deep: by hash, otherwise by size."""
    wanted = jars.installed()
    missing = [jar for jar in wanted if not jar.present(cache)]
    if missing:
        detail = f"{len(missing)} of {len(wanted)} missing in {cache}"
        return Check("jars", False, detail, "roster jars")
    damaged = [jar for jar in wanted if deep and jar.damaged(cache)]
    if damaged:
        names = ", ".join(jar.coordinate for jar in damaged[:3])
        paths = " ".join(str(jar.path(cache)) for jar in damaged)
        return Check("jars", False, f"not what jars.lock says: {names}", f"rm -r {paths}")
    return Check("jars", True, f"{len(wanted)} {'by hash' if deep else 'by size'} in {cache}")


def ports(data: Path) -> Check:
    """Never red: where a usual port is taken, a free one is used."""
    owner = running(data)
    if owner is not None:
        said = ", ".join(f"{k} {v}" for k, v in owner.addresses.items())
        return Check("ports", True, said or f"in use by pid {owner.pid}")
    usual = {name: getattr(stack.USUAL, name) for name in ("kafka", "controller", "registry")}
    taken = [f"{port} ({name})" for name, port in usual.items() if not stack.is_free(port)]
    if not taken:
        return Check("ports", True, f"{', '.join(map(str, usual.values()))} are free")
    return Check("ports", True, f"taken: {', '.join(taken)}; free ones will be used")


def writable(name: str, folder: Path) -> Check:
    """A file can be made in the folder, or the folder itself."""
    try:
        with explained(folder):
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.write_text("yes")
            probe.unlink()
            if made:
                folder.rmdir()
    except RosterError as error:
        return Check(name, False, str(error), "set ROSTER_DATA to a folder of yours")
    return Check(name, True, str(folder))


def disk(folder: Path, room_bytes: int = ROOM_BYTES) -> Check:
    """Room where the data lies."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / 1e9:.1f} GB free at {there}"
    return Check("disk", free >= room_bytes, detail, "make room, or set ROSTER_DATA")


def cluster(settings: Settings) -> Iterator[Check]:
    """Broker, registry, topics and lag; nothing is wrong with a system that is not started."""
    if settings.kafka is None or settings.registry is None:
        yield Check("broker", True, "none is running; `roster up` starts one")
        return
    start = "correct ROSTER_KAFKA" if settings.own_cluster else "roster up"
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": settings.kafka, "log_level": 0})
    broker = _asked("broker", lambda: _brokers(admin, settings.kafka), start)
    yield broker
    answers = stack.registry_answers(settings.registry, TIMEOUT_S)
    start = "correct ROSTER_REGISTRY" if settings.own_cluster else "roster up"
    yield Check("registry", answers, settings.registry + ("" if answers else " is silent"), start)
    if broker.ok:
        yield _asked("topics", lambda: _topics(admin), "roster topics --create")
        yield _asked("lag", lambda: _lag(admin), "start what reads: roster up")
    if broker.ok and answers:
        remedy = "roster policies set ROLE MODE window_panes=N, or a higher ROSTER_WINDOW_PANES"
        yield _asked("windows", lambda: _windows(settings), f"{remedy} for meters and agents")


def healthy(settings: Settings, name: str) -> bool:
    """Whether one process works: broker and registry answer, the others have lately said so on
    this machine: on a shared data folder another container's answer would be for another."""
    if name == "kafka":
        host, _, port = settings.need_kafka().split(",")[0].rpartition(":")
        return stack.kafka_answers(host, int(port))
    if name == "registry":
        return stack.registry_ready(settings.need_registry())
    reports = status.read_all(settings.data)
    here = (n for n, report in reports.items() if status.local_pid(report) is not None)
    return any(n == name or n.startswith(f"{name}-") for n in here)


def show(checks: list[Check], as_json: bool = False) -> int:
    """Prints the checks; returns the exit status: 0 if all are well, else 1."""
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console()
        for check in checks:
            mark = Text("ok ", "green") if check.ok else Text("BAD", "bold red")
            console.print(mark, Text(f" {check.name:<12}{check.detail}"), sep="", soft_wrap=True)
            if not check.ok:
                console.print(Text(f"                → {check.remedy}", "yellow"), soft_wrap=True)
    return 0 if all(check.ok for check in checks) else 1


def _asked(name: str, ask: Callable[[], tuple[bool, str]], remedy: str) -> Check:
    """A check of something that may not answer."""
    from confluent_kafka import KafkaException

    try:
        ok, detail = ask()
    except (KafkaException, RosterError) as error:
        cause = error.args[0] if error.args else error
        said = cause.str() if hasattr(cause, "str") else str(cause)
        return Check(name, False, said, remedy)
    return Check(name, ok, detail, remedy)


def _brokers(admin: "AdminClient", address: str | None) -> tuple[bool, str]:
    found = admin.list_topics(timeout=TIMEOUT_S)
    return True, f"{address}, {len(found.brokers)} node(s), {len(found.topics)} topics"


def _topics(admin: "AdminClient") -> tuple[bool, str]:
    from streams import topics

    lines = topics.drift(admin, TIMEOUT_S)
    return not lines, "; ".join(lines[:5]) if lines else f"{len(topics.TOPICS)} as declared"


def _windows(settings: Settings) -> tuple[bool, str]:
    """No policy looks back further than facts are kept: its final rankings may stop."""
    from schemas import ScoringPolicyUpdated
    from streams.topics import SCORING_POLICY_UPDATED
    from tools.log_reader import newest

    longest = settings.longest_panes
    found = newest(settings, SCORING_POLICY_UPDATED, ScoringPolicyUpdated).values()
    wrong = sorted(
        f"{policy.role}/{policy.deployment_mode} {policy.window_panes}"
        for policy in (recorded.event for recorded in found)
        if policy.window_panes > longest
    )
    if not wrong:
        return True, f"{len(found)} policies, none above {longest} panes"
    said = ", ".join([*wrong[:4], *(["..."] if len(wrong) > 4 else [])])
    return False, (
        f"window_panes of {len(wrong)} policies is above ROSTER_WINDOW_PANES, {longest}, and their"
        f" final rankings may stop: {said}"
    )


def _lag(admin: "AdminClient") -> tuple[bool, str]:
    """Records that wait per group of ours. Red where some wait and nobody reads."""
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    listed = admin.list_consumer_groups(request_timeout=TIMEOUT_S).result().valid or []
    names = sorted(g.group_id for g in listed if g.group_id.startswith("roster"))
    ok, said = True, []
    for name in names:
        described = admin.describe_consumer_groups([name], request_timeout=TIMEOUT_S)
        members = len(described[name].result().members)
        request = [ConsumerGroupTopicPartitions(name)]
        offsets = admin.list_consumer_group_offsets(request, request_timeout=TIMEOUT_S)
        at = [p for p in offsets[name].result().topic_partitions if p.offset >= 0]
        latest = OffsetSpec.latest()
        wanted = {TopicPartition(p.topic, p.partition): latest for p in at}
        ends = admin.list_offsets(wanted, request_timeout=TIMEOUT_S) if wanted else {}
        end = {(tp.topic, tp.partition): f.result().offset for tp, f in ends.items()}
        lag = sum(max(0, end[p.topic, p.partition] - p.offset) for p in at)
        said.append(f"{name} {lag:,} behind, {members} reading")
        ok = ok and (members > 0 or lag <= IDLE_LAG)
    return ok, "; ".join(said) if said else "no group of ours yet"
