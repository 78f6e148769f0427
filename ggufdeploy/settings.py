"""Environment and paths, read once at the start and passed down; nothing else reads the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ggufdeploy.errors import BadConfig, nearest

DEFAULT_ENDPOINT = "https://huggingface.co"

_KNOWN = frozenset(
    {
        "GGUFDEPLOY_API_KEY",
        "GGUFDEPLOY_CACHE_DIR",
        "GGUFDEPLOY_CONFIG_DIR",
        "GGUFDEPLOY_PREFIX",  # read by install.sh alone
        "GGUFDEPLOY_STATE_DIR",
    }
)
_FALSE = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True)
class Settings:
    """Where things live and whom to ask.

    config_dir: the user's profiles (`config_dir/profiles/*.toml`). cache_dir: GGUF headers, the demo model, ghosts.
    state_dir: what was learned about this machine. hf_cache_dir: the standard Hugging Face cache, shared with other
    tools. hf_token: never printed.
    """

    config_dir: Path
    cache_dir: Path
    state_dir: Path
    hf_cache_dir: Path
    hf_endpoint: str = DEFAULT_ENDPOINT
    hf_token: str | None = field(default=None, repr=False)
    offline: bool = False
    api_key: str | None = field(default=None, repr=False)

    @property
    def user_profiles_dir(self) -> Path:
        """Where the user's own profiles override or extend the shipped ones."""
        return self.config_dir / "profiles"

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Settings:
        """Read GGUFDEPLOY_* and the Hub's own variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).

        Raises BadConfig for an unknown GGUFDEPLOY_* name, naming the nearest one.
        Source of the HF names: huggingface_hub 2.4 constants.
        """
        import platformdirs

        for name in environ:
            if name.startswith("GGUFDEPLOY_") and name not in _KNOWN:
                close = nearest(name, _KNOWN)
                raise BadConfig(
                    name, f"unknown environment variable {name}", hint=f"did you mean {close}?" if close else None
                )
        hf_home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
        return Settings(
            config_dir=Path(environ.get("GGUFDEPLOY_CONFIG_DIR") or platformdirs.user_config_dir("ggufdeploy")),
            cache_dir=Path(environ.get("GGUFDEPLOY_CACHE_DIR") or platformdirs.user_cache_dir("ggufdeploy")),
            state_dir=Path(environ.get("GGUFDEPLOY_STATE_DIR") or platformdirs.user_state_dir("ggufdeploy")),
            hf_cache_dir=Path(environ.get("HF_HUB_CACHE") or hf_home / "hub").expanduser(),
            hf_endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
            hf_token=environ.get("HF_TOKEN") or _read_token(hf_home.expanduser() / "token"),
            offline=environ.get("HF_HUB_OFFLINE", "").lower() not in _FALSE,
            api_key=environ.get("GGUFDEPLOY_API_KEY") or None,
        )


def _read_token(path: Path) -> str | None:
    """Return the token `hf auth login` saved, or None when there is none."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
