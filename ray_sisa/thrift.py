"""Thrift's compact protocol as plain values by field number: what the footer and the pages of Parquet are written in.

pyarrow reads footers too, but on some that are damaged it ends the process. What fields mean is for others to say.
"""

from __future__ import annotations

from typing import Any

Struct = dict[int, Any]
"""Values by field number; text and doubles as bytes, lists and sets as lists."""

_BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 3, 6, 7, 8, 9, 10, 11, 12, 13
_TRUE, _FALSE = 1, 2
_LONGEST = 10  # bytes of an integer of 64 bits


def parse(data: bytes) -> Struct:
    """The struct that the bytes begin with.

    Raises:
        ValueError: they do not hold one.
    """
    try:
        return _Reader(data).struct()
    except (IndexError, RecursionError):
        raise ValueError("it ends within a value, or nests without end") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._integer()
            kind = header & 15
            # Of a truth value the kind is all there is.
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind <= _I64:
            return self._integer()
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            return self._list()
        if kind == _MAP:
            return self._map()
        if kind not in (_DOUBLE, _BINARY, _UUID):
            raise ValueError(f"the kind {kind} is none")
        return self._bytes({_DOUBLE: 8, _UUID: 16}.get(kind) or self._varint())

    def _list(self) -> list[Any]:
        header = self._byte()
        size = header >> 4 if header >> 4 < 15 else self._varint()
        return [self._value(header & 15) for _ in range(size)]

    def _map(self) -> list[tuple[Any, Any]]:
        size = self._varint()
        kinds = self._byte() if size else 0
        return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(size)]

    def _bytes(self, size: int) -> bytes:
        found = self._data[self._position : self._position + size]
        if len(found) != size:
            raise IndexError
        self._position += size
        return found

    def _byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 7 * _LONGEST, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("an integer has more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
