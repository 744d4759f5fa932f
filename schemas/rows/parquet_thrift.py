"""Thrift's compact protocol, as far as Parquet's page headers use it. All is bounded: it may be anybody's bytes."""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _INT16, _INT32, _INT64, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 12
_MOST_DEEP, _MOST_SHIFT = 4, 63


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
    if kind == _BINARY:
        length, place = parse_varint(data, place)
        if place + length > len(data):
            raise NoThriftError("text that is cut short")
        return bytes(data[place : place + length]), place + length
    raise NoThriftError(f"a field of kind {kind}")


def _signed(data: memoryview, place: int) -> tuple[int, int]:
    """A zigzag number."""
    value, place = parse_varint(data, place)
    return value >> 1 ^ -(value & 1), place
