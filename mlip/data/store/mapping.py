"""Files as arrays, without an open file for each.

A store has some twenty files a shard, and Python's `mmap` keeps every file open that it maps: at
the usual limit of 1024 open files sixty shards could not be read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from mlip.errors import CorruptDataError

_FAILED: Final = ctypes.c_void_p(-1).value


def map_file(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file that holds one array, read-only.

    Args:
        path: of the file.
        dtype: of the array.
        shape: of the array; nothing of it is empty.

    Raises:
        CorruptDataError: the file is missing or shorter than the array.
    """
    try:
        if os.name == "posix":
            return np.asarray(_Mapping(path, dtype, shape))
        return np.memmap(path, dtype, "r", shape=shape).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise CorruptDataError(
            f"{path}: cannot be mapped ({error}); convert the data again"
        ) from error


class _Mapping:
    """Memory of a file, for as long as an array looks at it."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self._address = None
        self._size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._size:  # touching its end would kill us
                raise ValueError(f"it is shorter than {self._size} bytes")
            address = _libc().mmap(
                None, self._size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0
            )
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        self._address = address
        self.__array_interface__ = {
            "version": 3, "typestr": dtype, "shape": shape, "data": (address, True)
        }  # fmt: skip

    def __del__(self) -> None:
        if self._address is not None:
            _libc().munmap(self._address, self._size)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
