"""Messages between grape and a simulator in another interpreter: JSON and arrays through a pipe, nothing pickled.

Standalone: standard library and numpy, Python 3.8 or newer. The other side loads this file by its path.

A message is the number of bytes of its head (4 bytes, little endian), the head (JSON), then the arrays' bytes, C order,
one after the other. The head holds ``version``, ``values`` (JSON) and ``arrays``: name, dtype and shape of each.
"""

from __future__ import annotations

import json
import math
import struct
from typing import IO, Any

import numpy as np

VERSION = 1
"""Of this format and of the requests; the two sides must agree."""
DTYPES = ("|u1", "|b1", "<i4", "<i8", "<f4", "<f8")
"""What may travel."""
MAX_HEAD_BYTES = 1 << 24


class MessageError(Exception):
    """What arrived is no whole message of this version."""


def write_message(stream: IO[bytes], values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
    """Send one message and flush.

    Args:
        stream: A pipe, binary.
        values: JSON.
        arrays: Of the ``DTYPES``.

    Raises:
        MessageError: An array has another dtype.
        OSError: The other side is gone.
    """
    table, blocks = [], []
    for name, value in (arrays or {}).items():
        block = np.asarray(value)
        if block.dtype.str not in DTYPES:
            raise MessageError(f"array {name!r} is {block.dtype.str}, wanted one of {', '.join(DTYPES)}")
        table.append([name, block.dtype.str, list(block.shape)])
        blocks.append(block.tobytes())
    head = json.dumps({"version": VERSION, "values": values, "arrays": table}).encode()
    stream.write(struct.pack("<I", len(head)) + head + b"".join(blocks))
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Receive one message: its values and arrays; ``None`` where the stream ends before one begins.

    Raises:
        MessageError: It ends within a message, or what arrives is none of this version.
    """
    size = stream.read(4)
    if not size:
        return None
    (num_bytes,) = struct.unpack("<I", size) if len(size) == 4 else (MAX_HEAD_BYTES + 1,)
    if num_bytes > MAX_HEAD_BYTES:
        raise MessageError(f"got {size!r}, wanted a message's size: something else writes to the pipe")
    try:
        head = json.loads(_read_all(stream, num_bytes))
        version, values, table = head["version"], head["values"], head["arrays"]
    except (ValueError, KeyError, TypeError) as error:
        raise MessageError(f"a message's head cannot be read ({error})") from error
    if version != VERSION:
        raise MessageError(f"the other side speaks version {version}, this one {VERSION}: both come with grape-vla")
    return values, {name: _read_array(stream, dtype, shape) for name, dtype, shape in table}


def _read_array(stream: IO[bytes], dtype: str, shape: list[int]) -> np.ndarray:
    if dtype not in DTYPES:
        raise MessageError(f"got an array of {dtype}, wanted one of {', '.join(DTYPES)}")
    data = _read_all(stream, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()  # writable, and free of the message


def _read_all(stream: IO[bytes], num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise MessageError(f"the pipe ended after {len(data)} of {num_bytes} bytes")
    return data
