"""What the README says was measured is what `data/results` holds, by the commands it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def summary(script: str) -> str:
    command = [sys.executable, f"scripts/{script}", "--summary"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def readme() -> str:
    return " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("what", ["lattice constants", "bulk moduli"])
def test_the_demo_meets_its_targets_as_often_as_the_readme_says(what):
    found = re.search(rf"{what} within (\S+) %: (\d+) of (\d+)", summary("repeat_demo.py"))
    assert found
    limit, met, number = found.groups()
    assert f"{met} of {number} {what}" in readme()
    assert f"within {limit} %" in readme()


def objective_errors(comparison: str) -> dict[tuple[int, str], list[float]]:
    """Force MAE on turned structures, meV/Å, of the seeds by training structures and objective."""
    found: dict[tuple[int, str], list[float]] = {}
    for name, run in results("objectives.json")[comparison]["runs"].items():
        _, size, _, _, objective, _, _ = name.split()
        found.setdefault((int(size), objective), []).append(1e3 * run["turned"]["forces_mae"])
    return found


def means(comparison: str, size: int) -> str:
    found = objective_errors(comparison)
    objectives = ("standard", "augmented", "latent_equivariance")
    assert all(len(found[size, objective]) == 3 for objective in objectives), "three seeds"
    return ", ".join(f"{sum(found[size, o]) / 3:.0f}" for o in objectives)


def zero(comparison: str) -> str:
    return f"{1e3 * results('objectives.json')[comparison]['zero_forces_mae']:.0f}"


def test_what_rotations_are_worth_is_what_was_measured():
    own, near = "small_mols", "small_mols_neighbours"
    assert (
        f"{means(own, 100)} meV/Å for 100 molecules, {means(own, 300)} for 300, {means(own, 800)} "
        f"for 800 (predicting none: {zero(own)}); with attention to neighbours {means(near, 100)}, "
        f"then {means(near, 300)}, then {means(near, 800)}"
    ) in readme()
    assert f"(`model.distances=false`) {means('small_mols_phases', 800)} for 800" in readme()
    omol = "omol25_rows"
    seeds = [x for found in objective_errors(omol).values() for x in found]
    assert (
        f"({means(omol, 68)}, single seeds from {min(seeds):.0f} to {max(seeds):.0f}, where "
        f"predicting none is off by {zero(omol)}"
    ) in readme()
    gains = []
    for comparison in (own, near, "small_mols_phases"):
        found = {k: sum(v) / 3 for k, v in objective_errors(comparison).items()}
        gains += [1 - found[n, "augmented"] / e for (n, o), e in found.items() if o == "standard"]
    assert f"rotations are worth {100 * min(gains):.0f} to {100 * max(gains):.0f} %" in readme()


PEERS = {  # column of the README's table of speed: the model's name in the results
    "MACE small": "mace-small",
    "SevenNet-0": "sevennet-0",
    "CHGNet": "chgnet-0.3.0",
    "NequIP S": "nequip-preset-S",
    "our `nequip-s`": "nequip-s",
    "`facet-s` compiled": "facet-s (compiled)",
}
TASKS = {
    "energy, forces, stress of 64 Si": "calls:si64",
    "the same of 512 Si": "calls:si512",
    "a molecule of 27 atoms": "calls:3bpa27",
    "training step, 112 atoms in crystals": "training:crystals",
    "relaxation step, crystals of 8 to 48 atoms": "relaxation:crystals",
    "memory of a training step": "memory:training-crystals",
    "from starting Python to the first energy": "start-up",
}


def test_the_table_of_speed_is_what_was_measured():
    rows = {(row["task"], row["model"]): row for row in results("peers.json")["rows"]}
    lines = (ROOT / "README.md").read_text().splitlines()
    assert f"| | `facet-s` | {' | '.join(PEERS)} |" in lines
    for label, task in TASKS.items():
        (line,) = [text for text in lines if text.startswith(f"| {label} |")]
        ours, *others = [cell.strip() for cell in line.strip("|").split("|")[1:]]
        number, unit = ours.split()
        row = rows[task, "facet-s"]
        measured = (
            row["memory_mib"] if unit == "MiB" else row["cpu_ms"] / {"ms": 1, "s": 1000}[unit]
        )
        assert float(number) == pytest.approx(measured, abs=0.06), label
        for cell, model in zip(others, PEERS.values(), strict=True):
            row = rows[task, model]
            if cell == "fails":
                assert "error" in row
            else:
                assert float(cell) == pytest.approx(row["ratio"], abs=0.06), (label, model)
    mace = rows["calls:si64", "mace-small"]
    claim = f"{mace['equal_cutoff_ratio']:.1f} instead of {mace['ratio']:.1f} for MACE small"
    assert claim in readme()
    epyc = {r["model"]: r for r in results("peers-epyc.json")["rows"] if r["task"] == "calls:si64"}
    *some, last = (f"{epyc[model]['ratio']:.1f}" for model in list(PEERS.values())[:5])
    assert f"the first row was {', '.join(some)} and {last}" in readme()


def test_what_its_package_compiles_is_what_was_measured():
    rows = {(r["task"], r["model"]): r for r in results("peers-epyc.json")["rows"]}

    def three(model: str) -> list[str]:
        tasks = ("calls:si64", "calls:3bpa27", "training:crystals")
        return [f"{rows[task, model]['ratio']:.2f}" for task in tasks]

    a, b, c = three("nequip-preset-S (compiled)")
    d, e, f = three("facet-s (compiled)")
    g, h, i = three("nequip-s (compiled)")
    assert f"too: {a} (64 Si), {b} (the molecule) and {c} (the training step)" in readme()
    claim = f"compiled takes {d}, {e} and {f}, our `nequip-s` compiled {g}, {h} and {i}. So small"
    assert claim in readme()
    assert float(b) < min(float(e), float(h))


def test_what_kept_memory_is_worth_is_what_was_measured():
    before, after = results("peers.json"), results("peers-memory.json")
    assert after["about"]["freed_memory"] == "kept"

    def of(document: dict, model: str) -> float:
        found = {row["model"]: row for row in document["flatness"]}
        return found[model]["us_per_atom"]["10648"]

    facet, nequip = (
        f"{of(after, model):.0f} instead of {of(before, model):.0f}"
        for model in ("facet-s", "nequip-s")
    )
    assert f"`facet-s` then takes {facet} µs an atom, `nequip-s` {nequip}" in readme()
    spreads = {row["model"]: 100 * row["spread"] for row in after["flatness"]}
    compiled = sorted(v for k, v in spreads.items() if "compiled" in k)
    plain = sorted(v for k, v in spreads.items() if "compiled" not in k)
    claim = (
        f"varies by {plain[0]:.0f} to {plain[-1]:.0f} %, compiled by {compiled[0]:.0f} to "
        f"{compiled[-1]:.0f} %"
    )
    assert claim in readme()
    rows = {(row["task"], row["model"]): row for row in after["rows"]}
    mace = rows["calls:si512", "mace-small"]["ratio"]
    assert f"MACE small takes {mace:.1f} times as long for 512 Si" in readme()


def results(name: str) -> dict:
    return json.loads((ROOT / "data" / "results" / name).read_text())


def test_what_compiled_kernels_save_is_what_was_measured():
    rows = []
    for kernels, name in (("compiled", "benchmark.json"), ("torch", "benchmark-torch.json")):
        document = results(name)
        assert document["about"]["kernels"] == kernels
        rows += [r for r in document["rows"] if (r["model"], r["structure"]) == ("facet-s", "si64")]
    compiled, torch = rows
    call, step = (torch[k] / compiled[k] for k in ("calculator_ms", "training_step_ms"))
    claim = f"takes {call:.1f} times as long for a call and {step:.1f} times for a training step"
    assert claim in readme()


def test_the_learning_curves_are_what_was_measured():
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if " after " in line]
    quoted = re.findall(r"(\d+) after (\d+) s", " ".join(lines))
    measured = [
        (f"{1e3 * p['test']['forces_rmse']:.0f}", f"{p['seconds_in_all']:.0f}")
        for name, models in results("learning-curve.json")["datasets"].items()
        for budget in ("60", "240")
        if name != "mptrj_1k"
        for p in [known["points"][budget] for known in models.values()]
    ]
    assert quoted == measured


def test_the_rates_of_large_data_are_what_was_measured():
    found = results("data-path.json")
    rows = round(found["omol25_rows"]["rows_per_cpu_s"], -2)
    big = found["twenty_million_structures"]
    assert (
        f"converts {rows:,.0f} small rows of OMol25 or {found['mptrj_json']['mb_per_cpu_s']:.0f} MB"
        in readme()
    )
    assert f"{big['total_s']:.1f} s and {big['peak_resident_mb'] / 1000:.2f} GB" in readme()
    prepared = found["twenty_million_structures_prepared"]
    claim = f"take {prepared['cpu_s']:.0f} s and {prepared['peak_mb'] / 1000:.1f} GB before the"
    assert claim in readme()
    own, in_place, ase = (
        found["reads"][name] for name in ("store_us", "in_place_us", "aselmdb_ase_us")
    )
    assert (
        f"Reading a structure costs {own:.0f} µs, in place {in_place:.0f}, through ASE {ase:.0f}"
        in readme()
    )


def test_what_compiling_gains_is_what_was_measured():
    rows = results("compile.json")["rows"]

    def gains(model: str, of: str) -> list[float]:
        return sorted(r["faster"] for r in rows if (r["model"], r["of"]) == (model, of))

    calls, steps = gains("facet-s", "call"), gains("facet-s", "training step")
    assert f"{calls[0]:.2f} (64 Si) to {calls[-1]:.2f} times (9 atoms) as fast" in readme()
    assert f"its training steps {steps[0]:.2f} to {steps[-1]:.2f} times" in readme()
    both = sorted(gains("nequip-s", "call") + gains("nequip-s", "training step"))
    assert f"those of `nequip-s` {both[0]:.2f} to {both[-1]:.2f}" in readme()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3bpa 360 s cpu", "3BPA at 300 K, 360 s of training steps each: "),
        ("acac 150 s cpu", "Acetylacetone at 300 K, 150 s of training steps each: "),
    ],
)
def test_molecules_are_what_was_measured(name, words):
    runs = list(results("models.json")[name]["models"].values())

    def of(kind: str, error: str) -> list[str]:
        return [f"{1e3 * run[kind]['test'][error]:.0f}" for run in runs]

    a, b, c = of("equal_time", "forces_rmse")
    d, e, f = of("equal_time", "energy_rmse")
    g, h, i = (f"{run['equal_time']['seconds_in_all']:.0f}" for run in runs)
    claim = (
        f"{words}facet-s {a}, nequip-s {b}, transip-s {c} meV/Å, energies {d}, {e} and {f} meV "
        f"(CPU time of the runs {g}, {h}, {i} s); after 500 steps "
    )
    assert claim in readme()
    a, b, c = of("equal_steps", "forces_rmse")
    assert f"after 500 steps {a}, {b} and {c} meV/Å" in readme()


def test_rates_for_other_models_are_what_was_measured():
    runs = results("recipe.json")["models"]["runs"]
    assert {run["epochs"] for run in runs.values()} == {8}

    def errors(*names: str) -> str:
        return ", ".join(f"{1e3 * runs[name]['test']['forces_rmse']:.0f}" for name in names)

    of_nequip = errors("nequip-s, lr 2e-2", "nequip-s", "nequip-s, lr 5e-3")
    assert f"nequip-s would learn best at the last ({of_nequip} meV/Å after 8 epochs" in readme()
    of_transip = errors("transip-tiny", "transip-tiny, lr 3e-3", "transip-tiny, lr 1e-3")
    assert f"0.003 and 0.001 ({of_transip}; " in readme()


def test_a_thousand_frames_of_mptrj_are_what_was_measured():
    entry = results("models.json")["mptrj_1k 200 s cpu"]
    runs = entry["models"].values()
    a, b, c = (f"{1e3 * run['equal_time']['test']['forces_mae']:.0f}" for run in runs)
    assert f"{a} (facet-s), {b} (nequip-s), {c} meV/Å (transip-tiny)" in readme()
    zero = f"{1e3 * entry['zero']['forces_mae']:.0f}"
    assert f"predicting no forces at all is off by {zero}: nothing was learnt" in readme()
    assert int(zero) < min(int(a), int(b), int(c))
    peer = results("learning-curve.json")["datasets"]["mptrj_1k"]["nequip-preset-S"]["points"][
        "200"
    ]
    error = f"{1e3 * peer['test']['forces_mae']:.0f}"
    assert f"NequIP's preset S with its own trainer ({error} in that time)" in readme()


def test_fast_ways_learn_the_same():
    """After every epoch a tenth as far apart as another seed is, or less."""
    entry = results("same-learning.json")["facet-s, 500 steps"]
    *ways, other = entry["runs"].values()
    found = [f"{1e3 * run['test_forces_rmse']:.1f}" for run in (*ways, other)]
    a, b, c, d = found
    assert f"of 3BPA {a}, {b} and {c} meV/Å, where another seed gives {d}" in readme()
    plain, *fast = (run["val_forces_rmse"] for run in ways)
    for curve in fast:
        for one, same, seed in zip(curve, plain, other["val_forces_rmse"], strict=True):
            assert abs(one - same) < 0.1 * abs(seed - same)


def test_sizes_and_times_of_the_models_are_what_was_measured():
    runs = list(results("models.json")["acac 150 s cpu"]["models"].values())
    a, b, c = (f"{run['compared']['num_parameters'] / 1e6:.2f}" for run in runs)
    d, e, f = (f"{run['compared']['speed'][-1]['us_per_atom']:,.0f}" for run in runs)
    assert f"have {a}, {b} and {float(c):.1f} million parameters" in readme()
    assert f"take {d}, {e} and {f} µs an atom and step of dynamics (270 atoms)" in readme()


def test_what_grids_and_linear_radial_maps_are_worth_is_what_was_measured():
    (content,) = results("ablation.json").values()
    own, gates, mlp, both = content["variants"].values()

    def error(entry: dict) -> str:
        found = [1e3 * run["forces_rmse"] for run in entry["runs"].values()]
        return f"{sum(found) / len(found):.0f}"

    def time(entry: dict) -> str:
        return f"{entry['gradients_ms'] / own['gradients_ms']:.2f}"

    claim = (
        f"{error(own)} meV/Å; with gates instead of the grid {error(gates)} at {time(gates)} times "
        f"the time of a step's gradients, with an MLP of two layers {error(mlp)} at {time(mlp)}, "
        f"with both {error(both)} at {time(both)}"
    )
    assert claim in readme()


def test_what_the_optimiser_takes_is_what_was_measured():
    rows = {row["model"]: row for row in results("optimizer.json")["rows"]}
    a, b = rows["facet-s"], rows["facet-xs"]
    claim = f"{a['ours_ms']:.0f} ms instead of {a['pytorch_ms']:.0f} beside {a['gradients_ms']:.0f}"
    assert claim in readme()
    assert b["faster"] > 2
