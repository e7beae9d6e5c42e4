"""`mlip info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EPILOG = """example:
  mlip info outputs/facet/2026-11-24_12-00-00
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "info",
        help="what a potential file or a run is",
        description="Print the description in a potential file; the weights are not loaded.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="POTENTIAL|RUN")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from mlip.potential_file import read_metadata
    from mlip.quantities import MILLI, quantity_of

    path = Path(args.path)
    if path.is_dir():
        path = path / "potential.safetensors"
    document = read_metadata(path)
    if args.json:
        print(json.dumps(document, indent=1))
        return 0
    architecture = document["architecture"]
    options = ", ".join(f"{k}={v}" for k, v in architecture["hyperparameters"].items())
    training = document.get("training", {})
    rows = {
        "file": path,
        "architecture": f"{architecture['name']} v{architecture['version']} ({options})",
        "parameters": f"{document['num_parameters']:,} {document['dtype']}",
        "elements": " ".join(document["species"]),
        "cutoff": f"{document['cutoff']:g} A",
        "priors": ", ".join(document["priors"]) or "none",
        "symmetry": document["symmetry"] + _measured(document),
        "conservative": document["conservative"],
        "extensive": document["extensive"],
        **_reference_energies(document),
        "trained on": f"{training.get('structures', '?')} structures, "
        f"{training.get('atoms', '?')} atoms: {', '.join(training.get('sources', []))}",
        "created": f"{document['created']} by mlip-trainer {document['versions']['mlip-trainer']}",
    }
    for key, value in rows.items():
        print(f"{key:13} {value}")
    for name, value in sorted(document.get("metrics", {}).items()):
        if name.endswith("_mae") and value is not None:
            print(f"{name:32}{MILLI * value:10.3f} {quantity_of(name).ascii_unit}")
    return 0


def _reference_energies(document: dict[str, Any]) -> dict[str, str]:
    tables = ["  ".join(f"{k} {v:.4f}" for k, v in table.items()) for table in document["e0"]]
    if len(tables) == 1:
        return {"E0 (eV)": tables[0]}
    named = zip(document["head_names"], tables, strict=True)
    return {"heads": ", ".join(document["head_names"])} | {f"E0 {k} (eV)": t for k, t in named}


def _measured(document: dict[str, Any]) -> str:
    rotation = document.get("symmetry_errors", {}).get("rotation", {})
    if "forces_rmse" not in rotation:
        return ""
    of = f"{rotation['structures']} structures, " if "structures" in rotation else ""
    return f" ({of}rotated: forces differ by {1e3 * rotation['forces_rmse']:.2g} meV/A)"
