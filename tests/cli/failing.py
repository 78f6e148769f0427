"""A command that fails as told, standing in for every real one."""

from __future__ import annotations

from ggufdeploy.cli.command import command

error: list[BaseException] = []


@command("fail", examples=[])
def fail(out: object) -> None:
    """Raise the last error of the list."""
    raise error[-1]
