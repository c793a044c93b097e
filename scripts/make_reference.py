"""Writes docs/api-reference from the docstrings and signatures of the SDK's public names; `--check` only compares.

Signatures are taken from the source as it is written, so that aliases keep their names and every Python gives the same.
"""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent.parent / "docs" / "api-reference"
PAGES: Final = (
    ("client_sdk", "What a participant and an operator need"),
    ("client_sdk.torch", "PyTorch: a module's tensors, a trainer, an evaluator"),
    ("client_sdk.testing", "A server in memory, for your own tests"),
    ("client_sdk.session.progress", "What `participate` tells its `on_event`"),
    ("client_sdk.errors", "Every error that the SDK raises"),
    ("fl_protocol.runs", "What declares and describes a run"),
    ("fl_protocol.specs.rounds", "`RunSpec.round`"),
    ("fl_protocol.specs.staleness", "`RunSpec.round.staleness` of buffered rounds"),
    ("fl_protocol.specs.selection", "`RunSpec.selection`"),
    ("fl_protocol.specs.strategies", "`RunSpec.strategy`"),
    ("fl_protocol.specs.server_optimizers", "`RunSpec.server_optimizer`"),
    ("fl_protocol.specs.schedules", "`RunSpec.training.schedule` and `RunSpec.server_optimizer.schedule`"),
    ("fl_protocol.specs.training", "`RunSpec.training`"),
    ("fl_protocol.specs.parameters", "`RunSpec.parameters`"),
    ("fl_protocol.specs.algorithms", "`RunSpec.algorithm`"),
    ("fl_protocol.specs.initial_model", "`RunSpec.initial_model`"),
    ("fl_protocol.specs.evaluation", "`RunSpec.evaluation`"),
    ("fl_protocol.specs.privacy", "`RunSpec.privacy`"),
    ("fl_protocol.specs.protection", "`RunSpec.encoding`, no `privacy`, and `secure_aggregation`"),
    ("fl_protocol.tasks", "Tasks, receipts and clients"),
    ("fl_protocol.rounds", "Rounds, contributions and events"),
    ("fl_protocol.presets", "Five names for what a run may promise"),
    ("fl_protocol.promises", "What a run promises, in honest sentences"),
    ("fl_protocol.privacy_claims", "What a private run's server tells each client"),
    ("fl_protocol.privacy_reports", "A run's privacy budget and its ledger"),
    ("client_sdk.privacy.policy", "What a client's owner demands of a run"),
    ("fl_protocol.lineage", "What an exported model says of itself"),
    ("fl_protocol.exclusions", "Who may not take part in a run"),
)
MAX_LINE: Final = 110

_NOTE: Final = "<!-- Written by scripts/make_reference.py from the docstrings: change those. -->"
_REMOVED: Final = frozenset({"self", "cls"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Writes every page, or says which ones differ from the docstrings."""
    pages = {"README.md": _contents(), **{f"{module}.md": _page(module, title) for module, title in PAGES}}
    if "--check" in sys.argv[1:]:
        found = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
        stale = sorted(name for name in {*found, *pages} if found.get(name) != pages.get(name))
        if stale:
            sys.exit(
                f"docs/api-reference is not what the docstrings say ({', '.join(stale)}): run scripts/make_reference.py"
            )
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (FOLDER / name).write_text(text)


def _contents() -> str:
    lines = [f"- [`{module}`]({module}.md): {title}" for module, title in PAGES]
    about = "The names that the SDK keeps from release to release. The HTTP API describes itself at a server's `/docs`."
    return _joined(["# API reference", _NOTE, about, "\n".join(lines)])


def _page(name: str, title: str) -> str:
    module = importlib.import_module(name)
    parts = [f"# `{name}`", _NOTE, f"{title}.", _module_docstring(module)]
    for public in _public_names(module):
        parts += _entry(public, getattr(module, public))
    return _joined(parts)


def _module_docstring(module: ModuleType) -> str:
    text = inspect.getdoc(module) or ""
    # A tree drawn with lines must keep its shape.
    return "\n\n".join(f"```text\n{part}\n```" if "├" in part else part for part in text.split("\n\n"))


def _public_names(module: ModuleType) -> list[str]:
    listed: list[str] | None = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    named = [name for name in vars(module) if not name.startswith("_")]
    return [name for name in named if getattr(getattr(module, name), "__module__", None) == module.__name__]


def _entry(name: str, value: object) -> Iterator[str]:
    yield f"## `{name}`"
    if not inspect.isclass(value) and not inspect.isfunction(value):
        yield _alias(name)
        return
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.ClassDef):
        yield from _class(node)
    elif isinstance(node, Function):
        yield _code(_function(node))
        yield ast.get_docstring(node) or ""


def _alias(name: str) -> str:
    """Finds a type alias in the packages' sources, with the string that describes it."""
    root = FOLDER.parent.parent
    for source in sorted([*root.glob("client_sdk/**/*.py"), *root.glob("fl_protocol/**/*.py")]):
        body = ast.parse(source.read_text()).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return _joined([_code(ast.unparse(node)), _string(after)]).strip()
    return ""


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield _code("\n".join([f"class {node.name}({bases}):" if bases else f"class {node.name}:", *_members(node)]))
    yield ast.get_docstring(node) or ""
    for each in node.body:
        if isinstance(each, Function) and not each.name.startswith("_") and not _is_validator(each):
            yield f"### `{node.name}.{each.name}`"
            yield _code(_function(each))
            yield ast.get_docstring(each) or ""
    origins = [origin for each in node.body if (origin := _borrowed(each))]
    if origins:
        yield f"It has further methods, with the arguments and results of {', '.join(origins)}."


def _borrowed(node: ast.stmt) -> str:
    """Names the method that an assignment such as `wait = _blocking(Operator.wait)` makes another one of."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
        return f"`{ast.unparse(node.value.args[0])}`"
    return ""


def _is_validator(node: Function) -> bool:
    return any("validator" in ast.unparse(decorator) for decorator in node.decorator_list)


def _members(node: ast.ClassDef) -> list[str]:
    lines: list[str] = []
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        name = ast.unparse(each.target) if isinstance(each, ast.AnnAssign) else ""
        if (name and not name.startswith("_")) or _is_constant(each):
            lines += [
                f"    {line}"
                for line in [
                    *textwrap.wrap(_string(after), 100, initial_indent="# ", subsequent_indent="# "),
                    ast.unparse(each),
                ]
            ]
        if isinstance(each, Function) and each.name == "__init__":
            lines += textwrap.indent(_function(each), "    ").splitlines()
    return lines or ["    ..."]


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Attribute)


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _function(node: Function) -> str:
    """Renders a signature, on one line if it fits."""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ""
    parameters = list(_parameters(node.args))
    line = f"{prefix} {node.name}({', '.join(parameters)}){result}"
    if len(line) <= MAX_LINE:
        return line
    return "\n".join([f"{prefix} {node.name}(", *(f"    {parameter}," for parameter in parameters), f"){result}"])


def _parameters(given: ast.arguments) -> Iterator[str]:
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for parameter, default in zip(positional, defaults, strict=True):
        if parameter.arg not in _REMOVED:
            yield _parameter(parameter, default)
    if given.vararg is not None:
        yield f"*{ast.unparse(given.vararg)}"
    elif given.kwonlyargs:
        yield "*"
    for parameter, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _parameter(parameter, default)
    if given.kwarg is not None:
        yield f"**{ast.unparse(given.kwarg)}"


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(parameter) if default is None else f"{ast.unparse(parameter)} = {ast.unparse(default)}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    main()
