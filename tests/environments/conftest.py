"""A fresh root for every test."""

from pathlib import Path

import pytest

from tests.environments.house import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Downloads may use loopback here; nothing else is reachable anyway."""
    return House(tmp_path / "root", {"allow_private_urls": True})
