"""`ggufdeploy run`: plan, fetch, load, and serve or answer once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggufdeploy.cli.command import Option, command
from ggufdeploy.cli.options import (
    dry_run_option,
    host_option,
    model_argument,
    port_option,
    read_settings,
    revision_option,
    wish_options,
)
from ggufdeploy.cli.output import Output
from ggufdeploy.cli.plan import make_planned, show
from ggufdeploy.errors import BadValue
from ggufdeploy.units import format_duration, format_rate

if TYPE_CHECKING:
    import socket

    from ggufdeploy.deploy.instances import Registration
    from ggufdeploy.deploy.planning import Planned
    from ggufdeploy.deploy.recovery import Change, Deployment
    from ggufdeploy.deploy.running import Ready, ServeOptions, Voice
    from ggufdeploy.errors import EngineError
    from ggufdeploy.settings import Settings


@command(
    "run",
    examples=[
        ("ggufdeploy run mixtral-8x22b", "the best quantization for this machine, on http://127.0.0.1:8080/v1"),
        ("ggufdeploy run mixtral-8x22b --ctx 32k --slots 8", "a longer context, shared by eight requests"),
        ('ggufdeploy run smollm2-135m --prompt "Why is the sky blue?"', "answer once and exit"),
        ("ggufdeploy run mixtral-8x22b --detach", "in the background; see ggufdeploy ps, logs and stop"),
    ],
)
@model_argument
@wish_options
@host_option
@port_option
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, dir_okay=False), cls=Option, section="Server", metavar="FILE",
    help="Ask clients for the key in this file; needed beyond 127.0.0.1.  [also: GGUFDEPLOY_API_KEY]",
)  # fmt: skip
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), cls=Option, section="Server", metavar="FILE",
    help="Write {url, pid, model} here as JSON once the model answers.",
)  # fmt: skip
@click.option(
    "--detach", is_flag=True, cls=Option, section="Server",
    help="Serve in the background: return once the model answers, or say why it does not.",
)  # fmt: skip
@click.option(
    "--detached-log", type=click.Path(path_type=Path, dir_okay=False), cls=Option, hidden=True, metavar="FILE",
    help="Where this process's output goes, as --detach arranged it.",
)  # fmt: skip
@click.option("--prompt", cls=Option, metavar="TEXT", help="Answer this once on stdout and exit.")
@click.option("--max-tokens", type=click.IntRange(min=1), cls=Option, metavar="N", help="Longest answer to --prompt.")
@revision_option
@dry_run_option
def run(
    model: str,
    host: str,
    port: int,
    api_key_file: Path | None,
    ready_file: Path | None,
    detach: bool,
    detached_log: Path | None,
    prompt: str | None,
    max_tokens: int | None,
    revision: str | None,
    dry_run: bool,
    out: Output,
    **wish: object,
) -> int:
    """Plan MODEL for this machine, fetch what the plan needs, load it, and serve it as an OpenAI-compatible API."""
    from ggufdeploy.deploy.instances import registered
    from ggufdeploy.deploy.recovery import Deployment
    from ggufdeploy.deploy.running import ServeOptions, listen

    settings = read_settings()
    options = ServeOptions(host, port, _api_key(api_key_file, settings), _writable(ready_file))
    if detach:
        return _detach(model, prompt, dry_run, settings, out)
    if dry_run:
        _plan(model, wish, revision, out, settings, dry_run)
        return 0
    if prompt is not None:
        planned, path = _fetch(_plan(model, wish, revision, out, settings, dry_run), out)
        return _answer(Deployment(planned, path, settings), _as_typed(prompt), max_tokens, out)
    log = str(detached_log) if detached_log else None
    with listen(options) as sock, registered(settings, model=model, ref=model, log=log) as entry:
        planned, path = _fetch(_plan(model, wish, revision, out, settings, dry_run), out)
        entry.update(model=planned.source.name)
        return _serve(Deployment(planned, path, settings), options, sock, entry, out)


def _detach(model: str, prompt: str | None, dry_run: bool, settings: Settings, out: Output) -> int:
    """Have another process do the same without --detach."""
    from ggufdeploy.cli.detach import detach

    if prompt is not None or dry_run:
        other = "--dry-run" if dry_run else "--prompt"
        raise BadValue("--detach", f"--detach serves, and {other} does not", hint=f"leave --detach or {other} out")
    return detach(model, click.get_current_context().find_root().obj, settings, out)


def _api_key(file: Path | None, settings: Settings) -> str | None:
    if file is None:
        return settings.api_key
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadValue("--api-key-file", f"--api-key-file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue("--api-key-file", f"--api-key-file {file} is not text: {error}") from error
    if not key or not key.isprintable():
        what = "has several lines or control characters" if key else "is empty"
        raise BadValue("--api-key-file", f"--api-key-file {file} {what}", hint="put the key in it, on one line")
    return key


def _writable(ready_file: Path | None) -> Path | None:
    """Say now what would else be said only when the model is loaded. Raises BadValue."""
    if ready_file is not None and not os.access(ready_file.absolute().parent, os.W_OK | os.X_OK):
        folder = ready_file.absolute().parent
        reason = "may not be written to" if folder.is_dir() else "is not a folder"
        raise BadValue("--ready-file", f"--ready-file {ready_file}: {folder} {reason}")
    return ready_file


def _as_typed(prompt: str) -> str:
    """Return what was typed as UTF-8, whatever the locale; Python hands over undecodable bytes as lone surrogates."""
    return os.fsencode(prompt).decode("utf-8", errors="replace")


def _plan(
    model: str, wish: dict[str, object], revision: str | None, out: Output, settings: Settings, dry_run: bool
) -> Planned:
    """Plan for this machine and say so: in full with --dry-run, else the headline, the receipt and the warnings."""
    from ggufdeploy.planner import explain

    planned = make_planned(model, wish, None, None, None, revision, out, settings)
    plan = planned.plan
    if dry_run:
        show(planned, out)
        return planned
    for line in (
        explain.headline(plan),
        explain.reason_line(plan),
        explain.placement_line(plan),
        *([plan.speed.bottleneck] if plan.speed.bottleneck else []),
        *explain.receipt(plan),
    ):
        out.note(line)
    for warning in plan.warnings:
        if warning.code != "estimate":  # the file is about to be here, and planned again
            out.warning(warning.message, warning.hint)
    return planned


def _fetch(planned: Planned, out: Output) -> tuple[Planned, Path]:
    """Fetch what the plan needs."""
    from ggufdeploy.deploy.planning import fetch

    with out.download_progress() as progress:
        return fetch(planned, progress)


def _answer(deployment: Deployment, prompt: str, max_tokens: int | None, out: Output) -> int:
    import asyncio

    from ggufdeploy.deploy.running import answer

    pieces: list[str] = []

    def on_text(text: str) -> None:
        pieces.append(text)
        if out.mode != "json":
            out.write(text)

    done = asyncio.run(answer(deployment, prompt, max_tokens, _voice(out), on_text))
    if out.mode == "json":
        out.document(
            {
                "model": deployment.planned.source.name,
                "text": "".join(pieces),
                "finish_reason": done.reason,
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
            }
        )
        return 0
    out.write("\n")
    if done.decode_s > 0 and done.completion_tokens > 1:
        rate = format_rate((done.completion_tokens - 1) / done.decode_s)
        out.note(f"{done.completion_tokens} tokens, {rate}")
    return 0


def _serve(deployment: Deployment, options: ServeOptions, sock: socket.socket, entry: Registration, out: Output) -> int:
    import asyncio

    from ggufdeploy.deploy.running import serve

    return asyncio.run(serve(deployment, options, sock, _voice(out, options.drain_s, detached=entry.detached), entry))


def _voice(out: Output, drain_s: float = 0.0, *, detached: bool = False) -> Voice:
    """Return what says on stderr how it goes. detached: nobody can press Ctrl-C."""
    from ggufdeploy.deploy.running import Voice

    def on_lost(error: EngineError, delay_s: float | None) -> None:
        next_ = "Planning again with the memory that is free now."
        if delay_s is not None:
            next_ = f"A new engine is started {f'in {format_duration(delay_s)}' if delay_s else 'now'}."
        out.warning(f"{error.message} {next_}")

    def on_changed(change: Change) -> None:
        first, *more = change.lines()
        out.warning(first, change.hint)
        for line in more:
            out.note(f"  {line}")

    def on_stopping() -> None:
        again = "a second stop" if detached else "Ctrl-C again"
        out.note(f"stopping; running requests have {format_duration(drain_s)}, {again} ends them now")

    return Voice(
        on_progress=_loading(out),
        on_ready=lambda ready: _say_ready(ready, out, detached=detached),
        on_lost=on_lost,
        on_changed=on_changed,
        on_stopping=on_stopping,
    )


def _say_ready(ready: Ready, out: Output, *, detached: bool) -> None:
    from ggufdeploy.deploy.truth import truth_lines

    info = ready.info
    for line in truth_lines(ready.truth):
        out.note(line)
    for warning in ready.truth.warnings:
        out.warning(warning)
    again = (
        f"ready again, the {ready.restarts}. restart"
        if ready.restarts
        else f"ready in {format_duration(ready.seconds)}"
    )
    out.note(
        f"{again}: {ready.url}/v1  model {ready.model_id}, "
        f"{info.context_tokens:,} tokens of context shared by {info.slots} slots"
    )
    if not ready.restarts:
        out.hint(
            f"curl {ready.url}/v1/chat/completions -H 'Content-Type: application/json' "
            f'-d \'{{"model": "{ready.model_id}", "messages": [{{"role": "user", "content": "Hi"}}]}}\''
        )
        if not detached:
            out.note("Ctrl-C stops it.")


def _loading(out: Output) -> Callable[[float], None]:
    """Return a progress callback that speaks at every quarter."""
    said = -1

    def on_progress(fraction: float) -> None:
        nonlocal said
        quarter = int(fraction * 4)
        if quarter > said:
            said = quarter
            out.detail(f"loading: {quarter * 25} %")

    return on_progress
