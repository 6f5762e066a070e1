"""Optional libraries: imported by name, and named in one line when they are missing."""

import json

import pytest

from tinyllm.errors import UserError
from tinyllm.utils.late_imports import is_installed, library


def test_library_imports_what_is_installed() -> None:
    assert is_installed("json") and library("json", hint="unused") is json


def test_library_refuses_what_is_not_installed_with_the_setting_and_the_hint() -> None:
    assert not is_installed("no_such_library")
    with pytest.raises(UserError, match=r"no_such_library.*\(logger=x\).*install it") as error:
        library("no_such_library", hint="install it", key="logger", value="x")
    assert "\n" not in str(error.value)
