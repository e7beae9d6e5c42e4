"""Which labels and which elements the parts have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols

from mlip.data.checkup.census import LABELS, Census, Part
from mlip.data.checkup.findings import EXAMPLES, Example, Finding


def judge_labels(part: Part) -> Iterator[Finding]:
    """Find labels that nothing or not everything has."""
    if part.usable and not part.labels["energy"]:
        names = ", ".join(name for name, _ in part.other_keys.most_common(20)) or "nothing"
        evidence = f"{part.name}: its frames have {names}"
        yield Finding("no-energy", part.usable, part.usable, (), evidence)
    for label in LABELS:
        lacking = part.wanting[label]
        if part.labels[label] and lacking:
            evidence = f"{part.name}: {label} in {part.labels[label]} frames, not in {lacking}"
            examples = tuple(part.lacking[label])
            yield Finding("partly-labelled", lacking, part.usable, examples, evidence)


def judge_elements(census: Census) -> Iterator[Finding]:
    """Find elements that a later part has and the first has not."""
    first, *others = census.parts
    for number, part in enumerate(others, start=1):
        new = np.flatnonzero((part.atoms > 0) & (first.atoms == 0))
        if not len(new) or not first.usable:
            continue
        having = np.array([np.isin(z, new).any() for z, _ in census.compositions])
        rows = np.flatnonzero(having[census.frames["composition"]] & (census.part == number))
        names = ", ".join(chemical_symbols[z] for z in new)
        evidence = f"{part.name} has {names}, which {first.name} lacks"
        examples: tuple[Example, ...] = tuple(census.example(int(r)) for r in rows[:EXAMPLES])
        yield Finding("new-elements", len(rows), part.usable, examples, evidence)
