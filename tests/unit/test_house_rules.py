"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mlip"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_CALLS = {
    "eval": "runs strings",
    "exec": "runs strings",
    "compile": "runs strings",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "joblib.load": "unpickles",
    "torch.set_default_dtype": "changes torch for everybody",
    "torch.set_default_device": "changes torch for everybody",
    "np.random.seed": "changes numpy for everybody",
    "hydra.utils.instantiate": "calls what a file names",
    "yaml.load": "builds what a file names",
}
ALLOWED = {"models/kernels/fused_sum.py": ("exec", "compile")}  # what it wrote, made of numbers
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True)}
LEFT_OPEN = ("TODO", "FIXME", "XXX")


def dotted(node: ast.expr) -> str:
    """`torch.autograd.grad` for the expression that says so."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def broken_rules(source: str, allowed: Sequence[str] = ()) -> list[str]:
    """What the rules say about one file."""
    tree = ast.parse(source)
    out = []
    if not ast.get_docstring(tree):
        out.append("does not say why it exists")
    if source.count("\n") >= 450:
        out.append("is too long for one sitting: split it by responsibility")
    out += [f"is left open: {word}" for word in LEFT_OPEN if word in source]
    for call in calls(tree):
        name = dotted(call.func)
        if name in FORBIDDEN_CALLS and name not in allowed:
            out.append(f"{FORBIDDEN_CALLS[name]}: {name}")
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in FORBIDDEN_KEYWORDS:
                out.append(f"unpickles: {keyword.arg}={value}")
        if name == "torch.load" and "weights_only" not in {k.arg for k in call.keywords}:
            out.append("loads without saying weights_only=True")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(a.name in ("pickle", "dill") for a in node.names):
            out.append("imports pickle")
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill"):
            out.append("imports pickle")
        if isinstance(node, ast.Assert):
            out.append(f"asserts in line {node.lineno}: python -O drops it")
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file(path):
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), ())
    assert not broken_rules(path.read_text(), allowed)


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "import pickle",
        "np.load(f, allow_pickle=True)",
        "torch.set_default_dtype(torch.float64)",
        "hydra.utils.instantiate(cfg)",
        "x = 1  # TO" + "DO later",
        "assert x",
        "# a line\n" * 450,
    ],
)
def test_the_rules_can_be_broken(line):
    assert broken_rules(f'"""Why."""\n{line}\n')
    assert not broken_rules('"""Why."""\nmodel.eval()\ntorch.load(f, weights_only=True)\n')


def test_one_place_differentiates():
    """Every force is minus the gradient of the energy because there is no other way to get one.

    `recompute.py` takes the derivative of what it is asked to compute again.
    """
    places = [
        path.name
        for path in FILES
        for call in calls(ast.parse(path.read_text()))
        if dotted(call.func).endswith("autograd.grad")
    ]
    assert sorted(places) == ["potential.py", "recompute.py"]


def test_one_place_finds_neighbours():
    """Or two, by one contract: on the CPU, and where `AtomGraph.connected` says on a device."""
    importing = [p.name for p in FILES if "from vesin" in p.read_text()]
    assert importing == ["neighbors.py"]
    importing = [p.name for p in FILES if "import batched_neighbor_list" in p.read_text()]
    assert importing == ["graph.py"]


def test_there_are_files_to_check():
    assert {"potential.py", "graph.py", "facet.py"} <= {p.name for p in FILES}
