"""A potential as an ASE calculator."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlip.errors import ConfigError, DataError
from mlip.graph import Arrays, AtomGraph, structure_arrays
from mlip.models.compiled import compile_potential
from mlip.models.potential import Potential, Prediction, check_species
from mlip.potential_file import load_potential, resolve_device, resolve_dtype
from mlip.symmetry import group_averaged, rotation_group

log = logging.getLogger("mlip")


class MLIPCalculator(Calculator):
    """Energy, free energy, energies, forces and, for crystals, stress.

    With several files it is a committee: results are means, and `energy_std`, `forces_std`,
    `energies_committee` and `forces_committee` stand beside them.

    With `rotations=K` each member's results are means over a group of K rotations: for
    architectures that learn rotational symmetry instead of having it. A call then costs K
    predictions (neighbours are searched once), and the result is exactly equivariant under that
    group, conservative as before, and closer to equivariant under other rotations.
    """

    implemented_properties: ClassVar[list[str]] = [  # pyright: ignore[reportIncompatibleVariableOverride]
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]

    def __init__(
        self,
        potential: str | Path | Potential | Sequence[str | Path | Potential] | None = None,
        *,
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        head: str | None = None,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        rotations: int = 1,
        compile: bool = False,
        stress_weight: float | None = None,
        **unknown: Any,
    ) -> None:
        """Load it.

        Args:
            potential: a potential file, a loaded `Potential`, or a list of either (a committee).
            checkpoint: another name for `potential`, used by workflow packages.
            head: which level of theory, for a potential that knows several.
            device: "auto", "cpu", "cuda", ...
            dtype: "float64" for phonons and tight relaxations; None keeps the trained one.
            rotations: order K of the group to average over: 1 (off), 12 (tetrahedral), 24
                (octahedral) or 60 (icosahedral); costs K times as much.
            compile: whether to compile the potential when it is first called: a minute, or less
                once it is in the cache, for shorter calls from then on (dynamics, many structures).
                On a GPU, with MLIP_KERNELS=triton, calls of sizes met before, up to 100,000 edges,
                are captured instead.
            stress_weight: ignored; stress is in eV/Å³ always.
            **unknown: refused.

        Raises:
            ConfigError: an unknown keyword, no potential, no such head, none chosen of several, no
                group of that order, or `compile` for what cannot be compiled.
        """
        super().__init__()
        if unknown:
            raise ConfigError(
                f"MLIPCalculator has no option {', '.join(map(repr, unknown))}; it has potential, "
                "head, device, dtype, rotations and compile"
            )
        if potential is not None and checkpoint is not None:
            raise ConfigError("potential and checkpoint are two names of one option; give one")
        given = potential if potential is not None else checkpoint
        if given is None:
            raise ConfigError("MLIPCalculator needs a potential file")
        members: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        rotation_group(rotations)  # refuses what is none
        self.rotations = int(rotations)
        self.device = resolve_device(device)
        self.potentials: list[Potential] = [
            load_potential(m, device, dtype) if isinstance(m, str | Path) else self._own(m, dtype)
            for m in members
        ]
        if compile:
            self.potentials = [compile_potential(p) for p in self.potentials]
        self._heads = [p.head_index(head) for p in self.potentials]
        known = {p.species_of(k) for p, k in zip(self.potentials, self._heads, strict=True)}
        if len(known) > 1:
            raise ConfigError("the members of a committee must know the same elements")
        (self.species,) = known
        self.cutoff = max(p.cutoff for p in self.potentials)
        parameters: dict[str, Any] = self.parameters  # type: ignore[assignment]
        parameters.update(
            potential=[str(m) if isinstance(m, str | Path) else "in memory" for m in members],
            dtype=str(self.potentials[0].dtype).removeprefix("torch."),
            head=self.head,
            rotations=self.rotations,
            version=self.potentials[0].metadata.get("versions", {}).get("mlip-trainer", "unknown"),
        )
        self._state: tuple[int, int] | None = None
        self._told: set[str] = set()
        if self.rotations > 1 and all(p.symmetry != "none" for p in self.potentials):
            self._tell(
                f"rotations={rotations} takes {rotations} times as long and changes nothing: this "
                f"potential is exactly equivariant ({self.potential.symmetry})"
            )

    @property
    def potential(self) -> Potential:
        """The (first) potential."""
        return self.potentials[0]

    @property
    def head(self) -> str:
        """Name of the level of theory that results are of."""
        return self.potential.head_names[self._heads[0]]

    @property
    def conservative(self) -> bool:
        """Whether the forces of every member are minus the gradient of its energy."""
        return all(p.conservative for p in self.potentials)

    def _own(self, potential: Potential, dtype: str | torch.dtype | None) -> Potential:
        potential = copy.deepcopy(potential)  # the caller's keeps its dtype and its gradients
        return potential.to(self.device, resolve_dtype(dtype) or potential.dtype).freeze()

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """Notice changes of total charge and spin, which ASE's cache does not see."""
        # optimisers ask several times a step, and ASE's comparison takes 0.3 ms
        same = self.atoms is not None and _identical(self.atoms, atoms)
        changes = [] if same else super().check_state(atoms, tol)
        if self._state is not None and _charge_spin(atoms) != self._state:
            changes.append("charge_spin")
        return changes

    def get_property(
        self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Refuse stress where it has no meaning instead of returning numbers."""
        if name == "stress" and atoms is not None and not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"stress is defined for crystals only, and this structure has pbc={atoms.pbc}; "
                "set a cell and pbc=True, or relax without the cell"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `self.results`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        if atoms is None:
            raise ConfigError("there is no structure to calculate")
        check_species(atoms.numbers, self.species)
        charge, spin = self._state = _charge_spin(atoms)
        bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info.update(charge=charge, spin=self._spin(charge, spin, atoms))
        (self.results,) = self.evaluate([structure_arrays(bare)])

    def evaluate(self, structures: Sequence[Arrays]) -> list[dict[str, Any]]:
        """Return the results of structures, predicted as one batch.

        Args:
            structures: as `structure_arrays` gives them.

        Returns:
            What ASE calls `results`, for each: eV, eV/Å, eV/Å³; no stress without a 3-D cell.

        Raises:
            DataError: cell or positions of a structure cannot be used.
        """
        graph = AtomGraph.connected(structures, self.cutoff, self.device)
        members = zip(self.potentials, self._heads, strict=True)
        outputs = [self._predict(p, graph.with_head(head)) for p, head in members]
        names = ("energy", "node_energy", "forces", "stress")
        arrays = {n: np.stack([getattr(o, n).cpu().numpy() for o in outputs]) for n in names}
        periodic = graph.pbc.all(1).tolist()
        ends = np.cumsum([len(s["atomic_numbers"]) for s in structures]).tolist()
        found = []
        for k, (begin, end) in enumerate(pairwise([0, *ends])):
            energies = arrays["energy"][:, k].astype(np.float64)
            forces = arrays["forces"][:, begin:end]
            energy = float(energies.mean())
            results = {
                "energy": energy,
                "free_energy": energy,
                "energies": arrays["node_energy"][:, begin:end].mean(0),
                "forces": forces.mean(0),
            }
            if periodic[k]:
                stress = arrays["stress"][:, k].mean(0)
                results["stress"] = full_3x3_to_voigt_6_stress(stress)
            if len(outputs) > 1:
                results |= {
                    "energy_std": float(energies.std()),
                    "forces_std": forces.std(0),
                    "energies_committee": energies,
                    "forces_committee": forces.copy(),
                }
            found.append(results)
        return found

    def _predict(self, potential: Potential, graph: AtomGraph) -> Prediction:
        if self.rotations > 1:
            return group_averaged(potential, graph, self.rotations)
        with torch.no_grad():
            return potential(graph)

    def _spin(self, charge: int, spin: int, atoms: ase.Atoms) -> int:
        """Return the multiplicity to use; say once what was assumed or ignored."""
        aware = next((p for p in self.potentials if p.uses_charge_spin), None)
        if aware is None:
            if charge != 0 or spin > 1:
                self._tell(
                    f"charge {charge} and spin {spin} are ignored: this potential was trained "
                    "without them"
                )
            return spin
        training = aware.metadata.get("training", {})
        for name, value in (("charge", charge), ("spin", spin)):
            limits = training.get(f"{name}_range")
            if limits and not limits[0] <= value <= limits[1] and (name, value) != ("spin", 0):
                self._tell(f"{name} {value} is outside the training range {limits}: extrapolating")
        if spin == 0 and not atoms.pbc.any():
            self._tell("no spin given: multiplicity 1 is assumed (set atoms.info['spin'])")
            return 1
        return spin

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning(message)


def _identical(one: ase.Atoms, other: ase.Atoms) -> bool:
    """Whether two structures agree to the bit in everything ASE compares, and more."""
    return (
        one.arrays.keys() == other.arrays.keys()
        and np.array_equal(one.pbc, other.pbc)
        and np.array_equal(one.cell.array, other.cell.array)
        and all(np.array_equal(value, other.arrays[name]) for name, value in one.arrays.items())
    )


def _charge_spin(atoms: ase.Atoms) -> tuple[int, int]:
    """Total charge and multiplicity: from `info`, else pymatgen's attributes; 0 = unknown spin."""
    charge = atoms.info.get("charge", getattr(atoms, "charge", None))
    spin = atoms.info.get("spin", getattr(atoms, "spin_multiplicity", None))
    state = _whole("charge", charge), _whole("spin", spin)
    if state[1] < 0:
        raise DataError(f"spin={spin!r} must be the multiplicity 2S+1: 1, 2, ... (0 = unknown)")
    return state


def _whole(name: str, value: Any) -> int:
    """Return a whole number; nothing is rounded, half a charge is a mistake."""
    try:
        number = 0.0 if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise DataError(f"{name}={value!r} must be a whole number; correct atoms.info[{name!r}]")
    return int(number)


def carry_state(source: ase.Atoms, target: ase.Atoms) -> ase.Atoms:
    """Write charge and spin of `source` into `target.info`: `Atoms.copy` loses attributes."""
    for name, attribute in (("charge", "charge"), ("spin", "spin_multiplicity")):
        value = getattr(source, attribute, None)
        if name not in target.info and value is not None:
            target.info[name] = value
    return target
