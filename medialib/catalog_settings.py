"""Settings in the catalogue: for the whole library, and what single agents have instead."""

from __future__ import annotations

import json

from .base import PROTOCOL, VERSION
from .settings import (
    OLDER_SETTING_NAMES,
    SETTING_BY_NAME,
    SettingError,
    check_setting,
    default_settings,
)

LIBRARY_SCOPE = ""


def stored_settings(db, scope: str) -> dict:
    """What was set for the library ("") or for one agent; names this version lacks are left out."""
    rows = db.execute("SELECT name, value_json FROM setting WHERE scope = ?", (scope,)).fetchall()
    return {name: json.loads(value) for name, value in rows if name in SETTING_BY_NAME}


def settings_of(db, agent_id: str | None = None) -> dict:
    """All settings as they apply to the agent, or to the library."""
    settings = {**default_settings(), **stored_settings(db, LIBRARY_SCOPE)}
    if agent_id is not None:
        settings.update(stored_settings(db, agent_id))
    return settings


def config_for(db, agent_id: str | None, library_id: str) -> dict:
    """What goes to an agent: the settings, also under the names older ones know, and who we are."""
    settings = settings_of(db, agent_id)
    older = {old: settings[new] for old, new in OLDER_SETTING_NAMES.items()}
    about = {"version": VERSION, "protocol": PROTOCOL, "library_id": library_id}
    return {**settings, **older, "medialib": about}


def checked_settings(values, scope: str) -> dict:
    """Values somebody wants to set, in normal form; null means: no longer set here."""
    if not isinstance(values, dict):
        raise SettingError("settings", "settings must be an object of names and values")
    checked = {}
    for name, value in values.items():
        if value is None and name in SETTING_BY_NAME:
            checked[name] = None
            continue
        checked[name] = check_setting(name, value)
        if scope != LIBRARY_SCOPE and not SETTING_BY_NAME[name].per_agent:
            raise SettingError(name, f"{name} is the library's and cannot be set for one agent")
    return checked


def store_settings(db, scope: str, checked: dict) -> None:
    for name, value in checked.items():
        if value is None:
            db.execute("DELETE FROM setting WHERE scope = ? AND name = ?", (scope, name))
        else:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?, ?)",
                       (scope, name, json.dumps(value, ensure_ascii=False)))
