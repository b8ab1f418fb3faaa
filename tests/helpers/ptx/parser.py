"""Reads the PTX of one kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Address:
    """[base + offset], where base is a register or a symbol."""

    base: str
    offset: int


# A register, symbol or label by its name; the bits of a constant; a memory address; {a, b, ...}.
Operand: TypeAlias = "str | int | Address | tuple[Operand, ...]"


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@!%p1 opcode operands`.

    Attributes:
        words: the opcode's parts, as in ("mul", "wide", "u32").
        guard: the predicate's register; "" for none. negated: whether it stands behind "!".
        line: its line in the PTX. source: the file and line of the kernel that it comes from.
    """

    text: str
    words: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str
    negated: bool
    line: int
    source: str

    def __str__(self) -> str:
        return f"PTX line {self.line} ({self.source}): {self.text}"


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel.

    Attributes:
        parameters: names and types, as in ("decode_kernel_param_0", "u64").
        threads: threads of one CTA.
        labels: places in `instructions`.
        register_types: by the letters of a register's name, as in {"%rd": "b64"}.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    register_types: dict[str, str]


def parse(ptx: str) -> Program:
    """Return the one kernel that is in `ptx`."""
    header = re.search(r"\.entry\s+(\w+)\((.*?)\)\s*\.reqntid\s+(\d+)", ptx, re.DOTALL)
    assert header is not None, "there is no kernel in this text"
    parameters = re.findall(r"\.param\s+\.(\w+)\s[^,]*?(\w+_param_\d+)", header[2])
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    register_types: dict[str, str] = {}
    files = dict(re.findall(r'^\s*\.file\s+(\d+) "[^"]*?([^/"]+)"', ptx, re.MULTILINE))
    source = "?"
    first_line = ptx.count("\n", 0, header.end()) + 1
    for line, text in enumerate(_body(ptx[header.end() :]), start=first_line):
        if text.startswith(".loc"):
            _, file, row, *_ = text.split()
            source = f"{files.get(file, file)}:{row}"
        elif text.startswith(".reg"):
            for kind, prefix in re.findall(r"\.(\w+)\s+(%[a-z]+)(?:<|\d)", text):
                register_types[prefix] = kind
        elif text.endswith(":"):
            labels[text[:-1]] = len(instructions)
        elif text and not text.startswith("."):
            instructions.append(_instruction(text, line, source))
    return Program(
        header[1], tuple((name, kind) for kind, name in parameters), int(header[3]),
        tuple(instructions), labels, register_types,
    )  # fmt: skip


def _body(text: str) -> list[str]:
    """Return the lines between the function's braces, without comments.

    Names that an inner pair of braces declares get the pair's number, as a register or a label.
    """
    lines = [re.sub(r"//.*", "", line).strip() for line in text.split("\n")]
    begin = lines.index("{")
    body, scope, n_scopes = [""] * (begin + 1), 0, 0
    for line in lines[begin + 1 :]:
        if line == "{":
            n_scopes += 1
            scope = n_scopes
        elif line == "}" and not scope:
            break
        elif line == "}":
            scope = 0
        elif scope:
            line = re.sub(r"\bwaitLoop\b", f"$waitLoop{scope}", line)
            line = re.sub(r"\bcomplete\b(?!_)", f"%complete{scope}", line)
        body.append("" if line in ("{", "}") else line)
    return body


def _instruction(text: str, line: int, source: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;", text)
    if match is None:
        raise ValueError(f"PTX line {line} is not one instruction: {text}")
    negation, guard, opcode, rest = match.groups()
    words = tuple(opcode.replace("::cta", "").split("."))
    operands = tuple(map(_operand, _split(rest)))
    return Instruction(text, words, operands, guard or "", bool(negation), line, source)


def _split(text: str) -> list[str]:
    """Split at the commas that are outside braces and brackets."""
    parts, depth = [""], 0
    for character in text.strip():
        depth += (character in "{[") - (character in "}]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]


def _operand(text: str) -> Operand:
    text = text.strip()
    if text.startswith("{"):
        return tuple(map(_operand, _split(text[1:-1])))
    if text.startswith("[") and "," in text:  # a descriptor and coordinates
        return tuple(map(_operand, _split(text[1:-1])))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(base, int(offset or 0))
    if text.startswith(("0f", "0d")):
        return int(text[2:], 16)
    return int(text, 0) if re.match(r"-?\d", text) else text
