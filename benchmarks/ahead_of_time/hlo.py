"""What an optimised program does in a step of a loop, read from its text: what it copies, and what devices exchange."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_FUSED = re.compile(r"calls=%([\w.-]+)")
_INNER = re.compile(r"(?:body|true_computation|false_computation|to_apply)=%([\w.-]+)|branch_computations=\{([^}]*)\}")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_MOVES = {"copy", "transpose", "convert", "slice", "dynamic-slice", "concatenate", "all-gather"}
_NAMES = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "reshape", "optimization-barrier"}
_IN_PLACE = {"while", "conditional", "dynamic-update-slice"}
_NEAR = "S(1)"  # in a layout: the memory beside a TPU's cores, which what comes from HBM passes anyway


class Array(NamedTuple):
    """What an instruction makes, or one of the things."""

    type: str
    shape: str
    layout: str

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        return _BYTES.get(self.type, 0) * math.prod(int(size) for size in self.shape.split(",") if size)

    def __str__(self) -> str:
        """Type and shape, as the program has them."""
        return f"{self.type}[{self.shape}]"


class Instruction(NamedTuple):
    """A line of a program; an asynchronous one is what its `-done` makes.

    Attributes:
        name: of it.
        opcode: what it does.
        arrays: what it makes.
        rest: operands and attributes.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    rest: str


class Program:
    """The computations of an optimised program."""

    def __init__(self, text: str):
        """Reads what `jax.stages.Compiled.as_text` gives."""
        self._computations: dict[str, list[Instruction]] = {}
        self._entry, lines = "", []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                lines = self._computations.setdefault(head[1], [])
                self._entry = head[1] if line.startswith("ENTRY") else self._entry
            elif found := _INSTRUCTION.match(line):
                name, made, opcode, rest = found.groups()
                lines.append(Instruction(name, opcode, tuple(Array(*part) for part in _ARRAY.findall(made)), rest))

    def step(self, carried: str, inner: int = 1) -> list[tuple[Instruction, int]]:
        """What a step of a loop runs, and how often.

        Args:
            carried: type and shape of an array; the loop is the first one outside of others that carries it.
            inner: steps that a loop within takes if it carries that too. What another loop or a branch has counts once.

        Returns:
            Instructions; those within a fusion make nothing by themselves, and are not among them.

        Raises:
            ValueError: if no loop carries it.
        """
        for instruction in self._computations[self._entry]:
            if instruction.opcode == "while" and _carries(instruction, carried):
                return list(self._run(_body(instruction), 1, carried, inner))
        raise ValueError(f"no loop of the program carries {carried}")

    def copied(self, step: Sequence[tuple[Instruction, int]], least: int) -> int:
        """Bytes that a step makes in memory by moving, slicing or converting alone, in arrays of `least` or more."""
        return sum(
            times * array.bytes
            for instruction, times in step
            for array in instruction.arrays
            if array.bytes >= least and _NEAR not in array.layout and self._moves(instruction)
        )

    def as_large(self, step: Sequence[tuple[Instruction, int]], least: int) -> list[str]:
        """Arrays of `least` bytes or more that a step makes in memory by whatever means, but for writes in place."""
        return [
            f"{instruction.opcode} {array}"
            for instruction, _ in step
            for array in instruction.arrays
            if array.bytes >= least and _NEAR not in array.layout and not self._writes_in_place(instruction)
        ]

    def _run(self, name: str, times: int, carried: str, inner: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in self._computations[name]:
            yield instruction, times
            looped = times * inner if instruction.opcode == "while" and _carries(instruction, carried) else times
            if instruction.opcode in ("while", "conditional", "call"):
                for called in _called(instruction):
                    yield from self._run(called, looped, carried, inner)

    def _moves(self, instruction: Instruction) -> bool:
        opcode = instruction.opcode.removesuffix("-done")
        if opcode != "fusion":
            return opcode in _MOVES
        large = [part for part in self._fused(instruction) if any(array.shape for array in part.arrays)]
        opcodes = {part.opcode for part in large} - _NAMES
        return bool(opcodes) and opcodes <= _MOVES

    def _writes_in_place(self, instruction: Instruction) -> bool:
        if instruction.opcode in _NAMES | _IN_PLACE or instruction.opcode.endswith("-start"):
            return True
        made = {str(array) for array in instruction.arrays}
        fused = self._fused(instruction)
        return any(part.opcode == "dynamic-update-slice" and str(part.arrays[0]) in made for part in fused)

    def _fused(self, instruction: Instruction) -> list[Instruction]:
        """What a fusion is made of; the end of an asynchronous one names its start alone."""
        found = _FUSED.search(instruction.rest)
        if found is None and instruction.opcode == "fusion-done":
            start = instruction.rest.split(")")[0].removeprefix("%")
            lines = (line for part in self._computations.values() for line in part if line.name == start)
            found = _FUSED.search(next(lines).rest)
        return self._computations[found[1]] if found else []


def exchanged(step: Sequence[tuple[Instruction, int]]) -> dict[str, tuple[int, int]]:
    """Collectives of a step: how many of each there are, and the bytes of what they make on a device."""
    found: dict[str, tuple[int, int]] = {}
    for instruction, times in step:
        name = instruction.opcode.removesuffix("-done")
        if name in _COLLECTIVES:
            count, total = found.get(name, (0, 0))
            found[name] = count + times, total + times * sum(array.bytes for array in instruction.arrays)
    return found


def _carries(loop: Instruction, carried: str) -> bool:
    return carried in map(str, loop.arrays)


def _body(loop: Instruction) -> str:
    return _called(loop)[0]


def _called(instruction: Instruction) -> list[str]:
    names = [one or several for one, several in _INNER.findall(instruction.rest)]
    return [name.strip().removeprefix("%") for part in names for name in part.split(",")]
