"""What can be wrong with data: one table of what it is called, how bad it is and what to do.

An error is what training refuses or would learn wrongly; a warning is what is often a mistake and
sometimes meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

ERROR: Final = "error"
WARNING: Final = "warning"
EXAMPLES: Final = 3  # places that a finding names


class Kind(NamedTuple):
    """One thing that can be wrong."""

    severity: str
    what: str
    advice: str


KINDS: Final[dict[str, Kind]] = {
    # --- what the readers say ---------------------------------------------------------------------
    "unreadable": Kind(
        ERROR,
        "the file cannot be read to its end; what is behind is unread and unchecked",
        "copy or download it again, or do what the message says",
    ),
    "frames-missing": Kind(
        ERROR,
        "there are fewer or more frames than expected",
        "copy or download the files again: one that ends between two frames looks whole",
    ),
    "not-finite": Kind(
        ERROR,
        "a coordinate, a lattice vector or a label is NaN or infinite",
        "remove these frames, or leave the key out where a label is unknown",
    ),
    "absurd": Kind(
        ERROR,
        "a coordinate, a lattice vector or a label is beyond anything in nature",
        "the file is damaged or another entry was read: copy it again, or remove these frames",
    ),
    "cell": Kind(
        ERROR,
        "axes are periodic but have no lattice vectors, or dependent ones",
        "set pbc to F F F for molecules, or add the cell",
    ),
    "other-key": Kind(
        ERROR,
        "a label is under another key than in earlier frames",
        "two keys often mean two levels of theory: name one with data.keys.LABEL=NAME, or make the "
        "file uniform",
    ),
    "refused": Kind(
        ERROR, "the reader refuses the frame", "correct or remove these frames, as the message says"
    ),
    # --- labels -----------------------------------------------------------------------------------
    "no-energy": Kind(
        ERROR,
        "no frame has an energy",
        "name its key: data.keys.energy=NAME (the same word works in mlip train)",
    ),
    "partly-labelled": Kind(
        WARNING,
        "some frames have a label that others lack",
        "if they should have it, look at its key in these frames; if not, they are left out of "
        "that part of the loss",
    ),
    "two-labels": Kind(
        WARNING,
        "the frame has two different values for one label",
        "the first named is read; choose with data.keys.LABEL=NAME, or remove the other",
    ),
    "zero-filled": Kind(
        ERROR,
        "a label is exactly zero where physics hardly ever is: a missing label was filled in",
        "leave the key out of frames whose label is unknown",
    ),
    "stress-not-periodic": Kind(
        WARNING,
        "a stress is given but the frame is not periodic along three axes; it is left out",
        "remove it, or set pbc to T T T if the frame is a crystal",
    ),
    "forces-zeroed": Kind(
        ERROR,
        "some atoms have forces of exactly zero and those of the others do not cancel: the forces "
        "of constrained atoms were zeroed",
        "write the labels again from calc.results['forces'] or get_forces(apply_constraint=False)",
    ),
    "net-force": Kind(
        WARNING,
        "the forces on all atoms do not cancel",
        "no potential can reproduce a net force: converge the calculation (grids, SCF), or remove "
        "the frame, unless an external field or a substrate that is not in the file acts on it",
    ),
    # --- units and signs --------------------------------------------------------------------------
    "energy-unit": Kind(
        ERROR, "the energies are not in eV", "set data.energy_unit, or convert the file"
    ),
    "force-unit": Kind(
        ERROR,
        "the forces are not the derivatives of the energies",
        "set data.force_unit or data.energy_unit, or convert the file",
    ),
    "stress-unit": Kind(
        ERROR,
        "the stresses are not the derivatives of the energies",
        "set data.stress_unit and data.stress_sign (ase: negative under compression; vasp: "
        "positive), or data.keys.virial for a virial",
    ),
    "unrelated": Kind(
        WARNING,
        "changes of the energy have nothing to do with the forces and stresses",
        "check that labels and structures belong together and are of one level of theory",
    ),
    "force-size": Kind(
        WARNING,
        "the forces are of an unusual size and nothing here could be compared with the energies",
        "check the unit: data.force_unit",
    ),
    "stress-size": Kind(
        WARNING,
        "the stresses are of an unusual size and nothing here could be compared with the energies",
        "check the unit: data.stress_unit",
    ),
    # --- energies ---------------------------------------------------------------------------------
    "energy-outlier": Kind(
        WARNING,
        "the energy is far from what the composition and the other frames say",
        "look at these calculations (another level of theory, no convergence, a wrong charge)",
    ),
    "energy-scatter": Kind(
        WARNING,
        "energies vary more than chemistry does",
        "check the unit and that all frames are of one level of theory: data.energy_unit",
    ),
    # --- structures -------------------------------------------------------------------------------
    "overlap": Kind(
        ERROR,
        "two atoms are closer than 0.3 A; training refuses the frame",
        "remove or mend these frames",
    ),
    "close": Kind(
        WARNING,
        "two atoms are closer than half the sum of their covalent radii",
        "check the unit of the coordinates (bohr, nm?) and the structure",
    ),
    "pbc-lost": Kind(
        WARNING,
        "the frame has a cell across which atoms are bonded, but no periodic axis",
        "set pbc to T T T: a crystal was written without its flags",
    ),
    "parity": Kind(
        ERROR,
        "charge and multiplicity contradict the number of electrons",
        "correct them: an even number of electrons has an odd multiplicity 2S+1",
    ),
    "duplicate": Kind(
        WARNING,
        "the same structure is there more than once",
        "remove the copies; automatic splits keep them together",
    ),
    "contradiction": Kind(
        WARNING,
        "the same structure is there with different energies",
        "keep one: they are of different levels of theory, or one did not converge",
    ),
    "leak": Kind(
        ERROR,
        "the same structure is in two of the files: validation would see what was trained on",
        "remove it from one; mlip data split makes disjoint parts. Files that are parts of one set "
        "are compared as one if you give their folder or a quoted glob",
    ),
    "new-elements": Kind(
        WARNING,
        "a file has elements that the first one lacks: no model learns what it never sees",
        "add such structures to the first file, or remove them from the other",
    ),
}


@dataclass(frozen=True, slots=True)
class Example:
    """Where something was found."""

    file: str
    frame: int | None  # counted from 0; None means the file
    detail: str = ""

    def behind(self, frames: int) -> Example:
        """Return it as it is called when so many frames of the file come before."""
        return self if self.frame is None else replace(self, frame=self.frame + frames)

    def __str__(self) -> str:
        place = self.file if self.frame is None else f"{self.file}, frame {self.frame}"
        return f"{place}: {self.detail}" if self.detail else place


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, how often, and the first places."""

    kind: str
    count: int
    of: int
    examples: tuple[Example, ...]
    evidence: str = ""

    @property
    def severity(self) -> str:
        """`error` or `warning`."""
        return KINDS[self.kind].severity

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "what": KINDS[self.kind].what,
            "evidence": self.evidence,
            "count": self.count,
            "of": self.of,
            "examples": [
                {"file": e.file, "frame": e.frame, "detail": e.detail} for e in self.examples
            ],
            "advice": KINDS[self.kind].advice,
        }


@dataclass
class Notebook:
    """Counts what single frames show, and remembers the first places."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def note(self, kind: str, example: Example) -> None:
        """Write down one case."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(example)

    def add(self, later: Notebook, frames: int) -> None:
        """Write down what was noted of what follows, behind so many frames of the file."""
        for kind, count in later.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self.examples.setdefault(kind, [])
            more = later.examples[kind][: EXAMPLES - len(kept)]
            kept += [example.behind(frames) for example in more]

    def findings(self, of: int) -> list[Finding]:
        """Return one finding for every kind that was noted; `of` is how many frames were read."""
        return [
            Finding(kind, count, of, tuple(self.examples[kind]))
            for kind, count in self.counts.items()
        ]


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors first, each severity in the order of the table."""
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (f.severity != ERROR, order[f.kind]))
