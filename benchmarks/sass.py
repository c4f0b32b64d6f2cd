"""Instructions of a trip through a kernel's main loop, out of the machine code that ``cuobjdump --dump-sass`` prints."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple


class Instruction(NamedTuple):
    address: int
    predicate: str  # "" if it is always executed
    name: str
    operands: str


def functions(sass: str) -> dict[str, list[Instruction]]:
    """Mangled name -> its code."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
    found = {}
    for part in sass.split("Function : ")[1:]:
        code = [Instruction(int(at, 16), predicate, name, rest) for at, predicate, name, rest in line.findall(part)]
        found[part.split(None, 1)[0]] = code
    return found


def _successors(code: list[Instruction]) -> list[list[int]]:
    """For each instruction, which may come next. A call comes back; a jump table leads nowhere."""
    index = {one.address: i for i, one in enumerate(code)}
    found = []
    for i, one in enumerate(code):
        kind = one.name.split(".")[0]
        target = re.search(r"0x([0-9a-f]+)", one.operands) if kind in ("BRA", "JMP") else None
        jump = [index[int(target[1], 16)]] if target and int(target[1], 16) in index else []
        ends = kind in ("EXIT", "RET", "BRX", "BRA", "JMP", "KILL") and not one.predicate
        if jump and not re.fullmatch(r"\s*`?\(?0x[0-9a-f]+\)?\s*", one.operands):  # BRA.U UP0, 0x...
            ends = False
        found.append(jump + ([] if ends or i + 1 == len(code) else [i + 1]))
    return found


def trip(code: list[Instruction], loads: int, stores: int, products: int) -> int:
    """Instructions of the shortest way around a loop with so many 16-byte loads, each once, then stores; 0: none.

    With at least so many float32 products on it, that is what a warp issues for a trip that reads and computes everything,
    without what only some packs need.
    """
    wide = [one.name.startswith(("LDG", "LD.")) and ".128" in one.name for one in code]
    stored = [one.name.startswith(("STG", "ST.")) and ".128" in one.name for one in code]
    worth = [{"FMUL": 1, "FMUL2": 2}.get(one.name.split(".")[0], 0) for one in code]
    after = _successors(code)
    headers = {j for i, ways in enumerate(after) for j in ways if j <= i}
    wanted = loads, stores, products
    return min(
        (n for header in headers if (n := _around(header, code, after, (wide, stored, worth), wanted))), default=0
    )


def _around(header: int, code: list[Instruction], after: list[list[int]], kinds, wanted: tuple[int, int, int]) -> int:
    (wide, stored, worth), (loads, stores, products) = kinds, wanted
    start = (header, frozenset(), 0, 0)
    distance, waiting = {start: 0}, deque([start])
    while waiting:
        state = waiting.popleft()
        at, seen, written, multiplied = state
        if wide[at]:
            if at in seen or len(seen) == loads:
                continue
            seen = seen | {at}
        if stored[at] and len(seen) == loads and written < stores:
            written += 1
        elif stored[at] and not code[at].predicate:  # what has a predicate is issued, but need not store
            continue
        multiplied = min(multiplied + worth[at], products)
        for following in after[at]:
            if following == header and (len(seen), written, multiplied) == wanted:
                return distance[state] + 1
            new = (following, seen, written, multiplied)
            if following != header and new not in distance:
                distance[new] = distance[state] + 1
                waiting.append(new)
    return 0
