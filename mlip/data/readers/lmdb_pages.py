"""Whether an LMDB file can be mapped into memory without killing the process.

LMDB trusts its pages: in a file that was cut short or damaged it follows pointers to wherever they
lead, and the process dies of SIGBUS or SIGSEGV. So the tree is walked here first with plain reads,
without mapping anything: every pointer must stay within its page and every page within the file.
That costs one look at the pages of the tree; records are left to their own checksums. Large
records lie in pages of their own, whose headers are looked at, too, unless the caller leaves that
out: it reads nearly the whole file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from mlip.errors import CorruptDataError

_MAGIC: Final = 0xBEEFC0DE
# magic, version, page size; then the main table: flags, entries, root; last page, transaction
_META: Final = struct.Struct("<II8x8xI48xH26xQQQQ")
_HEADER: Final = struct.Struct(
    "<Q2xHHH"
)  # page number, flags, end of the slots, begin of the nodes
_NODE: Final = struct.Struct("<HHHH")  # size (or child page), low and high; flags; size of the key
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_KINDS: Final = 0x6F  # the bits of a page's flags that say what it is
_BIG: Final = 1  # of a node: its data lie in pages of their own
_EMPTY: Final = 2**64 - 1
_PAGE_SIZES: Final = tuple(2**n for n in range(8, 17))


@dataclass(frozen=True)
class _Meta:
    page_size: int
    flags: int
    entries: int
    root: int
    last_page: int
    transaction: int


def check_lmdb(path: Path, *, records: bool = True) -> None:
    """Refuse a file that LMDB cannot read safely.

    Args:
        path: the file.
        records: look also whether the pages of large records are theirs. Without, reading is as
            safe, but a record may turn out to be another one: its own checksum must tell.

    Raises:
        CorruptDataError: it is no LMDB database, is cut short, or a pointer in it leads nowhere.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        meta = _newest_meta(path, stream, size)
        needed = (meta.last_page + 1) * meta.page_size
        if size < needed:
            raise CorruptDataError(
                f"{path}: is cut short: it has {size} bytes and needs {needed}; "
                "copy or download it again"
            )
        if meta.flags:
            raise _damaged(path, f"its table has flags {meta.flags:#x}")
        found = 0 if meta.root == _EMPTY else _Walk(path, stream, meta, records).entries()
    if found != meta.entries:
        raise _damaged(path, f"it has {found} records and should have {meta.entries}")


def _newest_meta(path: Path, stream: BinaryIO, size: int) -> _Meta:
    first = _read_meta(stream.read(_HEADER.size + _META.size))
    second = None
    if first is not None:
        stream.seek(first.page_size)
        second = _read_meta(stream.read(_HEADER.size + _META.size))
    if first is None:
        raise CorruptDataError(
            f"{path}: does not start like an LMDB database ({size} bytes); "
            "it is damaged or something else; copy or download it again"
        )
    if second is None:
        raise CorruptDataError(f"{path}: is cut short or damaged at {size} bytes; copy it again")
    # The two are written in turn, so that they are always of two successive transactions.
    apart = abs(first.transaction - second.transaction)
    if apart > 1 or first.page_size != second.page_size:
        raise _damaged(path, "its two headers contradict each other")
    return max(first, second, key=lambda meta: meta.transaction)


def _read_meta(page: bytes) -> _Meta | None:
    if len(page) < _HEADER.size + _META.size:
        return None
    magic, version, page_size, *rest = _META.unpack_from(page, _HEADER.size)
    good = (magic, version) == (_MAGIC, 1) and page_size in _PAGE_SIZES
    return _Meta(page_size, *rest) if good else None


class _Walk:
    """Visits every page of the tree once."""

    def __init__(self, path: Path, stream: BinaryIO, meta: _Meta, records: bool) -> None:
        self.path, self.stream, self.meta, self.records = path, stream, meta, records

    def entries(self) -> int:
        """Return the number of records, having seen that every pointer is sound."""
        waiting, seen, found = [self.meta.root], set[int](), 0
        while waiting:
            number = waiting.pop()
            if number in seen:
                raise _damaged(self.path, f"two pointers lead to page {number}")
            seen.add(number)
            page, kind, slots = self._page(number)
            for slot in slots:
                low, high, flags, key = self._node(page, slot, number)
                if kind == _BRANCH:
                    waiting.append(low | high << 16 | flags << 32)
                else:
                    self._check_data(page, number, slot + _NODE.size + key, low | high << 16, flags)
            found += len(slots) if kind == _LEAF else 0
        return found

    def _page(self, number: int) -> tuple[bytes, int, tuple[int, ...]]:
        """Return a page of the tree, what it is, and where its nodes begin."""
        size = self.meta.page_size
        page = self._read(number, size)
        own, flags, lower, upper = _HEADER.unpack_from(page)
        kind = flags & _KINDS
        sound = kind in (_BRANCH, _LEAF) and _HEADER.size < lower <= upper <= size
        if own != number or not sound or lower % 2:
            raise _damaged(self.path, f"page {number} is no page of its tree")
        return page, kind, struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, 16)

    def _node(self, page: bytes, slot: int, number: int) -> tuple[int, int, int, int]:
        if slot + _NODE.size <= len(page):
            low, high, flags, key = _NODE.unpack_from(page, slot)
            if slot + _NODE.size + key <= len(page):
                return low, high, flags, key
        raise _damaged(self.path, f"page {number}: an entry reaches beyond its page")

    def _check_data(self, page: bytes, number: int, start: int, length: int, flags: int) -> None:
        if flags not in (0, _BIG):
            raise _damaged(self.path, f"page {number}: an entry is of unknown kind {flags:#x}")
        if start + (8 if flags else length) > len(page):
            raise _damaged(self.path, f"page {number}: an entry reaches beyond its page")
        if flags:
            self._check_record(int.from_bytes(page[start : start + 8], "little"), length)

    def _check_record(self, number: int, length: int) -> None:
        self._require(number)
        pages, sound = self.meta.last_page + 1 - number, True
        if self.records:
            own, kind, low, high = _HEADER.unpack(self._read(number, _HEADER.size))
            pages = min(pages, low | high << 16)
            sound = own == number and kind & _KINDS == _OVERFLOW
        if not sound or length > pages * self.meta.page_size - _HEADER.size:
            raise _damaged(self.path, f"page {number} does not hold the record that it should")

    def _require(self, number: int) -> None:
        if not 2 <= number <= self.meta.last_page:
            raise _damaged(self.path, f"it points to page {number} of {self.meta.last_page + 1}")

    def _read(self, number: int, length: int) -> bytes:
        self._require(number)
        self.stream.seek(number * self.meta.page_size)
        return self.stream.read(length)


def _damaged(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(f"{path}: is damaged ({what}); copy or download it again")
