"""How a potential is taught: objective, loss, metrics, Lightning module, run."""
