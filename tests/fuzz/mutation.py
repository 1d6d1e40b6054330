"""Random input, and known good input spoilt."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

INTERESTING: Final = (
    *(bytes((byte,)) for byte in (0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xDC, 0xDD, 0xDF, 0xFE, 0xFF)),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"),
    *(b"\xcf" + b"\xff" * 8, b"\xd3" + b"\x80" * 8),
    *(b"-1", b"0", b"9" * 19, b"9" * 400, b"1e999", b"NaN", b"Infinity", b"null", b"true", b'""', b"''", b"{}", b"[]"),
    *(b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", "\u202e\u2028".encode(), b"\\u0000", b"\\ud800"),
    *(b"[" * 300, b"{" * 300, b'{"a":' * 300, b"(" * 300, b"!" * 300, b"- " * 300, b"a." * 300),
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"? ", b"| ", b"> ", b"%YAML 9.9", b"---\n", b"...\n"),
    *(b" in ", b" ? ", b" : ", b" && ", b"||", b" == ", b"%", b".size()", b".all(x, x)", b".map(x, x)"),
)  # fmt: skip
SIZE_MAX: Final = 200


def drawn(random: Random, examples: Sequence[bytes]) -> bytes:
    """One input: now and then of random bytes, mostly a good example with some changes."""
    if not examples or random.random() < 0.1:
        return random.randbytes(random.randint(0, SIZE_MAX))
    data = bytearray(random.choice(examples))
    for _ in range(1 if random.random() < 0.5 else random.randint(1, 8)):
        _change(random, data, examples)
    return bytes(data)


def _change(random: Random, data: bytearray, examples: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    kind = random.randrange(8)
    if kind == 0 and data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1 and data:
        data[random.randrange(len(data))] = random.randrange(256)
    elif kind == 2:
        del data[at : at + random.randint(1, 16)]
    elif kind == 3:
        data[at:at] = random.choice(INTERESTING)
    elif kind == 4:
        some = random.choice(INTERESTING)
        data[at : at + len(some)] = some
    elif kind == 5:
        part = data[at : at + random.randint(1, 40)]
        place = random.randint(0, len(data))
        data[place:place] = part
    elif kind == 6:
        other = random.choice(examples)
        begin = random.randint(0, len(other))
        data[at:at] = other[begin : begin + random.randint(1, 60)]
    else:
        del data[at:]
