"""Frameworks are tested only where somebody asks for it: they need `make test-frameworks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.environment import FRAMEWORKS

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of all tests passes this folder by."""
    named = (Path(arg.partition("::")[0]).absolute() for arg in config.args)
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the environment that has the frameworks."""
    return FRAMEWORKS.python
