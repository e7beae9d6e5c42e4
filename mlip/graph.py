"""`AtomGraph`: the one data structure that crosses module borders.

Upstream of it are files and `ase.Atoms`; downstream are tensors. `SCHEMA` is the contract (names,
shapes, dtypes, units); collating, moving between devices and the torch-geometric conversion follow
it. Models only ever see batches: one structure is a batch of
one. Field names and the direction of `edge_index` are torch-geometric's, but nothing here imports
it (2 s at start-up) unless `to_pyg` is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import ase
import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from mlip.device_neighbors import batched_neighbor_list
from mlip.errors import DataError
from mlip.neighbors import check_positions, complete_cells, neighbor_list

if TYPE_CHECKING:
    from torch_geometric.data import Data

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One row of the contract."""

    per: Literal["atom", "edge", "graph"]
    shape: tuple[int, ...]
    dtype: torch.dtype
    unit: str
    missing: float | int | None = None  # value of an absent optional field; None = required
    label: bool = False


_NAN = float("nan")
SCHEMA: Final[Mapping[str, Field]] = MappingProxyType(
    {
        # structure
        "atomic_numbers": Field("atom", (), torch.int64, ""),
        "positions": Field("atom", (3,), torch.float64, "Å"),  # need not be wrapped
        "cell": Field("graph", (3, 3), torch.float64, "Å"),  # rows are lattice vectors
        "pbc": Field("graph", (3,), torch.bool, ""),
        "charge": Field("graph", (), torch.int64, "e", missing=0),
        "spin": Field("graph", (), torch.int64, "2S+1, 0 = unknown", missing=0),
        "head": Field("graph", (), torch.int64, "level of theory", missing=0),
        # neighbours: row 0 of edge_index is the neighbour j, row 1 the centre i; sorted by i
        "edge_index": Field("edge", (2,), torch.int64, ""),  # stored (2, E)
        "edge_shift": Field("edge", (3,), torch.int32, "lattice vectors"),
        # labels; NaN = no label, never zero
        "energy": Field("graph", (), torch.float64, "eV", missing=_NAN, label=True),
        "forces": Field("atom", (3,), torch.float64, "eV/Å", missing=_NAN, label=True),
        "stress": Field("graph", (3, 3), torch.float64, "eV/Å³", missing=_NAN, label=True),
        "magmoms": Field("atom", (), torch.float64, "μB", missing=_NAN, label=True),
        # bookkeeping
        "weight": Field("graph", (), torch.float64, "", missing=1.0),  # of the structure's loss
        "sample_id": Field("graph", (), torch.int64, "row in its source", missing=-1),
        "source": Field("graph", (), torch.int64, "index of its source", missing=-1),
    }
)
NO_EDGES: Final[Arrays] = {
    "edge_index": np.zeros((2, 0), dtype=np.int64),
    "edge_shift": np.zeros((0, 3), dtype=np.int32),
}
LABELS: Final = tuple(name for name, field in SCHEMA.items() if field.label)


@dataclass(slots=True)
class AtomGraph:
    """A batch of B structures with N atoms and E directed edges; fields as in `SCHEMA`.

    Edge vectors are `positions[j] + edge_shift @ cell - positions[i]`.
    """

    atomic_numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    charge: Tensor
    spin: Tensor
    head: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    magmoms: Tensor
    weight: Tensor
    sample_id: Tensor
    source: Tensor
    batch: Tensor  # (N,) which structure an atom belongs to
    ptr: Tensor  # (B+1,) where each structure's atoms start

    @property
    def num_graphs(self) -> int:
        """Structures, B."""
        return self.cell.shape[0]

    @property
    def num_atoms(self) -> Tensor:
        """Atoms per structure, (B,)."""
        return self.ptr.diff()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AtomGraph:
        """Return the same batch with every tensor on `device`."""
        return AtomGraph(
            *(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self))
        )

    def pin_memory(self) -> AtomGraph:
        """Return the same batch in page-locked memory, for copies to an accelerator."""
        return AtomGraph(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def with_head(self, head: int) -> AtomGraph:
        """Return the same batch for one level of theory, by its number in the potential."""
        return replace(self, head=torch.full_like(self.head, head))

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms, cutoff: float) -> AtomGraph:
        """Build the graph of one structure: a batch of one, with the labels it carries.

        Args:
            atoms: the structure; `info["charge"]` and `info["spin"]` are honoured, labels are read
                from its calculator's results.
            cutoff: radius of the neighbour list, Å.

        Raises:
            DataError: the structure is empty or its cell, positions or labels cannot be used.
        """
        arrays = structure_arrays(atoms)
        return cls.from_arrays([add_edges(arrays, cutoff)])

    @classmethod
    def from_arrays(cls, samples: Sequence[Arrays]) -> AtomGraph:
        """Join structures given as numpy arrays per SCHEMA field (`structure_arrays`) to a batch.

        Optional fields that no sample has take their `missing` value.
        """
        counts = np.array([len(s["atomic_numbers"]) for s in samples], dtype=np.int64)
        ptr = np.concatenate([[0], np.cumsum(counts)])
        out: dict[str, Tensor] = {}
        for name, field in SCHEMA.items():
            if name == "edge_index":
                parts = [s[name] + start for s, start in zip(samples, ptr[:-1], strict=True)]
                value = np.concatenate(parts, axis=1)
            elif field.per == "graph":
                value = np.stack([_get(s, name, field, 1)[0] for s in samples])
            else:
                value = np.concatenate(
                    [_get(s, name, field, n) for s, n in zip(samples, counts, strict=True)]
                )
            out[name] = torch.from_numpy(np.ascontiguousarray(value)).to(field.dtype)
        batch = torch.repeat_interleave(torch.from_numpy(counts))
        return cls(**out, batch=batch, ptr=torch.from_numpy(ptr))

    @classmethod
    def connected(
        cls, structures: Sequence[Arrays], cutoff: float, device: torch.device
    ) -> AtomGraph:
        """Find the neighbours of structures and return the batch of them on `device`.

        An accelerator finds them itself, of all structures at once: the same edges, though those of
        a centre may come in another order.

        Args:
            structures: as `structure_arrays` gives them.
            cutoff: radius of the neighbour list, Å.
            device: where the batch is to be.

        Raises:
            DataError: cell or positions of a structure cannot be used.
        """
        if not _finds_neighbors(device):
            return cls.from_arrays([add_edges(s, cutoff) for s in structures]).to(device)
        for structure in structures:
            check_positions(structure["positions"])
        cells, pbc = (np.concatenate([s[name] for s in structures]) for name in ("cell", "pbc"))
        box = torch.from_numpy(complete_cells(cells, pbc)).to(device)
        graph = cls.from_arrays([{**s, **NO_EDGES} for s in structures]).to(device)
        index, shift = batched_neighbor_list(graph.positions, box, graph.pbc, graph.batch, cutoff)
        return replace(graph, edge_index=index, edge_shift=shift)

    def to_pyg(self) -> Data:
        """Return the same tensors as a torch-geometric `Data` (no copy)."""
        from torch_geometric.data import Data

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Data(num_nodes=self.atomic_numbers.shape[0], **values)

    @classmethod
    def from_pyg(cls, data: Data) -> AtomGraph:
        """Take the tensors of a torch-geometric `Data` or `Batch` made from ours (no copy).

        Raises:
            DataError: a field of `SCHEMA` is missing; the message names it.
        """
        if missing := [name for name in SCHEMA if name not in data]:
            raise DataError(f"this Data object lacks {missing}; make it with AtomGraph.to_pyg")
        values: dict[str, Any] = {name: data[name] for name in SCHEMA}
        num_nodes = values["atomic_numbers"].shape[0]
        batch: Any = data.batch if "batch" in data else torch.zeros(num_nodes, dtype=torch.int64)
        ptr = data.ptr if "ptr" in data else torch.tensor([0, num_nodes])
        return cls(**values, batch=batch, ptr=ptr)


def collate(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Join batches into one; the order of structures, atoms and edges is kept."""
    starts = np.cumsum([0] + [g.atomic_numbers.shape[0] for g in graphs])
    out = {
        name: torch.cat(
            [g.edge_index + int(s) for g, s in zip(graphs, starts, strict=False)], dim=1
        )
        if name == "edge_index"
        else torch.cat([getattr(g, name) for g in graphs])
        for name in SCHEMA
    }
    counts = torch.cat([g.num_atoms for g in graphs])
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return AtomGraph(**out, batch=torch.repeat_interleave(counts), ptr=ptr)


def structure_arrays(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """Return the SCHEMA fields of a structure as numpy arrays, without neighbours.

    Per-graph fields have a leading axis of one. Labels come from `atoms.calc.results` as they are:
    never through `get_forces()`, which zeroes constrained atoms.

    Raises:
        DataError: no atoms, an element that is none, or a label of the wrong shape.
    """
    n = len(atoms)
    if n == 0:
        raise DataError("the structure has no atoms")
    numbers = atoms.numbers
    if numbers.min() < 1 or numbers.max() > 118:
        bad = sorted({int(z) for z in numbers if not 1 <= z <= 118})
        raise DataError(f"atomic numbers {bad} are no elements (1 to 118); replace dummy atoms")
    out = {
        "atomic_numbers": numbers.astype(np.int64),
        "positions": np.array(atoms.positions, dtype=np.float64),
        "cell": np.array(atoms.cell.array, dtype=np.float64)[None],
        "pbc": np.array(atoms.pbc, dtype=bool)[None],
    }
    for name in ("charge", "spin"):
        if name in atoms.info:
            out[name] = np.array([_integer(atoms.info[name], name)], dtype=np.int64)
    if "weight" in atoms.info:
        out["weight"] = np.array([atoms.info["weight"]], dtype=np.float64)
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    if results.get("energy") is not None:
        out["energy"] = np.array([results["energy"]], dtype=np.float64)
    for name, shape in (("forces", (n, 3)), ("magmoms", (n,))):
        if results.get(name) is not None:
            out[name] = _shaped(results[name], shape, name)
    if results.get("stress") is not None:
        stress = np.asarray(results["stress"], dtype=np.float64)
        full = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress
        out["stress"] = _shaped(full, (3, 3), "stress")[None]
    return out


def add_edges(arrays: Arrays, cutoff: float) -> dict[str, np.ndarray]:
    """Return `arrays` with `edge_index` and `edge_shift` for `cutoff` (Å)."""
    index, shift = neighbor_list(arrays["positions"], arrays["cell"][0], arrays["pbc"][0], cutoff)
    return {**arrays, "edge_index": index, "edge_shift": shift}


def _finds_neighbors(device: torch.device) -> bool:
    """Whether edges are found where they are used; on a CPU `vesin` is faster."""
    return device.type != "cpu"


def _get(sample: Arrays, name: str, field: Field, n: int) -> np.ndarray:
    if name in sample:
        return sample[name]
    if field.missing is None:
        raise DataError(f"the structure lacks {name}")
    return np.full((n, *field.shape), field.missing)


def _integer(value: Any, name: str) -> int:
    if float(value) != round(float(value)):
        raise DataError(f"{name} must be a whole number, got {value!r}")
    return round(float(value))


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise DataError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def mean_of_graphs(values: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Mean over the atoms of each structure: (N, C) to (B, C); zero for one without atoms."""
    count = torch.bincount(batch, minlength=num_graphs).clamp(min=1)
    total = values.new_zeros(num_graphs, values.shape[1]).index_add(0, batch, values)
    return total / count[:, None]
