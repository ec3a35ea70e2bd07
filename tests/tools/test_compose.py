"""docker-compose.yaml and Dockerfile, as far as they can be judged without an engine."""

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from streams import settings
from tools.__main__ import app

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VERBS = typer.main.get_group(app).commands


def test_it_is_a_compose_file() -> None:
    # Of this package only the schema it ships is used; there is no need to import it.
    vendor = distribution("check-jsonschema").locate_file("check_jsonschema/builtin_schemas/vendor")
    schema = json.loads(Path(str(vendor), "compose-spec.json").read_text(encoding="utf-8"))
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(COMPOSE)
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in errors] == []


def test_each_process_is_a_service() -> None:
    assert list(SERVICES) == [
        *("kafka", "registry", "init", "agents", "meter", "projector", "workload"),
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_its_command_is_a_verb_with_options_that_exist(name: str) -> None:
    verb, *further = SERVICES[name]["command"]
    assert verb in VERBS
    options = {option for parameter in VERBS[verb].params for option in parameter.opts}
    assert {word for word in further if word.startswith("--")} <= options


@pytest.mark.parametrize("name", SERVICES)
def test_all_share_one_environment_that_the_settings_take(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment == SERVICES["kafka"]["environment"]
    found = settings.load(environment)
    assert found.own_cluster
    assert (found.kafka, found.bind) == ("kafka:9092", "0.0.0.0")
    assert (found.data, found.cache) == (Path("/data"), Path("/cache"))


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "init"])
def test_it_is_checked_and_keeps_its_data(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"] == ["CMD", "roster", "healthy", name]
    assert service["volumes"] == [f"{name}:/data"]
    assert name in COMPOSE["volumes"]


def test_the_image_holds_every_package() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    for package in ("schemas", "streams", "processors", "projections", "tools"):
        assert f"COPY {package} {package}" in lines
