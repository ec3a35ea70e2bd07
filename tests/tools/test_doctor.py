"""Each check, green and red; the red ones say what to do."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams import kafka as clients
from streams import settings, topics
from streams.codec import encode
from streams.registry import Registry, register_all
from tests.support.rankings import policy
from tools import doctor, jars, stack
from tools.doctor import Check

NOWHERE = "127.0.0.1:1"


def here(tmp_path: Path, **changes: object) -> settings.Settings:
    base = settings.load({"ROSTER_DATA": str(tmp_path), "ROSTER_CACHE": str(doctor_cache())})
    return replace(base, kafka=None, registry=None, **changes)  # type: ignore[arg-type]  # by name


def doctor_cache() -> Path:
    return settings.load().cache


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_sound_machine_on_which_nothing_runs_is_well(
    tmp_path: Path, cluster: stack.Addresses
) -> None:
    checks = doctor.examine(here(tmp_path))
    assert [c for c in checks if not c.ok] == []
    assert doctor.show(checks) == 0
    assert list(by_name(checks)) == [
        *("python", "packages", "java", "jars", "ports", "data folder", "disk", "broker"),
    ]


def test_with_a_cluster_of_ones_own_no_java_is_asked_for(
    tmp_path: Path, cluster: stack.Addresses
) -> None:
    topics.create(AdminClient({"bootstrap.servers": cluster.kafka}), replication=1)
    own = replace(here(tmp_path), kafka=cluster.kafka, registry=cluster.registry, own_cluster=True)
    found = by_name(doctor.examine(own))
    assert {"java", "jars", "ports"}.isdisjoint(found)
    assert found["broker"].ok
    assert found["registry"].ok
    assert found["topics"].ok
    assert "as declared" in found["topics"].detail


def test_silence_of_broker_and_registry_is_red_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.3)
    silent = replace(here(tmp_path), kafka=NOWHERE, registry=f"http://{NOWHERE}")
    found = by_name(list(doctor.cluster(silent)))
    assert not found["broker"].ok
    assert not found["registry"].ok
    assert found["broker"].remedy == "roster up"
    assert "topics" not in found
    own = by_name(list(doctor.cluster(replace(silent, own_cluster=True))))
    assert own["broker"].remedy == "correct ROSTER_KAFKA"


def test_records_that_nobody_reads_are_red_and_counted(kafka: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic("test.doctor", num_partitions=1)])["test.doctor"].result(10)
    producer = Producer({"bootstrap.servers": kafka})
    for _ in range(3):
        producer.produce("test.doctor", b"")
    producer.flush(10)
    group = Consumer({"bootstrap.servers": kafka, "group.id": "roster-test-doctor"})
    group.commit(offsets=[TopicPartition("test.doctor", 0, 1)], asynchronous=False)
    group.close()

    ok, detail = doctor._lag(admin)

    assert not ok
    assert "roster-test-doctor 2 behind, 0 reading" in detail


def test_a_policy_that_looks_back_further_than_facts_are_kept_is_red(
    tmp_path: Path, kafka: str, registry: str
) -> None:
    topics.create(AdminClient({"bootstrap.servers": kafka}), replication=1)
    with Registry(registry) as client:
        catalogue = register_all(client)
    role, out = f"role-{uuid4().hex}", clients.Outbound(clients.producer(kafka))
    for panes in (9_999, 10_000):  # the newest counts
        rules = policy(event_id=str(uuid4()), role=role, window_panes=panes)
        value = encode(catalogue, topics.SCORING_POLICY_UPDATED, rules)
        out.send(topics.SCORING_POLICY_UPDATED.name, f"{role}/PRODUCTION".encode(), value)
    out.flush()
    system = replace(here(tmp_path), kafka=kafka, registry=registry, longest_panes=9_999)
    (check,) = [c for c in doctor.cluster(system) if c.name == "windows"]
    assert not check.ok
    assert "1 policies is above ROSTER_WINDOW_PANES, 9999" in check.detail
    assert f"{role}/PRODUCTION 10000" in check.detail
    (check,) = [
        c for c in doctor.cluster(replace(system, longest_panes=10_000)) if c.name == "windows"
    ]
    assert check.ok and "none above 10000 panes" in check.detail


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text(
        "pytest==0.1 \\\n    --hash=sha256:00\nno-such-package==1\n"
        "colorama==1 ; sys_platform == 'win32'\n    # via something\n"
    )
    check = doctor.packages(pins)
    assert not check.ok
    assert "pytest is " in check.detail
    assert "no-such-package is missing" in check.detail
    assert "colorama" not in check.detail
    assert "make install" in check.remedy


def test_a_damaged_and_a_missing_jar_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = jars.Jar("a.b:c:1", "00", 4)
    monkeypatch.setattr(jars, "installed", lambda: [jar])
    assert "1 of 1 missing" in doctor.jar_files(tmp_path).detail
    jar.path(tmp_path).parent.mkdir()
    jar.path(tmp_path).write_bytes(b"four")
    assert doctor.jar_files(tmp_path, deep=False).ok
    check = doctor.jar_files(tmp_path)
    assert not check.ok
    assert check.remedy == f"rm -r {jar.path(tmp_path)}"


def test_java_home_without_java_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert not doctor.java().ok


def test_a_folder_that_cannot_be_written_is_red(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not doctor.writable("data folder", tmp_path / "file" / "data").ok
    assert doctor.writable("data folder", tmp_path / "data").ok
    assert not (tmp_path / "data").exists()


def test_a_small_disk_is_red(tmp_path: Path) -> None:
    assert not doctor.disk(tmp_path / "data", room_bytes=10**18).ok


def test_output_for_machines_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("a", True, "well"), Check("b", False, "ill", "heal")]
    assert doctor.show(checks, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "b",
        "ok": False,
        "detail": "ill",
        "remedy": "heal",
    }
    assert doctor.show(checks) == 1
    shown = capsys.readouterr().out
    assert "BAD b" in shown
    assert "→ heal" in shown
