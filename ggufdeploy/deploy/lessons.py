"""What earlier loads on this machine taught: how much more than planned to keep free on a GPU.

One JSON file in the state directory. Planning reads it for real machines; whoever carries out a plan writes to it.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import msgspec

from ggufdeploy.errors import BadConfig
from ggufdeploy.hardware.machine import Device
from ggufdeploy.planner.request import Learned, Lesson
from ggufdeploy.settings import Settings


def lessons_path(settings: Settings) -> Path:
    """Return where the lessons are kept."""
    return settings.state_dir / "lessons.json"


def load(settings: Settings) -> Learned:
    """Return what was learned so far. Raises BadConfig for a file that is damaged."""
    path = lessons_path(settings)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Learned)
    except FileNotFoundError:
        return Learned()
    except msgspec.DecodeError as error:
        raise BadConfig(str(path), f"{path} is damaged: {error}", hint=f"forget what was learned: rm {path}") from error


def remember(settings: Settings, device: Device, extra_margin_bytes: int, reason: str) -> Learned:
    """Replace this GPU's lesson and return all lessons. extra_margin_bytes: beyond the table's margin; 0 forgets it.

    The file is replaced as a whole; of two writers at the same moment the later one wins.
    """
    key = device.uuid or device.name
    kept = tuple(lesson for lesson in load(settings).lessons if lesson.device != key)
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    learned = Learned(kept + ((Lesson(key, extra_margin_bytes, reason, when),) if extra_margin_bytes > 0 else ()))
    path = lessons_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(learned), indent=2))
    fresh.replace(path)
    return learned
