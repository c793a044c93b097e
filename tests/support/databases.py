"""Marks for tests of what the database makes little or no difference to: which of them run on one only."""

import pytest

_BOTH_IN_SOAK = ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)]

SHARED_ON_SQLITE = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)
SHARED_POSTGRES_IN_SOAK = pytest.mark.parametrize("shared_server", _BOTH_IN_SOAK, indirect=True)
POSTGRES_IN_SOAK = pytest.mark.parametrize("database_url", _BOTH_IN_SOAK, indirect=True)
