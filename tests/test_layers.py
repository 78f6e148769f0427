"""The dependency direction is a test, not a habit. Imports inside functions count."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import ggufdeploy

SOURCE = Path(ggufdeploy.__file__).parent
SHARED = {"errors", "units", "settings"}
LEAVES = {"gguf", "hardware", "profiles", "hub", "engine", "planner"}
ALLOWED = {
    "gguf": set(),
    "hardware": set(),
    "profiles": set(),
    "hub": {"gguf"},
    "planner": {"gguf", "hardware"},
    "engine": set(),
    "server": {"engine"},
    "deploy": LEAVES | {"server"},
    "cli": LEAVES | {"deploy"},
}
"""Package -> the packages it may import. `__version__` may be read by all."""

OWNERS = {
    "click": ("cli/",),
    "rich": ("cli/",),
    "huggingface_hub": ("hub/",),
    "llama_cpp": ("engine/llamacpp.py", "engine/dryrun.py"),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "jinja2": ("engine/templates.py",),
    "pynvml": ("hardware/nvidia.py",),
}
"""Library -> the files that may import it."""


def imported(path: Path, source: Path) -> set[str]:
    """Return the dotted names the file imports, relative ones made absolute."""
    here = ("ggufdeploy", *path.relative_to(source).parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level], node.module or ""]) if node.level else node.module or ""
            found |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    return found


def violations(source: Path) -> list[str]:
    """Return what breaks the rules below `source`, one sentence each."""
    found = []
    for file in sorted(source.rglob("*.py")):
        name = file.relative_to(source).as_posix()
        package = name.partition("/")[0] if "/" in name else None
        own = SHARED | ALLOWED.get(package, set()) | {package, "__version__"} if package else SHARED | {"cli"}
        for target in sorted(imported(file, source)):
            top, _, rest = target.partition(".")
            inner = rest.partition(".")[0]
            if top == "ggufdeploy" and inner and inner not in own:
                found.append(f"{name} imports {target}")
            if top in OWNERS and not name.startswith(OWNERS[top]):
                found.append(f"{name} imports {top}, which belongs to {' and '.join(OWNERS[top])}")
    return found


def test_imports_point_downwards_and_libraries_have_one_owner():
    bad = violations(SOURCE)
    assert not bad, "\n".join(bad)


def test_every_package_has_its_rule():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages == set(ALLOWED)


def test_shared_modules_import_nothing_but_each_other():
    for name in SHARED:
        ours = {target for target in imported(SOURCE / f"{name}.py", SOURCE) if target.startswith("ggufdeploy.")}
        assert {target.split(".")[1] for target in ours} <= SHARED


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("gguf/a.py", "from ggufdeploy.hub import ref", "gguf/a.py imports ggufdeploy.hub.ref"),
        ("gguf/a.py", "from ggufdeploy import hub", "gguf/a.py imports ggufdeploy.hub"),
        ("gguf/a.py", "from ..planner import plan", "gguf/a.py imports ggufdeploy.planner.plan"),
        ("hub/a.py", "def f():\n    import ggufdeploy.planner.plan", "hub/a.py imports ggufdeploy.planner.plan"),
        ("deploy/a.py", "from ggufdeploy.cli.output import Output", "deploy/a.py imports ggufdeploy.cli.output.Output"),
        ("server/a.py", "def f():\n    from click import echo", "server/a.py imports click, which belongs to cli/"),
        (
            "engine/other.py",
            "import llama_cpp.llama_cpp as api",
            "engine/other.py imports llama_cpp, which belongs to engine/llamacpp.py and engine/dryrun.py",
        ),
    ],
)
def test_the_rules_catch(file, code, complaint, tmp_path):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(code)

    assert violations(tmp_path) == [complaint]


def test_the_rules_allow_what_is_meant(tmp_path):
    for file, code in {
        "cli/a.py": "import click\nfrom ggufdeploy.deploy.sources import resolve",
        "engine/dryrun.py": "def f():\n    import llama_cpp",
        "hub/a.py": "from .catalog import Artifact\nfrom ggufdeploy.gguf.reader import Header\nimport os",
        "server/a.py": "from ggufdeploy import __version__",
    }.items():
        path = tmp_path / file
        path.parent.mkdir()
        path.write_text(code)

    assert violations(tmp_path) == []


def test_owned_libraries_are_not_in_the_standard_library():
    assert not set(OWNERS) & set(sys.stdlib_module_names)
