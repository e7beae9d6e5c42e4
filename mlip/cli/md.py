"""`mlip md`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EPILOG = """examples:
  mlip md potential.safetensors crystal.cif --ensemble nvt --temperature 300 --steps 1000
  mlip md potential.safetensors md.traj --frame -1 --output more.traj        goes on where it ended
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "md",
        help="molecular dynamics",
        description="Molecular dynamics; writes a trajectory and a table of energies.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("potential", metavar="POTENTIAL")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("--ensemble", choices=["nve", "nvt", "npt"], default="nvt")
    parser.add_argument("--temperature", type=float, default=300.0, metavar="K")
    parser.add_argument("--timestep", type=float, default=1.0, metavar="FS")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", default="md.traj", metavar="FILE.traj")
    parser.add_argument("--pressure", type=float, default=0.0, metavar="GPA")
    parser.add_argument("--interval", type=int, default=10, help="steps between frames")
    parser.add_argument("--repeat", type=int, nargs=3, default=[1, 1, 1], metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frame", type=int, default=0, help="which structure of IN; -1 the last")
    parser.add_argument("--force", action="store_true", help="overwrite --output")
    parser.add_argument("--head", metavar="NAME", help="level of theory, if it knows several")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument(
        "--compile", action="store_true", help="on a CPU a minute first, then faster steps"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run dynamics."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from mlip.calculator import MLIPCalculator
    from mlip.cli.frame import read_frame
    from mlip.dynamics import run_md
    from mlip.errors import ConfigError

    if Path(args.output).suffix != ".traj":
        raise ConfigError(f"--output {args.output}: the trajectory's name ends in .traj")
    for path in (Path(args.output), Path(args.output).with_suffix(".csv")):
        if path.exists() and not args.force:
            raise ConfigError(f"{path} exists; give another --output or --force")
    calculator = MLIPCalculator(
        args.potential,
        head=args.head,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
    )
    atoms = read_frame(args.input, calculator.species, args.frame).repeat(args.repeat)
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{args.ensemble}, {len(atoms)} atoms", total=args.steps)
        result = run_md(
            calculator,
            atoms,
            ensemble=args.ensemble,
            temperature=args.temperature,
            timestep_fs=args.timestep,
            steps=args.steps,
            output=args.output,
            pressure_gpa=args.pressure,
            log_interval=args.interval,
            seed=args.seed,
            progress=lambda step: bar.update(task, completed=step),
        )
    second_half = result.rows[len(result.rows) // 2 :]
    temperature = np.mean([r["temperature_K"] for r in second_half])
    print(
        f"{args.steps} steps of {args.timestep:g} fs, {len(atoms)} atoms, "
        f"mean T {temperature:.0f} K (second half)"
    )
    if args.ensemble == "nve":
        print(f"energy drift {result.drift():+.4f} meV/atom/ps")
    print(f"wrote {args.output} and {Path(args.output).with_suffix('.csv')}")
    return 0
