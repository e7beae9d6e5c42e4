"""A store for any data that a run names: given as it is, or built once and found again.

Stores are named by their files (path, size, time, both ends) and by how these are read. They know
nothing of cutoff or model dtype: neighbours are found when a batch is made (cheaper than reading
them, and augmentation stays possible).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlip.cache_folder import cache_folder
from mlip.data.readers import expand_paths
from mlip.data.store.build import build
from mlip.data.store.conversion import describe_source, reading_options
from mlip.data.store.layout import (
    MANIFEST,
    VERSION,
    check_content,
    check_sizes,
    digest,
    is_store,
    read_manifest,
)
from mlip.data.store.lock import exclusive
from mlip.data.store.reader import Store
from mlip.errors import ConfigError, DataError

log = logging.getLogger("mlip")
VERIFY_UP_TO: Final = 256 * 1024**2  # bytes that are checked against their checksum at every start


def open_store(
    paths: Any,
    *,
    format: str = "auto",
    options: Mapping[str, Any] | None = None,
    cache_dir: Path | str | None = None,
    in_place: bool = False,
) -> Store:
    """Return the store of some files, building it on first use.

    Processes that start together build it once: the others wait. One that is killed leaves the
    finished shards to the next.

    Args:
        paths: file, directory, glob or list, as `read_structures` takes them; or a store that
            `mlip data convert` made.
        format: of the files.
        options: of the reader.
        cache_dir: where stores live; default the environment variable MLIP_CACHE, else
            `~/.cache/mlip-trainer`.
        in_place: build an index only, and read large columns from the files. A store that is given
            is taken as it is.

    Raises:
        DataError: a file is missing or holds something unusable, there are no structures, or a file
            has changed since an index of it was made.
        ConfigError: an option is unknown, or was another one when the store was made, or files of
            this format cannot be left in place.
    """
    if (given := _given_store(paths)) is not None:
        store = _open_given(given, options or {})
    else:
        store = _open_own(expand_paths(paths, format), format, options or {}, cache_dir, in_place)
    if store.originals is not None:
        store.originals.check()
    return store


def _open_own(
    files: Sequence[Path],
    format: str,
    options: Mapping[str, Any],
    cache_dir: Path | str | None,
    in_place: bool,
) -> Store:
    """Return the store of some files in the cache, building it on first use."""
    key = _key(files, format, options, in_place)
    root = _writable(Path(cache_dir).expanduser() if cache_dir else cache_folder())
    folder = root / f"store-{key}"
    names = [str(file) for file in files]
    if _sound(folder):
        log.info("store: cache hit %s", folder)
        return Store(folder, names)
    with exclusive(root / f".store-{key}.mend.lock", str(folder)):
        if (folder / MANIFEST).exists() and not _sound(folder):
            log.warning("store %s is damaged: it is built again", folder)
            shutil.rmtree(folder)
    build(folder, files, format=format, options=options, discard=True, in_place=in_place)
    return Store(folder, names)


def _given_store(paths: Any) -> Path | None:
    """Return the path if it is a store."""
    given = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    stores = [p for p in (Path(p).expanduser() for p in given) if is_store(p)]
    if stores and len(given) > 1:
        raise DataError(
            f"{stores[0]}: is a store and stands in a list with other data; append them to it with "
            "`mlip data convert FILE... STORE --append`, or name it alone"
        )
    return stores[0] if stores else None


def _open_given(folder: Path, options: Mapping[str, Any]) -> Store:
    manifest = read_manifest(folder)
    wanted = reading_options(options)
    if manifest["reading"].get("on_bad") is None:
        wanted.pop("on_bad", None)  # nothing was bad
    if differ := sorted(k for k, v in wanted.items() if manifest["reading"].get(k) != v):
        had = {k: manifest["reading"].get(k, "the default") for k in differ}
        raise ConfigError(
            f"{folder}: data.{differ[0]} was settled when this store was made ({had}); leave it "
            "out, or convert the data again"
        )
    _verify(folder)
    return Store(folder)


def _verify(folder: Path) -> None:
    """Check the sizes of all files and, in a small store, their content."""
    shards = read_manifest(folder)["shards"]
    check_sizes(folder, shards)
    if sum(sum(s["sizes"].values()) for s in shards) <= VERIFY_UP_TO:
        check_content(folder, shards)


def _sound(folder: Path) -> bool:
    try:
        _verify(folder)
    except DataError:
        return False
    return True


def _key(files: Sequence[Path], format: str, options: Mapping[str, Any], in_place: bool) -> str:
    content = digest()
    content.update(repr((VERSION, format, sorted(reading_options(options).items()))).encode())
    if in_place:
        content.update(b"in place")
    for file in files:
        # an index goes back to the path it was made from, which may be a link that others are not
        path = file.absolute() if in_place else file.resolve()
        about = (str(path), file.stat().st_mtime_ns, describe_source(file)["ends"])
        content.update(repr((file.stat().st_size, *about)).encode())
    return content.hexdigest()[:24]


def _writable(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError as error:
        other = Path(tempfile.gettempdir()) / f"mlip-cache-{os.getuid()}"
        other.mkdir(mode=0o700, exist_ok=True)
        log.warning("cache folder %s cannot be written (%s): using %s", root, error, other)
        return other
