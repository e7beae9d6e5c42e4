"""Whatever happens to the bytes of a file, reading it ends in structures or in one named error."""

from __future__ import annotations

import json
import random
import sqlite3
import zipfile
from pathlib import Path

import pytest

from mlip.data.checkup import examine
from mlip.data.checkup.report import text
from mlip.data.readers import read_structures
from mlip.errors import CorruptDataError, DataError, MLIPError

MOLECULAR = ["extxyz", "traj", "db", "db data", "json db", "aselmdb", "npz"]
CRYSTAL = ["mptrj", "matpes", "matpes lines"]


def complaint(path: Path) -> str | None:
    """What reading the file says against it; anything but our own error goes through."""
    try:
        list(read_structures(path))
    except MLIPError as error:
        return str(error)
    return None


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few wrong bytes, a hole, or noise."""
    out = bytearray(data)
    kind = rng.randrange(4)
    if kind < 2:
        for _ in range(rng.choice([1, 1, 4, 64])):
            out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
    else:
        start, length = rng.randrange(len(out)), rng.choice([16, 512])
        hole = bytes(length) if kind == 2 else rng.randbytes(length)
        out[start : start + length] = hole
    return bytes(out)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ASE leaves a damaged trajectory open
@pytest.mark.parametrize("form", [*MOLECULAR, *CRYSTAL])
def test_damage_is_one_named_error(form, forms, molecules, crystals):
    path = forms[form](crystals if form in CRYSTAL else molecules)
    data, rng = path.read_bytes(), random.Random(form)
    refused = 0
    for _ in range(150):
        path.write_bytes(damaged(data, rng))
        if message := complaint(path):
            refused += 1
            assert message.startswith(str(path))
            assert "\n" not in message
    assert refused > 20


@pytest.mark.parametrize("form", [*MOLECULAR, *CRYSTAL])
def test_a_cut_file_is_refused_or_ends_between_frames(form, forms, molecules, crystals):
    frames = crystals if form in CRYSTAL else molecules
    path = forms[form](frames)
    data, rng = path.read_bytes(), random.Random(form)
    refused = 0
    for _ in range(60):
        path.write_bytes(data[: rng.randrange(len(data))])
        message = complaint(path)
        if message is None:
            assert form in ("extxyz", "matpes lines")  # text has no length of its own
            assert len(list(read_structures(path))) < len(frames)
        else:
            refused += 1
            assert message.startswith(str(path))
    assert refused > 50


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("form", [*MOLECULAR, *CRYSTAL])
def test_the_doctor_survives_damage_and_says_where_reading_ended(
    form, forms, molecules, crystals, monkeypatch
):
    path = forms[form](crystals if form in CRYSTAL else molecules)
    sound = examine([path])
    assert sound.census.total == sound.census.parts[0].usable > 0
    assert not {"unreadable", "refused", "not-finite"} & {f.kind for f in sound.findings}
    data, rng = path.read_bytes(), random.Random(form)
    damage = 0
    for _ in range(40):
        path.write_bytes(damaged(data, rng))
        refused = complaint(path) is not None
        examination = examine([path])
        kinds = {f.kind for f in examination.findings}
        damage += refused
        if refused:
            assert {"unreadable", "refused", "not-finite", "cell"} & kinds
        assert ("unreadable" in kinds) == bool(examination.census.unread)
        text(examination)
    assert damage > 5


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize(
    "name", ["a.extxyz", "a.json", "a.traj", "a.aselmdb", "a.npz", "a.cif", "POSCAR", "OUTCAR"]
)
def test_an_empty_file_is_called_empty(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match="the file is empty"):
        list(read_structures(path))


def test_a_damaged_id_of_a_material(forms, crystals):
    path = forms["mptrj"](crystals)
    path.write_bytes(path.read_bytes().replace(b'"mp-1":', b'"mp-\xe3":', 1))
    with pytest.raises(CorruptDataError, match="after material mp-0: the id of a material"):
        list(read_structures(path))


def test_a_damaged_schema_of_a_database(forms, molecules):
    path = forms["db"](molecules)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE keys", b"CREATE TABLE k\xac ys", 1))
    with pytest.raises(CorruptDataError, match="cannot be read"):
        list(read_structures(path))
    with pytest.raises((UnicodeDecodeError, sqlite3.Error)):
        sqlite3.connect(path).execute("PRAGMA table_info(systems)")


def test_an_archive_of_an_unknown_version(forms, molecules):
    path = forms["npz"](molecules)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 182  # the version needed to extract its first member
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match="no complete npz archive"):
        list(read_structures(path))
    with pytest.raises(NotImplementedError), zipfile.ZipFile(path) as archive:
        archive.open(archive.infolist()[0])


def test_a_hole_in_a_text_file(forms, molecules):
    """Zero bytes over the end of one frame and the begin of the next would lose a frame."""
    path = forms["extxyz"](molecules)
    data = bytearray(path.read_bytes())
    start = data.index(b"energy=")
    end = data.index(b"energy=", start + 1)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match="frame 0: its second line holds zero bytes"):
        list(read_structures(path))


def test_json_with_an_unfinished_text(forms, crystals):
    path = forms["mptrj"](crystals)
    text = path.read_text()
    assert json.loads(text)
    path.write_text(text[: text.index('"mp-1"') + 3])
    with pytest.raises(CorruptDataError, match="after material mp-0"):
        list(read_structures(path))
