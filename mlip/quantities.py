"""What errors are of: names, words and units, in one table for everything that shows errors.

Inside `mlip` errors are in eV, eV/Å and eV/Å³; people are shown thousandths of them. Metrics are
called after a quantity: `forces_mae`, `val/rotation_energy_per_atom_rmse`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MILLI: Final = 1e3  # from what is stored to what is shown


class Quantity(NamedTuple):
    """One of the things whose errors are measured."""

    name: str  # in the names of metrics
    words: str
    unit: str  # of what is stored

    @property
    def shown_unit(self) -> str:
        """Unit of a thousandth, in which errors are shown."""
        return f"m{self.unit}"

    @property
    def ascii_unit(self) -> str:
        """The same for terminals and logs."""
        return self.shown_unit.replace("Å³", "A^3").replace("Å", "A")


QUANTITIES: Final = {
    quantity.name: quantity
    for quantity in (
        Quantity("energy", "energy", "eV"),
        Quantity("energy_per_atom", "energy per atom", "eV/atom"),
        Quantity("forces", "force", "eV/Å"),
        Quantity("stress", "stress", "eV/Å³"),
    )
}


def quantity_of(metric: str) -> Quantity:
    """Return what a metric is an error of: the longest name of a quantity that is in its name.

    Raises:
        KeyError: none is.
    """
    last = metric.rsplit("/", 1)[-1]  # before it: the part, and the source
    names = [name for name in QUANTITIES if name in last]
    if not names:
        raise KeyError(f"{metric} is no error of {', '.join(QUANTITIES)}")
    return QUANTITIES[max(names, key=len)]
