"""Environment and paths, read once at the start and passed down; nothing else reads the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from ggufdeploy.errors import BadConfig, nearest

DEFAULT_ENDPOINT = "https://huggingface.co"

_KNOWN = frozenset(
    {
        "GGUFDEPLOY_API_KEY",
        "GGUFDEPLOY_CACHE_DIR",
        "GGUFDEPLOY_CONFIG_DIR",
        "GGUFDEPLOY_PREFIX",  # read by install.sh alone
        "GGUFDEPLOY_STATE_DIR",
        "GGUFDEPLOY_TRUSTED_ENDPOINTS",
    }
)
_FALSE = frozenset({"", "0", "false", "no", "off"})
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Settings:
    """Where things live and whom to ask.

    config_dir: the user's profiles (`config_dir/profiles/*.toml`). cache_dir: GGUF headers, the demo model, ghosts.
    state_dir: what was learned about this machine. hf_cache_dir: the standard Hugging Face cache, shared with other
    tools. hf_token: never printed. trusted_endpoints: URLs beside the Hub's own that may get it, spelled as
    `endpoint_url` does.
    """

    config_dir: Path
    cache_dir: Path
    state_dir: Path
    hf_cache_dir: Path
    hf_endpoint: str = DEFAULT_ENDPOINT
    hf_token: str | None = field(default=None, repr=False)
    offline: bool = False
    trusted_endpoints: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)

    @property
    def user_profiles_dir(self) -> Path:
        """Where the user's own profiles override or extend the shipped ones."""
        return self.config_dir / "profiles"

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Settings:
        """Read GGUFDEPLOY_* and the variables that huggingface_hub reads: docs/hub.md lists them.

        Raises BadConfig for an unknown GGUFDEPLOY_* name, naming the nearest one, and for a value that cannot be right.
        Source of the HF names and their order: huggingface_hub 2.4, constants.py and utils/_auth.py.
        """
        import platformdirs

        for name in environ:
            if name.startswith("GGUFDEPLOY_") and name not in _KNOWN:
                close = nearest(name, _KNOWN)
                raise BadConfig(
                    name, f"unknown environment variable {name}", hint=f"did you mean {close}?" if close else None
                )
        hf_home = _path(environ, "HF_HOME") or (_path(environ, "XDG_CACHE_HOME") or _home_cache()) / "huggingface"
        return Settings(
            config_dir=Path(environ.get("GGUFDEPLOY_CONFIG_DIR") or platformdirs.user_config_dir("ggufdeploy")),
            cache_dir=Path(environ.get("GGUFDEPLOY_CACHE_DIR") or platformdirs.user_cache_dir("ggufdeploy")),
            state_dir=Path(environ.get("GGUFDEPLOY_STATE_DIR") or platformdirs.user_state_dir("ggufdeploy")),
            hf_cache_dir=_path(environ, "HF_HUB_CACHE") or _path(environ, "HUGGINGFACE_HUB_CACHE") or hf_home / "hub",
            hf_endpoint=endpoint_url(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT),
            hf_token=_token(environ, hf_home),
            offline=_is_true(environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE")),
            trusted_endpoints=_trusted_endpoints(environ),
            api_key=environ.get("GGUFDEPLOY_API_KEY") or None,
        )


def endpoint_url(text: str) -> str:
    """Return the URL in the spelling that two are compared in: no slash at the end, scheme and host in lower case."""
    bare = text.strip().rstrip("/")
    scheme, separator, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{separator}{host.lower()}{slash}{path}" if separator else bare


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() not in _FALSE


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return a path with ~ and $VARIABLES replaced, as huggingface_hub does; None when it is not set."""
    value = environ.get(name)
    return Path(Template(value).safe_substitute(environ)).expanduser() if value else None


def _home_cache() -> Path:
    return Path("~/.cache").expanduser()


def _trusted_endpoints(environ: Mapping[str, str]) -> tuple[str, ...]:
    name = "GGUFDEPLOY_TRUSTED_ENDPOINTS"
    urls = [endpoint_url(text) for text in environ.get(name, "").split(",") if text.strip()]
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            hint = "write URLs with commas between, like https://models.example,http://10.0.0.5:8090"
            raise BadConfig(name, f"{name}: one of its entries is not a URL", hint=hint)
    return tuple(urls)


def _token(environ: Mapping[str, str], hf_home: Path) -> str | None:
    """Return the token to send, None for none. Raises BadConfig, which does not show it, for what no token can be."""
    if _is_true(environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return _checked_token(token, name)
    file = _path(environ, "HF_TOKEN_PATH") or hf_home / "token"
    saved = _read_token(file)
    return _checked_token(saved, str(file)) if saved else None


def _checked_token(token: str, place: str) -> str:
    if not _TOKEN.fullmatch(token):  # it would break the request's head
        raise BadConfig(place, f"{place} holds characters that no token has", hint="hf auth login")
    return token


def _read_token(path: Path) -> str | None:
    """Return the token `hf auth login` saved, or None when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
