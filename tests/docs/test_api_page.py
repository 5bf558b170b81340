"""docs/api.md names every route with its method, and every error code with its status."""

import re

import pytest

from comfyd.api.app import FAMILIES
from comfyd.api.operation import operations
from comfyd.errors import HTTP_STATUS
from tests.docs.markdown import CHECKOUT

PAGE = (CHECKOUT / "docs/api.md").read_text()
ROUTES = {f"{one.method} {one.path}" for one in operations(FAMILIES)}


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_every_route_is_documented(route: str) -> None:
    assert f"| `{route}` |" in PAGE


def test_no_documented_route_is_missing_from_the_api() -> None:
    documented = set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) /[^`]*)` \|", PAGE, re.MULTILINE))
    assert documented - ROUTES == set()


def test_the_error_table_is_the_one_of_the_code() -> None:
    documented = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert documented == {code: str(status) for code, status in HTTP_STATUS.items()}
