"""Error against training time: Facet-S and our NequIP-S, and other packages by their own trainers.

Every point is a training of its own whose learning rate schedule ends with its time. How many steps
or epochs fit into a time is told by the difference of two short runs on the same frames; what is
shown is the CPU time of the whole run on one thread, validation and report or (ours) test included,
and for other packages, processes of their own, the import as well. These are set up
after their documentation (peer_trainers.py), in single precision as all; their epochs are whole.

    python scripts/learning_curve.py 3bpa mlearn_si --seconds 60 300
    python scripts/learning_curve.py 3bpa --peers .peers     (with the environment peers are in)

Points are added to `data/results/learning-curve.json`, and one that is there is not trained again;
`learning-curve.png` shows them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from compare_models import record, seconds_per_step, train_for
from peer_trainers import PEERS

from mlip.allocator import keep_freed_memory
from mlip.atomic import atomic_write
from mlip.potential_file import package_versions

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "data" / "results" / "learning-curve.json"


def train_peer(
    model: str, peers: Path, dataset: str, budgets: list[float], known: dict[str, Any]
) -> Any:
    """Yield the points of another package that are not known; epochs are whole."""
    environment, kind = PEERS[model]
    with tempfile.TemporaryDirectory() as scratch:
        peer = kind(peers / environment, dataset, Path(scratch))
        if "seconds_per_epoch" not in known:
            known["seconds_per_epoch"] = peer.seconds_per_epoch()
        for budget in budgets:
            epochs = max(1, round(budget / known["seconds_per_epoch"]))
            if f"{budget:g}" in known["points"]:
                continue
            known["versions"] = peer.versions()
            trained, seconds = peer.run(peer.train, epochs, f"{budget:g}")
            found = {"epochs": epochs, "seconds_in_all": round(seconds, 1)}
            yield f"{budget:g}", {**found, "test": peer.errors(trained)}


def train_ours(model: str, budgets: list[float], known: dict[str, Any], options: Any) -> Any:
    """Yield the points of one of our models that are not known."""
    if "seconds_per_step" not in known:
        known["seconds_per_step"] = seconds_per_step(model, options)
    for budget in budgets:
        if f"{budget:g}" in known["points"]:
            continue
        known["versions"] = package_versions()
        steps = max(1, round(budget / known["seconds_per_step"]))
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = train_for(steps, model, Path(folder) / "run", options)
            kept = {k: v for k, v in record(run, steps, seconds).items() if k != "symmetry_errors"}
        yield f"{budget:g}", kept


def draw(content: dict[str, Any], path: Path) -> None:
    """Force error against training time, one panel a data set."""
    import matplotlib.pyplot as plt

    sets = content["datasets"]
    figure, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.4), squeeze=False)
    for axis, (dataset, models) in zip(axes[0], sets.items(), strict=True):
        for model, known in models.items():
            points = sorted(
                (p["seconds_in_all"], 1e3 * p["test"]["forces_rmse"])
                for p in known["points"].values()
            )
            axis.loglog(*zip(*points, strict=True), marker="o", label=model)
        axis.set(title=dataset, xlabel="whole run, CPU s of one thread", ylabel="force RMSE, meV/Å")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train what is missing; write after every point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", help="files of conf/experiment/, without .yaml")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 300])
    parser.add_argument("--models", nargs="+", default=["facet-s", "nequip-s", *PEERS])
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="see install_peers.sh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    options.accelerator, options.override = "cpu", []
    torch.set_num_threads(1)
    keep_freed_memory()

    content = json.loads(options.result.read_text()) if options.result.exists() else {}
    content["threads"] = 1
    sets = content.setdefault("datasets", {})
    for budget in options.seconds:  # all short ones first
        for dataset in options.datasets:
            options.dataset = dataset
            for model in options.models:
                known = sets.setdefault(dataset, {}).setdefault(model, {"points": {}})
                points = (
                    train_peer(model, options.peers, dataset, [budget], known)
                    if model in PEERS
                    else train_ours(model, [budget], known, options)
                )
                for name, point in points:
                    command = f"learning_curve.py {dataset} --models {model} --seconds {name}"
                    known["points"][name] = {"command": f"python scripts/{command}", **point}
                    with atomic_write(options.result) as temporary:
                        temporary.write_text(json.dumps(content, indent=1) + "\n")
                    print(f"{dataset} {model} {name} s: {point['test']}", flush=True)
    draw(content, options.result.with_suffix(".png"))


if __name__ == "__main__":
    main()
