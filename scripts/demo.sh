#!/usr/bin/env bash
# The whole path in minutes: train on the data that ships, evaluate, relax a crystal, run MD.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN="outputs/demo/$(date +%Y-%m-%d_%H-%M-%S)"
mlip train experiment=quickstart out_dir="$RUN"
POTENTIAL="$RUN/potential.safetensors"
mlip info "$RUN"
mlip evaluate "$POTENTIAL" data/emt-mini/emt-mini.extxyz --output "$RUN/errors.json"
mlip relax "$POTENTIAL" data/emt-mini/cu-distorted.cif "$RUN/cu-relaxed.cif" --fmax 0.02
echo "(EMT's own lattice constant of copper is 3.590 A)"
mlip md "$POTENTIAL" "$RUN/cu-relaxed.cif" --repeat 2 2 2 --ensemble nve --temperature 300 \
  --timestep 2 --steps 500 --dtype float64 --output "$RUN/md.traj"
echo "demo: done; the report is $RUN/report/report.html"
