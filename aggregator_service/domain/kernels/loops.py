"""Writes the loops of the exact sum as LLVM IR: several updates are added to sums that are read and written once.

A dense loop is `fold(i64* sums, void** updates, double* factors, i64 num_updates, i64 num_rows, i64 row_elements,
i64 first_in_row, i64 begin, i64 end)`. Sum i takes element `begin + i` of each update, up to `end`; it lies in row
`(first_in_row + i) / row_elements`, and is multiplied by `factors[update * num_rows + row]`. The sparse loop is
`fold(i64* sums, u32* indices, float* values, double factor, i64 num_values)`.

To each sum is added round_half_even(value * factor), the product exact (a fused multiply-add), modulo 2^64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aggregator_service.domain.kernels import digits
from aggregator_service.domain.kernels.loads import LOADS, Load

_MAGIC_BITS: Final = 0x4338000000000000
"""Of 1.5 * 2^52. Between 2^52 and 2^53 float64 has a spacing of 1: adding this rounds half to even, and the bits of the
result, read as an integer, are the rounded value plus these, which the sums begin without."""

_LANES: Final = 8
_VECTORS: Final = 8
"""Eight vectors of eight float64 hide the latency of a multiply-add, and are half the registers of AVX-512."""


@dataclass(frozen=True, slots=True)
class _Loop:
    """Takes `vectors` times `lanes` elements at a time while so many are left of a row.

    One that `ends_at_a_byte` takes what precedes the first whole byte of codes.
    """

    name: str
    lanes: int
    vectors: int
    kind: str
    integer: str
    ends_at_a_byte: bool = False

    def type(self, element: str) -> str:
        return element if self.lanes == 1 else f"<{self.lanes} x {element}>"

    def splat(self, element: str, value: str) -> str:
        """Writes `%name.<value>s`, which has `%name.<value>` in each lane."""
        register, vector = f"%{self.name}.{value}", self.type(element)
        if self.lanes == 1:
            return f"  {register}s = bitcast {element} {register} to {element}"
        return f"""  {register}1 = insertelement {vector} poison, {element} {register}, i32 0
  {register}s = shufflevector {vector} {register}1, {vector} poison, <{self.lanes} x i32> zeroinitializer"""

    def each(self, write: Callable[[int], str]) -> str:
        return "".join(write(vector) for vector in range(self.vectors))


def dense(kind: str, *, integer: str, by_digits: bool = False) -> str:
    """Writes the loop for values of a kind; `integer` is a type that becomes float64 in one instruction.

    With `by_digits` codes of int8 whose factors are whole are multiplied by these factors' digits.
    """
    loops = [
        _Loop("wide", _LANES, _VECTORS, kind, integer),
        _Loop("narrow", _LANES, 1, kind, integer),
        _Loop("single", 1, 1, kind, integer),
    ]
    if kind == "I4":
        loops.insert(0, _Loop("odd", 1, 1, kind, integer, ends_at_a_byte=True))
    begin = "digits" if by_digits else "row"
    befores = ["digits.test" if by_digits else "row", *(f"{loop.name}.test" for loop in loops)]
    afters = [*(f"{loop.name}.test" for loop in loops), "ended"]
    places = [f"%{begin}.at", *(f"%{loop.name}.at" for loop in loops)]
    bodies = (_loop(loop, *about) for loop, *about in zip(loops, befores, places, afters[1:], strict=False))
    return f"""{_multiply_add(1)}{_multiply_add(_LANES)}{digits.DECLARATION if by_digits else ""}
define void @fold(ptr %sums, ptr %updates, ptr %factors, i64 %num_updates, i64 %num_rows, i64 %row_elements,
                  i64 %first_in_row, i64 %begin, i64 %end) {{
start:
{digits.ROOM if by_digits else ""}  %bias = mul i64 %num_updates, {-_MAGIC_BITS}
  %row.first = sub i64 %begin, %first_in_row
  br label %row
row:
  %row.at = phi i64 [ %begin, %start ], [ %row.end, %ended ]
  %row.begin = phi i64 [ %row.first, %start ], [ %row.last, %ended ]
  %row.factors = phi ptr [ %factors, %start ], [ %row.more_factors, %ended ]
  %row.last = add i64 %row.begin, %row_elements
  %row.is_whole = icmp ult i64 %row.last, %end
  %row.end = select i1 %row.is_whole, i64 %row.last, i64 %end
  br label %{"digits.enter" if by_digits else afters[0]}
{digits.digits() if by_digits else ""}{"".join(bodies)}
ended:
  %row.more_factors = getelementptr double, ptr %row.factors, i64 1
  br i1 %row.is_whole, label %row, label %done
done:
  ret void
}}
"""


def sparse() -> str:
    """Writes the loop for float32 values at indices that are all different."""
    load = Load("%values", "%at", "%value", 1, "i64")
    return f"""{_multiply_add(1)}
define void @fold(ptr %sums, ptr %indices, ptr %values, double %factor, i64 %num_values) {{
start:
  br label %each
each:
  %at = phi i64 [ 0, %start ], [ %next, %each ]{LOADS["F32"](load)}
  %scaled = call double @llvm.fma.f64(double %value, double %factor, double {_hexadecimal(_MAGIC_BITS)})
  %bits = bitcast double %scaled to i64
  %rounded = sub i64 %bits, {_MAGIC_BITS}
  %place = getelementptr i32, ptr %indices, i64 %at
  %narrow = load i32, ptr %place, align 1
  %index = zext i32 %narrow to i64
  %address = getelementptr i64, ptr %sums, i64 %index
  %sum = load i64, ptr %address, align 8
  %more = add i64 %sum, %rounded
  store i64 %more, ptr %address, align 8
  %next = add i64 %at, 1
  %goes_on = icmp ult i64 %next, %num_values
  br i1 %goes_on, label %each, label %done
done:
  ret void
}}
"""


def _loop(loop: _Loop, before: str, place: str, after: str) -> str:
    name, sums = f"%{loop.name}", loop.type("i64")
    return f"""{loop.name}.test:
  {name}.at = phi i64 [ {place}, %{before} ], [ {name}.next, %{loop.name}.store ]
  {name}.next = add i64 {name}.at, {loop.lanes * loop.vectors}
  {name}.fits = icmp ule i64 {name}.next, %row.end{_before_a_byte(loop)}
  br i1 {name}.{"goes_on" if loop.ends_at_a_byte else "fits"}, label %{loop.name}.load, label %{after}
{loop.name}.load:
  {name}.bias = add i64 %bias, 0
{loop.splat("i64", "bias")}
  {name}.offset = sub i64 {name}.at, %begin{loop.each(lambda vector: _begin(loop, vector))}
  br label %{loop.name}.add
{loop.name}.add:
  {name}.update = phi i64 [ 0, %{loop.name}.load ], [ {name}.another, %{loop.name}.add ]{
        loop.each(
            lambda vector: (
                f"{chr(10)}  {name}.sum{vector} = phi {sums} [ {name}.begun{vector}, %{loop.name}.load ], "
                f"[ {name}.next{vector}, %{loop.name}.add ]"
            )
        )
    }
  {name}.pointer = getelementptr ptr, ptr %updates, i64 {name}.update
  {name}.values = load ptr, ptr {name}.pointer, align 8
  {name}.rows = mul i64 {name}.update, %num_rows
  {name}.place = getelementptr double, ptr %row.factors, i64 {name}.rows
  {name}.factor = load double, ptr {name}.place, align 8
{loop.splat("double", "factor")}{loop.each(lambda vector: _add(loop, vector))}
  {name}.another = add i64 {name}.update, 1
  {name}.is_more = icmp ult i64 {name}.another, %num_updates
  br i1 {name}.is_more, label %{loop.name}.add, label %{loop.name}.store
{loop.name}.store:{
        loop.each(lambda vector: f"{chr(10)}  store {sums} {name}.next{vector}, ptr {name}.sums{vector}, align 8")
    }
  br label %{loop.name}.test
"""


def _before_a_byte(loop: _Loop) -> str:
    name = f"%{loop.name}"
    if not loop.ends_at_a_byte:
        return ""
    return f"""
  {name}.half = trunc i64 {name}.at to i1
  {name}.goes_on = and i1 {name}.fits, {name}.half"""


def _begin(loop: _Loop, vector: int) -> str:
    name = f"%{loop.name}"
    return f"""
  {name}.place{vector} = add i64 {name}.offset, {vector * loop.lanes}
  {name}.sums{vector} = getelementptr i64, ptr %sums, i64 {name}.place{vector}
  {name}.before{vector} = load {loop.type("i64")}, ptr {name}.sums{vector}, align 8
  {name}.begun{vector} = add {loop.type("i64")} {name}.before{vector}, {name}.biass"""


def _add(loop: _Loop, vector: int) -> str:
    name, doubles, suffix = f"%{loop.name}", loop.type("double"), "" if loop.lanes == 1 else f"v{loop.lanes}"
    load = Load(f"{name}.values", f"{name}.number{vector}", f"{name}.value{vector}", loop.lanes, loop.integer)
    magic = load.constant("double", _hexadecimal(_MAGIC_BITS))
    return f"""
  {name}.number{vector} = add i64 {name}.at, {vector * loop.lanes}{LOADS[loop.kind](load)}
  {name}.scaled{vector} = call {doubles} @llvm.fma.{suffix}f64({doubles} {load.result}, {doubles} {name}.factors,
                                                               {doubles} {magic})
  {name}.rounded{vector} = bitcast {doubles} {name}.scaled{vector} to {loop.type("i64")}
  {name}.next{vector} = add {loop.type("i64")} {name}.sum{vector}, {name}.rounded{vector}"""


def _multiply_add(lanes: int) -> str:
    doubles, suffix = ("double", "") if lanes == 1 else (f"<{lanes} x double>", f"v{lanes}")
    return f"declare {doubles} @llvm.fma.{suffix}f64({doubles}, {doubles}, {doubles})\n"


def _hexadecimal(bits: int) -> str:
    return f"0x{bits:016X}"
