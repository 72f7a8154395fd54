"""Where a pickle ends and whether it asks for more than its file can hold, found out before it is loaded.

A pickle numbers what it wants to use again (its memo), and Python makes room for the highest number at once: nine
bytes that name the number 4,000,000,000 take 64 GB. No honest pickle has more numbers than bytes.
"""

import mmap
import pickletools

LONGEST_NUMBER = 20  # digits of a memo's number written as text
_LINES = b"ci"  # their argument is two lines
_STOP, _PUT, _LONG_PUT = b".pr"
# by opcode: bytes of its argument, or pickletools' negative codes for a line and for a length that comes first
_ARGUMENTS: list[int | None] = [None] * 256
for _op in pickletools.opcodes:
    _ARGUMENTS[ord(_op.code)] = _op.arg.n if _op.arg else 0
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class BeyondTheFile(ValueError):
    """A pickle counts on more entries than its file has bytes."""


def pickle_end(data: bytes | mmap.mmap, place: int) -> int:
    """The position behind the pickle that begins at `place` of a file's `data`; nothing is built or called.

    Raises EOFError where it is cut off, BeyondTheFile, and ValueError for what is no pickle.
    """
    size = len(data)
    while place < size:
        code = data[place]
        count = _ARGUMENTS[code]
        if count is None:
            raise ValueError(f"no opcode {bytes([code])!r} at byte {place}")
        place += 1
        if count >= 0:
            if code == _LONG_PUT:
                _check_number(int.from_bytes(data[place : place + count], "little"), size)
            place += count
        elif count == pickletools.UP_TO_NEWLINE:
            end = _line_end(data, place)
            if code == _PUT:
                _check_number(int(data[place : min(end - 1, place + LONGEST_NUMBER)]), size)
            place = _line_end(data, end) if code in _LINES else end
        else:
            start = place + _LENGTH_BYTES[count]
            place = start + int.from_bytes(data[place:start], "little")
        if code == _STOP:
            return place
    raise EOFError(f"cut off: {place - size} bytes are missing" if place > size else "cut off: no end")


def _line_end(data: bytes | mmap.mmap, place: int) -> int:
    end = data.find(b"\n", place)
    if end < 0:
        raise EOFError(f"cut off in the line that begins at byte {place}")
    return end + 1


def _check_number(number: int, size: int) -> None:
    if number > size:
        raise BeyondTheFile(f"a memo of {number:,} entries in a file of {size:,} bytes")
