"""docs/configuration.md names every variable that the settings know, with its default."""

import re
from pathlib import Path
from typing import Any

import pytest

from comfyd.settings import READ_ELSEWHERE, Settings, setting_variables

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs/configuration.md").read_text()
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([^|]*) \|", re.MULTILINE)
ROWS = dict(ROW.findall(PAGE))


@pytest.mark.parametrize("variable", sorted(set(setting_variables()) | READ_ELSEWHERE))
def test_every_variable_is_documented(variable: str) -> None:
    assert f"`{variable}`" in PAGE


def test_no_row_names_a_variable_that_does_not_exist() -> None:
    assert ROWS, "the tables were not found"
    assert set(ROWS) <= set(setting_variables()) | READ_ELSEWHERE


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


DEFAULTS = {
    variable: _written(Settings.model_fields[field].default)
    for variable, field in setting_variables().items()
    if variable in ROWS and Settings.model_fields[field].default not in {None, ""}
}


@pytest.mark.parametrize("variable", sorted(DEFAULTS))
def test_the_default_in_the_table_is_the_real_one(variable: str) -> None:
    assert ROWS[variable] == f"`{DEFAULTS[variable]}`"
