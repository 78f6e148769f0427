"""The README shows a plan of the program's own, over the real shape of Mixtral 8x22B."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.conftest import ggufdeploy, mixtral_hub, mixtral_root

__all__ = ["mixtral_hub", "mixtral_root"]

README = Path(__file__).parents[1] / "README.md"
COMMAND = ("plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ram", "256GiB", "--ctx", "32k")


@pytest.mark.engine
@pytest.mark.usefixtures("mixtral_hub")
def test_the_plan_in_the_readme_is_what_the_program_prints():
    shown = re.search(r"<!-- plan:begin -->\n```\n(.*?)\n```\n<!-- plan:end -->", README.read_text(), re.DOTALL)
    assert shown is not None
    lines = shown[1].splitlines()
    assert lines[0] == "$ ggufdeploy " + " ".join(COMMAND)
    assert lines[1:] == ggufdeploy(*COMMAND).stdout.rstrip("\n").splitlines()
