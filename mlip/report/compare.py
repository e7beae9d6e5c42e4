"""Trained potentials side by side: which is better, faster, and how symmetric.

Most of it stands in the potential files, written when they were trained; speed and energy
conservation are measured now, on the same structures for all (`mlip.report.measure`). Potentials
of different data are compared as well, and the comparison says that it is not fair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import ase
from ase.data import atomic_numbers

from mlip.atomic import atomic_write
from mlip.data.readers import read_structures
from mlip.errors import ConfigError, DataError, MLIPError
from mlip.models.potential import check_species
from mlip.potential_file import read_metadata
from mlip.quantities import MILLI, QUANTITIES, quantity_of
from mlip.report.measure import LENGTH_FS, TEMPERATURE, TIMESTEP_FS, measure
from mlip.report.plots import comparison_figure

PARTS = ("test", "val")  # the first that a file has is compared
MAX_RUNS = len(ascii_uppercase)
MAX_FRAMES = 50  # looked at for one to measure on
FILES = ("compare.json", "compare.txt", "compare.png")
ERRORS = ("energy_per_atom_mae", "energy_per_atom_rmse", "forces_mae", "forces_rmse", "stress_mae")
ROTATION = ("forces_rmse", "energy_per_atom_rmse")


@dataclass
class Comparison:
    """What is known of some potentials, plain values; `runs` in the order they were given."""

    runs: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    measured_on: dict[str, Any] | None = None  # structure and conditions of what was measured now

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds: eV, eV/Å, µs, bytes."""
        return {"measured_on": self.measured_on, "notes": self.notes, "runs": self.runs}


def compare_runs(
    paths: Sequence[Path | str],
    *,
    structure: Path | str | None = None,
    measured: bool = True,
    device: str = "cpu",
) -> Comparison:
    """Gather what the files of some runs say, and measure what they cannot.

    Args:
        paths: run folders or potential files, at most 26.
        structure: file whose first structure speed and dynamics are measured on; default a
            structure of the data that the runs were trained or tested on.
        measured: False to measure nothing.
        device: where to measure.

    Raises:
        PotentialFileError: a path is neither a run folder nor a potential file.
        ConfigError: too many runs.
        DataError: `structure` cannot be read, or holds an element that a potential does not know.
    """
    if not 1 <= len(paths) <= MAX_RUNS:
        raise ConfigError(f"{len(paths)} runs cannot be compared: give 1 to {MAX_RUNS}")
    files = [_potential_of(Path(path)) for path in paths]
    documents = [read_metadata(file) for file in files]
    runs = [
        _facts(label, file, document)
        for label, file, document in zip(ascii_uppercase, files, documents, strict=False)
    ]
    comparison = Comparison(runs, _data_notes(runs, documents))
    if not measured:
        return comparison
    atoms, where = _structure(documents, structure)
    if atoms is None:
        comparison.notes.append(f"speed and NVE ratio were not measured: {where}")
        return comparison
    results, problems = measure([str(file) for file in files], atoms, device)
    for run, result in zip(runs, results, strict=True):
        run.update(result)
    comparison.notes += problems
    comparison.measured_on = {
        "structure": where,
        "formula": atoms.get_chemical_formula(),
        "device": device,
        "threads": 1,
        "nve": {
            "timesteps_fs": [TIMESTEP_FS, TIMESTEP_FS / 2],
            "length_fs": LENGTH_FS,
            "temperature_K": TEMPERATURE,
            "dtype": "float64",
        },
    }
    return comparison


def comparison_text(comparison: Comparison) -> str:
    """Return the table: a column per run, a row per quantity, errors with their counts."""
    runs = comparison.runs
    lines = [f"{run['label']}  {run['architecture']:14}{run['path']}" for run in runs]
    table: list[tuple[str, list[str]]] = []

    def row(words: str, cell: Callable[[dict[str, Any]], str | None]) -> None:
        cells = [cell(run) for run in runs]
        if any(cells):
            table.append((words, [text or "-" for text in cells]))

    row("parameters", lambda r: f"{r['num_parameters']:,}")
    row("cutoff (A)", lambda r: f"{r['cutoff']:g}")
    row("exact symmetry", lambda r: r["symmetry"])
    row("conservative", lambda r: "yes" if r["conservative"] else "no")
    row("errors on", lambda r: r["part"])
    for name in ERRORS:
        q, kind = quantity_of(name), name.rpartition("_")[2]
        row(f"{q.words} {kind.upper()} ({q.ascii_unit})", lambda r, n=name: _error(r, n))
    row("trained on (structures)", lambda r: _number(r["training"].get("structures"), "{:,}"))
    row("training time (min)", lambda r: _number(r["training"].get("seconds"), "{:.1f}", 1 / 60))
    row("training (atoms/s)", lambda r: _number(r["training"].get("atoms_per_s"), "{:,.0f}"))
    row(
        "peak memory (MB)",
        lambda r: _number(r["training"].get("peak_memory_bytes"), "{:,.0f}", 1e-6),
    )
    for k, atoms in enumerate(_sizes(runs)):
        row(
            f"us/atom and step, {atoms} atoms",
            lambda r, k=k: (
                _number(r["speed"][k]["us_per_atom"], "{:,.1f}") if "speed" in r else None
            ),
        )
    for name in ROTATION:
        q = quantity_of(name)
        row(
            f"rotation error, {q.words} ({q.ascii_unit})",
            lambda r, n=name: _number(r["rotation_error"].get(n), "{:.2g}", MILLI),
        )
    row("rotation error of (structures x turns)", _turned)
    row("NVE ratio (4 = conserves)", lambda r: _number(r.get("nve", {}).get("ratio"), "{:.2f}"))
    row(
        f"NVE energy std ({QUANTITIES['energy_per_atom'].ascii_unit})",
        lambda r: _number(r.get("nve", {}).get("energy_std"), "{:.2g}", MILLI),
    )
    first = max(len(words) for words, _ in table)
    widths = [max(len(cells[k]) for _, cells in table) for k in range(len(runs))]

    def line(words: str, cells: Iterable[str]) -> str:
        joined = "  ".join(f"{text:>{w}}" for text, w in zip(cells, widths, strict=True))
        return f"{words:{first}}  {joined}".rstrip()

    lines += ["", line("", [run["label"] for run in runs])]
    lines += [line(words, cells) for words, cells in table]
    if comparison.measured_on:
        on = comparison.measured_on
        lines += [
            "",
            f"measured now, one thread, {on['device']}: {on['formula']} from {on['structure']}, "
            "and copies of it",
            f"NVE ratio: energy fluctuation at {TIMESTEP_FS:g} fs over that at "
            f"{TIMESTEP_FS / 2:g} fs, {LENGTH_FS:g} fs at {TEMPERATURE:g} K in float64; 4 for a "
            "smooth energy and its gradient",
        ]
    lines += [f"note: {note}" for note in comparison.notes]
    return "\n".join(lines) + "\n"


def write_comparison(comparison: Comparison, folder: Path | str) -> list[Path]:
    """Write `compare.json`, `compare.txt` (the table) and `compare.png`; return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False)
    paths = [folder / name for name in FILES]
    for path, text in zip(paths, (document + "\n", comparison_text(comparison)), strict=False):
        with atomic_write(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    comparison_figure(comparison.runs, paths[2])
    return paths


def _potential_of(path: Path) -> Path:
    if not path.is_dir():
        return path  # whatever is wrong with it, reading says so
    file = path / "potential.safetensors"
    if not file.exists():
        raise ConfigError(
            f"{path} has no potential.safetensors: not a run folder, or training has not ended; "
            "give run folders or potential files"
        )
    return file


def _facts(label: str, file: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one file says; files of earlier versions say less."""
    metrics, counts = document.get("metrics", {}), document.get("metric_counts", {})
    part = next((p for p in PARTS if f"{p}/loss" in metrics or counts.get(p)), None)
    training = document.get("training", {})
    own = {n.split("/", 1)[1]: v for n, v in metrics.items() if n.startswith(f"{part}/")}
    return {
        "label": label,
        "path": str(file),
        "architecture": document["architecture"]["name"],
        "hyperparameters": document["architecture"]["hyperparameters"],
        "dtype": document["dtype"],
        "num_parameters": document["num_parameters"],
        "cutoff": document["cutoff"],
        "symmetry": document["symmetry"],
        "conservative": document["conservative"],
        "part": part,
        "metrics": own,
        "counts": counts.get(part, {}),
        "training": {
            "structures": training.get("structures"),
            "sources": training.get("sources", []),
            "parts": training.get("parts", {}),
            "recipe": training.get("recipe", {}),
            **document.get("training_cost", {}),
        },
        "rotation_error": document.get("symmetry_errors", {}).get("rotation", {}),
    }


def _data_notes(
    runs: Sequence[dict[str, Any]], documents: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say where the comparison is unfair: other data to learn from, or to be judged on."""
    notes = []
    for what, part_of, consequence in (
        ("trained on", lambda run: "train", "what differs is not only the model"),
        ("judged on", lambda run: run["part"], "their errors cannot be compared"),
    ):
        groups: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        contents: set[tuple[str | None, str]] = set()
        for run in runs:
            part = part_of(run)
            about = run["training"]["parts"].get(part, {})
            content = json.dumps(about.get("hash"), sort_keys=True)
            key = json.dumps([part, content, about.get("structures"), about.get("rows")])
            groups.setdefault(key, []).append(run["label"])
            contents.add((part, content))
            sources = ", ".join(about.get("sources", [])) or "unknown data"
            names[key] = f"{about.get('structures', '?')} structures of {sources} ({part})"
        if len(groups) > 1:
            split = ", split differently" if len(contents) == 1 else ""
            each = "; ".join(f"{', '.join(labels)}: {names[k]}" for k, labels in groups.items())
            notes.append(
                f"unequal data: not all were {what} the same structures, {consequence}. "
                f"{each}{split}"
            )
    readings = {d.get("training", {}).get("reading", {}).get("energy") for d in documents}
    if len(readings) > 1:
        notes.append("unequal data: corrected energies were read for some and not for others")
    if turned := [run["label"] for run in runs if run["symmetry"] == "none" and run["part"]]:
        notes.append(
            f"{', '.join(turned)}: errors are of structures turned at random, as the architecture "
            "has no exact rotation symmetry"
        )
    if len({run["training"].get("device") for run in runs}) > 1:
        notes.append("trained on different devices: training speeds cannot be compared")
    return notes


def _structure(
    documents: Sequence[Mapping[str, Any]], given: Path | str | None
) -> tuple[ase.Atoms | None, str]:
    """Return a structure of elements that all know and where it is from, or None and why not."""
    species = set.intersection(
        *({atomic_numbers[symbol] for symbol in document["species"]} for document in documents)
    )
    if given is not None:
        atoms = next(read_structures(given), None)
        if atoms is None:
            raise DataError(f"{given} has no structure")
        check_species(atoms.numbers, sorted(species))
        return atoms, str(given)
    for document in documents:
        training = document.get("training", {})
        options = {k: v for k, v in training.get("reading", {}).items() if v is not None}
        for part in (*PARTS, "train"):
            for source in training.get("parts", {}).get(part, {}).get("sources", []):
                try:
                    for count, atoms in enumerate(read_structures(source, **options)):
                        if len(atoms) > 1 and species.issuperset(atoms.numbers.tolist()):
                            return atoms, source
                        if count >= MAX_FRAMES:
                            break
                except (MLIPError, OSError):
                    continue
    return None, (
        "the data are not where they were, or hold no structure of elements that all "
        "potentials know; --structure gives one"
    )


def _sizes(runs: Sequence[dict[str, Any]]) -> list[int]:
    return next(([s["atoms"] for s in run["speed"]] for run in runs if "speed" in run), [])


def _error(run: dict[str, Any], name: str) -> str | None:
    value = run["metrics"].get(name)
    if value is None:
        return None
    count = run["counts"].get(quantity_of(name).name)
    return f"{MILLI * value:.2f}" + (f" ({count:,})" if count is not None else "")


def _turned(run: dict[str, Any]) -> str | None:
    error = run["rotation_error"]
    return f"{error['structures']} x {error['operations']}" if "operations" in error else None


def _number(value: float | None, form: str, factor: float = 1.0) -> str | None:
    return None if value is None else form.format(value * factor if factor != 1.0 else value)
