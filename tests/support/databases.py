"""A mark for tests of what the database makes no difference to: one is enough."""

import pytest

SHARED_ON_SQLITE = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)
