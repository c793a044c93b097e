"""Writes, as LLVM IR, how each kind of stored values becomes float64, exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Load:
    """Neighbouring elements of one update to load: the registers of its address, of the first's number, of the result.

    `integer` is a type that the processor turns into float64 in one instruction.
    """

    update: str
    at: str
    result: str
    lanes: int
    integer: str

    def type(self, element: str) -> str:
        """Gives the type of so many elements."""
        return element if self.lanes == 1 else f"<{self.lanes} x {element}>"

    def constant(self, element: str, value: str) -> str:
        """Gives a constant that is the same in each lane."""
        return value if self.lanes == 1 else f"splat ({element} {value})"

    def stored(self, element: str) -> str:
        """Loads the elements as they are stored into `.stored`."""
        return f"""
  {self.result}.address = getelementptr {element}, ptr {self.update}, i64 {self.at}
  {self.result}.stored = load {self.type(element)}, ptr {self.result}.address, align 1"""

    def widened(self, single: str) -> str:
        """Widens float32 to the result."""
        return f"""
  {self.result} = fpext {self.type("float")} {self.result}.{single} to {self.type("double")}"""


def _float64(load: Load) -> str:
    return f"""
  {load.result}.address = getelementptr double, ptr {load.update}, i64 {load.at}
  {load.result} = load {load.type("double")}, ptr {load.result}.address, align 1"""


def _float32(load: Load) -> str:
    return load.stored("float") + load.widened("stored")


def _bfloat16(load: Load) -> str:
    to, word = load.result, load.type("i32")
    return f"""{load.stored("i16")}
  {to}.word = zext {load.type("i16")} {to}.stored to {word}
  {to}.bits = shl {word} {to}.word, {load.constant("i32", "16")}
  {to}.single = bitcast {word} {to}.bits to {load.type("float")}{load.widened("single")}"""


def _float16(load: Load) -> str:
    # Its bits in the places of float32's are 2^-112 of the value, whether that is subnormal or not. LLVM's own
    # conversion would call a function that is not there where the processor has no instruction for it.
    to, word, single = load.result, load.type("i32"), load.type("float")
    mask, power = str(0x8FFFE000 - 2**32), f"0x{1023 + 112 << 52:016X}"
    return f"""{load.stored("i16")}
  {to}.word = sext {load.type("i16")} {to}.stored to {word}
  {to}.shifted = shl {word} {to}.word, {load.constant("i32", "13")}
  {to}.bits = and {word} {to}.shifted, {load.constant("i32", mask)}
  {to}.small = bitcast {word} {to}.bits to {single}
  {to}.single = fmul {single} {to}.small, {load.constant("float", power)}{load.widened("single")}"""


def _int8(load: Load) -> str:
    to, word = load.result, load.type(load.integer)
    return f"""{load.stored("i8")}
  {to}.word = sext {load.type("i8")} {to}.stored to {word}
  {to} = sitofp {word} {to}.word to {load.type("double")}"""


def _int4(load: Load) -> str:
    """Loads two's complement, the first code of a byte in its low half; several codes begin with a byte."""
    to, word = load.result, load.type("i32")
    if load.lanes == 1:
        stored, spread = (
            "i8",
            f"""
  {to}.word = zext i8 {to}.stored to i32
  {to}.number = trunc i64 {load.at} to i32
  {to}.half = and i32 {to}.number, 1
  {to}.skipped = shl i32 {to}.half, 2
  {to}.left = sub i32 28, {to}.skipped
  {to}.high = shl i32 {to}.word, {to}.left""",
        )
    else:
        stored, lefts = f"i{4 * load.lanes}", ", ".join(f"i32 {28 - 4 * lane}" for lane in range(load.lanes))
        spread = f"""
  {to}.first = insertelement {word} poison, {stored} {to}.stored, i32 0
  {to}.word = shufflevector {word} {to}.first, {word} poison, {word} zeroinitializer
  {to}.high = shl {word} {to}.word, <{lefts}>"""
    return f"""
  {to}.byte = lshr i64 {load.at}, 1
  {to}.address = getelementptr i8, ptr {load.update}, i64 {to}.byte
  {to}.stored = load {stored}, ptr {to}.address, align 1{spread}
  {to}.code = ashr {word} {to}.high, {load.constant("i32", "28")}
  {to} = sitofp {word} {to}.code to {load.type("double")}"""


LOADS: Final[dict[str, Callable[[Load], str]]] = {
    "F64": _float64,
    "F32": _float32,
    "F16": _float16,
    "BF16": _bfloat16,
    "I8": _int8,
    "I4": _int4,
}
"""The kinds of values: safetensors' name of a type, or I4 for two codes in a byte."""
