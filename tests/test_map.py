"""docs/architecture.md names every module, so that nobody has to search for what is where."""

import re


def test_the_map_names_every_module(pytestconfig):
    root = pytestconfig.rootpath
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (root / "ggufdeploy").rglob("*.py") if not path.stem.startswith("__")]
    assert [name for name in modules if not re.search(rf"\b{name}\b", text)] == []
