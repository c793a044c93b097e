"""The fold's inner loop, compiled by LLVM for this machine where llvmlite is installed; the bits are numpy's bits.

LLVM never fuses a multiplication with an addition unless it is told to, so each step rounds as numpy's does. llvmlite
is an optional dependency: see docs/adr/0002-fold-kernel.md for what it gains and costs.
"""

import ctypes
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MODULE: Final = """
define void @fold(ptr noalias %accumulator, ptr noalias %values, i64 %size, double %factor) {{
entry:
  %empty = icmp eq i64 %size, 0
  br i1 %empty, label %done, label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %value_at = getelementptr {type}, ptr %values, i64 %i
  %value = load {type}, ptr %value_at, align 1
  %wide = {widen}
  %scaled = fmul double %wide, %factor
  %shifted = fadd double %scaled, 0x4338000000000000
  %bits = bitcast double %shifted to i64
  %sum_at = getelementptr i64, ptr %accumulator, i64 %i
  %sum = load i64, ptr %sum_at, align 8
  %total = add i64 %sum, %bits
  store i64 %total, ptr %sum_at, align 8
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, %size
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""

_WIDENING: Final = {
    np.dtype(np.float32): ("float", "fpext float %value to double"),
    np.dtype(np.float64): ("double", "fadd double %value, -0.0"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Adds the bits of values * factor + 1.5 * 2^52 to the accumulator, as int64; `engine` owns the code it runs."""

    function: Callable[[int, int, int, float], None]
    engine: object

    def __call__(self, accumulator: NDArray[np.int64], values: NDArray[Any], *, factor: float) -> None:
        """Walks two contiguous arrays of one size; raises ValueError for others."""
        if accumulator.size != values.size or not (accumulator.flags.c_contiguous and values.flags.c_contiguous):
            raise ValueError("the kernel takes contiguous arrays of one size")
        self.function(accumulator.ctypes.data, values.ctypes.data, values.size, factor)


@functools.cache
def compiled(dtype: np.dtype[Any]) -> Kernel | None:
    """Compiles the loop for float32 or float64 values, once; None for other types and where llvmlite is missing.

    It takes some 30 ms and 75 MiB of resident memory, nearly all of it LLVM's own code.
    """
    if dtype not in _WIDENING:
        return None
    try:
        llvm: Any = importlib.import_module("llvmlite.binding")
    except ImportError:
        return None
    element, widen = _WIDENING[dtype]
    engine = _compile(llvm, _MODULE.format(type=element, widen=widen))
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_double)
    return Kernel(function=prototype(engine.get_function_address("fold")), engine=engine)


def _compile(llvm: Any, source: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(source)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
