"""The five import names are ours (plain top-level names may collide, see pyproject.toml)."""

import importlib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "streams", "processors", "projections", "tools")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_imported_from_this_checkout(name: str) -> None:
    file = importlib.import_module(name).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT)


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_distribution_owns_the_name(name: str) -> None:
    assert set(packages_distributions().get(name, [])) <= {"roster"}


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_typed(name: str) -> None:
    assert (ROOT / name / "py.typed").exists()


def test_only_requirements_and_stock_names_of_hosts() -> None:
    """Packages and jars are named, never located: no registry address in what installs them."""
    for name in ("requirements.txt", "pyproject.toml", "Makefile", "tools/jars.lock"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name
