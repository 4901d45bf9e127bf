"""How files are spoiled: bytes, JSON, safetensors. Everything is drawn from the generator that is given."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from random import Random
from typing import Any

from .watch import MARK

LARGEST = 30_000_000  # bytes of a file that is made
TEXTS = [
    "",
    " ",
    "\x00",
    f"\x1b[2J\x1b]0;owned\x07{MARK}",
    f"a\n{MARK} holds (text side)",
    f"a\r{MARK}",
    f"a\u2028{MARK}\u2029{MARK}\x85{MARK}\x0b{MARK}\x0c{MARK}",
    "\u202etxt.exe\u202c\u2066\u200b\ufeff",
    "\x9b31m\x7f",
    "\ud800",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}${x}%s{0}{}",
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "file:///etc/passwd",
    "\\\\host\\share\\x.png",
    "-rf",
    "; rm -rf / #",
    "$(touch owned)",
    "'; DROP TABLE edits; --",
    "Z\u0300" * 300,
    "漢" * 50,
    "🦫" * 40,
    "a" * 4096,
    "a" * 5000,
    "a " * 3000,
    "x" * 200_000,
    "{} {} {}",
    "NaN",
    "null",
    "__class__",
    "__proto__",
    "con",
]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e308, 5e-324, "1",
    [], {}, [[]], [None], {"": None}, [1, 2, 3], {"images": ["/etc/passwd"]}, {"images": []}, {"images": [3]},
]  # fmt: skip


def text(draw: Random) -> str:
    """A text that wants something."""
    return draw.choice(TEXTS)


def value(draw: Random) -> Any:
    """A JSON value that is out of place; sometimes deep or huge."""
    kind = draw.random()
    if kind < 0.4:
        return text(draw)
    if kind < 0.9:
        return copy.deepcopy(draw.choice(VALUES))
    if kind < 0.95:
        return deep(draw.choice((5, 50, 70, 500, 900)), draw)
    return [text(draw) for _ in range(draw.choice((10, 1000)))]


def deep(levels: int, draw: Random) -> Any:
    """Lists or objects in each other."""
    found: Any = 1
    for _ in range(levels):
        found = [found] if draw.random() < 0.5 else {"a": found}
    return found


def places(form: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values of a JSON form."""
    if len(path) > 100:
        return [path]
    items = form.items() if isinstance(form, dict) else enumerate(form) if isinstance(form, list) else ()
    return [path] + [found for key, item in items for found in places(item, (*path, key))]


def spoil_json(form: Any, draw: Random, times: int = 1) -> Any:
    """The form with some values replaced, removed, renamed, repeated or moved."""
    form = copy.deepcopy(form)
    for _ in range(times):
        path = draw.choice(places(form))
        if not path:
            if draw.random() < 0.05:
                return value(draw)
            continue
        parent = form
        for key in path[:-1]:
            parent = parent[key]
        with contextlib.suppress(RecursionError):  # what is too deep to be copied is not repeated
            _spoil(parent, path[-1], draw)
    return form


def _spoil(parent: Any, key: Any, draw: Random) -> None:
    kind = draw.random()
    if kind < 0.6:
        parent[key] = value(draw)
    elif kind < 0.75:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind < 0.9:
        parent[text(draw)] = parent.pop(key)
    else:
        parent[draw.choice(list(parent))] = copy.deepcopy(parent[key])


def dumped(form: Any) -> bytes:
    """JSON as a stranger writes it: lone surrogates and huge numbers stay; what Python cannot nest is cut."""
    try:
        return json.dumps(form, ensure_ascii=True).encode()
    except RecursionError:
        return b"[" * 100_000


def spoil_bytes(content: bytes, draw: Random) -> bytes:
    """Bits flipped, parts cut out, repeated, zeroed, or replaced."""
    spoiled = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        at = draw.randrange(len(spoiled)) if spoiled else 0
        size = draw.choice((1, 2, 8, 64, 1000))
        kind = draw.randrange(6)
        if kind == 0 and spoiled:
            spoiled[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del spoiled[at:]
        elif kind == 2:
            del spoiled[at : at + size]
        elif kind == 3:
            spoiled[at:at] = spoiled[at : at + size]
        elif kind == 4:
            spoiled[at : at + size] = bytes(size)
        else:
            spoiled[at : at + size] = draw.randbytes(size)
    return bytes(spoiled)


# -- safetensors ------------------------------------------------------------------------------------------------------


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and tensors' bytes of a whole file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def pack(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file of them; length: what it announces."""
    return struct.pack("<Q", (len(header) if length is None else length) % 2**64) + header + data


def laid_out(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict) -> bytes:
    """A file whose layout is right, whatever the tensors are."""
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, part) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    return pack(dumped(header), data)


def taken_apart(content: bytes) -> tuple[dict[str, tuple[str, list[int], bytes]], dict]:
    """Tensors (dtype, shape, bytes) by name, and metadata."""
    header, data = split(content)
    metadata = header.pop("__metadata__", {})
    return {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}, metadata


def spoil_header(content: bytes, draw: Random) -> bytes:
    """Lengths, names, types, shapes and offsets that do not fit, are huge, or are none."""
    header, data = split(content)
    kind = draw.randrange(6)
    if kind == 0:
        return pack(dumped(header), data, draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(content), len(content) - 8)))
    if kind == 1:
        return pack(b"[" * draw.choice((100, 900, 5000, 10**6)) + dumped(header), data)
    if kind == 2:
        entry = draw.choice([e for name, e in header.items() if name != "__metadata__"])
        key = draw.choice(("dtype", "shape", "data_offsets"))
        entry[key] = draw.choice(
            (["F32"], "F64", "F8_E4M3", "I64", [2**40, 2**40], [-1, 4], [0, 0], [0, 2**62], [True, 1], [1.5], [1] * 500)
        )
        return pack(dumped(header), data)
    if kind == 3:
        return pack(dumped(header) + b" " * draw.choice((1, 1000, 10**6)), data)
    return pack(dumped(spoil_json(header, draw, draw.choice((1, 3)))), data)


def spoil_tensors(content: bytes, draw: Random) -> bytes:
    """Numbers, types, shapes and names of tensors changed, in a file that is well formed."""
    tensors, metadata = taken_apart(content)
    metadata.pop("modelspec.hash_sha256", None)
    name = draw.choice(list(tensors))
    dtype, shape, data = tensors[name]
    kind = draw.randrange(8)
    if kind == 0 and data:
        at = 4 * draw.randrange(max(1, len(data) // 4))
        number = struct.pack("<f", draw.choice((float("nan"), float("inf"), 3e38, 1e30, -1e20, 1e-42)))
        tensors[name] = (dtype, shape, data[:at] + number + data[at + 4 :])
    elif kind == 1:
        number = struct.pack("<f", draw.choice((1e38, 1e20, 1e10, 1e6, 0.0, 1e-42)))
        tensors[name] = (dtype, shape, number * (len(data) // 4))
    elif kind == 2:
        tensors[name] = (draw.choice(("F16", "BF16")), [*shape[:-1], shape[-1] * 2] if shape else [2], data)
    elif kind == 3 and shape:
        times = min(draw.choice((2, 10, 1000, 20_000)), LARGEST // max(1, len(data)))
        tensors[name] = (dtype, [shape[0] * times, *shape[1:]], data * times)
    elif kind == 4:
        _grow(tensors, draw)
    elif kind == 5:
        del tensors[name]
    elif kind == 6:
        tensors[draw.choice((text(draw), name + "x", name.replace("1", "2"), name.upper()))] = tensors[name]
    else:
        tensors[name] = (dtype, draw.choice(([], [1], [1, *shape], shape[::-1], [len(data) // 4])), data)
    return laid_out(tensors, metadata)


def _grow(tensors: dict[str, tuple[str, list[int], bytes]], draw: Random) -> None:
    """Every down and up of the file wider or of higher rank, so that they still fit each other."""
    size = sum(len(data) for _, _, data in tensors.values())
    times, wider = min(draw.choice((10, 500, 5000)), LARGEST // size), draw.random() < 0.5
    for name, (dtype, shape, data) in tensors.items():
        if len(shape) == 2:
            rows = "down" in name
            grown = [shape[0] * times, shape[1]] if rows != wider else [shape[0], shape[1] * times]
            tensors[name] = (dtype, grown, data * times)


def spoil_record(content: bytes, draw: Random) -> bytes:
    """The record's JSON changed, most often where methods read it back: sites, logs, settings, texts."""
    tensors, metadata = taken_apart(content)
    record = json.loads(metadata["refact"])
    kind = draw.random()
    if kind < 0.35 and record.get("edits"):
        edit = draw.choice(record["edits"])
        for log in edit["sites"].values():
            log[draw.choice([*log, "strength", "share", "crowded"])] = value(draw)
    elif kind < 0.5 and record.get("edits"):
        draw.choice(record["edits"])[draw.choice(("prompt", "new", "old", "subject", "name"))] = text(draw)
    elif kind < 0.6 and record.get("edits"):
        draw.choice(record["edits"])[draw.choice(("aliases", "preserve"))] = [text(draw) for _ in range(3)]
    elif kind < 0.7:
        record["method"][draw.choice(list(record["method"]))] = value(draw)
    elif kind < 0.75:
        metadata[text(draw)] = text(draw)
    else:
        record = spoil_json(record, draw, draw.choice((1, 1, 2, 5)))
    written = dumped(record).decode()
    if draw.random() < 0.03:
        written = written.replace("1", "NaN", 1).replace("2", "Infinity", 1)
    return laid_out(tensors, metadata | {"refact": written})


def spoil_patch(content: bytes, draw: Random) -> bytes:
    """A patch's file, spoiled in one of these ways."""
    kind = draw.random()
    if kind < 0.2:
        return spoil_bytes(content, draw)
    if kind < 0.35:
        return spoil_header(content, draw)
    if kind < 0.55:
        return spoil_tensors(content, draw)
    return spoil_record(content, draw)
