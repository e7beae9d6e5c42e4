"""Models of this and of other packages behind one face, for peer_worker.py.

Every class has `cutoff` (Å), `parameters` (how many), `calculator()` (ASE's, in single precision)
and `trainer(structures)`. All models have the published shapes with 89 elements; weights are random
where none ship with the package, for the time of a call depends on shapes alone. No model is
compiled that is not called so; each package is used as its own documentation first shows it.

Each class imports its package when it is made: in one environment there is one of them.
"""

# ruff: noqa: D102 (Subject says what the methods of all classes do)
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import ase
import numpy as np
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io import write
from nequip_configuration import nequip_configuration
from torch import Tensor, nn

ELEMENTS = range(1, 90)

# What is trained, and a function that predicts energies per atom, forces and (crystals) stresses,
# with a graph for backward. Neighbour lists are made before: packages do that in loader processes.
Trainer = tuple[nn.Module, Callable[[], dict[str, Tensor]]]


class Subject(Protocol):
    """A model of some package."""

    cutoff: float

    @property
    def parameters(self) -> int:
        """How many there are. Not counted at start-up, for some have to build a model to know."""
        ...

    def calculator(self) -> Calculator:
        """Return the package's ASE calculator."""
        ...

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        """Return what is trained on a batch of these structures."""
        ...


class Ours:
    """A choice of conf/model; or a potential file, which is how users start."""

    def __init__(
        self,
        model: str,
        cutoff: float | None = None,
        file: str | None = None,
        compile: bool = False,
    ) -> None:
        self._file, self._compile = file, compile
        if file is None:
            from benchmark import untrained

            own: dict[str, Any] = {} if cutoff is None else {"cutoff": cutoff}
            self._potential = untrained(model, set(ELEMENTS), **own)
            self.cutoff = self._potential.cutoff

    @property
    def parameters(self) -> int:
        return count(self._potential)

    def calculator(self) -> Calculator:
        from mlip import MLIPCalculator

        given = self._file or self._potential
        return MLIPCalculator(given, device="cpu", compile=self._compile)

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        from mlip.graph import AtomGraph, collate

        potential = self._potential.train()
        if self._compile:
            from mlip.models.compiled import compile_potential

            compile_potential(potential)
        graph = collate([AtomGraph.from_atoms(atoms, self.cutoff) for atoms in structures])
        periodic = all(atoms.pbc.all() for atoms in structures)

        def predict() -> dict[str, Tensor]:
            out = potential(graph)
            found = {"energy": out.energy / graph.num_atoms, "forces": out.forces}
            return found | ({"stress": out.stress} if periodic else {})

        return potential, predict


class Mace:
    """MACE-MP-0 "small" and "medium" (arXiv:2401.00096): two layers, correlation 3."""

    HIDDEN: ClassVar = {"mace-small": "128x0e", "mace-medium": "128x0e+128x1o"}
    cutoff = 6.0

    def __init__(self, model: str, device: str = "cpu", cueq: bool = False) -> None:
        from mace import modules
        from mace.calculators import MACECalculator

        self._modules, self._calculator = modules, MACECalculator
        self._hidden = self.HIDDEN[model]
        self._device, self._cueq = device, cueq

    @property
    def parameters(self) -> int:
        return count(self._build())

    def calculator(self) -> Calculator:
        return self._calculator(models=self._build(), device="cpu", default_dtype="float32")

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        from mace.data import AtomicData, config_from_atoms
        from mace.tools import AtomicNumberTable
        from mace.tools.torch_geometric import Batch

        model = self._build().to(self._device)
        if self._cueq:
            from mace.cli.convert_e3nn_cueq import run

            model = run(model, device=self._device).to(self._device)
        table = AtomicNumberTable(list(ELEMENTS))
        configurations = [config_from_atoms(atoms) for atoms in structures]
        batch = Batch.from_data_list(
            [AtomicData.from_config(c, z_table=table, cutoff=self.cutoff) for c in configurations]
        )
        batch = batch.to(self._device)
        sizes = torch.tensor([len(atoms) for atoms in structures], device=self._device)
        periodic = all(atoms.pbc.all() for atoms in structures)

        def predict(training: bool = True) -> dict[str, Tensor]:
            given = batch.clone().to_dict()
            out = model(given, training=training, compute_force=True, compute_stress=periodic)
            found = {"energy": out["energy"] / sizes, "forces": out["forces"]}
            return found | ({"stress": out["stress"]} if periodic else {})

        return model, predict

    def on_device(
        self, atoms: ase.Atoms
    ) -> tuple[nn.Module, Callable[[], dict[str, Tensor]], Callable[[], object]]:
        """Return a model, its prediction with a graph for backward, and one without."""
        module, predict = self.trainer([atoms])
        return module, predict, partial(predict, training=False)  # type: ignore[call-arg]

    def _build(self) -> nn.Module:
        from e3nn.o3 import Irreps

        torch.manual_seed(0)
        block = self._modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        return self._modules.ScaleShiftMACE(
            atomic_numbers=list(ELEMENTS),
            num_elements=len(ELEMENTS),
            atomic_energies=np.zeros(len(ELEMENTS)),
            atomic_inter_scale=0.1,
            atomic_inter_shift=0.0,
            r_max=self.cutoff,
            avg_num_neighbors=62.0,
            num_bessel=10,
            num_polynomial_cutoff=5,
            radial_type="bessel",
            radial_MLP=[64, 64, 64],
            max_ell=3,
            correlation=3,
            num_interactions=2,
            interaction_cls=block,
            interaction_cls_first=block,
            hidden_irreps=Irreps(self._hidden),
            MLP_irreps=Irreps("16x0e"),
            gate=nn.functional.silu,
        )


class SevenNet:
    """SevenNet-0 (11 July 2024) with the weights of its wheel."""

    NAMES: ClassVar = {"sevennet-0": "7net-0"}

    def __init__(self, model: str) -> None:
        from sevenn.calculator import SevenNetCalculator

        self._made = SevenNetCalculator(self.NAMES[model], device="cpu")
        self._name = self.NAMES[model]
        self.cutoff = float(self._made.cutoff)

    @property
    def parameters(self) -> int:
        return count(self._made.model)

    def calculator(self) -> Calculator:
        return self._made

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        from sevenn.train.collate import AtomsToGraphCollater
        from sevenn.util import load_checkpoint

        model = load_checkpoint(self._name).build_model()
        model.set_is_batch_data(True)
        model.train()
        labelled = [_labelled(atoms) for atoms in structures]
        batch = AtomsToGraphCollater(labelled, self.cutoff)(labelled)
        sizes = torch.tensor([len(atoms) for atoms in structures])
        names = {"forces": "inferred_force"}
        if all(atoms.pbc.all() for atoms in structures):
            names["stress"] = "inferred_stress"

        def predict() -> dict[str, Tensor]:
            out = model(batch.clone())
            energy = out["inferred_total_energy"] / sizes
            return {"energy": energy} | {k: out[name] for k, name in names.items()}

        return model, predict


class Chgnet:
    """CHGNet with the weights of its package; for crystals only."""

    cutoff = 6.0

    def __init__(self, model: str) -> None:
        from chgnet.model import CHGNet, CHGNetCalculator

        version = model.removeprefix("chgnet-")
        self._model = CHGNet.load(model_name=version, use_device="cpu", verbose=False)
        self._calculator = CHGNetCalculator

    @property
    def parameters(self) -> int:
        return count(self._model)

    def calculator(self) -> Calculator:
        return self._calculator(self._model, use_device="cpu", on_isolated_atoms="ignore")

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        from pymatgen.io.ase import AseAtomsAdaptor

        model = copy.deepcopy(self._model).train()
        convert: Any = AseAtomsAdaptor.get_structure
        graphs = [model.graph_converter(convert(atoms)) for atoms in structures]

        def predict() -> dict[str, Tensor]:
            out = model(graphs, task="efs")
            parts = {"forces": torch.cat(list(out["f"])), "stress": torch.stack(list(out["s"]))}
            return {"energy": out["e"]} | parts

        return model, predict


class Nequip:
    """NequIP's preset S: two layers, degree 1, with all elements.

    Compiled, it is what its documentation recommends for use, a file of `nequip-compile`, and for
    training what its tutorial does, `compile_mode: compile`. The file is made once an environment.
    """

    cutoff = 6.0

    def __init__(self, model: str, compile: bool = False) -> None:
        from nequip.data import AtomicDataDict, from_ase
        from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
        from nequip.integrations.ase import NequIPCalculator
        from nequip.utils.global_state import set_global_state

        set_global_state(allow_tf32=False)
        self._compile = compile
        self._preset = model.removeprefix("nequip-preset-")
        self._symbols = [chemical_symbols[z] for z in ELEMENTS]
        self._transforms = [
            ChemicalSpeciesToAtomTypeMapper(self._symbols),
            NeighborListTransform(r_max=self.cutoff),
        ]
        self._calculator, self._from_ase, self._data = NequIPCalculator, from_ase, AtomicDataDict

    @property
    def parameters(self) -> int:
        return count(self._build())

    def calculator(self) -> Calculator:
        if self._compile:
            return self._calculator.from_compiled_model(
                str(self._compiled()), device="cpu", chemical_species_to_atom_type_map=True
            )
        model = self._build().eval().requires_grad_(False)
        return self._calculator(model, "cpu", transforms=self._transforms)

    def trainer(self, structures: Sequence[ase.Atoms]) -> Trainer:
        model = self._build("compile" if self._compile else "eager").train()
        frames = []
        for atoms in structures:
            frame = self._from_ase(atoms)
            for transform in self._transforms:
                frame = transform(frame)
            frames.append(frame)
        batch = self._data.batched_from_list(frames)
        sizes = torch.tensor([len(atoms) for atoms in structures])
        periodic = all(atoms.pbc.all() for atoms in structures)

        def predict() -> dict[str, Tensor]:
            out = model(dict(batch))
            found = {"energy": out["total_energy"].flatten() / sizes, "forces": out["forces"]}
            return found | ({"stress": out["stress"]} if periodic else {})

        return model, predict

    def _options(self, compile_mode: str) -> dict[str, Any]:
        return {
            "preset": self._preset,
            "seed": 0,
            "model_dtype": "float32",
            "type_names": self._symbols,
            "r_max": self.cutoff,
            "avg_num_neighbors": 62.0,
            "compile_mode": compile_mode,
            "per_type_energy_scales": 0.1,
            "per_type_energy_shifts": 0.0,
        }

    def _build(self, compile_mode: str = "eager") -> nn.Module:
        from nequip.model import PresetNequIPGNNModel

        return PresetNequIPGNNModel(**self._options(compile_mode))

    def _compiled(self) -> Path:
        """A file of `nequip-compile`, which wants a checkpoint: that of one step."""
        made_by = f"{version('nequip')}-{version('torch')}-{self.cutoff:g}"
        file = Path(sys.prefix) / f"preset-{self._preset}-{made_by}.nequip.pt2"
        if file.exists():
            return file
        with tempfile.TemporaryDirectory() as scratch:
            folder, programs = Path(scratch), Path(sys.prefix) / "bin"
            frames = [bulk("Si", cubic=True) * (2, 1, k) for k in (1, 2)]  # it traces with these
            for k, atoms in enumerate(frames):
                atoms.rattle(0.05, seed=k)
            for part in ("train", "val"):
                write(folder / f"{part}.extxyz", [_labelled(atoms) for atoms in frames])
            configuration = nequip_configuration(
                folder, self._symbols, self._options("eager"),
                batch_size=2, epochs=1, ema_decay=0.99, rate_decay=1.0,
            )  # fmt: skip
            (folder / "own.yaml").write_text(json.dumps(configuration))  # JSON is YAML
            for command in (
                ["nequip-train", "-cp", scratch, "-cn", "own", f"hydra.run.dir={scratch}"],
                ["nequip-compile", "best.ckpt", "made.nequip.pt2", "--mode", "aotinductor",
                 "--device", "cpu", "--target", "ase"],
            ):  # fmt: skip
                subprocess.run(
                    [programs / command[0], *command[1:]],
                    cwd=folder, check=True, stdout=sys.stderr,
                )  # fmt: skip
            partial_file = file.with_suffix(".partial")
            shutil.copy(folder / "made.nequip.pt2", partial_file)
            partial_file.replace(file)
        return file


PACKAGES: dict[str, Callable[..., Subject]] = {
    "mlip": Ours,
    "mace": Mace,
    "sevenn": SevenNet,
    "chgnet": Chgnet,
    "nequip": Nequip,
}
DISTRIBUTIONS = {  # whose versions are reported
    "mlip": ["mlip-trainer", "torch", "ase", "numpy", "vesin"],
    "mace": ["mace-torch", "torch", "ase", "numpy", "e3nn"],
    "sevenn": ["sevenn", "torch", "ase", "numpy", "e3nn"],
    "chgnet": ["chgnet", "torch", "ase", "numpy", "pymatgen"],
    "nequip": ["nequip", "torch", "ase", "numpy", "e3nn"],
}


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def _labelled(atoms: ase.Atoms) -> ase.Atoms:
    """A copy with labels, which a package's reader wants; the loss has its own."""
    out = atoms.copy()
    zeros: dict[str, Any] = {"forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}
    out.calc = SinglePointCalculator(out, energy=0.0, **zeros)
    return out
