"""The dependency law: who may import whom, read from the source, whatever happens to run."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("simple_diffusion", "data_pipelines", "eval")
MOST_LINES = 500

# A room is a package of simple_diffusion, one of its top-level modules, or another package.
LAW: dict[str, set[str]] = {
    "diffusion": set(),
    "models": set(),
    "data_pipelines": set(),
    "eval": set(),  # metrics and reports see images and numbers, nothing else
    "config": {"diffusion", "models"},
    "devices": set(),  # what accelerators can do
    "plan": {"config", "models", "diffusion", "devices"},
    # plan counts the FLOPs that training measures itself by
    "training": {"diffusion", "models", "config", "data_pipelines", "eval", "plan", "devices"},
    "pipelines": {"diffusion", "models"},
    # studies and evaluations act on whole runs: they read configs and data as training does
    "eval_runs": {"eval", "training", "pipelines", "config", "plan", "data_pipelines", "diffusion"},
}
LAW["cli"] = set(LAW)
LAW["root"] = {"cli"}  # __main__ starts the command line; __init__ is held to less below

# Modules whose room is not told by their path.
ROOMS = {
    "simple_diffusion": "root",
    "simple_diffusion.__main__": "root",
    "simple_diffusion.config_checks": "config",
    "simple_diffusion.config_cluster": "config",
    "simple_diffusion.config_data": "config",
    "simple_diffusion.config_few_step": "config",
    "simple_diffusion.config_files": "config",
    "simple_diffusion.config_noise": "config",
    "simple_diffusion.config_precision": "config",
    "eval.evaluate": "eval_runs",
    "eval.ablate": "eval_runs",
}


@dataclass(frozen=True)
class Import:
    """One imported name, and where."""

    module: str  # the importing module
    target: str  # the dotted name imported; for `from a import b`, a.b
    place: str


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    """Every module of the packages, by dotted name."""
    return {
        module_name(path): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imports_of(module: str, path: Path, text: str) -> list[Import]:
    """All imports, those inside functions and type-checking blocks included."""
    found: list[str] = []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    lines: list[int] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += names
        lines += [node.lineno] * len(names)
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [
        Import(module, name, f"{where}:{line}") for name, line in zip(found, lines, strict=True)
    ]


@cache
def all_imports() -> list[Import]:
    return [
        found
        for module, path in sources().items()
        for found in imports_of(module, path, path.read_text(encoding="utf-8"))
    ]


def room(name: str) -> str:
    """The room of a dotted name below one of our packages."""
    parts = name.split(".")
    start = ".".join(parts[:2])
    if start in ROOMS:
        return ROOMS[start]
    if parts[0] != "simple_diffusion":
        return parts[0]
    # `from simple_diffusion import __version__` names no room
    return "root" if parts[1].startswith("__") else parts[1]


def violations(imports: list[Import]) -> list[str]:
    broken = []
    for found in imports:
        if found.target.split(".")[0] not in PACKAGES:
            continue
        here, there = room(found.module), room(found.target)
        if there not in ("root", here) and there not in LAW[here]:
            broken.append(f"{found.place}: {here} may not import {there} ({found.target})")
    return broken


def test_something_was_read() -> None:
    assert len(sources()) > 50
    assert len(all_imports()) > 300
    assert {room(module) for module in sources()} >= {
        "diffusion",
        "models",
        "data_pipelines",
        "eval",
        "config",
        "training",
        "pipelines",
        "cli",
    }


def test_every_module_has_a_room() -> None:
    strangers = [module for module in sources() if room(module) not in LAW]
    assert not strangers, f"not on the floor plan: {strangers}"


def test_the_law_has_no_cycles() -> None:
    TopologicalSorter({here: rooms - {here} for here, rooms in LAW.items()}).prepare()


def test_imports_keep_the_law() -> None:
    assert not violations(all_imports())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("simple_diffusion.diffusion.samplers", "from simple_diffusion.models.uvit import UViT"),
        ("simple_diffusion.diffusion.samplers", "import simple_diffusion.training.trainer as t"),
        ("simple_diffusion.diffusion.samplers", "from simple_diffusion import config"),
        ("simple_diffusion.models.uvit", "from ..diffusion import logsnr"),
        ("simple_diffusion.models.uvit", "from .. import config"),
        ("simple_diffusion.models.uvit", "def f():\n    from simple_diffusion import diffusion"),
        ("simple_diffusion.config_files", "from data_pipelines import order"),
        ("simple_diffusion.training.trainer", "from eval.evaluate import main"),
        ("simple_diffusion.training.trainer", "import simple_diffusion.pipelines"),
        ("data_pipelines.order.order", "from eval import report"),
        ("data_pipelines.order.order", "from simple_diffusion.diffusion.randomness import hash64"),
        ("eval.report", "import simple_diffusion.config"),
        ("eval.evaluate", "import simple_diffusion.cli.main"),
    ],
)
def test_the_law_can_be_broken(module: str, text: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    assert len(violations(imports_of(module, path, text))) == 1


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in sources()}
    for found in all_imports():
        for target in (found.target, found.target.rpartition(".")[0]):
            if target in graph:
                if target != found.module:
                    graph[found.module].add(target)
                break
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_diffusers_stays_in_pipelines() -> None:
    places = [
        found.place
        for found in all_imports()
        if found.target.split(".")[0] == "diffusers"
        and not found.module.startswith("simple_diffusion.pipelines")
    ]
    assert not places


def test_importing_the_library_is_light() -> None:
    """A fresh interpreter, because this one has torch already."""
    program = (
        "import sys, simple_diffusion\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'import simple_diffusion loads {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def house_files() -> list[Path]:
    return [
        path
        for folder in (*PACKAGES, "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_no_file_is_a_smell() -> None:
    files = house_files()
    assert len(files) > 60
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long, f"over {MOST_LINES} lines: {long}"
    grab_bags = [path for path in files if path.stem in ("utils", "util", "helpers", "misc")]
    assert not grab_bags


def test_every_test_folder_is_a_package() -> None:
    """A bare tests/eval would shadow the package `eval`."""
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(folders) > 4
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
