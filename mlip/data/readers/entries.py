"""What a frame says of itself beside its geometry and labels: ids, group, charge, spin, weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.checks import as_floats, as_integer, hill_formula
from mlip.data.readers.options import ReadOptions
from mlip.errors import DataError

GROUP_KEYS: Final = ("mp_id", "material_id", "mptrj_traj_id", "molecule_id")
ID_KEYS: Final = ("id", "sample_id", "frame_id", "mptrj_snapshot_id")
CHARGE_KEYS: Final = ("charge", "total_charge")
SPIN_KEYS: Final = ("spin", "multiplicity", "spin_multiplicity")
WEIGHT_KEYS: Final = {
    "weight": ("config_weight", "weight"),
    "energy_weight": ("config_energy_weight", "energy_weight"),
    "forces_weight": ("config_forces_weight", "forces_weight"),
    "stress_weight": ("config_stress_weight", "stress_weight"),
}
_NUMBERS: Final = frozenset(chain(CHARGE_KEYS, SPIN_KEYS, *WEIGHT_KEYS.values()))


def entries_of(
    raw: Mapping[str, Any], numbers: NDArray[np.int64], options: ReadOptions, place: str
) -> dict[str, Any]:
    """Return what `Frame.info` holds, given what `RawFrame.info` does.

    Args:
        raw: the entries of the file.
        numbers: (N,) atomic numbers.
        options: of the reader.
        place: file and frame, for messages.

    Raises:
        DataError: charge, spin or a weight is no number that it can be, or the group that the
            options name is missing.
    """
    info: dict[str, Any] = {}
    if not _NUMBERS.isdisjoint(raw):
        _add_numbers(info, raw, place)
    for key in ("config_type", "data_id", "source"):
        if (value := raw.get(key)) is not None:
            info[key] = str(value)
    if (group := _group(raw, numbers, options.group, place)) is not None:
        info["group"] = group
    if (identifier := _identifier(raw)) is not None:
        info["id"] = identifier
    for key in options.info_keys:
        if (value := raw.get(key)) is not None:
            info.setdefault(key, value)
    return info


def weight_of(value: Any, key: str, place: str) -> float:
    """Return a weight that stands under a key.

    Raises:
        DataError: it is no number, or a negative one.
    """
    weight = as_floats(value, (), key, place)
    if weight < 0:
        raise DataError(f"{place}: {key!r} is {float(weight)}; expected zero or more")
    return float(weight)


def _add_numbers(info: dict[str, Any], raw: Mapping[str, Any], place: str) -> None:
    for name, keys, low in (("charge", CHARGE_KEYS, None), ("spin", SPIN_KEYS, 0)):
        for key in keys:
            if (value := raw.get(key)) is not None:
                info[name] = as_integer(value, key, low, place)
                break
    for name, keys in WEIGHT_KEYS.items():
        for key in keys:
            if (value := raw.get(key)) is not None:
                info[name] = weight_of(value, key, place)
                break


def _group(
    raw: Mapping[str, Any], numbers: NDArray[np.int64], wanted: str | None, place: str
) -> str | None:
    if wanted is None:
        return None
    if wanted != "auto":
        if (value := raw.get(wanted)) is None:
            raise DataError(
                f"{place}: it has no {wanted!r} to group by; its info keys are "
                f"{sorted(raw)}; set data.group to one of them, auto or null"
            )
        return str(value)
    for key in GROUP_KEYS:
        if (value := raw.get(key)) is not None:
            return str(value)
    # OMol25: 80 % of its rows share a composition with another row, so random splits leak.
    return hill_formula(numbers) if raw.get("data_id") is not None else None


def _identifier(raw: Mapping[str, Any]) -> str | None:
    for key in ID_KEYS:
        if (value := raw.get(key)) is not None:
            return str(value)
    parts = [raw.get(key) for key in ("task_id", "calc_id", "ionic_step")]  # matbench's MPtrj
    if all(part is not None for part in parts):
        return "-".join(str(part) for part in parts)
    return str(raw["source"]) if raw.get("data_id") and raw.get("source") else None
