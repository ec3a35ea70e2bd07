"""Settings come from four places in one order, and a wrong one is named with what is allowed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from processors.meter_protocol import GENERATION
from processors.windows import STANDARD, Windowing
from streams import settings
from streams.errors import BadConfiguration
from streams.settings import Settings, load, projector_api

OWN = {"ROSTER_KAFKA": "host:9092", "ROSTER_REGISTRY": "http://host:8081"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: no roster.env, no .roster."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def running(folder: Path, **addresses: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"addresses": addresses, "parent": {"pid": os.getpid(), "create_time": 0.0}}
    (folder / "run.json").write_text(json.dumps(state), encoding="utf-8")


def test_nothing_said_is_a_start_on_this_machine(tmp_path: Path) -> None:
    found = load({})
    assert found == Settings(
        kafka=None,
        registry=None,
        data=tmp_path / ".roster",
        cache=Path.home() / ".cache" / "roster",
        bind="127.0.0.1",
        own_cluster=False,
        replication=1,
        api=None,
        deployment="main",
    )
    for need in (found.need_kafka, found.need_registry):
        with pytest.raises(BadConfiguration, match="roster up"):
            need()


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSTER_DEPLOYMENT", "blue")
    assert load().deployment == "blue"


def test_environment_before_file_before_running_system_before_default(tmp_path: Path) -> None:
    running(tmp_path / ".roster", kafka="run:1", registry="http://run:2", api="http://run:3")
    found = load({})
    assert (found.kafka, found.registry, found.api) == ("run:1", "http://run:2", "http://run:3")
    assert not found.own_cluster

    settings.FILE.write_text(
        "# a comment\n\n ROSTER_KAFKA = file:1 \nROSTER_REGISTRY=http://file:2/\n"
        "ROSTER_API=http://file:3\nROSTER_DEPLOYMENT=a=b\n",
        encoding="utf-8",
    )
    found = load({})
    assert (found.kafka, found.registry, found.api) == ("file:1", "http://file:2", "http://file:3")
    assert found.deployment == "a=b"
    assert found.own_cluster

    found = load({"ROSTER_KAFKA": "env:1", "ROSTER_DEPLOYMENT": "env"})
    assert (found.kafka, found.registry, found.deployment) == ("env:1", "http://file:2", "env")


def test_what_a_dead_system_wrote_down_counts_no_more(tmp_path: Path) -> None:
    folder = tmp_path / ".roster"
    running(folder, kafka="run:1", registry="http://run:2", api="http://run:3")
    (folder / "projector.json").write_text(json.dumps({"api": "http://run:3", "pid": os.getpid()}))
    assert projector_api(folder) == "http://run:3"
    child = subprocess.Popen(["true"])
    child.wait()
    for name in ("run.json", "projector.json"):
        text = (folder / name).read_text().replace(str(os.getpid()), str(child.pid))
        (folder / name).write_text(text)
    assert projector_api(folder) is None
    assert (load({}).kafka, load({}).api) == (None, None)


def test_an_empty_variable_says_nothing() -> None:
    settings.FILE.write_text("ROSTER_DEPLOYMENT=file\n", encoding="utf-8")
    assert load({"ROSTER_DEPLOYMENT": "", "ROSTER_KAFKA": "", "ROSTER_REPLICATION": ""}) == load({})
    assert load({"ROSTER_DEPLOYMENT": ""}).deployment == "file"


def test_folders_are_absolute_and_follow_their_variables(tmp_path: Path) -> None:
    found = load({"ROSTER_DATA": "here", "XDG_CACHE_HOME": "/var/cache"})
    assert (found.data, found.cache) == (tmp_path / "here", Path("/var/cache/roster"))
    assert load({"ROSTER_CACHE": "/c", "XDG_CACHE_HOME": "/var"}).cache == Path("/c")


@pytest.mark.parametrize(
    "state", ["", "no json", "[]", '"x"', '{"addresses": 5}', '{"addresses": {"kafka": 9}}', "null"]
)
def test_a_record_of_a_run_that_says_nothing_is_as_none(tmp_path: Path, state: str) -> None:
    (tmp_path / ".roster").mkdir()
    (tmp_path / ".roster" / "run.json").write_text(state, encoding="utf-8")
    assert load({}).kafka is None


@pytest.mark.parametrize(
    ("environ", "variable", "value", "allowed"),
    [
        ({**OWN, "ROSTER_KAFKA": "host"}, "ROSTER_KAFKA", "host", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "host:"}, "ROSTER_KAFKA", "host:", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "host:x"}, "ROSTER_KAFKA", "host:x", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "a:1, b:2"}, "ROSTER_KAFKA", "a:1, b:2", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "a:1,,b:2"}, "ROSTER_KAFKA", "a:1,,b:2", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "a:1,b"}, "ROSTER_KAFKA", "a:1,b", "host:port"),
        ({**OWN, "ROSTER_KAFKA": "http://a:1"}, "ROSTER_KAFKA", "http://a:1", "host:port"),
        ({**OWN, "ROSTER_REGISTRY": "host:8081"}, "ROSTER_REGISTRY", "host:8081", "http"),
        ({**OWN, "ROSTER_REGISTRY": "http://"}, "ROSTER_REGISTRY", "http://", "http"),
        ({"ROSTER_KAFKA": "host:9092"}, "ROSTER_REGISTRY", "missing", "both"),
        ({"ROSTER_REGISTRY": "http://host"}, "ROSTER_KAFKA", "missing", "both"),
        ({"ROSTER_REPLICATION": "0"}, "ROSTER_REPLICATION", "0", "whole number"),
        ({"ROSTER_REPLICATION": "-1"}, "ROSTER_REPLICATION", "-1", "whole number"),
        ({"ROSTER_REPLICATION": "two"}, "ROSTER_REPLICATION", "two", "whole number"),
        ({"ROSTER_REPLICATION": "²"}, "ROSTER_REPLICATION", "²", "whole number"),
        ({"ROSTER_REPLICATION": "1.5"}, "ROSTER_REPLICATION", "1.5", "whole number"),
        ({"ROSTER_GENERATION": "1"}, "ROSTER_GENERATION", "1", "from 2"),
        ({"ROSTER_PANE_S": "0"}, "ROSTER_PANE_S", "0", "from 1 to 86400"),
        ({"ROSTER_PANE_S": "60"}, "ROSTER_PANE_S", "60", "ROSTER_GENERATION"),
        ({"ROSTER_GRACE_S": "0"}, "ROSTER_GRACE_S", "0", "ROSTER_GENERATION"),
        ({"ROSTER_BOUND_S": "5m"}, "ROSTER_BOUND_S", "5m", "whole number"),
        ({"ROSTER_WINDOW_PANES": "10001"}, "ROSTER_WINDOW_PANES", "10001", "to 10000"),
        ({"ROSTER_API": "localhost:80"}, "ROSTER_API", "localhost:80", "http"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(
    environ: dict[str, str], variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(BadConfiguration) as error:
        load(environ)
    line = str(error.value)
    assert line.startswith(variable)
    assert value in line
    assert allowed in line
    assert "\n" not in line


def test_the_usual_definition_is_that_of_the_core() -> None:
    found = load({})
    assert found.generation == GENERATION
    lengths = (found.pane_ms, found.bound_ms, found.grace_ms, found.longest_panes)
    assert Windowing(*lengths) == STANDARD


def test_another_definition_has_a_generation_of_its_own() -> None:
    found = load({"ROSTER_PANE_S": "60", "ROSTER_BOUND_S": "0", "ROSTER_GENERATION": "3"})
    assert (found.generation, found.pane_ms, found.bound_ms) == (3, 60_000, 0)
    assert load({"ROSTER_WINDOW_PANES": "8640"}).longest_panes == 8640  # says only how long


@pytest.mark.parametrize(
    "kafka", ["localhost:9092", "10.0.0.1:9092,b.example:9093", "[::1]:9092", "my_broker-1:19092"]
)
def test_addresses_of_brokers(kafka: str) -> None:
    assert load({**OWN, "ROSTER_KAFKA": kafka}).need_kafka() == kafka


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"KAFKA=x", "'KAFKA=x'"),
        (b"ROSTER_KAFKA", "'ROSTER_KAFKA'"),
        (b"export ROSTER_KAFKA=x:1", "export"),
        (b"ROSTER_KAFAK=x:1", "ROSTER_KAFAK"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(line: bytes, said: str) -> None:
    settings.FILE.write_bytes(b"# first\nROSTER_DEPLOYMENT=x\n" + line + b"\n")
    with pytest.raises(BadConfiguration) as error:
        load({})
    assert str(error.value).startswith("roster.env")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    if b"\xff" not in line:
        assert "line 3" in str(error.value)
        assert "allowed:" in str(error.value)


def test_a_file_that_cannot_be_read_is_named() -> None:
    settings.FILE.mkdir()
    assert load({}).kafka is None  # a folder of that name is not a file of settings
