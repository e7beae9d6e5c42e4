"""What a folder is being made of: files and options, remembered until the store is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from mlip.data.readers import ReadOptions, require_by_number
from mlip.data.store.jobs import Job, plan_jobs
from mlip.data.store.layout import (
    CONVERSION,
    MANIFEST,
    SHARDS,
    VERSION,
    digest,
    read_manifest,
    write_json,
)
from mlip.errors import ConfigError, DataError

PLAN: Final = 3  # raise it when jobs or what shards say of themselves change: old ones do not fit
ENDS: Final = 65536  # bytes at each end of a file that tell it from others


@dataclass(frozen=True)
class Conversion:
    """A conversion that is not finished, or that finds all its work done.

    Attributes:
        folder: of the store.
        sources: the files: path, size and fingerprint.
        format: of the files, or `auto`.
        reading: options of the reader that are not the defaults.
        generation: how often the store has been appended to.
        before: the manifest of the store that is appended to, {} for a new one.
        complete: whether there is nothing left to do.
        in_place: whether large columns stay in the files.
    """

    folder: Path
    sources: list[dict[str, Any]]
    format: str
    reading: dict[str, Any]
    generation: int = 0
    before: Mapping[str, Any] | None = None
    complete: bool = False
    in_place: bool = False

    @classmethod
    def make(
        cls,
        folder: Path,
        files: Sequence[Path],
        format: str,
        options: Mapping[str, Any],
        *,
        append: bool,
        in_place: bool = False,
    ) -> Conversion:
        """Begin a conversion, seeing what of it is there already.

        Raises:
            DataError: the folder holds something else, or a file that is to be appended.
            ConfigError: the options are not those of the store that is appended to, or the files
                cannot be left in place.
        """
        if in_place:
            require_by_number(files, format)
        sources = [describe_source(file, in_place=in_place) for file in files]
        new = cls(folder, sources, format, reading_options(options), in_place=in_place)
        there = {entry.name for entry in folder.iterdir()} if folder.exists() else set[str]()
        if CONVERSION in there:
            begun = cls.load(folder)
            if not begun._same_as(new):
                raise DataError(
                    f"{folder}: holds an unfinished conversion of other files or with other "
                    "options; give that command again to finish it, remove it, or choose another "
                    "folder"
                )
            return begun
        if MANIFEST in there:
            return cls._onto(folder, new, append=append)
        if append:
            raise DataError(f"{folder}: there is no store to append to; leave --append out")
        # Another part may be beginning at this moment, or have been killed when it did.
        if any(not name.startswith(f".{CONVERSION}.") for name in there):
            raise DataError(f"{folder}: is neither empty nor a store; choose another folder")
        return new

    @classmethod
    def _onto(cls, folder: Path, new: Conversion, *, append: bool) -> Conversion:
        manifest = read_manifest(folder)
        known = [_identity(s) for s in manifest["sources"]]
        same = [s for s in new.sources if _identity(s) in known]
        everything = len(same) == len(new.sources) and (append or len(same) == len(known))
        kind = bool(manifest.get("in_place"))
        reading = manifest["reading"]
        if new.reading == {**reading, "on_bad": "skip"}:
            reading = new.reading  # nothing was bad before
        if everything and (reading, kind) == (new.reading, new.in_place):
            if kind and not all(s in manifest["sources"] for s in new.sources):
                raise DataError(
                    f"{folder}: is an index of {same[0]['path']} and others as they were elsewhere "
                    "or at another time; remove it and give this command again"
                )
            return replace(new, complete=True)
        if not append:
            raise DataError(
                f"{folder}: holds a store of other files or options; choose another folder, or add "
                "to it by --append"
            )
        if same:
            raise DataError(f"{folder}: {same[0]['path']} is in this store already")
        if reading != new.reading:
            raise ConfigError(
                f"{folder}: was made with the options {manifest['reading']}, not {new.reading}; "
                "give the same, or make a store of its own"
            )
        if kind != new.in_place:
            raise ConfigError(
                f"{folder}: its structures are {'in place' if kind else 'in the store itself'}; "
                f"append {'with' if kind else 'without'} in_place, or make a store of its own"
            )
        generation = int(manifest["shards"][-1]["name"][:3]) + 1
        return replace(new, generation=generation, before=manifest)

    @classmethod
    def load(cls, folder: Path) -> Conversion:
        """Return the conversion that was begun in a folder.

        Raises:
            DataError: there is none.
        """
        try:
            saved = json.loads((folder / CONVERSION).read_text())
        except FileNotFoundError:
            done = " (it is complete)" if (folder / MANIFEST).exists() else ""
            raise DataError(f"{folder}: no conversion is under way here{done}") from None
        if (saved.pop("version"), saved.pop("plan", 1)) != (VERSION, PLAN):
            raise DataError(
                f"{folder}: was begun by another version of mlip; remove it and convert again"
            )
        before = read_manifest(folder) if saved["generation"] else None
        return cls(folder, before=before, **saved)

    def save(self) -> None:
        """Remember it in the folder."""
        saved = {
            k: getattr(self, k) for k in ("sources", "format", "reading", "generation", "in_place")
        }
        write_json(self.folder / CONVERSION, {"version": VERSION, "plan": PLAN, **saved})
        (self.folder / SHARDS).mkdir(exist_ok=True)  # after it: a folder of shards says whose it is

    def forget(self) -> None:
        """Say that the store is complete."""
        (self.folder / CONVERSION).unlink()

    def jobs(self) -> Iterator[Job]:
        """Yield what there is to do, finished or not."""
        return plan_jobs(
            [Path(s["path"]) for s in self.sources],
            self.format,
            self.reading,
            generation=self.generation,
            first_source=len(self.sources_before),
        )

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(s["size"] for s in self.sources)

    @property
    def shards_before(self) -> list[dict[str, Any]]:
        """Shards of the store that is appended to."""
        shards = (self.before or {}).get("shards", [])
        return [s for s in shards if int(s["name"][:3]) < self.generation]

    @property
    def refused_before(self) -> list[dict[str, Any]]:
        """Frames that are left out of the store that is appended to."""
        known = len(self.sources_before)
        return [bad for bad in (self.before or {}).get("refused", []) if bad["source"] < known]

    @property
    def all_sources(self) -> list[dict[str, Any]]:
        """Files of the store that this makes."""
        return [*self.sources_before, *self.sources]

    @property
    def sources_before(self) -> list[dict[str, Any]]:
        """Files of the store that is appended to."""
        new = [_identity(s) for s in self.sources]
        return [s for s in (self.before or {}).get("sources", []) if _identity(s) not in new]

    def _same_as(self, other: Conversion) -> bool:
        own = [_identity(s) for s in self.sources]
        return (
            own == [_identity(s) for s in other.sources]
            and (self.sources == other.sources or not self.in_place)
            and self.reading == other.reading
            and self.format == other.format
            and self.in_place == other.in_place
        )


def describe_source(file: Path, *, in_place: bool = False) -> dict[str, Any]:
    """Return path, size and a hash of both ends of a file; its time, too, if it is still needed."""
    status = file.stat()
    size = status.st_size
    time = {"mtime_ns": status.st_mtime_ns} if in_place else {}
    content = digest()
    with file.open("rb") as stream:
        content.update(stream.read(ENDS))
        stream.seek(max(0, size - ENDS))
        content.update(stream.read(ENDS))
    return {"path": str(file.absolute()), "size": size, "ends": content.hexdigest(), **time}


def reading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a reader that are not the defaults, as plain values.

    Raises:
        ConfigError: a name is unknown or a value is not allowed.
    """
    default = asdict(ReadOptions())
    return {k: v for k, v in asdict(ReadOptions.parse(options)).items() if v != default[k]}


def _identity(source: Mapping[str, Any]) -> tuple[int, str]:
    return source["size"], source["ends"]
