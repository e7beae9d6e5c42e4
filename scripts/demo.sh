#!/usr/bin/env bash
# The whole path in minutes: train on first-principles data that ship, evaluate, compare lattice
# constants and bulk moduli with the reference, relax a distorted crystal, run a picosecond of MD.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN="outputs/demo/$(date +%Y-%m-%d_%H-%M-%S)"
mlip train experiment=quickstart out_dir="$RUN"
POTENTIAL="$RUN/potential.safetensors"
mlip info "$RUN"
mlip evaluate "$POTENTIAL" data/mptrj-mini/mptrj-mini.json.gz --output "$RUN/errors.json"
python scripts/compare_crystals.py "$POTENTIAL" --output "$RUN/report"
mlip relax "$POTENTIAL" data/mptrj-mini/si-distorted.cif "$RUN/si-relaxed.cif" --fmax 0.02
mlip md "$POTENTIAL" "$RUN/si-relaxed.cif" --repeat 2 2 2 --ensemble nve --temperature 300 \
  --timestep 2 --steps 500 --dtype float64 --output "$RUN/md.traj"
echo "demo: done; the report is $RUN/report/report.html"
echo "energies against volume, PBE and the potential: $RUN/report/crystals.png"
