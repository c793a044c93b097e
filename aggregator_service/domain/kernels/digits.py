"""Writes, as LLVM IR, the loop that multiplies codes of int8 by the digits of whole factors, eight updates in a pass.

An instruction of AVX-512 VNNI adds four products of a byte and a signed byte to an int32: those of four updates' codes
with one digit, in base 256, of their factors. That is a third of the instructions of a multiply-add in float64 and as
exact: a product of whole numbers has nothing to round.
"""

from collections.abc import Iterable
from typing import Final

_NUM_DIGITS: Final = 6
_NUM_UPDATES: Final = 8
"""As many as come together where many are added; 255 * 128 * 257 times these, the most that the sums of two digits come
to, is below 2^31."""

_GROUP: Final = 4
_BLOCK_ELEMENTS: Final = 64
_LEAST_ELEMENTS: Final = 256
"""Of a shorter row, setting out digits takes longer than they save."""

_LIFT: Final = 0x4330000000000000
"""2^52: what is added to it has its whole part in the low 52 bits."""

_BELOW: Final = 0x42F0000000000000
"""2^48, which the factors are below."""

_QUARTERS: Final = range(4)
_PAIRS: Final = range(_NUM_DIGITS // 2)
_ORDER: Final = [
    16 * quarter + (4 * lane + place) // 2 + 8 * (place % 2)
    for lane in range(4)
    for quarter in _QUARTERS
    for place in range(4)
]
"""Which element's code comes to each byte before four updates are interleaved: afterwards elements lie as they are
stored."""

_DOT: Final = "@llvm.x86.avx512.vpdpbusd.512"

DECLARATION: Final = f"declare <16 x i32> {_DOT}(<16 x i32>, <16 x i32>, <16 x i32>)\n"

ROOM: Final = f"  %digits = alloca [{_NUM_DIGITS * _NUM_UPDATES} x i8], align 64\n"
"""Digit k of update u is byte 8k + u."""


def digits() -> str:
    """Writes what takes, of each row of `loops.dense`, all whole blocks; `%digits.at` is where it stops.

    It takes nothing of a row that is short or has a factor which is not whole, or of another number of updates. It
    begins at `digits.enter` and ends at `digits.test`, from where it goes on to `wide.test`.
    """
    return f"""digits.enter:
  %digits.least = add i64 %row.at, {_LEAST_ELEMENTS}
  %digits.are_long = icmp ule i64 %digits.least, %row.end
  %digits.are_many = icmp eq i64 %num_updates, {_NUM_UPDATES}
  %digits.may = and i1 %digits.are_long, %digits.are_many
  br i1 %digits.may, label %digits.set, label %digits.ready
digits.set:
  %set.update = phi i64 [ 0, %digits.enter ], [ %set.another, %digits.set ]
  %set.are_whole = phi i1 [ true, %digits.enter ], [ %set.are_still, %digits.set ]
  %set.rows = mul i64 %set.update, %num_rows
  %set.place = getelementptr double, ptr %row.factors, i64 %set.rows
  %set.factor = load double, ptr %set.place, align 8
  %set.lifted = fadd double %set.factor, {_LIFT:#018x}
  %set.lowered = fsub double %set.lifted, {_LIFT:#018x}
  %set.is_whole = fcmp oeq double %set.lowered, %set.factor
  %set.is_positive = fcmp oge double %set.factor, 0.0
  %set.is_small = fcmp olt double %set.factor, {_BELOW:#018x}
  %set.fits = and i1 %set.is_positive, %set.is_small
  %set.is_right = and i1 %set.is_whole, %set.fits
  %set.are_still = and i1 %set.are_whole, %set.is_right
  %set.bits = bitcast double %set.lifted to i64{"".join(_set(digit) for digit in range(_NUM_DIGITS))}
  %set.another = add i64 %set.update, 1
  %set.is_more = icmp ult i64 %set.another, {_NUM_UPDATES}
  br i1 %set.is_more, label %digits.set, label %digits.ready
digits.ready:
  %digits.are_whole = phi i1 [ false, %digits.enter ], [ %set.are_still, %digits.set ]
  br label %digits.test
digits.test:
  %digits.at = phi i64 [ %row.at, %digits.ready ], [ %digits.next, %digits.store ]
  %digits.next = add i64 %digits.at, {_BLOCK_ELEMENTS}
  %digits.fits = icmp ule i64 %digits.next, %row.end
  %digits.goes_on = and i1 %digits.fits, %digits.are_whole
  br i1 %digits.goes_on, label %digits.add, label %wide.test
{_block()}"""


def _set(digit: int) -> str:
    return f"""
  %set.shifted{digit} = lshr i64 %set.bits, {8 * digit}
  %set.digit{digit} = trunc i64 %set.shifted{digit} to i8
  %set.number{digit} = add i64 %set.update, {_NUM_UPDATES * digit}
  %set.to{digit} = getelementptr i8, ptr %digits, i64 %set.number{digit}
  store i8 %set.digit{digit}, ptr %set.to{digit}, align 1"""


def _block() -> str:
    """Adds up 64 elements from `%digits.at` on, digit by digit, and then adds the digits' sums to the sums."""
    begins = "".join(
        f"""
  %digits.sum{digit}.{quarter} = phi <16 x i32> [ zeroinitializer, %digits.test ],
                              [ %digits.next{digit}.{quarter}, %digits.add ]"""
        for digit in range(_NUM_DIGITS)
        for quarter in _QUARTERS
    )
    return f"""digits.add:
  %digits.first = phi i64 [ 0, %digits.test ], [ %digits.another, %digits.add ]{begins}{
        "".join(_codes(update) for update in range(_GROUP))
    }{_interleaved()}{"".join(_products(digit) for digit in range(_NUM_DIGITS))}
  %digits.another = add i64 %digits.first, {_GROUP}
  %digits.is_more = icmp ult i64 %digits.another, {_NUM_UPDATES}
  br i1 %digits.is_more, label %digits.add, label %digits.store
digits.store:
  %digits.offset = sub i64 %digits.at, %begin{"".join(_stored(quarter) for quarter in _QUARTERS)}
  br label %digits.test
"""


def _codes(update: int) -> str:
    return f"""
  %digits.update{update} = add i64 %digits.first, {update}
  %digits.pointer{update} = getelementptr ptr, ptr %updates, i64 %digits.update{update}
  %digits.values{update} = load ptr, ptr %digits.pointer{update}, align 8
  %digits.address{update} = getelementptr i8, ptr %digits.values{update}, i64 %digits.at
  %digits.loaded{update} = load <64 x i8>, ptr %digits.address{update}, align 1
  %digits.codes{update} = shufflevector <64 x i8> %digits.loaded{update}, <64 x i8> poison, {_taking(_ORDER)}"""


def _interleaved() -> str:
    """Puts the four updates' codes of an element side by side: int32 i of quarter q is what `_ORDER` has put there.

    Within each 16 bytes these are the unpacking instructions, of bytes and then of pairs of bytes.
    """
    lines = []
    for name, (one, other) in {"left": (0, 1), "right": (2, 3)}.items():
        both = f"<64 x i8> %digits.codes{one}, <64 x i8> %digits.codes{other}"
        for half in range(2):
            lines += [
                f"%digits.{name}{half} = shufflevector {both}, {_unpacking(64, 16, half)}",
                f"%digits.{name}_pairs{half} = bitcast <64 x i8> %digits.{name}{half} to <32 x i16>",
            ]
    for quarter in _QUARTERS:
        left, right = (f"%digits.{name}_pairs{quarter // 2}" for name in ("left", "right"))
        both = f"<32 x i16> {left}, <32 x i16> {right}"
        lines += [
            f"%digits.fours{quarter} = shufflevector {both}, {_unpacking(32, 8, quarter % 2)}",
            f"%digits.quarter{quarter} = bitcast <32 x i16> %digits.fours{quarter} to <16 x i32>",
        ]
    return "".join(f"\n  {line}" for line in lines)


def _unpacking(num_elements: int, lane: int, half: int) -> str:
    """Writes what takes one half of each 16 bytes of two vectors, element by element in turns."""
    begins = range(half * lane // 2, num_elements, lane)
    places = (begin + place for begin in begins for place in range(lane // 2))
    return _taking(taken for place in places for taken in (place, place + num_elements))


def _taking(places: Iterable[int]) -> str:
    taken = [f"i32 {place}" for place in places]
    return f"<{len(taken)} x i32> <{', '.join(taken)}>"


def _products(digit: int) -> str:
    sums = "".join(
        f"""
  %digits.next{digit}.{quarter} = call <16 x i32> {_DOT}(<16 x i32> %digits.sum{digit}.{quarter},
                              <16 x i32> %digits.digits{digit}, <16 x i32> %digits.quarter{quarter})"""
        for quarter in _QUARTERS
    )
    return f"""
  %digits.number{digit} = add i64 %digits.first, {_NUM_UPDATES * digit}
  %digits.place{digit} = getelementptr i8, ptr %digits, i64 %digits.number{digit}
  %digits.four{digit} = load i32, ptr %digits.place{digit}, align 4
  %digits.four{digit}1 = insertelement <16 x i32> poison, i32 %digits.four{digit}, i32 0
  %digits.digits{digit} = shufflevector <16 x i32> %digits.four{digit}1, <16 x i32> poison,
                              <16 x i32> zeroinitializer{sums}"""


def _stored(quarter: int) -> str:
    """Adds what the digits came to: the even int32 of a quarter are eight elements in a row, the odd ones the next."""
    lines = []
    for pair in _PAIRS:
        low, high = (f"%digits.next{2 * pair + digit}.{quarter}" for digit in range(2))
        name = f"%digits.pair{pair}.{quarter}"
        lines += [
            f"%digits.high{pair}.{quarter} = shl <16 x i32> {high}, splat (i32 8)",
            f"%digits.both{pair}.{quarter} = add <16 x i32> %digits.high{pair}.{quarter}, {low}",
            f"{name} = bitcast <16 x i32> %digits.both{pair}.{quarter} to <8 x i64>",
            # Either half of an int64, with its sign, times what the pair's digits stand for.
            f"{name}.up = shl <8 x i64> {name}, splat (i64 32)",
            f"{name}.even = ashr <8 x i64> {name}.up, splat (i64 {32 - 16 * pair})",
            f"{name}.down = and <8 x i64> {name}, splat (i64 -4294967296)",
            f"{name}.odd = ashr <8 x i64> {name}.down, splat (i64 {32 - 16 * pair})",
        ]
    for number, half in enumerate(("even", "odd")):
        low, middle, high = (f"%digits.pair{pair}.{quarter}.{half}" for pair in _PAIRS)
        it = f"%digits.{half}{quarter}"
        lines += [
            f"{it}.two = add <8 x i64> {low}, {middle}",
            f"{it} = add <8 x i64> {it}.two, {high}",
            f"{it}.place = add i64 %digits.offset, {16 * quarter + 8 * number}",
            f"{it}.sums = getelementptr i64, ptr %sums, i64 {it}.place",
            f"{it}.before = load <8 x i64>, ptr {it}.sums, align 8",
            f"{it}.after = add <8 x i64> {it}.before, {it}",
            f"store <8 x i64> {it}.after, ptr {it}.sums, align 8",
        ]
    return "".join(f"\n  {line}" for line in lines)
