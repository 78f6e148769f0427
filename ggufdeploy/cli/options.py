"""Options and arguments with the same name, type and meaning in every command.

Each becomes the parameter of the name given after the flags: `--ctx` is `context_tokens`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ggufdeploy.cli.command import Option
from ggufdeploy.errors import BadValue, GgufdeployError
from ggufdeploy.settings import Settings
from ggufdeploy.units import parse_bytes, parse_tokens

if TYPE_CHECKING:
    from ggufdeploy.hardware.catalog import GpuSpec

# The planner's own Literals, and the engine's limit, repeated so that --help needs neither; a test compares them.
MAX_SLOTS = 256
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
PREFERENCES = ("balanced", "quality", "speed", "context")
OFFLOAD_POLICIES = ("auto", "experts", "layers", "none")

_F = TypeVar("_F", bound=Callable[..., Any])
Decorator = Callable[[_F], _F]


def read_settings() -> Settings:
    """Return the settings of this process's environment. Raises BadConfig."""
    return Settings.from_environment(os.environ)


def _flag_of(param: click.Parameter | None) -> str:
    return max(param.opts, key=len) if param is not None and param.opts else "value"


class TokensType(click.ParamType[int]):
    """A positive number of tokens: "32768" or "32k"."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return tokens. Raises BadValue."""
        flag = _flag_of(param)
        tokens = value if isinstance(value, int) else parse_tokens(value, name=flag)
        if tokens < 1:
            raise BadValue(flag, f"{flag}: {value} tokens are too few", hint=f"for example {flag} 32k")
        return tokens


class BytesType(click.ParamType[int]):
    """A size in memory: "8GiB", "80GB" or "1024"."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes. Raises BadValue."""
        return value if isinstance(value, int) else parse_bytes(value, name=_flag_of(param))


class BudgetType(click.ParamType["tuple[str | None, int]"]):
    """The most to use of a GPU: "cuda0=70GiB", or of every GPU: "70GiB"."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, int]:
        """Return (device name or None, bytes). Raises BadValue."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        device, _, size = value.rpartition("=")
        return device.strip().upper() or None, parse_bytes(size, name=_flag_of(param))


class GpuType(click.ParamType["tuple[GpuSpec, int]"]):
    """A GPU of the catalogue, and how many: "h100-sxm" or "rtx-4090:2"."""

    name = "gpu"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[GpuSpec, int]:
        """Return (spec, count). Raises NotFound, Ambiguous, BadValue."""
        from ggufdeploy.hardware.catalog import parse_gpu

        return parse_gpu(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the catalogue's names."""
        from ggufdeploy.hardware.catalog import list_gpus

        return [CompletionItem(spec.id) for spec in list_gpus() if spec.id.startswith(incomplete)]


class QualityType(click.ParamType[float]):
    """A floor of quality: a quantization's name, or a number from 0 to 1 as in the plan's table."""

    name = "quality"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadValue."""
        from ggufdeploy.planner.quality import quality

        if isinstance(value, float):
            return value
        named = quality(value)
        if named is not None:
            return named
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            flag = _flag_of(param)
            raise BadValue(
                flag, f"{flag}: {value!r} is no quantization and no number from 0 to 1", hint=f"{flag} Q4_K_M"
            )
        return number


class ProfileType(click.ParamType[str]):
    """A profile's name or alias."""

    name = "profile"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the names of profiles, from local files only."""
        from ggufdeploy.profiles.store import load_profiles

        try:
            names = load_profiles(read_settings()).names()
        except GgufdeployError:
            return []  # a completion has nowhere to show an error; the command itself will
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ModelType(ProfileType):
    """A model: a profile's name, owner/repo[:QUANT], a Hub URL, or a path."""

    name = "model"


model_argument: Decorator[Any] = click.argument("model", type=ModelType(), metavar="MODEL")

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_plan = partial(click.option, cls=Option, section="Plan")
_machine = partial(click.option, cls=Option, section="Machine")
_server = partial(click.option, cls=Option, section="Server")
_option = partial(click.option, cls=Option)

ctx_option = _plan(
    "--ctx", "context_tokens", type=TokensType(), metavar="TOKENS",
    help="Longest single request, like 32k; all slots share it.  [default: the profile's]",
)  # fmt: skip
slots_option = _plan(
    "--slots", type=click.IntRange(1, MAX_SLOTS), metavar="N", help="Requests served at once.  [default: the profile's]"
)
quant_option = _plan(
    "--quant", "quantization", metavar="NAME", help="Quantization, like Q4_K_M.  [default: the best that fits]"
)
kv_type_option = _plan(
    "--kv-type", type=click.Choice(("auto", *KV_TYPES)), metavar="TYPE",
    help=f"Type of the KV cache: {', '.join(KV_TYPES)}; auto takes f16, or q8_0 where that makes room for a clearly "
    "better quantization.  [default: the preset's, else auto]",
)  # fmt: skip
kv_pool_option = _plan(
    "--kv-pool", "kv_pool_tokens", type=TokensType(), metavar="TOKENS",
    help="KV cells that all slots share, more than --ctx.  [default: --ctx]",
)  # fmt: skip
prefer_option = _plan(
    "--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True,
    help="What to choose when several plans fit.",
)  # fmt: skip
min_quality_option = _plan(
    "--min-quality", type=QualityType(), metavar="NAME|0..1",
    help="Nothing worse than this quantization, or than this quality.",
)  # fmt: skip
min_speed_option = _plan(
    "--min-speed", type=click.FloatRange(min=0), metavar="TOKENS/S",
    help="Nothing that is expected to decode slower.  [default: the preset's]",
)  # fmt: skip
offload_option = _plan(
    "--offload", type=click.Choice(OFFLOAD_POLICIES), default="auto", show_default=True,
    help="What may stay in system RAM; auto prefers the experts of a mixture of experts to whole layers.",
)  # fmt: skip
reserve_option = _plan(
    "--reserve", "reserve_bytes", type=BytesType(), default=0, metavar="SIZE",
    help="Keep this much free on every GPU, like 1GiB.",
)  # fmt: skip
vram_budget_option = _plan(
    "--vram-budget", "vram_budgets", type=BudgetType(), multiple=True, metavar="[GPU=]SIZE",
    help="Use at most this much of a GPU, like cuda0=70GiB, or of every GPU; can be repeated.",
)  # fmt: skip
ubatch_option = _plan(
    "--ubatch", "n_ubatch", type=click.IntRange(min=1), metavar="N", help="Prompt tokens computed in one pass."
)
preset_option = _plan("--preset", metavar="NAME", help="A profile's preset: floors for context, speed and KV type.")

lora_option = _plan(
    "--lora", "lora_files", type=_FILE, multiple=True, metavar="FILE",
    help="Leave room for this adapter's bytes on the GPU; can be repeated. For sizing: run does not load it yet.",
)  # fmt: skip
mmproj_option = _plan(
    "--mmproj", "mmproj_file", type=_FILE, metavar="FILE",
    help="Leave room for this projector's bytes, likewise.",
)  # fmt: skip
draft_option = _plan(
    "--draft", "draft_file", type=_FILE, metavar="FILE",
    help="Leave room for this draft model's bytes, likewise; its KV cache is not counted.",
)  # fmt: skip

gpu_option = _machine(
    "--gpu", type=GpuType(), metavar="NAME[:COUNT]", help="Plan for these GPUs instead of this machine's."
)
machine_option = _machine(
    "--machine", "machine_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Plan for the machine in this file (see doctor --save-machine).",
)  # fmt: skip
ram_option = _machine(
    "--ram", "ram_bytes", type=BytesType(), metavar="SIZE", help="Plan with this much system RAM, like 256GiB."
)

host_option = _server("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
port_option = _server(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT",
    help="Port to listen on; 0 takes a free one.",
)  # fmt: skip

revision_option = _option("--revision", metavar="REV", help="Branch, tag or commit of the repository.")
dry_run_option = _option("--dry-run", is_flag=True, help="Say what would happen, and stop.")
yes_option = _option("-y", "--yes", is_flag=True, help="Do not ask.")


def _all_of(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Return one decorator that adds all, in this order of the help."""
    return lambda function: reduce(lambda made, decorate: decorate(made), reversed(decorators), function)


wish_options: Decorator[Any] = _all_of(
    ctx_option, slots_option, quant_option, kv_type_option, kv_pool_option, prefer_option, min_quality_option,
    min_speed_option, offload_option, reserve_option, vram_budget_option, ubatch_option, preset_option,
)  # fmt: skip
"""Everything a plan can be asked for; the parameters are the fields of `deploy.planning.Wish`."""

extra_file_options: Decorator[Any] = _all_of(lora_option, mmproj_option, draft_option)
"""Files beside the model, to be counted."""

machine_options: Decorator[Any] = _all_of(gpu_option, machine_option, ram_option)
"""The machine to plan for; hand the three parameters to `machines.choose_machine`."""
