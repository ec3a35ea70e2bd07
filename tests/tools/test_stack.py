"""Broker and registry are real; what the network gives is replaced where it must be wrong."""

import hashlib
import json
import os
import signal
import socket
import tarfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from streams import settings
from streams.errors import BadConfiguration, RosterError, Unreachable
from tools import jars, stack
from tools.supervisor import Supervisor, explained

pytestmark = pytest.mark.system

CACHE = settings.load().cache


@contextmanager
def listening() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as server:
        server.bind((stack.LOOPBACK, 0))
        server.listen()
        yield server.getsockname()[1]


# --- jars -----------------------------------------------------------------------------------------


class _Repository:
    """Stands for the network: gives every artifact the same bytes."""

    def __init__(self, content: bytes, folder: Path, failures: int = 0) -> None:
        self.content, self.folder, self.failures = content, folder, failures
        self.cached_path = folder / "part"

    def resolve(self) -> Path:
        if self.failures:
            self.failures -= 1
            self.cached_path.write_bytes(self.content[:1])
            raise RuntimeError("cut off")
        assert not self.cached_path.exists()
        self.cached_path.write_bytes(self.content)
        return self.cached_path


def jar_of(content: bytes) -> jars.Jar:
    return jars.Jar("a.b:c:1", hashlib.sha256(content).hexdigest(), len(content))


def test_the_lock_names_every_file_once() -> None:
    paths = [jar.path(CACHE) for jar in jars.lock()]
    assert len(set(paths)) == len(paths) == len(jars.installed()) + 1
    assert len(paths) > 90


def test_a_complete_cache_costs_milliseconds(cluster: stack.Addresses) -> None:
    began = time.perf_counter()
    stack.prepare(CACHE, say=pytest.fail)
    assert time.perf_counter() - began < 0.2


def test_a_file_other_than_the_lock_says_is_removed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = _Repository(b"forged", tmp_path)
    monkeypatch.setattr(jars, "_artifact", lambda *_: forged)
    jar = jar_of(b"true")
    with pytest.raises(BadConfiguration, match=r"a\.b:c:1 is not what jars\.lock says"):
        jars._fetch_one(None, jar, tmp_path)
    assert not forged.cached_path.exists()
    assert not jar.present(tmp_path)


def test_a_download_that_is_cut_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    repository = _Repository(b"true", tmp_path, failures=2)
    monkeypatch.setattr(jars, "_artifact", lambda *_: repository)
    jars._fetch_one(None, jar_of(b"true"), tmp_path)
    assert jar_of(b"true").present(tmp_path)
    assert not jar_of(b"true").damaged(tmp_path)


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    repository = _Repository(b"true", tmp_path, failures=9)
    monkeypatch.setattr(jars, "_artifact", lambda *_: repository)
    with pytest.raises(Unreachable, match=r"cannot be fetched.*ROSTER_KAFKA"):
        jars._fetch_one(None, jar_of(b"true"), tmp_path)


def test_parallel_starters_fetch_once_and_leave_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "lib").mkdir(parents=True)
    (source / "lib" / "a.jar").write_bytes(b"a")
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(source, ".")
    contents = {"a.b:c:1": b"true", "g:r:1:all:tar.gz": packed.read_bytes()}
    lock = [jars.Jar(c, hashlib.sha256(b).hexdigest(), len(b)) for c, b in contents.items()]
    lock.append(jars.Jar(f"g:r:1:all:tar.gz{jars.UNPACKED}", *jars.tree_sha256(source)))
    fetched = []

    def artifact(_context: object, coordinate: str) -> _Repository:
        fetched.append(coordinate)
        folder = tmp_path / "network" / coordinate.replace(":", "-")
        folder.mkdir(parents=True)
        return _Repository(contents[coordinate], folder)

    monkeypatch.setattr(jars, "lock", lambda: lock)
    monkeypatch.setattr(jars, "_artifact", artifact)
    cache = tmp_path / "cache"
    (cache / "fetch-of-one-that-was-killed").mkdir(parents=True)

    with ThreadPoolExecutor(3) as pool:
        did = list(pool.map(lambda _: jars.fetch(cache, say=lambda _text: None), range(3)))

    assert sorted(did) == [False, False, True]
    assert sorted(fetched) == sorted(contents)
    assert not any(jar.damaged(cache) for jar in jars.installed())
    assert sorted(p.name for p in cache.iterdir()) == ["fetch.lock", "jars", "registry"]
    assert [p.name for p in (cache / "jars").iterdir()] == ["c-1.jar"]


def test_a_changed_byte_is_found_by_hash(tmp_path: Path) -> None:
    jar = jar_of(b"true")
    jar.path(tmp_path).parent.mkdir()
    jar.path(tmp_path).write_bytes(b"trux")
    assert jar.present(tmp_path)
    assert jar.damaged(tmp_path)


# --- ports ----------------------------------------------------------------------------------------


def test_usual_ports_are_taken_if_free_and_kept_for_the_next_start(tmp_path: Path) -> None:
    first = stack.choose_ports(tmp_path, usual=None)
    assert stack.choose_ports(tmp_path) == first
    assert len({first.kafka, first.controller, first.registry}) == 3
    with listening() as taken:
        (tmp_path / "ports.json").unlink()
        usual = stack.Ports(taken, first.controller, first.registry)
        chosen = stack.choose_ports(tmp_path, usual)
    assert chosen.kafka != taken
    assert (chosen.controller, chosen.registry) == (first.controller, first.registry)


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with listening() as taken, pytest.raises(BadConfiguration, match=f"port {taken}.*is taken"):
        stack.registry(CACHE, "127.0.0.1:1", taken)


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(BadConfiguration, match=r"cannot listen on 203\.0\.113\.1"):
        stack.is_free(1234, "203.0.113.1")


def test_java_home_without_java_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(BadConfiguration, match="JAVA_HOME is /nowhere"):
        stack.java()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadConfiguration, match="no permission"):
        jars.fetch(tmp_path / "cache")


def test_permission_and_read_only_are_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(BadConfiguration, match=f"no permission to write {tmp_path}"),
        explained(tmp_path),
    ):
        raise PermissionError(13, "Permission denied")


# --- servers --------------------------------------------------------------------------------------


def test_the_broker_never_makes_a_topic_by_itself(kafka: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    assert "no.such.topic" not in admin.list_topics("no.such.topic", timeout=5).topics or (
        admin.list_topics("no.such.topic", timeout=5).topics["no.such.topic"].error is not None
    )


def test_the_registrys_journal_is_kept_for_ever(kafka: str, registry: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    asked = ConfigResource(ResourceType.TOPIC, stack.JOURNAL)
    config = admin.describe_configs([asked])[asked].result()
    assert config["retention.ms"].value == "-1" or config["cleanup.policy"].value == "compact"


def test_the_registry_speaks_confluents_protocol(registry: str) -> None:
    schema = {"type": "record", "name": "Probe", "fields": [{"name": "a", "type": "int"}]}
    body = {"schema": json.dumps(schema)}
    with httpx.Client(base_url=registry, trust_env=False) as client:
        made = client.post("/subjects/test.stack-Probe/versions", json=body)
        assert made.status_code == 200
        level = client.put("/config/test.stack-Probe", json={"compatibility": "FULL_TRANSITIVE"})
        assert level.status_code == 200
        schema["fields"] = [{"name": "b", "type": "string"}]
        refused = client.post(
            "/subjects/test.stack-Probe/versions", json={"schema": json.dumps(schema)}
        )
        assert refused.status_code == 409
        number = made.json()["id"]
        assert json.loads(client.get(f"/schemas/ids/{number}").json()["schema"])["name"] == "Probe"


def test_a_second_start_goes_on_with_the_data_also_after_a_kill(tmp_path: Path) -> None:
    """First life: a record and a schema, then the broker is killed and comes back by itself.
    Second life, on other ports: both are still there. A third broker on the folder is refused."""
    body = {"schema": '{"type": "string"}'}

    def start(supervisor: Supervisor) -> stack.Addresses:
        addresses, children = stack.local(tmp_path, CACHE, usual=None)
        supervisor.add(*children)
        supervisor.wait_ready(within_s=60)
        return addresses

    with Supervisor(tmp_path) as supervisor:
        first = start(supervisor)
        admin = AdminClient({"bootstrap.servers": first.kafka, "log_level": 0})
        admin.create_topics([NewTopic("kept", num_partitions=1)])["kept"].result(timeout=10)
        producer = Producer({"bootstrap.servers": first.kafka, "log_level": 0})
        producer.produce("kept", b"value")
        assert producer.flush(10) == 0
        httpx.post(f"{first.registry}/subjects/kept/versions", json=body).raise_for_status()
        with pytest.raises(BadConfiguration, match="a broker already runs on"):
            stack.choose_ports(tmp_path)

        pid = supervisor.states()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while supervisor.states()[0].restarts == 0:
            supervisor.poll()
            time.sleep(0.05)
        supervisor.wait_ready(within_s=60, deaths=1)

    (tmp_path / "ports.json").unlink()
    with Supervisor(tmp_path) as supervisor:
        second = start(supervisor)
        assert second != first
        subjects = httpx.get(f"{second.registry}/subjects").json()
        assert subjects == ["kept"]
        consumer = Consumer(
            {
                "bootstrap.servers": second.kafka,
                "group.id": "test",
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe(["kept"])
        record = consumer.poll(20)
        consumer.close()
        assert record is not None
        assert record.value() == b"value"


def test_storage_is_formatted_whatever_the_id_of_the_cluster_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = stack.choose_ports(tmp_path, usual=None)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xfb" * 16))
    stack.kafka(tmp_path, CACHE, ports)
    assert "cluster.id=-" in (tmp_path / "kafka/log/meta.properties").read_text(encoding="utf-8")


def test_attached_starts_for_as_long_as_it_takes_and_uses_what_runs(tmp_path: Path) -> None:
    with stack.attached(tmp_path, CACHE) as outer:
        assert stack.registry_answers(outer.registry)
        with stack.attached(tmp_path, CACHE) as inner:
            assert inner == outer
    assert not stack.registry_answers(outer.registry)
    given = stack.Addresses("kafka:9092", "http://registry:8081")
    with stack.attached(tmp_path, CACHE, given) as found:
        assert found is given


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    ports = stack.choose_ports(tmp_path, usual=None)
    child = stack.kafka(tmp_path, CACHE, ports)
    (tmp_path / "kafka" / "server.properties").write_text("process.roles=nonsense\n")
    with (
        Supervisor(tmp_path, child) as supervisor,
        pytest.raises(RosterError, match=r"(?s)kafka ended.*the end of .*nonsense"),
    ):
        supervisor.wait_ready(within_s=30)
