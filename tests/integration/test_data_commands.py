"""`mlip data check`, `stats` and `split` and `mlip doctor` as they are typed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
from checkup_data import SETS, frames_of, save

from mlip.cli.main import main
from mlip.units import GPA


@pytest.fixture
def metals(tmp_path):
    return save(tmp_path / "metals.extxyz", frames_of("metals")[:80])


def run(capsys, *words) -> tuple[int, str, str]:
    code = main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_sound_data_exit_with_0_and_say_what_they_rest_on(capsys):
    code, out, _ = run(capsys, "check", SETS["crystals"], "--strict")
    assert code == 0
    assert "forces    agree with the energies" in out
    assert "stress    agree with the energies" in out
    n = len(frames_of("crystals"))
    assert f"{n} of {n} (energy)" in out
    assert f"nothing wrong in {n} frames" in out


def test_an_error_exits_with_1_and_says_what_to_do(tmp_path, capsys):
    frames = frames_of("metals")
    for atoms in frames:
        atoms.calc.results["stress"] *= -1
    path = save(tmp_path / "a.extxyz", frames)
    code, out, _ = run(capsys, "check", path)
    assert code == 1
    assert "ERROR   stress-unit" in out
    assert "positive under compression" in out
    assert "-> set data.stress_unit and data.stress_sign" in out
    code, out, _ = run(capsys, "check", path, "data.stress_sign=vasp")  # what it says to do
    assert (code, "nothing wrong" in out) == (0, True)


def test_the_words_of_training_are_understood(tmp_path, capsys):
    frames = frames_of("metals")
    for atoms in frames:
        results, atoms.calc = atoms.calc.results, None
        atoms.info |= {"dft": results["energy"], "REF_stress": results["stress"] / GPA * 10}
        atoms.arrays["REF_forces"] = results["forces"]
    path = save(tmp_path / "a.extxyz", frames)
    code, out, _ = run(capsys, "check", path)
    assert (code, "no-energy" in out) == (1, True)
    assert "dft" in out.partition("no-energy")[2].splitlines()[1]
    words = ["data.keys.energy=dft", "data.stress_unit=kbar"]
    code, out, _ = run(capsys, "check", path, *words)
    assert code == 0, out
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check"])
    assert stopped.value.code == 2
    code, _, error = run(capsys, "check", path, "data.stres_unit=kbar")
    assert (code, "did you mean 'stress_unit'" in error) == (2, True)


def test_warnings_fail_only_if_strict(metals, tmp_path, capsys):
    frames = frames_of("metals")[:80]
    path = save(tmp_path / "twice.extxyz", [*frames, frames[0]])
    assert run(capsys, "check", path)[0] == 0
    code, out, _ = run(capsys, "check", path, "--strict")
    assert (code, "WARNING duplicate" in out) == (1, True)


def test_the_json_has_everything_a_program_needs(metals, tmp_path, capsys):
    frames = frames_of("metals")
    val = save(tmp_path / "val.extxyz", [frames[3], *frames[100:120]])
    out = tmp_path / "check.json"
    assert run(capsys, "check", metals, val, "--json", out)[0] == 1
    report = json.loads(out.read_text())
    assert (report["errors"], report["frames"]) == (1, 101)
    assert [part["labels"]["forces"] for part in report["parts"]] == [80, 21]
    (leak,) = (f for f in report["findings"] if f["kind"] == "leak")
    assert (leak["severity"], leak["count"]) == ("error", 1)
    assert leak["examples"][0]["file"] == str(metals)
    assert leak["examples"][0]["frame"] == 3
    assert "data split" in leak["advice"]


def test_the_page_is_a_picture(metals, tmp_path, capsys):
    page = tmp_path / "check.png"
    run(capsys, "check", metals, SETS["molecules"], "--plot", page)
    width, height = struct.unpack(">II", page.read_bytes()[16:24])
    assert page.read_bytes().startswith(b"\x89PNG")
    assert width > height > 500
    code, _, error = run(capsys, "check", metals, "--plot", tmp_path / "check.pdf")
    assert (code, "name it .png" in error) == (2, True)


def test_data_without_labels_or_readable_frames_are_reported_and_drawn(tmp_path, capsys):
    bare = frames_of("metals")[:3]
    for atoms in bare:
        atoms.calc = None
    empty = tmp_path / "empty.extxyz"
    empty.write_text("\n")
    code, out, _ = run(
        capsys, "check", save(tmp_path / "bare.extxyz", bare), empty, "--plot", tmp_path / "a.png"
    )
    assert code == 1
    assert "no-energy" in out
    assert "unreadable" in out
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_stats(capsys):
    code, out, _ = run(capsys, "stats", SETS["molecules"], SETS["crystals"])
    assert code == 0
    assert "atoms of            H 354, C 77, N 64, O 149" in out
    code, out, _ = run(capsys, "stats", SETS["molecules"], "--json")
    (summary,) = json.loads(out)
    frames = frames_of("molecules")
    assert (code, summary["frames"], summary["atoms"]) == (0, 176, sum(map(len, frames)))
    assert summary["charge"]["1"] == sum(atoms.info["charge"] == 1 for atoms in frames)
    assert summary["multiplicity"]["3"] == sum(atoms.info["spin"] == 3 for atoms in frames)
    squares = [(atoms.calc.results["forces"] ** 2).sum() for atoms in frames]
    rms = (sum(squares) / (3 * summary["atoms"])) ** 0.5
    assert summary["force_rms"] == pytest.approx(rms, rel=1e-6)


def test_stats_of_a_cut_file_are_refused(metals, capsys):
    metals.write_text(metals.read_text()[:-40])
    code, _, error = run(capsys, "stats", metals)
    assert code == 1
    assert str(metals) in error
    assert "cut short" in error


def test_stats_and_split_by_several_processes(tmp_path, capsys):
    """What one process finds and writes."""
    found = {}
    for n in (1, 2):
        parts = tmp_path / str(n)
        code, out, _ = run(capsys, "stats", SETS["molecules"], "--json", "--processes", n)
        assert code == 0
        words = ["split", SETS["molecules"], "--out-dir", parts, "--processes", n]
        assert run(capsys, *words)[0] == 0
        found[n] = out, {path.name: path.read_text() for path in parts.iterdir()}
    assert found[1] == found[2]
    for command in (["stats", SETS["molecules"]], [*words[:-2], "--force"]):
        code, _, error = run(capsys, *command, "--processes", 0)
        assert (code, "--processes 0 must be 1 or more" in error) == (2, True)


def test_split_and_train_on_the_parts(metals, tmp_path, capsys):
    parts = tmp_path / "parts"
    words = ["split", metals, "--out-dir", parts, "--val", "0.2", "--by", "random"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "80 structures in 80 sets that stay together (random)" in out
    assert sorted(p.name for p in parts.iterdir()) == [
        *("splits.json", "train.extxyz", "val.extxyz"),
    ]
    code, _, error = run(capsys, *words)
    assert (code, "exists; give another --out-dir or --force" in error) == (2, True)
    assert run(capsys, *words, "--force", "--seed", "4")[0] == 0
    code = main(
        [
            "train", f"data.train={parts / 'train.extxyz'}", f"data.val={parts / 'val.extxyz'}",
            "model=facet-xs", "trainer.max_steps=1", f"out_dir={tmp_path / 'run'}",
            f"data.cache_dir={tmp_path / 'cache'}", "logger=none",
        ]
    )  # fmt: skip
    assert code == 0


def test_a_store_is_looked_at_as_its_files_are(metals, tmp_path, capsys):
    store = tmp_path / "store"
    assert run(capsys, "convert", SETS["crystals"], store)[0] == 0
    reports = []
    for path in (SETS["crystals"], store):
        out = tmp_path / "check.json"
        assert run(capsys, "check", path, "--json", out)[0] == 0
        report = json.loads(out.read_text())
        reports.append([report["parts"][0][k] for k in ("frames", "atoms", "labels", "elements")])
        reports[-1] += [report["parts"][0]["stresses_against_energies"]["value"]]
    assert reports[0][:-1] == reports[1][:-1]
    assert reports[0][-1] == pytest.approx(reports[1][-1], rel=1e-9)
    parts = tmp_path / "parts"
    assert run(capsys, "split", store, "--out-dir", parts, "--val", "0.3")[0] == 0
    record = json.loads((parts / "splits.json").read_text())
    rows = record["train"][str(store)] + record["val"][str(store)]
    assert sorted(rows) == list(range(len(frames_of("crystals"))))
    code, _, error = run(capsys, "check", store, "data.stress_unit=kbar")
    assert (code, "was settled when this store was made" in error) == (2, True)


@pytest.mark.parametrize("words", [["data"], ["data", "check"], ["data", "split"], ["doctor"]])
def test_help_has_an_example(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    assert f"mlip {' '.join(words)}" in capsys.readouterr().out.partition("example")[2]


def test_importing_the_command_line_is_quick():
    """`mlip --help` must not wait for what a check needs."""
    code = (
        "import sys; from mlip.cli.main import build_parser; build_parser(); "
        "print({'numpy', 'ase', 'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
