"""Bodies from strangers: gunzip and JSON with bounds on bytes, memory, depth and number of objects.

Used in both directions: a host is a stranger to the agent, too. Everything refused raises
BodyError with the HTTP status that fits.
"""

from __future__ import annotations

import json
import re
import sys
import zlib

from .base import MedialibError
from .late import gzip

JSON_DEPTH = 64
# 64 MiB of "[],[]," would be 22 times as much in Python objects: what costs is the number of
# values, not of bytes. A batch of 500 records has about 20,000 of these tokens.
JSON_TOKENS = 500_000
JSON_TOKEN_BYTES = 116  # in memory at most, on the average: {"": {"": …}} makes a dict of every two
JSON_ESCAPE_BYTES = 8  # older Pythons make a string of every escape
JSON_UNICODE_ESCAPE_BYTES = 76
JSON_LEAST_BYTES = 8 << 10
JSON_DIGITS = 4300  # where Python itself stops; before 3.8.14 it did not, and took hours
GUNZIP_STEP = 1 << 16

# Brackets become "[" and "]", quotes stay, and for counting also commas and colons.
JSON_SHAPE_TABLE = bytes.maketrans(b"{}", b"[]")
JSON_NEST_DROPS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
JSON_SHAPE_DROPS = bytes(byte for byte in range(256) if byte not in b'[]{}",:')
JSON_TOKEN_DROPS = bytes(byte for byte in range(256) if byte not in b"[{,:")
WIDE_DROPS = bytes(range(0xF0))  # leaves the first bytes of letters that are four bytes everywhere
# What Python writes for an undecodable byte of a file name becomes the same byte in path text.
SURROGATE = re.compile("[\ud800-\udfff]")
HARMLESS_SURROGATES = {code: 0xEF00 + (code & 0xFF) if 0xDC80 <= code <= 0xDCFF else 0xFFFD
                       for code in range(0xD800, 0xE000)}


class BodyError(MedialibError):
    """A body that is not taken; `status` is the HTTP status for it."""

    def __init__(self, status: int, error: str, detail: str = ""):
        super().__init__(f"{error}: {detail}" if detail else error)
        self.status = status
        self.error = error
        self.detail = detail


class JsonWeight:
    """About how much memory it will take to parse a JSON text that is told piece by piece: the
    bytes, the text, its strings and the values. No less than it is, whatever the text holds.
    """

    def __init__(self):
        self.size_bytes = 0
        self.tokens = 0
        self.escapes_bytes = 0
        self.text_width = 1  # bytes a letter, as Python keeps texts
        self.string_width = 1

    def add(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self.tokens += len(piece.translate(None, JSON_TOKEN_DROPS))
        if self.text_width < 4 and not piece.isascii():
            self.text_width = 4 if piece.translate(None, WIDE_DROPS) else max(2, self.text_width)
        if b"\\" in piece:
            unicode_escapes = piece.count(b"\\u")
            self.escapes_bytes += (piece.count(b"\\") * JSON_ESCAPE_BYTES
                                   + unicode_escapes * JSON_UNICODE_ESCAPE_BYTES)
            if unicode_escapes or piece.endswith(b"\\"):  # an escape may be cut in two here
                self.string_width = 4

    def memory_bytes(self) -> int:
        letters = 1 + self.text_width + max(self.text_width, self.string_width)
        if self.string_width > self.text_width:  # a string is put together from parts, and grows
            letters += self.text_width + self.string_width // 2
        return (JSON_LEAST_BYTES + self.size_bytes * letters + self.escapes_bytes
                + min(self.tokens, JSON_TOKENS) * JSON_TOKEN_BYTES)


def gunzip_bounded(data: bytes, limit: int) -> bytearray:
    """The unpacked bytes, at most `limit` of them, or BodyError 413 without having held them."""
    if limit > GUNZIP_STEP:  # unpacking twice costs time, but a bomb then costs no memory
        for _ in gunzip_pieces(data, limit):
            pass
    return gunzip_whole(data, limit)


def gunzip_whole(data: bytes, limit: int) -> bytearray:
    """The same for what has been looked through before."""
    body = bytearray()
    for piece in gunzip_pieces(data, limit):
        body += piece
    return body


def gunzip_pieces(data: bytes, limit: int):
    """The unpacked pieces, until more than `limit` bytes came out."""
    source = memoryview(data)
    place = total = 0
    unpacker = zlib.decompressobj(wbits=31)
    while place < len(source) or unpacker.unconsumed_tail:
        packed = unpacker.unconsumed_tail
        if not packed:  # in slices: what is not consumed is copied each time
            packed = source[place:place + GUNZIP_STEP]
            place += len(packed)
        try:
            piece = unpacker.decompress(packed, GUNZIP_STEP)
        except zlib.error as error:
            raise BodyError(400, "not gzip", str(error)) from error
        total += len(piece)
        if total > limit:
            raise BodyError(413, "body too large", f"more than {limit} bytes unpacked")
        yield piece
        if unpacker.eof:
            break
    # What is still inside the unpacker is less than a step; a whole member leaves nothing.
    if not unpacker.eof:
        raise BodyError(400, "not gzip", "the compressed body is cut short")
    if place < len(source) or unpacker.unused_data:  # a million tiny members are a bomb as well
        raise BodyError(400, "not gzip", "something follows the compressed body")


def gzip_packed(data: bytes) -> bytes:
    """Packed quickly: on a home network the processor is the scarcer thing."""
    return gzip.compress(data, 1)


def parse_json_bounded(data: bytes, *, tokens: int = JSON_TOKENS, depth: int = JSON_DEPTH):
    """The JSON value in UTF-8 `data`. BodyError 400 for all that is not sound JSON in our bounds.

    NaN and Infinity are refused. A lone surrogate, which no UTF-8 can hold, is made harmless: what
    Python writes for an undecodable byte of a file name (U+DC80 to U+DCFF) becomes the same byte
    in path text (U+EF80 to U+EFFF), any other becomes U+FFFD.
    """
    _check_json_shape(data, tokens, depth)
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded_int_parser())
        if b"\\" in data and "\\u" in text and ("\\ud" in text or "\\uD" in text):
            value = _harmless(value)
        return value
    except RecursionError as error:
        raise BodyError(400, "JSON too deep", f"at most {depth} levels") from error
    except ValueError as error:
        raise BodyError(400, "not JSON", str(error)[:200]) from error


def parse_json_object(data: bytes, **bounds) -> dict:
    """As parse_json_bounded, but the value must be an object."""
    value = parse_json_bounded(data, **bounds)
    if not isinstance(value, dict):
        raise BodyError(400, "not a JSON object", "the body must be an object {...}")
    return value


def _check_json_shape(data: bytes, tokens: int, depth: int) -> None:
    """Count and nest the brackets without making an object. Looks closely only where it must."""
    if len(data) > tokens and len(data.translate(None, JSON_TOKEN_DROPS)) > tokens:
        shape = _json_shape(data, JSON_SHAPE_DROPS)
        if shape.count(b"[") + shape.count(b",") + shape.count(b":") > tokens:
            raise BodyError(400, "JSON too large", f"more than {tokens} values")
    if data.count(b"[") + data.count(b"{") > depth:
        _check_json_depth(_json_shape(data, JSON_NEST_DROPS), depth)


def _check_json_depth(nest: bytes, depth: int) -> None:
    for _ in range(depth):
        if not nest:
            return
        outer = nest.replace(b"[]", b"")  # the innermost level goes
        if len(outer) == len(nest):
            raise BodyError(400, "not JSON", "brackets do not match, or are too deep")
        nest = outer
    if nest:
        raise BodyError(400, "JSON too deep", f"at most {depth} levels")


def _json_shape(data: bytes, drops: bytes) -> bytes:
    """The brackets (all as [ and ]) and what else is not in `drops`, outside of strings."""
    if b"\\" in data:  # escaped backslashes first: then a remaining \\" is a quote in a string
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    shape = data.translate(JSON_SHAPE_TABLE, drops)
    # Strings that held nothing kept here are now empty. Where one follows another at once this
    # joins the two, which changes nothing outside of them.
    shape = shape.replace(b'""', b"")
    return b"".join(shape.split(b'"')[::2]) if b'"' in shape else shape


def _harmless(value):
    """The same value without lone surrogates in its texts; lists and dicts are mended in place."""
    if isinstance(value, str):
        return _harmless_text(value)
    if isinstance(value, list):
        value[:] = map(_harmless, value)
    elif isinstance(value, dict):
        mended = [(_harmless_text(key), _harmless(inner)) for key, inner in value.items()]
        value.clear()
        value.update(mended)
    return value


def _harmless_text(text: str) -> str:
    return text.translate(HARMLESS_SURROGATES) if SURROGATE.search(text) else text


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def _bounded_int_parser():
    """None where Python bounds the digits of an integer itself (json is faster without a hook)."""
    return None if hasattr(sys, "get_int_max_str_digits") else _parse_bounded_int


def _parse_bounded_int(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
