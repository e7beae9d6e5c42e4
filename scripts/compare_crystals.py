"""Hold a potential against the equations of state and elastic constants of `data/mptrj-mini`.

The same volumes, strains and fits as in `make_mptrj_mini.py`, so that the differences are those of
the potential alone. Run: python scripts/compare_crystals.py POTENTIAL [--output DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ase
import matplotlib as mpl
import numpy as np
from ase.eos import EquationOfState
from ase.optimize import BFGS
from numpy.typing import NDArray

from mlip import MLIPCalculator
from mlip.units import GPA

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "mptrj-mini" / "reference.json"
STRAIN = 0.005
FMAX = 0.005  # eV/A, of the ions in a strained cell
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def crystal(reference: dict[str, Any], volume: float, calculator: MLIPCalculator) -> ase.Atoms:
    """The reference's equilibrium cell, scaled to a volume in A^3."""
    atoms = ase.Atoms(
        reference["symbols"], reference["positions"], cell=reference["cell"], pbc=True
    )
    atoms.set_cell(atoms.cell.array * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    atoms.calc = calculator
    return atoms


def equation_of_state(reference: dict[str, Any], calculator: MLIPCalculator) -> dict[str, Any]:
    """Birch-Murnaghan fit at the reference's volumes."""
    volumes = reference["eos"]["volumes_A3"]
    energies = [crystal(reference, v, calculator).get_potential_energy() for v in volumes]
    volume, energy, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit(
        warn=False
    )
    scale = (volume / reference["eos"]["volume_A3"]) ** (1 / 3)
    return {
        "volume_A3": float(volume),
        "lattice_constant_A": reference["eos"]["lattice_constant_A"] * float(scale),
        "energy_eV": float(energy),
        "bulk_modulus_GPa": float(modulus) / GPA,
        "energies_eV": energies,
    }


def stress(atoms: ase.Atoms, strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stress (3, 3) in GPa of a strained copy whose ions are relaxed."""
    strained = atoms.copy()
    strained.set_cell(strained.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    strained.calc = atoms.calc
    if len(strained) > 1:
        BFGS(strained, logfile=None).run(fmax=FMAX, steps=100)  # type: ignore[arg-type]
    return strained.get_stress(voigt=False) / GPA


def elastic_constants(atoms: ase.Atoms, names: list[str]) -> dict[str, float]:
    """The named constants in GPa, from central differences of the stress at equilibrium."""
    slopes: dict[int, list[float]] = {}

    def slope(column: int) -> list[float]:
        if column not in slopes:
            strain = np.zeros((3, 3))
            i, j = VOIGT[column]
            strain[i, j] += 0.5 * STRAIN
            strain[j, i] += 0.5 * STRAIN
            change = (stress(atoms, strain) - stress(atoms, -strain)) / (2 * STRAIN)
            slopes[column] = [float(change[k]) for k in VOIGT]
        return slopes[column]

    return {name: slope(int(name[2]) - 1)[int(name[1]) - 1] for name in names}


def compare(potential: Path) -> dict[str, dict[str, Any]]:
    """Reference and potential, material by material."""
    calculator = MLIPCalculator(potential, dtype="float64")
    result = {}
    for mp_id, reference in json.loads(REFERENCE.read_text())["materials"].items():
        eos = equation_of_state(reference, calculator)
        names = list(reference["elastic_constants_GPa"])
        atoms = crystal(reference, eos["volume_A3"], calculator)
        result[mp_id] = {
            "material": f"{reference['formula']} ({reference['prototype']})",
            "reference": {
                "lattice_constant_A": reference["eos"]["lattice_constant_A"],
                "bulk_modulus_GPa": reference["eos"]["bulk_modulus_GPa"],
                **reference["elastic_constants_GPa"],
            },
            "potential": {
                "lattice_constant_A": eos["lattice_constant_A"],
                "bulk_modulus_GPa": eos["bulk_modulus_GPa"],
                **elastic_constants(atoms, names),
            },
            "curve": {
                "volumes_A3_per_atom": [v / len(atoms) for v in reference["eos"]["volumes_A3"]],
                "reference_eV_per_atom": [
                    e / len(atoms) for e in reference["eos"]["free_energies_eV"]
                ],
                "potential_eV_per_atom": [e / len(atoms) for e in eos["energies_eV"]],
            },
        }
    return result


def table(result: dict[str, dict[str, Any]]) -> str:
    """Lattice constants and moduli side by side."""
    lines = [
        f"{'':19}{'lattice constant (A)':>28}{'bulk modulus (GPa)':>28}   elastic constants (GPa)",
        f"{'':19}{'DFT':>9}{'mlip':>9}{'error':>10}{'DFT':>9}{'mlip':>9}{'error':>10}   DFT | mlip",
    ]
    for entry in result.values():
        dft, ours = entry["reference"], entry["potential"]
        a, b = (dft["lattice_constant_A"], ours["lattice_constant_A"])
        k, m = (dft["bulk_modulus_GPa"], ours["bulk_modulus_GPa"])
        names = [name for name in dft if name.startswith("C")]
        constants = " ".join(f"{n} {dft[n]:.0f}|{ours[n]:.0f}" for n in names)
        lines.append(
            f"{entry['material']:19}{a:9.3f}{b:9.3f}{100 * (b / a - 1):+9.2f}%"
            f"{k:9.1f}{m:9.1f}{100 * (m / k - 1):+9.1f}%   {constants}"
        )
    return "\n".join(lines)


def plot(result: dict[str, dict[str, Any]], path: Path) -> None:
    """Energy against volume: DFT as points, the potential as lines."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = 5
    rows = -(-len(result) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 2.3 * rows), constrained_layout=True)
    for axis, entry in zip(np.ravel(axes), result.values(), strict=False):
        curve = entry["curve"]
        volumes = np.array(curve["volumes_A3_per_atom"])
        lowest = min(curve["reference_eV_per_atom"])
        axis.plot(volumes, 1e3 * (np.array(curve["potential_eV_per_atom"]) - lowest), "C0-")
        axis.plot(volumes, 1e3 * (np.array(curve["reference_eV_per_atom"]) - lowest), "k.")
        axis.set_title(entry["material"], fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in np.ravel(axes)[len(result) :]:
        axis.set_visible(False)
    figure.supxlabel("volume (A$^3$/atom)", fontsize=9)
    figure.supylabel("energy (meV/atom)", fontsize=9)
    figure.suptitle("PBE (points) and the potential (lines)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the table; write JSON and the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("potential", type=Path)
    parser.add_argument("--output", type=Path, help="folder for crystals.json and crystals.png")
    arguments = parser.parse_args()
    result = compare(arguments.potential)
    print(table(result))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / "crystals.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        plot(result, arguments.output / "crystals.png")


if __name__ == "__main__":
    main()
