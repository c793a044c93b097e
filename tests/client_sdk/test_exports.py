import importlib
import subprocess
import sys

import client_sdk


def test_the_public_list_is_sorted_and_real() -> None:
    assert client_sdk.__all__ == sorted(client_sdk.__all__)
    for name in client_sdk.__all__:
        home = importlib.import_module(client_sdk._HOME_OF[name])
        assert getattr(client_sdk, name) is getattr(home, name)


def test_every_lazy_name_is_public_and_the_other_way_round() -> None:
    assert sorted(client_sdk._HOME_OF) == client_sdk.__all__
    assert set(client_sdk.__all__) <= set(dir(client_sdk))


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(client_sdk, "no_such_name")


def test_the_plain_install_needs_none_of_the_extras() -> None:
    extras = ("cryptography", "dp_accounting", "opacus", "torch", "fastapi", "sqlalchemy")
    without = f"import sys\nfor name in {extras}: sys.modules[name] = None\n"
    code = f"{without}from client_sdk import *\nimport client_sdk.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_need_no_torch() -> None:
    code = "import sys, client_sdk\nfrom client_sdk import *\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
