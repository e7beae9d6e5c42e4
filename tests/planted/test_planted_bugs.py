"""Plant a bug in a copy of the package and see that the suite catches it.

A test that cannot fail proves nothing. For each row of `bugs.py` the package is copied, one line
is spoilt, and the tests that should notice are run in a process of their own; each of them must
fail, by an assertion. The same tests must pass on an unspoilt copy.

`make planted` runs this. The default suite only checks that the table still fits the code.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from planted.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("mlip", "conf", "tests", "data/emt-mini", "data/mptrj-mini")

# The package is usually installed in editable mode: a run that imported it from there would test
# unspoilt code, so the process leaves with a code of its own unless the copy is what it imports.
NOT_THE_COPY = 70
RUN = f"""
import sys
from pathlib import Path
import mlip
if Path(mlip.__file__).resolve().parents[1] != Path.cwd().resolve():
    print("imported", mlip.__file__)
    sys.exit({NOT_THE_COPY})
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""

# What a test says when the numbers are wrong; a crash (TypeError, ImportError, ...) is caught by
# any test and would make a row say nothing. Warnings are errors in this suite.
FAILED = re.compile(
    r"^FAILED (tests/\S+?::\w+(?:\[.*?\])?)"
    r" - (?:assert |AssertionError|Failed: |\S*GradcheckError|UserWarning)",
    re.MULTILINE,
)
SUMMARY = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)


@dataclass
class Outcome:
    code: int
    failed: list[str]  # tests that failed by an assertion
    other: list[str]  # lines about tests that failed in another way
    output: str


def copy_of_the_package(folder: Path) -> Path:
    for name in COPIED:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, tests: Sequence[str]) -> Outcome:
    """Run `tests` on the copy in `folder`, as little disturbed by this process as can be."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MLIP_"))}
    environment |= {
        "PYTHONPATH": str(folder),  # for the processes that tests start
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a second per run goes into plugins not needed
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "1000",  # one line per failure in the summary, uncut
    }
    options = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    options.append(f"--basetemp={folder / 'tmp'}")
    done = subprocess.run(
        [sys.executable, "-c", RUN, *options, *tests],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    other = [line for line in SUMMARY.findall(output) if not FAILED.match(line)]
    return Outcome(done.returncode, FAILED.findall(output), other, output)


def spoil(folder: Path, bug: Bug) -> None:
    path = folder / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1
    path.write_text(text.replace(bug.old, bug.new))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_table_fits_the_code(bug):
    """Not marked: whoever changes a line that a bug is planted in is told at once."""
    text = (ROOT / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} changed: update the row in tests/planted/bugs.py"
    if bug.file.endswith(".py"):
        ast.parse(text.replace(bug.old, bug.new))
    assert bug.new != bug.old
    assert bug.tests
    for test in bug.tests:
        file, name = test.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(), f"{test} is gone"


@pytest.mark.planted
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_is_caught(bug, tmp_path):
    folder = copy_of_the_package(tmp_path / "copy")
    spoil(folder, bug)
    outcome = run_tests(folder, bug.tests)
    assert outcome.code != pytest.ExitCode.OK, f"SURVIVED\n{outcome.output}"
    assert outcome.code == pytest.ExitCode.TESTS_FAILED, f"the run broke\n{outcome.output}"
    assert not outcome.other, f"a crash is no catch\n{outcome.output}"
    for test in bug.tests:
        caught = any(name == test or name.startswith(f"{test}[") for name in outcome.failed)
        assert caught, f"{test} did not notice\n{outcome.output}"


@pytest.mark.planted
def test_without_a_bug_the_same_tests_pass(tmp_path):
    tests = sorted({test for bug in BUGS for test in bug.tests})
    outcome = run_tests(copy_of_the_package(tmp_path / "copy"), tests)
    assert outcome.code == pytest.ExitCode.OK, outcome.output
    assert re.search(r"^\d+ passed(?!.*(skipped|deselected|xfailed))", outcome.output, re.MULTILINE)


@pytest.mark.planted
def test_the_installed_package_is_never_what_runs(tmp_path):
    """Without a package in the copy an installed one is imported, if any, and the run stops."""
    folder = copy_of_the_package(tmp_path / "copy")
    shutil.rmtree(folder / "mlip")
    outcome = run_tests(folder, ["tests/unit/test_units.py"])
    stopped = outcome.code == NOT_THE_COPY or "ModuleNotFoundError" in outcome.output
    assert stopped, outcome.output
    assert not outcome.failed
    assert "passed" not in outcome.output


@pytest.mark.planted
def test_a_crash_is_no_catch(tmp_path):
    """A bug that raises in every test is told apart from one that an assertion caught."""
    folder = copy_of_the_package(tmp_path / "copy")
    line = '"""Return the factor from `unit` to eV.'
    spoil(folder, Bug("", "mlip/units.py", line, f"raise RuntimeError\n    {line}", ("",)))
    outcome = run_tests(folder, ["tests/unit/test_units.py::test_energies"])
    assert outcome.code == pytest.ExitCode.TESTS_FAILED
    assert not outcome.failed
    assert outcome.other
