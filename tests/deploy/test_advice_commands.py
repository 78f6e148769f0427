"""Every command that a plan or a refusal prints must be one this command line understands."""

from __future__ import annotations

import itertools
import shlex

import click
import pytest

from ggufdeploy.cli.app import COMMANDS
from tests.deploy.conftest import ggufdeploy

pytestmark = pytest.mark.engine


def printed(text: str | None) -> list[list[str]]:
    lines = (text or "").splitlines()
    return [shlex.split(line[line.index("ggufdeploy ") :])[1:] for line in lines if "ggufdeploy " in line]


def understands(words: list[str]) -> None:
    COMMANDS[words[0]].load().make_context(words[0], words[1:], parent=click.Context(click.Group("ggufdeploy")))


@pytest.mark.parametrize(
    ("gpu", "offload"), list(itertools.product(["t4", "rtx-4090:2", "a100-80gb"], ["auto", "none"]))
)
def test_commands_in_warnings_and_refusals_are_valid_and_keep_the_users_flags(mixtral_hub, gpu, offload):
    result = ggufdeploy(
        "plan", "mixtral-8x22b", "--gpu", gpu, "--offload", offload, "--quant", "q4_k_m", "--ctx", "32k",
        "--slots", "3", "--reserve", "64MiB", "--ram", "128GiB", "--json",
    )  # fmt: skip
    hints = [result.error["hint"]] if result.code else [w["hint"] for w in result.document["warnings"]]
    commands = [words for hint in hints for words in printed(hint)]
    assert commands
    for words in commands:
        understands(words)
        assert words[words.index("--slots") + 1] == "3"
        assert words[words.index("--reserve") + 1] == str(64 << 20)


def test_the_check_itself_rejects_an_unknown_flag():
    with pytest.raises(click.UsageError):
        understands(["plan", "m", "--no-such-flag"])
