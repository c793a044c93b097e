"""Nothing in the product runs code from data or draws secrets from a guessable generator: the source is scanned for it.

The scan resolves imports and aliases, so `from pickle import loads as read` is seen; a decoy for every rule shows that
each of them can fail.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("aggregator_service", "client_sdk", "fl_protocol", "migrations")

BANNED_MODULES: Final = frozenset({
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "jsonpickle",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
})  # fmt: skip
BANNED_NAMES: Final = frozenset({
    "__import__",
    "compile",
    "eval",
    "exec",
    "builtins.__import__",
    "builtins.compile",
    "builtins.eval",
    "builtins.exec",
    "numpy.load",
    "os.popen",
    "os.system",
    "runpy.run_module",
    "runpy.run_path",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
})  # fmt: skip
PROCESS_PREFIXES: Final = ("os.exec", "os.posix_spawn", "os.spawn")
PROCESSES: Final = frozenset({
    "anyio.open_process",
    "anyio.run_process",
    "asyncio.create_subprocess_exec",
    "asyncio.create_subprocess_shell",
    "multiprocessing",
    "subprocess",
})  # fmt: skip
MAY_START_PROCESSES: Final = frozenset({
    "aggregator_service/flow/sessions/mask_removal.py",
    "client_sdk/cli/service.py",
    "client_sdk/local_server.py",
})  # fmt: skip
"""The demo and the simulation start a server; `fedquorum serve` becomes one; a server adds up masks on other cores."""

GUESSABLE: Final = (
    "numpy.random",
    "random",
    "torch.Generator",
    "torch.bernoulli",
    "torch.distributions",
    "torch.manual_seed",
    "torch.multinomial",
    "torch.nn.init",
    "torch.normal",
    "torch.poisson",
    "torch.random",
)
GUESSABLE_PREFIX: Final = "torch.rand"
"""torch.rand, torch.randn, torch.randint, torch.rand_like, ..."""
GUESSABLE_METHODS: Final = frozenset({
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
})  # fmt: skip
"""What tensors have to fill themselves."""
SECRET_ROOMS: Final = ("privacy", "masking")
PRIVATE_FOLDERS: Final = ("aggregator_service/domain/privacy", "fl_protocol/masking", "fl_protocol/privacy")
"""Rooms that there must be: noise that moved to another place would not be looked at."""


def _is_in(name: str, modules: frozenset[str] | tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Gives the full name behind each name that an import binds."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, aliases)}.{node.attr}"
    return ""


def _used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.lineno, _full_name(node, aliases)


def _dynamic_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Gives the modules that are imported by a name in a string."""
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _full_name(node.func, aliases) != "importlib.import_module":
            continue
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            yield node.lineno, node.args[0].value


def _allows_pickle(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "weights_only"}:
            yield node.value.lineno


def _reason(name: str, path: str) -> str | None:
    if _is_in(name, BANNED_MODULES) or _is_in(name, BANNED_NAMES):
        return "runs code from data"
    starts = _is_in(name, PROCESSES) or name.startswith(PROCESS_PREFIXES)
    if starts and path not in MAY_START_PROCESSES:
        return "starts a program"
    if _is_guessable(name) and set(Path(path).parts[:-1]) & set(SECRET_ROOMS):
        return "is guessable"
    return None


def _is_guessable(name: str) -> bool:
    method = name.rpartition(".")[2]
    return _is_in(name, GUESSABLE) or name.startswith(GUESSABLE_PREFIX) or method in GUESSABLE_METHODS


def faults(source: str, path: str) -> list[str]:
    """Lists what is banned in a file; `path` is relative to the project."""
    tree = ast.parse(source)
    names = {*_imported(tree), *_used(tree), *_dynamic_imports(tree)}
    found = {f"{path}:{line}: {name} {reason}" for line, name in names if (reason := _reason(name, path)) is not None}
    return sorted(found | {f"{path}:{line}: allow_pickle runs code from data" for line in _allows_pickle(tree)})


def _sources() -> list[str]:
    return sorted(file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_the_scan_finds_the_packages() -> None:
    found = {path.partition("/")[0] for path in _sources()}
    assert found == set(PACKAGES)
    assert set(_sources()) >= MAY_START_PROCESSES
    assert {Path(path).parent.as_posix() for path in _sources()} >= set(PRIVATE_FOLDERS)


@pytest.mark.parametrize("path", _sources())
def test_a_source_file_runs_no_code_from_data(path: str) -> None:
    assert faults((ROOT / path).read_text(encoding="utf-8"), path) == []


DECOYS: Final = {
    "import pickle": "client_sdk/a.py",
    "import pickle as json": "client_sdk/a.py",
    "from pickle import loads as read": "client_sdk/a.py",
    "import importlib\nimportlib.import_module('pickle')": "client_sdk/a.py",
    "from importlib import import_module as get\nget('marshal')": "client_sdk/a.py",
    "import marshal": "fl_protocol/a.py",
    "import shelve": "aggregator_service/storage/a.py",
    "import dill": "client_sdk/a.py",
    "import cloudpickle": "client_sdk/a.py",
    "import joblib": "client_sdk/a.py",
    "import torch\ntorch.load('model.pt')": "client_sdk/torch/a.py",
    "import torch\ntorch.load('model.pt', weights_only=True)": "client_sdk/torch/a.py",
    "from torch import load as read\nread('model.pt')": "client_sdk/torch/a.py",
    "import torch as t\nt.jit.load('model.pt')": "client_sdk/torch/a.py",
    "import torch\nread = torch.load": "client_sdk/torch/a.py",
    "import numpy as np\nnp.load('a.npy')": "client_sdk/a.py",
    "import numpy as np\nf(np, allow_pickle=True)": "client_sdk/a.py",
    "import yaml\nyaml.load(text)": "client_sdk/a.py",
    "import yaml\nyaml.unsafe_load(text)": "client_sdk/a.py",
    "eval(text)": "fl_protocol/a.py",
    "exec(text)": "fl_protocol/a.py",
    "run = exec": "fl_protocol/a.py",
    "import builtins\nbuiltins.eval(text)": "fl_protocol/a.py",
    "compile(text, 'a', 'exec')": "fl_protocol/a.py",
    "__import__(name)": "fl_protocol/a.py",
    "import os\nos.system('true')": "client_sdk/a.py",
    "import os\nos.popen('true')": "client_sdk/a.py",
    "from os import execv as go\ngo('true', [])": "client_sdk/a.py",
    "import os\nos.posix_spawnp('true', [], {})": "client_sdk/a.py",
    "import subprocess": "client_sdk/demo/run.py",
    "from subprocess import run": "aggregator_service/a.py",
    "import asyncio\nasyncio.create_subprocess_exec('true')": "aggregator_service/a.py",
    "import anyio\nanyio.open_process(['true'])": "client_sdk/cli/a.py",
    "def f():\n    import pickle": "client_sdk/a.py",
    "import random": "client_sdk/privacy/noise.py",
    "from random import gauss": "client_sdk/masking/shares.py",
    "import numpy as np\nnp.random.default_rng(1)": "client_sdk/privacy/noise.py",
    "from numpy.random import default_rng": "aggregator_service/domain/privacy/a.py",
    "from numpy import random as noise\nnoise.normal()": "client_sdk/masking/a.py",
    "import torch\ntorch.randn(3)": "client_sdk/privacy/a.py",
    "import random as noise\nnoise.gauss(0, 1)": "fl_protocol/privacy/a.py",
    "import numpy\nnumpy.random.laplace(0, 1)": "fl_protocol/privacy/a.py",
    "import numpy as np\ndraw = np.random.normal": "aggregator_service/domain/privacy/a.py",
    "import torch\ntorch.normal(0.0, 1.0, (3,))": "client_sdk/privacy/a.py",
    "import torch\ntorch.randn_like(x)": "client_sdk/privacy/a.py",
    "from torch import randint": "client_sdk/privacy/a.py",
    "from torch.distributions import Laplace": "client_sdk/privacy/a.py",
    "import torch\ntorch.empty(3).normal_()": "client_sdk/privacy/a.py",
    "import torch\nx = torch.empty(3)\nx.uniform_(0, 1)": "client_sdk/privacy/a.py",
}

INNOCENTS: Final = {
    "import subprocess": "client_sdk/local_server.py",
    "import anyio\nanyio.open_process(['true'])": "client_sdk/local_server.py",
    "import random\nrandom.random()": "client_sdk/retries.py",
    "import numpy as np\nnp.random.default_rng(1)": "client_sdk/demo/run.py",
    "import re\nre.compile('a')": "client_sdk/a.py",
    "module.eval()": "client_sdk/torch/a.py",
    "import json\njson.load(file)": "client_sdk/a.py",
    "import yaml\nyaml.safe_load(text)": "client_sdk/a.py",
    "import secrets\nsecrets.token_bytes(32)": "client_sdk/masking/a.py",
    "import os\nos.urandom(32)": "client_sdk/privacy/a.py",
    "import torch\ntorch.randperm(3)": "client_sdk/torch/a.py",
    "import torch\nx.normal_()": "client_sdk/torch/a.py",
    "'never pickle, never eval(text)'": "client_sdk/a.py",
}


@pytest.mark.parametrize(("source", "path"), DECOYS.items(), ids=[*DECOYS])
def test_the_scan_catches_a_decoy(source: str, path: str) -> None:
    assert faults(source, path), "the scan missed it"


@pytest.mark.parametrize(("source", "path"), INNOCENTS.items(), ids=[*INNOCENTS])
def test_the_scan_lets_honest_code_be(source: str, path: str) -> None:
    assert faults(source, path) == []


def test_a_decoy_hidden_in_a_real_file_is_caught() -> None:
    path = "client_sdk/transfer.py"
    source = (ROOT / path).read_text(encoding="utf-8")
    assert faults(f"{source}\n\ndef _read(file):\n    import pickle\n    return pickle.load(file)\n", path)
