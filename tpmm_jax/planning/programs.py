"""What a compiled program moves: bytes of memory, and collectives between devices.

Read from the program's text, for the compiler's own count takes the body of a loop
once, however often it runs. An instruction reads its operands and writes its results;
what the compiler keeps on the chip (memory spaces other than 0) moves nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
# They name values and move nothing.
FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("after-all", "partition-id", "replica-id", "opt-barrier", "domain"),
    }
)
SLICES = ("dynamic-slice", "slice", "gather")
WIDTHS = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "c64": 8, "c128": 16}

_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^ ?([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")
_GROUP = re.compile(r"\{([\d,]+)\}")


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str
    root: bool


@dataclass(frozen=True)
class Collective:
    """What one kind of collective gives each device.

    Attributes:
      count: how often it runs.
      bytes: of its results, all together.
      sent: bytes that a device sends through its links, by the ring algorithm.
    """

    count: int = 0
    bytes: float = 0.0
    sent: float = 0.0

    def plus(self, times: int, size: float, sent: float) -> "Collective":
        """Returns it with another one that runs so many times."""
        return Collective(
            self.count + times, self.bytes + times * size, self.sent + times * sent
        )


@dataclass(frozen=True)
class Traffic:
    """What a program moves on and from each device, bytes.

    Attributes:
      memory: read from and written to the device's memory.
      collectives: by kind.
    """

    memory: float
    collectives: Mapping[str, Collective] = field(default_factory=dict)

    @property
    def sent(self) -> float:
        return sum(one.sent for one in self.collectives.values())


def read_traffic(text: str, turns: int = 1, devices: int = 1) -> Traffic:
    """Returns what a program moves, from its text (``Compiled.as_text``).

    Args:
      turns: of a loop whose length the program does not say.
      devices: that take part in a collective which names no groups.
    """
    return _Program(text, turns, devices).traffic()


class _Program:
    def __init__(self, text: str, turns: int, devices: int) -> None:
        self.turns, self.devices = turns, devices
        self.parts: dict[str, list[Instruction]] = {}
        self.entry = ""
        for name, entry, lines in _computations(text):
            self.parts[name] = [x for x in map(_instruction, lines) if x is not None]
            if entry:
                self.entry = name
        self.found: dict[str, Collective] = defaultdict(Collective)
        # A collective that the compiler spreads over several fusions is one.
        self.seen: set[tuple[str, str]] = set()

    def traffic(self) -> Traffic:
        memory = self._walk(self.entry, 1, self.entry)
        return Traffic(memory, dict(sorted(self.found.items())))

    def _walk(self, part: str, times: int, loop: str) -> float:
        """Returns the bytes of a computation that runs so many times; notes others.

        Args:
          loop: the body, or the entry, that it runs in.
        """
        here = self.parts.get(part, [])
        shapes = {x.name: x.shape for x in here}
        return sum(self._cost(x, shapes, times, loop) for x in here)

    def _cost(
        self, x: Instruction, shapes: Mapping[str, str], times: int, loop: str
    ) -> float:
        kind = x.opcode.removesuffix("-start")
        if x.opcode == "while":
            body, turns = _called(x.rest, "body"), self._turns(x)
            return self._walk(body, times * turns, body)
        if x.opcode == "conditional":
            return max(self._walk(b, times, loop) for b in _branches(x.rest))
        if x.opcode in ("call", "async-start"):
            inner = _called(x.rest, "to_apply") or _called(x.rest, "calls")
            return self._walk(inner, times, loop)
        if x.opcode.endswith("-done") or x.opcode in FREE:
            return 0.0
        if kind in COLLECTIVES:
            self._note(x, kind, _result(x), times, loop)
        called = _called(x.rest, "calls") if x.opcode == "fusion" else ""
        for inside in self.parts.get(called, []):
            kind, shape = inside.opcode.removesuffix("-start"), _result(inside)
            if called.startswith("all-reduce-scatter"):
                # A sum of which each device keeps its part.
                kind, shape = kind.replace("all-reduce", "reduce-scatter"), x.shape
            if kind in COLLECTIVES:
                self._note(inside, kind, shape, times, loop)
        return times * self._moved(x, shapes, called)

    def _moved(self, x: Instruction, shapes: Mapping[str, str], called: str) -> float:
        """Returns the bytes that one run of an instruction reads and writes."""
        if "AllocateBuffer" in x.rest:
            return 0.0
        read = [_bytes(shapes.get(name, "")) for name in x.operands]
        written = _bytes(_result(x))
        if called:
            read = [self._read(called, n, size) for n, size in enumerate(read)]
            written = self._written(called, x.shape)
        elif x.opcode in (*SLICES, "copy-start", "slice-start"):
            # Of the operand only what becomes the result.
            result = _result(x)
            size = _bytes(result, everywhere=True)
            from_memory = bool(read and read[0])
            return size * from_memory + _bytes(result)
        elif x.opcode in ("dynamic-update-slice", "scatter"):
            # In its place: of the operand only where the update goes.
            update = sum(read[1:])
            return 2 * update if written else update
        return sum(read) + written

    def _read(self, part: str, number: int, whole: float) -> float:
        """Returns what a fusion reads of an operand: its slices, where nothing else.

        Args:
          whole: bytes of the operand in the device's memory.
        """
        same, size = set[str](), 0.0
        for x in self.parts.get(part, []):
            if x.opcode == "parameter" and x.rest == str(number):
                same.add(x.name)
            places = [n for n, name in enumerate(x.operands) if name in same]
            if not places or not whole:
                continue
            if x.opcode == "bitcast":
                same.add(x.name)
            elif x.opcode in SLICES and places == [0]:
                size += _bytes(x.shape, everywhere=True)
            elif x.opcode == "fusion":
                called = _called(x.rest, "calls")
                size += sum(self._read(called, n, whole) for n in places)
            elif x.opcode != "dynamic-update-slice" or places != [0]:
                return whole
        return min(size, whole)

    def _written(self, part: str, shape: str) -> float:
        """Returns what a fusion writes: of what it updates in place, the update."""
        inside = {x.name: x for x in self.parts.get(part, [])}
        root = next((x for x in inside.values() if x.root), None)
        total, results = _bytes(shape), [] if root is None else [root]
        if root is not None and root.opcode == "tuple":
            results = [inside[name] for name in root.operands if name in inside]
        for x in results:
            whole = _bytes(x.shape)
            while x.opcode == "bitcast" and x.operands[0] in inside:
                x = inside[x.operands[0]]
            if x.opcode == "dynamic-update-slice" and x.operands[1] in inside:
                update = _bytes(inside[x.operands[1]].shape, everywhere=True)
                total -= max(0.0, whole - update)
        return total

    def _note(
        self, x: Instruction, kind: str, shape: str, times: int, loop: str
    ) -> None:
        channel = re.search(r"channel_id=(\d+)", x.rest)
        if channel is not None:
            if (key := (loop, channel[1])) in self.seen:
                return
            self.seen.add(key)
        size = _bytes(shape, everywhere=True)
        members = _members(x.rest, self.devices)
        if members < 2:
            return
        share = (members - 1) / members
        sent = {
            "all-gather": size * share,
            "all-reduce": 2 * size * share,
            "reduce-scatter": size * (members - 1),
            "all-to-all": size * share,
            "collective-permute": size,
        }[kind]
        self.found[kind] = self.found[kind].plus(times, size, sent)

    def _turns(self, x: Instruction) -> int:
        """Returns how often a loop runs, from what its counter is compared with."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', x.rest)
        if known is not None:
            return int(known[1])
        return self._bound(_called(x.rest, "condition")) or self.turns

    def _bound(self, part: str) -> int:
        inside = self.parts.get(part, [])
        numbers = {x.name: x for x in inside if x.opcode == "constant"}
        for x in inside:
            if x.opcode == "compare" and "direction=LT" in x.rest:
                for name in x.operands:
                    if name in numbers and numbers[name].rest.isdigit():
                        return int(numbers[name].rest)
            if x.opcode == "fusion" and (
                found := self._bound(_called(x.rest, "calls"))
            ):
                return found
        return 0


def _computations(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Yields the name of each computation, whether it is the entry, and its lines."""
    name, entry = "", False
    lines: list[str] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, entry, lines = head[2], bool(head[1]), []
        elif line.startswith("}"):
            yield name, entry, lines
        else:
            lines.append(line)


def _instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if match is None:
        return None
    end = _shape_end(match[3])
    shape, rest = match[3][:end], match[3][end:]
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    inside, after = rest[opcode.end() : close], rest[close + 1 :]
    kept = inside if opcode[1] in ("constant", "parameter") else after
    operands = _NAME.findall(inside)
    return Instruction(match[2], shape, opcode[1], operands, kept, bool(match[1]))


def _shape_end(text: str) -> int:
    """Returns where the shape that a line begins with ends."""
    if text.startswith("("):
        return _closing(text, 0) + 1
    return text.index(" ") if " " in text else len(text)


def _closing(text: str, start: int) -> int:
    """Returns the place of the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def _called(rest: str, what: str) -> str:
    match = re.search(rf"\b{what}=%?([\w.\-]+)", rest)
    return match[1] if match else ""


def _branches(rest: str) -> Sequence[str]:
    match = re.search(r"branch_computations=\{([^}]*)\}", rest)
    if match is not None:
        return [name.strip().lstrip("%") for name in match[1].split(",")]
    pair = _called(rest, "true_computation"), _called(rest, "false_computation")
    return [name for name in pair if name]


def _bytes(shape: str, *, everywhere: bool = False) -> float:
    """Returns the bytes of a shape's arrays in the device's memory.

    Args:
      everywhere: those that are kept on the chip as well.
    """
    total = 0.0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        if space is not None and space[1] != "0" and not everywhere:
            continue
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        bits = re.search(r"\d+", dtype)
        width = WIDTHS.get(dtype, int(bits[0]) / 8 if bits else 0)
        total += count * width
    return total


def _result(x: Instruction) -> str:
    """Returns the shape that an instruction gives; a start gives others beside it."""
    arrays = [match[0] for match in _ARRAY.finditer(x.shape)]
    # An all-reduce's start gives its results alone.
    alone = x.opcode == "all-reduce-start" or len(arrays) < 2
    if not x.opcode.endswith("-start") or alone:
        return x.shape
    # (result, operand, context) of a copy; of others (operands, results, contexts).
    count = len(x.operands)
    return (
        arrays[0] if x.opcode == "copy-start" else " ".join(arrays[count : 2 * count])
    )


def _members(rest: str, devices: int) -> int:
    """Returns how many devices a collective is between."""
    match = re.search(
        r"replica_groups=(\[[\d,]+\]|mesh\[[^\]]*\] ?\{[^}]*\}|\{[^ ]*\})", rest
    )
    if match is None:
        return devices
    groups = match[1]
    if groups.startswith("["):
        # [groups, members] <= [devices]
        return int(groups.strip("[]").split(",")[-1])
    if groups.startswith("mesh"):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        used = re.findall(r"'(\w+)'", groups[groups.index("{") :])
        members = 1
        for axis in used:
            members *= int(axes[axis])
        return members
    first = _GROUP.search(groups)
    return len(first[1].split(",")) if first else devices
