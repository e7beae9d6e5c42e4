"""From what a file says to one canonical `ase.Atoms`.

Every reader hands over a `RawFrame`; labels are searched, converted, checked and stored here and
nowhere else, so the same data reads the same from every format. Nothing is guessed and nothing is
lost silently: an absent label stays absent (never zero), a bad one is an error that names the file
and the frame.

Conventions: eV, Å, eV/Å, eV/Å³; stress sigma = (1/V) dE/d(strain) as in ASE, negative under
compression; virial W = -V sigma (QUIP, MACE, DeePMD), so stress = -W/V.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from mlip.data.readers.checks import as_floats, as_numbers, check_cell
from mlip.data.readers.entries import WEIGHT_KEYS, entries_of, weight_of
from mlip.data.readers.frames import Frame, RawFrame
from mlip.data.readers.options import VIRIAL_KEYS, ReadOptions
from mlip.data.readers.refused import Refused
from mlip.errors import DataError
from mlip.units import energy_factor, force_factor, stress_factor

CORRECTED_KEYS: Final = ("corrected_total_energy", "mp2020_corrected_energy")
_LABEL_WEIGHTS: Final = frozenset(
    key for label in ("energy", "forces", "stress") for key in WEIGHT_KEYS[f"{label}_weight"]
)
# Where a label may be, first hit wins; "calc:" is a calculator result, the rest info or arrays.
SEARCH: Final[Mapping[str, tuple[str, ...]]] = {
    "energy": ("REF_energy", "calc:energy", "energy"),
    "forces": ("REF_forces", "REF_force", "calc:forces", "forces", "force"),
    "stress": (
        *("REF_stress", "REF_virial", "REF_virials", "calc:stress"),
        *("stress", "virial", "virials"),
    ),
    "magmoms": ("REF_magmoms", "calc:magmoms", "magmoms", "magmom"),
}
VOIGT_I: Final = [0, 1, 2, 1, 0, 0]
VOIGT_J: Final = [0, 1, 2, 2, 2, 1]
_VASP_TO_ASE: Final = [0, 1, 2, 4, 5, 3]  # xx yy zz xy yz zx -> xx yy zz yz xz xy
ASYMMETRY: Final = (0.05, 1e-3)  # relative; eV/Å³: more than both is no stress tensor
T = TypeVar("T")
Noticings = tuple[dict[str, str], dict[str, int], int]  # keys, what was left out, frames


class OtherKeyError(DataError):
    """A label is under another key than in earlier frames: the file, not the frame, is doubtful."""


class Canonicalizer:
    """Turns the frames of one file into canonical structures.

    One per file: it remembers which key each label came from, because a file whose frames have
    their energies under different keys usually mixes two levels of theory.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Resolve the units that the options name; None means eV, eV/Å and eV/Å³."""
        self.path = path
        self.options = options
        energy_unit = options.energy_unit or "eV"
        self._energy = energy_factor(energy_unit)
        self.force_factor = force_factor(options.force_unit or f"{energy_unit}/A")
        sign = -1.0 if options.stress_sign == "vasp" else 1.0
        self.stress_factor = sign * stress_factor(options.stress_unit or "eV/A^3")
        explicit = {label: options.keys_of(label) for label in SEARCH}
        self._searched = {label: _searched(names, label) for label, names in explicit.items()}
        self._explicit = {label for label, names in explicit.items() if names}
        self.behind = ""  # what frames are counted from, in words, if not from the first
        self.keys: dict[str, str] = {}  # where each label was found
        self.left_out: dict[str, int] = {}  # of labels, in how many frames
        self.count = 0  # frames so far

    def __call__(self, frame: RawFrame, index: int) -> Atoms:
        """Return the canonical form of `frame`.

        Args:
            frame: the raw frame.
            index: its 0-based number in the file.

        Returns:
            Atoms with labels in `calc.results` (`calc` is None without any) and ids, charge,
            spin and weights in `info`.

        Raises:
            DataError: the geometry or a label is missing pieces, has a wrong shape, is not finite
                or contradicts the options.
        """
        plain = self.arrays(frame, index)
        atoms = Atoms(
            numbers=plain.numbers, positions=plain.positions, cell=plain.cell, pbc=plain.pbc
        )
        if self.options.keep_info:
            self._keep(atoms, frame, plain.info, plain.results)
        else:
            atoms.info = plain.info
        if plain.results:
            atoms.calc = SinglePointCalculator(atoms, **plain.results)
        return atoms

    def arrays(self, frame: RawFrame, index: int) -> Frame:
        """Return the canonical form of `frame` as arrays; arguments and errors as of a call."""
        if frame.fault is not None:
            raise frame.fault
        place = f"{self.path}: frame {index}{self.behind}"
        place += f" ({frame.where})" if frame.where else ""
        self.count += 1
        numbers, positions, cell, pbc = self._geometry(frame, place)
        results = self._labels(frame, cell, pbc, len(numbers), place)
        return Frame(numbers, positions, cell, pbc, results, self.info(frame.info, numbers, place))

    def unless_refused(
        self, form: Callable[[RawFrame, int], T], frame: RawFrame, index: int
    ) -> T | Refused:
        """Return a form of `frame`, or that it has none if the options say to skip such frames.

        Args:
            form: this object, or its method `arrays`.
            frame: the raw frame.
            index: its 0-based number in the file.

        Raises:
            DataError: the frame is bad and bad frames are errors, or it has a label under another
                key than earlier frames.
        """
        if self.options.on_bad == "error":
            return form(frame, index)
        before = self.noticed()
        try:
            return form(frame, index)
        except OtherKeyError:
            raise
        except DataError as error:
            self.forget_since(before)
            return Refused(str(error))

    def noticed(self) -> Noticings:
        """Return what the frames so far showed."""
        return dict(self.keys), dict(self.left_out), self.count

    def forget_since(self, before: Noticings) -> None:
        """Notice no more than was noticed before."""
        keys, left_out, self.count = before
        self.keys.clear()  # and not another: others hold it
        self.keys.update(keys)
        self.left_out.clear()
        self.left_out.update(left_out)

    def finish(self) -> None:
        """Say once what was left out of this file's labels, with counts."""
        for message in left_out_words(self.path, self.left_out, self.count):
            warnings.warn(message, stacklevel=3)

    # --- geometry -------------------------------------------------------------------------------

    def _geometry(
        self, frame: RawFrame, place: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        numbers = as_numbers(frame.numbers, place)
        positions = as_floats(frame.positions, (len(numbers), 3), "positions", place)
        cell = np.zeros((3, 3)) if frame.cell is None else frame.cell
        cell = as_floats(cell, (3, 3), "cell", place)
        pbc = np.empty(3, dtype=bool)
        try:
            pbc[:] = frame.pbc
        except (TypeError, ValueError):
            raise DataError(f"{place}: pbc is {frame.pbc!r}; expected three flags") from None
        check_cell(cell, pbc, place)
        return numbers, positions, cell, pbc

    # --- labels ---------------------------------------------------------------------------------

    def _labels(
        self,
        frame: RawFrame,
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        n: int,
        place: str,
    ) -> dict[str, Any]:
        results: dict[str, Any] = {}
        off = self._switched_off(frame, place)
        name, value = ("", None) if "energy" in off else self._find(frame, "energy", place)
        if value is not None:
            results["energy"] = self.energy_of(value, name, place)
        name, value = ("", None) if "forces" in off else self._find(frame, "forces", place)
        if value is not None:
            results["forces"] = as_floats(value, (n, 3), _plain(name), place) * self.force_factor
        name, value = ("", None) if "stress" in off else self._find(frame, "stress", place)
        if value is not None and (got := self.stress_of(value, name, cell, pbc, place)) is not None:
            results["stress"] = got
        name, value = self._find(frame, "magmoms", place)
        if value is not None and (got := self.magmoms_of(value, name, n, place)) is not None:
            results["magmoms"] = got
        return results

    def find(self, frame: RawFrame, place: str) -> dict[str, tuple[str, Any]]:
        """Return (name, value) of each label that counts, unconverted; errors as of a call."""
        off = self._switched_off(frame, place)
        found: dict[str, tuple[str, Any]] = {}
        for label in SEARCH:
            if label not in off and (hit := self._find(frame, label, place))[1] is not None:
                found[label] = hit
        return found

    def energy_of(self, value: Any, name: str, place: str) -> float:
        """Convert an energy that was found under a name; errors as of a call."""
        return self._one_number(value, _plain(name), place) * self._energy

    def stress_of(
        self, value: Any, name: str, cell: NDArray[np.float64], pbc: NDArray[np.bool_], place: str
    ) -> NDArray[np.float64] | None:
        """Convert a stress or virial, None if it is no label here; errors as of a call."""
        tensor = self._tensor(value, name, place)
        if pbc.all():
            return self._to_stress(tensor, name, cell, place)
        self._leave_out("stress is no label without three periodic axes, left out")
        return None

    def magmoms_of(self, value: Any, name: str, n: int, place: str) -> NDArray[np.float64] | None:
        """Check the magnetic moments of n atoms, None if they are no label; errors as of a call."""
        if _first_length(value) == 3 and np.shape(value) == (n, 3):
            self._leave_out("non-collinear magnetic moments are not supported, left out")
            return None
        magmoms = as_floats(value, (n,), _plain(name), place, nan_ok=True)
        return None if np.isnan(magmoms).all() else magmoms

    def is_virial(self, name: str) -> bool:
        """Whether what was found under a name is -volume times the stress."""
        return _plain(name) in (*VIRIAL_KEYS, self.options.keys.virial)

    def _one_number(self, value: Any, name: str, place: str) -> float:
        if type(value) is float and math.isfinite(value):
            return value
        energy = as_floats(value, None, name, place)
        if energy.size != 1:
            raise DataError(
                f"{place}: {name!r} has shape {energy.shape}, expected one number; "
                "per-atom energies are no label; name another key with data.keys.energy"
            )
        return float(energy.reshape(()))

    def _switched_off(self, frame: RawFrame, place: str) -> set[str]:
        """Return the labels that the file gives no weight.

        MACE's files hold zeros where a label is missing and say so by a weight of 0.
        """
        off: set[str] = set()
        if _LABEL_WEIGHTS.isdisjoint(frame.info):
            return off
        for label in ("energy", "forces", "stress"):
            for key in WEIGHT_KEYS[f"{label}_weight"]:
                if (value := frame.info.get(key)) is None:
                    continue
                weight = weight_of(value, key, place)
                if weight == 0:
                    off.add(label)
                # A file that is kept whole (predicted, converted) keeps the number as it is.
                elif weight != 1 and not self.options.keep_info:
                    raise DataError(
                        f"{place}: {key!r} is {weight:g}; expected 1, or 0 for a label that does "
                        "not count: one label of one frame has no other weight; set it to 1, and "
                        f"weigh frames by config_weight or all labels by loss.{label}_weight"
                    )
                break
        return off

    def _find(self, frame: RawFrame, label: str, place: str) -> tuple[str, Any]:
        """Return (key, value) of a label, ("", None) if the frame does not have it."""
        if label == "energy" and self.options.energy == "corrected":
            for name in CORRECTED_KEYS:
                if (value := frame.get(name)) is not None:
                    return name, value
            raise DataError(
                f"{place}: corrected energies were asked for, but it has none of "
                f"{', '.join(CORRECTED_KEYS)}; use data.energy=uncorrected, or the MPtrj JSON"
            )
        results, info, arrays = frame.results, frame.info, frame.arrays
        for name, plain, is_result in self._searched[label]:
            value = results.get(plain) if is_result else info.get(plain)
            if value is None and (is_result or (value := arrays.get(plain)) is None):
                continue
            if label in self._explicit:
                return name, value
            used = self.keys.setdefault(label, plain)
            if used != plain:
                raise OtherKeyError(
                    f"{place}: its {label} is under {plain!r}, that of earlier frames under "
                    f"{used!r}; two keys often mean two levels of theory; "
                    f"name one with data.keys.{label}, or make the file uniform"
                )
            return name, value
        return "", None

    def _tensor(self, value: Any, name: str, place: str) -> NDArray[np.float64]:
        """Return a stress or virial as a symmetric (3, 3) array, units as given."""
        array = as_floats(value, None, _plain(name), place)
        if array.shape == (6,):
            if self.options.stress_voigt == "vasp" and not name.startswith("calc:"):
                array = array[_VASP_TO_ASE]
            tensor = np.empty((3, 3))
            tensor[VOIGT_I, VOIGT_J] = tensor[VOIGT_J, VOIGT_I] = array
            return tensor
        if array.size != 9:
            raise DataError(
                f"{place}: {_plain(name)!r} has shape {array.shape}, expected (3, 3), (9,) or (6,)"
            )
        return array.reshape(3, 3)

    def _to_stress(
        self, tensor: NDArray[np.float64], name: str, cell: NDArray[np.float64], place: str
    ) -> NDArray[np.float64]:
        """Return ASE's Voigt stress, eV/Å³, from a stress or a virial."""
        if self.is_virial(name):
            stress = tensor * (-self._energy / abs(np.linalg.det(cell)))
        else:
            stress = tensor * self.stress_factor
        (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = stress.tolist()
        asymmetry = max(abs(xy - yx), abs(xz - zx), abs(yz - zy))
        if asymmetry > ASYMMETRY[1] and asymmetry > ASYMMETRY[0] * np.abs(stress).max():
            raise DataError(
                f"{place}: {_plain(name)!r} is not symmetric (by {asymmetry:.3g} eV/A^3), as a "
                "stress tensor must be; check the order of its components"
            )
        return np.array([xx, yy, zz, 0.5 * (yz + zy), 0.5 * (xz + zx), 0.5 * (xy + yx)])

    def _leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    # --- ids, charge, weights -------------------------------------------------------------------

    def info(
        self, raw: Mapping[str, Any], numbers: NDArray[np.int64], place: str
    ) -> dict[str, Any]:
        """Return what `Frame.info` holds, given what `RawFrame.info` does; errors as of a call."""
        return entries_of(raw, numbers, self.options, place)

    def _keep(
        self, atoms: Atoms, frame: RawFrame, info: dict[str, Any], results: dict[str, Any]
    ) -> None:
        """Keep what the file had beside the canonical entries, which give way on a clash."""
        typed = {k: info[k] for k in ("charge", "spin", *WEIGHT_KEYS) if k in info}
        atoms.info = {**info, **frame.info, **typed}
        for name, value in frame.arrays.items():
            atoms.set_array(name, np.asarray(value))
        for name, value in frame.results.items():
            if name in all_properties and name not in SEARCH:
                results.setdefault(name, value)
        atoms.set_constraint(frame.constraints)


def left_out_words(path: Path | str, left_out: Mapping[str, int], frames: int) -> list[str]:
    """Say what was left out of the labels of a file, and in how many of its frames."""
    return [f"{path}: {what} in {count} of {frames} frames" for what, count in left_out.items()]


def _searched(explicit: tuple[str, ...], label: str) -> list[tuple[str, str, bool]]:
    """Return where a label may be: name, the key in its place, whether that is a result."""
    names = [s for name in explicit for s in (f"calc:{name}", name)] or SEARCH[label]
    return [(name, _plain(name), name.startswith("calc:")) for name in names]


def _plain(name: str) -> str:
    return name.removeprefix("calc:")


def _first_length(value: Any) -> int:
    """Return the length of the first of several rows, 0 for anything else."""
    try:
        return len(value[0])
    except (TypeError, IndexError, KeyError):
        return 0
