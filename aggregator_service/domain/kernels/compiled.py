"""Compiles a loop for this processor when it is first used, and calls it without Python's lock."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

from aggregator_service import allocator
from aggregator_service.domain.kernels import loops

Function = Callable[..., None]

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_DENSE: Final = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _POINTER, *[_NUMBER] * 6)
_SPARSE: Final = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _POINTER, ctypes.c_double, _NUMBER)

_lock = threading.Lock()
_functions: dict[str, Function] = {}
_engines: list[Any] = []
"""What holds the compiled code."""

_LIBRARY: Final = "libllvmlite"

SPARSE: Final = "sparse"

_NEEDED_FOR_DIGITS: Final = ("avx512bw", "avx512vbmi", "avx512vnni")


def function(kind: str) -> Function:
    """Gives the loop for a kind of values, or SPARSE; its arguments are those in `loops`, addresses as integers."""
    found = _functions.get(kind)
    if found is not None:
        return found
    with _lock:
        if kind not in _functions:
            _functions[kind] = _compile(kind)
        return _functions[kind]


def _compile(kind: str) -> Function:
    import llvmlite.binding as llvm  # noqa: PLC0415 - 40 MiB and 0.1 s, of which only an aggregate has use

    allocator.give_back_pages_of(_LIBRARY)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    is_x86 = llvm.get_process_triple().startswith(("x86_64", "i686", "i386"))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True
    )
    # Of the x86 processors only those with AVX-512 turn int64 into float64 by vectors.
    integer = "i32" if is_x86 and not features.get("avx512dq") else "i64"
    by_digits = kind == "I8" and is_x86 and all(features.get(name) for name in _NEEDED_FOR_DIGITS)
    text = loops.sparse() if kind == SPARSE else loops.dense(kind, integer=integer, by_digits=by_digits)
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    prototype = _SPARSE if kind == SPARSE else _DENSE
    compiled: Function = prototype(engine.get_function_address("fold"))
    allocator.give_back_pages_of(_LIBRARY)
    return compiled
