"""Architectures: each maps a geometry to per-atom energies; `potential.py` differentiates them."""
