"""Files that a reader refuses: the doctor names the frame, goes on where it can and says if not."""

from __future__ import annotations

import pytest
from checkup_data import SETS, frames_of, save

from mlip.data.checkup import examine
from mlip.data.checkup.report import text, to_dict
from mlip.errors import DataError

ATOM = "H 0 0 0 0 0 0\n"
GOOD = f"1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-13.6\n{ATOM}"
PERIODIC = "1\nProperties=species:S:1:pos:R:3 energy=-3 pbc={pbc} Lattice={cell}\nCu 0 0 0\n"


def found_in(path):
    return {f.kind: f for f in examine([path]).findings}


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (GOOD.replace("-13.6", "nan"), "not-finite", "energy is nan"),
        (GOOD.replace("H 0 0 0 0", "H 0 0 inf 0"), "not-finite", "positions[0, 2] is inf"),
        (
            PERIODIC.format(pbc='"T T T"', cell='"nan 0 0 0 2 0 0 0 2"'),
            *("not-finite", "cell[0, 0] is nan"),
        ),
        (PERIODIC.format(pbc='"T T T"', cell='"0 0 0 0 2 0 0 0 2"'), "cell", "axes [0]"),
        (PERIODIC.format(pbc='"T T T"', cell='"2 0 0 4 0 0 0 0 2"'), "cell", "dependent"),
        (GOOD.replace("H 0", "X 0"), "refused", "dummy or ghost"),
        (GOOD.replace("H 0 0 0 0 0 0", "H 0 0 **** 0 0 0"), "refused", "not of type R"),
        (GOOD.replace("-13.6", '"1 2 3"'), "refused", "expected one number"),
        (GOOD.replace("energy=", "spin=-2 energy="), "refused", "'spin' is -2"),
        (GOOD.replace("energy=", 'REF_stress="1 2 3" energy='), "refused", "REF_stress"),
    ],
)
def test_a_bad_frame_is_named_and_the_rest_is_read(bad, kind, words, tmp_path):
    path = tmp_path / "a b ü.extxyz"
    path.write_text(GOOD + bad + GOOD)
    examination = examine([path])
    part = examination.census.parts[0]
    finding = {f.kind: f for f in examination.findings}[kind]
    if kind == "refused" and "stress" in words:  # a molecule: the reader leaves the stress out
        assert part.frames == 3
    else:
        assert (part.frames, part.usable) == (3, 2)
    assert (finding.count, finding.examples[0].frame) == (1, 1)
    assert words in finding.examples[0].detail
    assert str(path) not in finding.examples[0].detail


@pytest.mark.parametrize(
    ("content", "words", "read"),
    [
        (GOOD + "2\n" + ATOM, "ends after 0 of them", 1),
        (GOOD + GOOD + "nonsense\n" + GOOD, "expected its number of atoms", 2),
        (GOOD + GOOD.replace("H 0 0 0 0 0 0", "H 0 0 0 0 0"), "has 6 columns, expected 7", 1),
        (GOOD + "1\n" + GOOD, "has 2 columns, expected 4", 1),
        ("", "the file is empty", 0),
        (" \n \n", "the file is empty", 0),
    ],
)
def test_where_the_bytes_end_the_rest_is_called_unread(content, words, read, tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(content)
    examination = examine([path])
    finding = {f.kind: f for f in examination.findings}["unreadable"]
    assert examination.census.total == read
    assert finding.severity == "error"
    assert words in finding.examples[0].detail
    assert f"after {read} frames" in finding.examples[0].detail
    assert words in to_dict(examination)["parts"][0]["unread"][str(path)]
    assert "unread and unchecked" in text(examination)


def test_a_file_cut_between_frames_looks_whole_unless_the_number_is_known(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(3 * GOOD)
    assert "frames-missing" not in {f.kind for f in examine([path], expected=3).findings}
    found = {f.kind: f for f in examine([path], expected=4).findings}
    assert "3 were read, 4 are expected" in found["frames-missing"].evidence


def test_one_cut_file_does_not_hide_the_others(tmp_path):
    good = save(tmp_path / "good.extxyz", frames_of("molecules")[:20])
    cut = tmp_path / "cut.extxyz"
    cut.write_text(good.read_text()[:-40])
    examination = examine([cut, good])
    assert [part.frames for part in examination.census.parts] == [19, 20]
    assert {"unreadable", "leak"} <= {f.kind for f in examination.findings}


@pytest.mark.parametrize("name", ["data0001.aselmdb", "mptrj-mini.json.gz"])
def test_cut_binaries_end_in_a_finding(name, tmp_path):
    source = SETS["crystals"] if name.endswith("gz") else SETS["molecules"] / name
    path = tmp_path / name
    path.write_bytes(source.read_bytes()[:-3000])
    assert "unreadable" in found_in(path)


def test_a_missing_path_is_a_usage_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        examine([tmp_path / "absent.extxyz"])
