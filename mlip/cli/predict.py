"""`mlip predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """example:
  mlip predict potential.safetensors structures.cif predictions.extxyz
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "predict",
        help="write predictions beside the labels of a file",
        description="Write mlip_energy, mlip_forces and mlip_stress; labels are kept as they are.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("potential", metavar="POTENTIAL")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", metavar="OUT.extxyz")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--max-atoms", type=int, default=512, help="atoms per batch")
    parser.add_argument("--head", metavar="NAME", help="level of theory, if it knows several")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict."""
    import torch
    from ase.io import write

    from mlip.atomic import atomic_write
    from mlip.cli.frame import read_known
    from mlip.errors import ConfigError
    from mlip.evaluate import batches_of
    from mlip.potential_file import load_potential

    out = Path(args.output)
    if out.suffix.lower() not in (".extxyz", ".xyz"):
        raise ConfigError(f"{out}: predictions are written as extxyz; name it .extxyz or .xyz")
    if out.exists() and Path(args.input).exists() and out.samefile(args.input):
        raise ConfigError(f"{out} is the input; give another name")
    if out.exists() and not args.force:
        raise ConfigError(f"{out} exists; give another name or --force")
    potential = load_potential(args.potential, args.device, args.dtype)
    known = potential.species_of(potential.head_index(args.head))
    structures = read_known(args.input, known, args.format, keep_info=True)
    count = 0
    with atomic_write(out) as temporary, temporary.open("w") as handle:
        batches = batches_of(structures, potential, args.max_atoms, args.head)
        for atoms_list, graph in batches:
            with torch.no_grad():
                prediction = potential(graph)
            forces = prediction.forces.cpu().split(graph.num_atoms.tolist())
            for k, atoms in enumerate(atoms_list):
                atoms.info["mlip_energy"] = float(prediction.energy[k])
                atoms.arrays["mlip_forces"] = forces[k].numpy()
                if atoms.pbc.all():
                    atoms.info["mlip_stress"] = prediction.stress[k].cpu().numpy()
                write(handle, atoms, format="extxyz")
                count += 1
    print(f"{count} structures -> {out}")
    return 0
