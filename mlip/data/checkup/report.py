"""What the doctor says: as text for people, as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.atomic import atomic_write
from mlip.data.checkup.agreement import Slope
from mlip.data.checkup.census import LABELS, Part
from mlip.data.checkup.examination import Examination
from mlip.data.checkup.findings import KINDS, Finding

VERSION = 1  # of the JSON


def text(examination: Examination) -> str:
    """Return the report to print."""
    census = examination.census
    lines = []
    for number, part in enumerate(census.parts):
        lines += _part_lines(examination, part, number)
    for finding in examination.findings:
        lines += ["", *_finding_lines(finding)]
    errors = examination.errors
    warnings = len(examination.findings) - errors
    speed = census.total / census.seconds if census.seconds else 0.0
    verdict = f"{errors} errors, {warnings} warnings" if examination.findings else "nothing wrong"
    lines += ["", f"{verdict} in {census.total} frames ({speed:,.0f} a second)"]
    return "\n".join(lines) + "\n"


def to_dict(examination: Examination) -> dict[str, Any]:
    """Return the report as plain values."""
    census = examination.census
    parts = []
    for number, part in enumerate(census.parts):
        unit = examination.energy_units[number]
        parts.append(
            {
                "name": part.name,
                "files": [str(file) for file in part.files],
                "unread": {f: why for f, why in census.unread.items() if Path(f) in part.files},
                "frames": part.frames,
                "usable": part.usable,
                "atoms": int(part.atoms.sum()),
                "elements": _elements(part),
                "labels": part.labels,
                "keys": {label: dict(part.keys[label]) for label in LABELS},
                "all_electron_unit": None if unit is None else unit[0],
                "forces_against_energies": examination.force_slopes[number].to_dict(),
                "stresses_against_energies": examination.stress_slopes[number].to_dict(),
            }
        )
    return {
        "version": VERSION,
        "errors": examination.errors,
        "warnings": len(examination.findings) - examination.errors,
        "frames": census.total,
        "seconds": round(census.seconds, 3),
        "parts": parts,
        "findings": [finding.to_dict() for finding in examination.findings],
    }


def write_json(examination: Examination, path: Path | str) -> None:
    """Write the report as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(to_dict(examination), indent=1) + "\n")


def _part_lines(examination: Examination, part: Part, number: int) -> list[str]:
    files = "" if len(part.files) == 1 else f"{len(part.files)} files, "
    unusable = part.frames - part.usable
    refused = f", {unusable} not usable" if unusable else ""
    rows = [
        f"{part.name}",
        f"  frames    {files}{part.frames}{refused}, {int(part.atoms.sum())} atoms: "
        + " ".join(_elements(part)),
    ]
    rows += [f"  {label:10}{_coverage(part, label)}" for label in LABELS]
    unit = examination.energy_units[number]
    if unit is not None:
        rows.append(f"  unit      energies of all electrons in {unit[0]}")
    rows.append(f"  forces    {_slope_words(examination.force_slopes[number])}")
    if part.labels["stress"]:
        rows.append(f"  stress    {_slope_words(examination.stress_slopes[number])}")
    return rows


def _coverage(part: Part, label: str) -> str:
    count = part.labels[label]
    if not count:
        return "none"
    share = f"{count} of {part.usable}"
    keys = ", ".join(f"{key}" for key, _ in part.keys[label].most_common())
    return f"{share} ({keys})"


def _slope_words(slope: Slope) -> str:
    if slope.value is None:
        return f"cannot tell whether they agree with the energies: {slope.reason}"
    verdict = "agree" if slope.right else "DO NOT agree"
    return (
        f"{verdict} with the energies: {slope.value:.3g} times what these say "
        f"({slope.pairs} pairs of neighbouring frames)"
    )


def _finding_lines(finding: Finding) -> list[str]:
    kind = KINDS[finding.kind]
    share = f"{finding.count} of {finding.of}" if finding.of else f"{finding.count}"
    lines = [f"{kind.severity.upper():8}{finding.kind} ({share}): {kind.what}"]
    if finding.evidence:
        lines.append(f"        {finding.evidence}")
    lines += [f"        {example}" for example in finding.examples]
    more = finding.count - len(finding.examples)
    if finding.examples and more > 0:
        lines.append(f"        and {more} more")
    lines.append(f"        -> {kind.advice}")
    return lines


def _elements(part: Part) -> list[str]:
    return [chemical_symbols[z] for z in np.flatnonzero(part.atoms)]
