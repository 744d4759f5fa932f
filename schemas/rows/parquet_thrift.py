"""Thrift's compact protocol, as far as Parquet's page headers and footers use it. All is bounded: anybody's bytes."""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _INT16, _INT32, _INT64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12
_MOST_DEEP, _MOST_SHIFT, _LONG_LIST = 6, 63, 15


class NoThriftError(ValueError):
    """The bytes are no such struct, or one with a field of another kind."""


def parse_varint(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """A number in sevens of bits, lowest first; and where the next begins.

    Raises:
        NoThriftError, IndexError: there is none.
    """
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > _MOST_SHIFT:
            raise NoThriftError("a number of more than 64 bits")


def parse_struct(data: memoryview, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct by field number; and where the next begins.

    Raises:
        NoThriftError, IndexError: there is none.
    """
    if depth > _MOST_DEEP:
        raise NoThriftError("structs that are nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while head := data[place]:
        place += 1
        if head >> 4:
            field += head >> 4
        else:
            field, place = _signed(data, place)
        found[field], place = _field(data, place, head & 15, depth)
    return found, place + 1


def _field(data: memoryview, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, place
    if kind == _BYTE:
        return data[place], place + 1
    if kind in (_INT16, _INT32, _INT64):
        return _signed(data, place)
    if kind == _STRUCT:
        return parse_struct(data, place, depth + 1)
    if kind == _LIST:
        return _list(data, place, depth)
    if kind == _BINARY:
        length, place = parse_varint(data, place)
        if place + length > len(data):
            raise NoThriftError("text that is cut short")
        return bytes(data[place : place + length]), place + length
    raise NoThriftError(f"a field of kind {kind}")


def _list(data: memoryview, place: int, depth: int) -> tuple[list[Any], int]:
    """Each item takes a byte or more, so a list is no longer than the bytes that follow it."""
    head = data[place]
    count, place = (head >> 4, place + 1) if head >> 4 < _LONG_LIST else parse_varint(data, place + 1)
    found, kind = [], head & 15
    for _ in range(count):
        item, place = _field(data, place, _BYTE if kind in (_TRUE, _FALSE) else kind, depth)
        found.append(item)
    return found, place


def _signed(data: memoryview, place: int) -> tuple[int, int]:
    """A zigzag number."""
    value, place = parse_varint(data, place)
    return value >> 1 ^ -(value & 1), place
