"""docs/api-reference is what the docstrings say."""

import subprocess
import sys

from tests.docs.pages import CHECKOUT


def test_the_reference_is_what_the_docstrings_say() -> None:
    call = [sys.executable, str(CHECKOUT / "scripts" / "make_reference.py"), "--check"]
    answer = subprocess.run(call, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
