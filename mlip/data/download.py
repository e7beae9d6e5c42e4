"""Fetching public data sets, only when asked: resumable, and compared with the archive's checksums.

Nothing here knows a checksum or a file size by heart: the archives' own listings are read first
(figshare's articles, Hugging Face's trees), so a new version of a data set needs no new version of
`mlip`. OMol25 is behind a form that a person has to accept; for it there is only the way to it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from mlip.atomic import free_bytes
from mlip.errors import ConfigError, DataError

FIGSHARE: Final = "https://api.figshare.com/v2"
HUGGING_FACE: Final = "https://huggingface.co"
CHUNK: Final = 1024**2  # bytes
TIMEOUT: Final = 60  # s without a byte
MAX_LISTING: Final = 16 * 1024**2  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file of an archive, as its listing has it.

    Attributes:
        name: to be given here.
        url: where it is.
        size: bytes.
        algorithm: of the checksum, a name that `hashlib` knows.
        digest: the checksum, hexadecimal.
    """

    name: str
    url: str
    size: int
    algorithm: str
    digest: str


@dataclass(frozen=True)
class PublicData:
    """A data set that can be fetched.

    Attributes:
        name: in the command.
        what: in a line: content, licence, source.
        listing: returns the archive's files; None if a person must ask for access.
        wanted: pattern of the files that are meant if none are named.
        hint: what to do with them, or how to get access.
    """

    name: str
    what: str
    listing: Callable[[], list[RemoteFile]] | None
    wanted: str
    hint: str


def figshare_files(article: int) -> list[RemoteFile]:
    """Return the files of an article on figshare."""
    listing = _json(f"{FIGSHARE}/articles/{article}/files?page_size=100")
    return [
        RemoteFile(f["name"], f["download_url"], int(f["size"]), "md5", f["computed_md5"])
        for f in listing
    ]


def hugging_face_files(repository: str) -> list[RemoteFile]:
    """Return the large files of a data set on Hugging Face; small ones have no checksum there."""
    base = f"{HUGGING_FACE}/api/datasets/{repository}/tree/main?recursive=true"
    return [
        RemoteFile(
            f["path"],
            f"{HUGGING_FACE}/datasets/{repository}/resolve/main/{quote(f['path'])}",
            int(f["lfs"]["size"]),
            "sha256",
            f["lfs"]["oid"],
        )
        for f in _json(base)
        if f.get("lfs")
    ]


PUBLIC: Final[dict[str, PublicData]] = {
    data.name: data
    for data in (
        PublicData(
            "mptrj",
            "MPtrj, 1.58 million frames of 146,000 materials at PBE(+U); MIT; figshare 23713842",
            lambda: figshare_files(23713842),
            "MPtrj_*_full.json",
            "mlip data convert {file} stores/mptrj --processes 8; mlip train "
            "data.train=stores/mptrj",
        ),
        PublicData(
            "matpes",
            "MatPES, 435,000 structures at PBE and r2SCAN; BSD-3-Clause; Hugging Face mavrl/matpes",
            lambda: hugging_face_files("mavrl/matpes"),
            "*PBE-20*.json.gz",
            "mlip data convert {file} stores/matpes; mlip train data.train=stores/matpes",
        ),
        PublicData(
            "omol25",
            "OMol25, over 100 million molecules at wB97M-V/def2-TZVPD; CC BY 4.0; Hugging Face",
            None,
            "",
            "OMol25 is given out after a form: log in at https://huggingface.co/facebook/OMol25, "
            "accept the conditions, and fetch a split by the links shown there (train_4M is the "
            "small one); then mlip train data.train=FOLDER_WITH_ASELMDB_FILES",
        ),
    )
}


def choose(name: str, patterns: Sequence[str] = ()) -> list[RemoteFile]:
    """Return the files of a data set that match.

    Args:
        name: key of `PUBLIC`.
        patterns: shell patterns; none means what the data set is mostly used by.

    Raises:
        DataError: access has to be asked for, the archive cannot be reached, or nothing matches.
    """
    data = PUBLIC[name]
    if data.listing is None:
        raise DataError(f"{name} cannot be fetched by a program: {data.hint}")
    files = data.listing()
    wanted = patterns or (data.wanted,)
    chosen = [f for f in files if any(fnmatch.fnmatch(f.name, p) for p in wanted)]
    if not chosen:
        there = ", ".join(f.name for f in files)
        raise DataError(f"{name} has no file like {', '.join(wanted)}; it has {there}")
    return chosen


def fetch(file: RemoteFile, folder: Path, progress: Callable[[int], None] | None = None) -> Path:
    """Fetch a file, or go on where an earlier attempt stopped, and compare its checksum.

    What is there under the file's name is complete and was compared; until then it is called
    `NAME.partial`.

    Args:
        file: what.
        folder: where to.
        progress: called with the bytes done, those of earlier attempts included.

    Raises:
        ConfigError: the archive's name of the file leads out of the folder.
        DataError: the server cannot be reached or stops, the disk is too small, or the content is
            not what the archive lists.
    """
    report = progress or (lambda _: None)
    target = folder / file.name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"the archive calls a file {file.name!r}, which is outside {folder}")
    if target.exists():
        _compare(target, file, report)
        return target
    partial = target.with_name(target.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = partial.stat().st_size if partial.exists() else 0
    if (room := free_bytes(folder)) < file.size - done:
        raise DataError(
            f"{folder}: {file.name} needs {(file.size - done) / 1e9:.1f} GB and there are "
            f"{room / 1e9:.1f} GB; name another folder"
        )
    if done < file.size:
        _receive(file, partial, done, report)
    _compare(partial, file, report)
    partial.rename(target)
    return target


def _receive(file: RemoteFile, partial: Path, done: int, progress: Callable[[int], None]) -> None:
    """Append what is missing."""
    headers = {"Range": f"bytes={done}-"} if done else {}
    try:
        with _open(file.url, headers) as response:
            if done and response.status != 206:
                done = 0  # the server begins again, and so do we
            with partial.open("ab" if done else "wb") as out:
                while chunk := response.read(CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    progress(done)
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.URLError):
            raise _unreachable(file.url, error) from error
        raise DataError(f"{file.url}: {error}; {_go_on(done, file)}") from error
    if done < file.size:
        raise DataError(f"{file.url}: the connection ended; {_go_on(done, file)}")


def _go_on(done: int, file: RemoteFile) -> str:
    return (
        f"{done / 1e6:,.0f} of {file.size / 1e6:,.0f} MB are kept, give the command again to go on"
    )


def _compare(path: Path, file: RemoteFile, progress: Callable[[int], None]) -> None:
    """Compare size and checksum with the archive's."""
    content = hashlib.new(file.algorithm, usedforsecurity=False)
    size = 0
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            content.update(chunk)
            size += len(chunk)
            progress(size)
    if (size, content.hexdigest()) != (file.size, file.digest):
        raise DataError(
            f"{path}: has {size} bytes and {file.algorithm} {content.hexdigest()}, the archive "
            f"lists {file.size} bytes and {file.digest}; delete it and fetch it again"
        )


def _json(url: str) -> Any:
    try:
        with _open(url, {}) as response:
            return json.loads(response.read(MAX_LISTING))
    except urllib.error.URLError as error:
        raise _unreachable(url, error) from error
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(
            f"{url}: did not answer with a listing ({error}); try again later"
        ) from error


def _open(url: str, headers: dict[str, str]) -> Any:
    if urlsplit(url).scheme not in ("https", "http"):
        raise DataError(f"{url}: expected an address that begins with https://")
    request = urllib.request.Request(url, headers={"User-Agent": "mlip-trainer", **headers})  # noqa: S310
    return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310


def _unreachable(url: str, error: urllib.error.URLError) -> DataError:
    host = urlsplit(url).hostname
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return DataError(f"{url}: access is refused ({error.code}); ask for it at {host}")
        return DataError(f"{url}: the server answered {error.code} {error.reason}")
    return DataError(
        f"{host} cannot be reached ({error.reason}); if this machine has no network, fetch {url} "
        "elsewhere and copy it here"
    )
