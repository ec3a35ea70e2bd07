"""One real broker and one real registry for the whole run, in a temporary folder on free ports."""

import gc
from collections.abc import Iterator

import hypothesis
import pytest

from streams import settings
from tools import stack
from tools.supervisor import Supervisor

hypothesis.settings.register_profile("roster", deadline=None)  # speed is no test's business
hypothesis.settings.load_profile("roster")


def pytest_unconfigure() -> None:
    """Hypothesis leaves a callback behind that keeps every module to the interpreter's very end;
    DuckDB's binding would call that a leak and list it."""
    gc.callbacks.clear()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Addresses]:
    """Both, ready; ended with the run, also if the run is killed."""
    with Supervisor(tmp_path_factory.mktemp("cluster")) as supervisor:
        addresses, children = stack.local(supervisor.data, settings.load().cache, usual=None)
        supervisor.add(*children)
        supervisor.wait_ready(within_s=2 * stack.READY_WITHIN_S)
        yield addresses


@pytest.fixture(scope="session")
def kafka(cluster: stack.Addresses) -> str:
    """Bootstrap servers of the broker."""
    return cluster.kafka


@pytest.fixture(scope="session")
def registry(cluster: stack.Addresses) -> str:
    """URL of the registry's API like Confluent's."""
    return cluster.registry
