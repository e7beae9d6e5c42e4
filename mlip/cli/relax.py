"""`mlip relax`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """examples:
  mlip relax potential.safetensors crystal.cif                 writes crystal_relaxed.cif
  mlip relax potential.safetensors molecule.xyz out.xyz --fmax 0.01
"""
FORMATS = {".cif": "cif", ".vasp": "vasp", ".poscar": "vasp", ".xyz": "extxyz", ".extxyz": "extxyz"}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "relax",
        help="relax a structure and its cell",
        description="Relax a structure; the cell too if it is a crystal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("potential", metavar="POTENTIAL")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", nargs="?", metavar="OUT")
    parser.add_argument("--fmax", type=float, default=0.05, help="largest force at the end, eV/A")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--no-cell", action="store_true", help="keep the cell")
    parser.add_argument("--pressure", type=float, default=0.0, metavar="GPA")
    parser.add_argument("--optimizer", default="FIRE", choices=["FIRE", "BFGS", "LBFGS"])
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--frame", type=int, default=0, help="which structure of IN; -1 the last")
    parser.add_argument("--head", metavar="NAME", help="level of theory, if it knows several")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument(
        "--compile", action="store_true", help="on a CPU a minute first, then faster steps"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Relax."""
    from ase.io import write

    from mlip.atomic import atomic_write
    from mlip.calculator import MLIPCalculator
    from mlip.cli.frame import read_frame
    from mlip.errors import ConfigError
    from mlip.relax import Relaxer
    from mlip.units import GPA

    source = Path(args.input)
    suffix = source.suffix or ".vasp"
    out = Path(args.output) if args.output else source.with_name(f"{source.stem}_relaxed{suffix}")
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out}: write one of {', '.join(FORMATS)}")
    if out.exists() and not args.force:
        raise ConfigError(f"{out} exists; give another name or --force")
    calculator = MLIPCalculator(
        args.potential,
        head=args.head,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
    )
    relaxer = Relaxer(
        calculator,
        fmax=args.fmax,
        steps=args.steps,
        optimizer=args.optimizer,
        relax_cell=not args.no_cell,
        pressure_gpa=args.pressure,
    )
    start = read_frame(source, relaxer.calculator.species, args.frame)
    result = relaxer.relax(start)
    final = result.final_structure
    with atomic_write(out) as temporary:
        write(temporary, final, format=FORMATS[out.suffix.lower()])
    state = "converged" if result.converged else "NOT CONVERGED"
    largest = float((result.forces**2).sum(1).max() ** 0.5)
    stress = ""
    if result.stress is not None:  # with the cell, it decides about convergence too
        stress = f", largest stress {abs(result.stress).max() / GPA:.2g} GPa"
    print(
        f"{state} after {result.n_steps} steps: energy {result.energy:.6f} eV, "
        f"fmax {largest:.2g} eV/A{stress}"
    )
    if final.pbc.all():
        before, after = start.cell.cellpar(), final.cell.cellpar()
        for label, part, digits in (
            ("a b c (A)", slice(0, 3), 4),
            ("angles (deg)", slice(3, 6), 3),
        ):
            old, new = (" ".join(f"{x:9.{digits}f}" for x in c[part]) for c in (before, after))
            print(f"{label:13}{old}  -> {new}")
    print(f"wrote {out}")
    return 0 if result.converged else 3
