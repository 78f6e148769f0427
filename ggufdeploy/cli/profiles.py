"""`ggufdeploy profiles`: the models known by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ggufdeploy.cli.command import Group, command
from ggufdeploy.cli.options import ProfileType, read_settings
from ggufdeploy.cli.output import Output, align
from ggufdeploy.profiles.profile import Profile
from ggufdeploy.profiles.store import ProfileSet, load_profiles
from ggufdeploy.units import format_file_size

SCHEMA_VERSION = 1


@click.group(cls=Group)
def profiles() -> None:
    """List and show the models known by name.

    A profile is a TOML file; your own override the shipped ones.
    """


@command(
    "list",
    group=profiles,
    examples=[("ggufdeploy profiles list", "every name that run, plan and pull know")],
)
def list_(out: Output) -> None:
    """List all profiles."""
    known = load_profiles(read_settings())
    found = known.profiles()
    rows = [(profile.name, _size(profile), _origin(known, profile), profile.description) for profile in found]
    summary = [
        {
            "name": profile.name,
            "aliases": profile.aliases,
            "description": profile.description,
            "repos": profile.repos,
            "n_params": profile.facts.n_params,
            "origin": _origin(known, profile),
            "path": known.path(profile.name),
        }
        for profile in found
    ]
    out.table(
        ("NAME", ">PARAMETERS", "FROM", "DESCRIPTION"), rows, {"schema_version": SCHEMA_VERSION, "profiles": summary}
    )


@command(
    "show",
    group=profiles,
    examples=[
        ("ggufdeploy profiles show mixtral-8x22b", "its repositories, facts, defaults and presets"),
        ("ggufdeploy profiles show mixtral-8x22b --json", "the same for programs"),
    ],
)
@click.argument("name", type=ProfileType())
def show(name: str, out: Output) -> None:
    """Show one profile, by name or alias."""
    known = load_profiles(read_settings())
    profile = known.find(name)
    path = known.path(profile.name)
    document = {"schema_version": SCHEMA_VERSION, "path": path, "profile": profile}
    out.result(_text(profile, f"{path} ({_origin(known, profile)})"), document)


@command(
    "path",
    group=profiles,
    examples=[
        ("ggufdeploy profiles path", "the directory for your own profiles"),
        ("ggufdeploy profiles path mixtral-8x22b", "the file that defines it"),
    ],
)
@click.argument("name", type=ProfileType(), required=False)
def path(name: str | None, out: Output) -> None:
    """Print where your own profiles belong, or where one profile is."""
    settings = read_settings()
    if name is None:
        found = settings.user_profiles_dir
    else:
        known = load_profiles(settings)
        found = known.path(known.find(name).name)
    out.result(str(found), {"schema_version": SCHEMA_VERSION, "path": found})


def _origin(known: ProfileSet, profile: Profile) -> str:
    return "user" if profile.name in known.user_files else "shipped"


def _size(profile: Profile) -> str:
    total, active = profile.facts.n_params, profile.facts.n_active_params
    if total is None:
        return "?"
    return _count(total) + (f" ({_count(active)} active)" if active and active != total else "")


def _count(number: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6)):
        if number >= scale:
            return f"{number / scale:.1f}{unit}".replace(".0", "")
    return str(number)


def _text(profile: Profile, origin: str) -> str:
    """Return the profile as lines; what is unknown is left out."""
    facts = _known(profile.facts)
    blocks = [
        _block(
            profile.name,
            {
                "description": profile.description,
                "license": profile.license,
                "aliases": ", ".join(profile.aliases) or None,
                "repositories": ", ".join(profile.repos) or None,
                "package": f"{profile.pypi.package} {profile.pypi.version}" if profile.pypi else None,
                "file": origin,
                "facts from": profile.source,
            },
        ),
        _block("facts", facts),
        _block("defaults", {"context tokens": profile.default_context_tokens, "slots": profile.default_slots}
               | _known(profile.sampling)),
        _block("quantizations", {known.name: format_file_size(known.n_bytes) for known in profile.quantizations}),
        *(
            _block(f"preset {preset.name}", _known(preset, but=("name",)))
            for preset in profile.presets
        ),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block)


def _known(shape: Any, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields that are not None, named in words."""
    return {
        name.replace("_", " "): value
        for name, value in dataclasses.asdict(shape).items()
        if value is not None and name not in but
    }


def _block(title: str, facts: dict[str, Any]) -> str:
    """Return the title and one indented line per fact that is not None; "" without facts."""
    rows = [
        (name, f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in facts.items()
        if value is not None
    ]
    return "\n".join([title, *(f"  {line}" for line in align(("", ""), rows)[1:])]) if rows else ""
