"""The one table of settings: name, type, default, bounds, unit and help.

The host keeps their values per library and per agent; flags, JSON, the page's form and the
README's list are made from this table or tested against it.
"""

from __future__ import annotations

from typing import NamedTuple

from .base import UsageError
from .scan_common import (
    DEFAULT_AUDIO_EXTENSIONS,
    DEFAULT_IGNORE_DIRS,
    DEFAULT_IMAGE_EXTENSIONS,
    DEFAULT_JUNK_EXCLUDE_EXTENSIONS,
    DEFAULT_JUNK_PATTERNS,
    DEFAULT_OTHER_EXTENSIONS,
    DEFAULT_SUBTITLE_EXTENSIONS,
    DEFAULT_VIDEO_EXTENSIONS,
    DEFAULT_XML_EXTENSIONS,
    normal_extension,
)

SETTING_LIST_LENGTH = 2000
SETTING_TEXT_LENGTH = 4096
OLDER_SETTING_NAMES = {"batch_size": "agent_batch_size"}


class SettingError(UsageError):
    """A setting that does not exist or a value outside its bounds; `name` tells which."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


class Setting(NamedTuple):
    """One row of the table. `type` is int, bool, choice, names, extensions or paths (the last
    three are lists of text); `minimum` and `maximum` are inclusive and in `unit`.
    """

    name: str
    type: str
    default: object
    help: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple = ()
    unit: str = ""
    per_agent: bool = True


SETTINGS = (
    Setting("remote_roots", "paths", (), "The folders to scan, as absolute paths on that machine."),
    Setting("hash_algo", "choice", "blake3",
            "Which hash to compute. A machine without blake3 or xxhash uses sha256 and says so.",
            choices=("blake3", "xxhash64", "sha256")),
    Setting("hash_sample_size", "int", 65536,
            "How much is read at the beginning, middle and end of a large file for its sample "
            "hash. Files of up to three times this size are read whole.",
            4096, 16 << 20, unit="bytes"),
    Setting("do_full_hash", "bool", True,
            "Read large files whole as well: only that confirms duplicates."),
    Setting("agent_batch_size", "int", 500, "How many files go to the host in one message.",
            1, 5000, unit="files"),
    Setting("agent_max_workers", "int", 4,
            "How many files are read or described at the same time, at most. A spinning or network "
            "disk is always read one file at a time.", 1, 64, unit="workers"),
    Setting("agent_gzip", "bool", True, "Compress what is sent to the host."),
    Setting("agent_adaptive", "bool", True,
            "Use fewer workers while more of them do not make the work faster."),
    Setting("agent_offpeak_start", "int", 0,
            "Local hour from which large files may be read whole. The same as the end: always.",
            0, 23, unit="hour"),
    Setting("agent_offpeak_end", "int", 0,
            "Local hour at which reading large files whole stops; 22 to 6 crosses midnight.",
            0, 23, unit="hour"),
    Setting("follow_symlinks", "bool", False,
            "Follow symbolic links to folders, each real folder once."),
    Setting("junk_patterns", "names", DEFAULT_JUNK_PATTERNS,
            "Names of files that are junk; * ? and [ ] stand for other characters."),
    Setting("junk_exclude_extensions", "extensions", DEFAULT_JUNK_EXCLUDE_EXTENSIONS,
            "Extensions that are never junk, whatever the name."),
    Setting("media_extensions", "extensions", DEFAULT_VIDEO_EXTENSIONS, "Extensions of videos."),
    Setting("audio_extensions", "extensions", DEFAULT_AUDIO_EXTENSIONS, "Extensions of audio."),
    Setting("image_extensions", "extensions", DEFAULT_IMAGE_EXTENSIONS, "Extensions of images."),
    Setting("subtitle_extensions", "extensions", DEFAULT_SUBTITLE_EXTENSIONS,
            "Extensions of subtitles."),
    Setting("xml_extensions", "extensions", DEFAULT_XML_EXTENSIONS,
            "Extensions of descriptions kept beside media."),
    Setting("other_extensions", "extensions", DEFAULT_OTHER_EXTENSIONS,
            "Extensions that are known, but are none of the kinds above."),
    Setting("ignore_dirs", "names", DEFAULT_IGNORE_DIRS,
            "Names of folders that are never opened; * ? and [ ] stand for other characters."),
    Setting("rescan_interval_s", "int", 3600,
            "How long after a scan the next one starts; 0 means only when asked.",
            0, 30 * 86400, unit="seconds"),
    Setting("backup_copies", "int", 7,
            "How many daily copies of the catalogue are kept in the data folder; 0 makes none.",
            0, 365, unit="copies", per_agent=False),
)

SETTING_BY_NAME = {setting.name: setting for setting in SETTINGS}


def default_settings() -> dict:
    """A new {name: value} of all settings; lists are lists, as in JSON."""
    return {setting.name: setting_as_json(setting.default) for setting in SETTINGS}


def setting_as_json(value):
    return list(value) if isinstance(value, (tuple, list)) else value


def check_setting(name: str, value):
    """The value in its normal form; SettingError names the setting and its bounds."""
    setting = SETTING_BY_NAME.get(name)
    if setting is None:
        raise SettingError(str(name)[:100], f"there is no setting named {name!r}")
    return _SETTING_CHECKS[setting.type](setting, value)


def describe_bounds(setting: Setting) -> str:
    """What values a setting takes, in words."""
    if setting.type == "int":
        unit = f" ({setting.unit})" if setting.unit else ""
        return f"a whole number from {setting.minimum} to {setting.maximum}{unit}"
    return {
        "bool": "true or false",
        "choice": "one of " + ", ".join(setting.choices),
        "names": f"a list of at most {SETTING_LIST_LENGTH} names",
        "extensions": f"a list of at most {SETTING_LIST_LENGTH} extensions such as .mkv",
        "paths": f"a list of at most {SETTING_LIST_LENGTH} absolute paths",
    }[setting.type]


def _refuse_setting(setting: Setting, value):
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise SettingError(
        setting.name, f"{setting.name} must be {describe_bounds(setting)}, not {shown}")


def _check_int_setting(setting: Setting, value):
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse_setting(setting, value)
    if not setting.minimum <= value <= setting.maximum:
        _refuse_setting(setting, value)
    return value


def _check_bool_setting(setting: Setting, value):
    if not isinstance(value, bool):
        _refuse_setting(setting, value)
    return value


def _check_choice_setting(setting: Setting, value):
    if not isinstance(value, str) or value not in setting.choices:
        _refuse_setting(setting, value)
    return value


def _setting_texts(setting: Setting, value) -> list:
    """The list of distinct texts in their order; anything else is refused."""
    if not isinstance(value, (list, tuple)) or len(value) > SETTING_LIST_LENGTH:
        _refuse_setting(setting, value)
    for text in value:
        if not isinstance(text, str) or not text.strip() or len(text) > SETTING_TEXT_LENGTH:
            _refuse_setting(setting, text)
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            _refuse_setting(setting, text)
    return list(dict.fromkeys(value))


def _check_names_setting(setting: Setting, value):
    texts = _setting_texts(setting, value)
    for text in texts:
        if "/" in text:
            _refuse_setting(setting, text)
    return texts


def _check_extensions_setting(setting: Setting, value):
    texts = [normal_extension(text) for text in _setting_texts(setting, value)]
    for text in texts:
        if "/" in text or len(text) < 2:
            _refuse_setting(setting, text)
    return list(dict.fromkeys(texts))


def _check_paths_setting(setting: Setting, value):
    paths = [normal_root_path(text) for text in _setting_texts(setting, value)]
    for path in paths:
        if not is_absolute_text(path):
            _refuse_setting(setting, path)
    return list(dict.fromkeys(paths))


def is_absolute_text(path: str) -> bool:
    """Whether a text path is absolute on the machine it comes from: "/x", "C:/x"."""
    return path.startswith("/") or (len(path) >= 3 and path[0].isalpha() and path[1:3] == ":/")


def normal_root_path(path: str) -> str:
    """A root's text path with "/" between names and none at its end ("/" and "C:/" keep theirs)."""
    if len(path) >= 3 and path[0].isalpha() and path[1:3] == ":\\":
        path = path.replace("\\", "/")
    shorter = path.rstrip("/")
    if not shorter:
        return "/" if path else ""
    return shorter + "/" if len(shorter) == 2 and shorter[1] == ":" else shorter


_SETTING_CHECKS = {
    "int": _check_int_setting,
    "bool": _check_bool_setting,
    "choice": _check_choice_setting,
    "names": _check_names_setting,
    "extensions": _check_extensions_setting,
    "paths": _check_paths_setting,
}


def clean_settings(raw) -> tuple:
    """(settings, complaints) of what somebody sent: a bad value is replaced by the default and
    named in `complaints`; unknown keys are ignored; `batch_size` is read as older hosts mean it.
    """
    settings, complaints = default_settings(), []
    if not isinstance(raw, dict):
        return settings, ["the configuration is not an object"]
    renamed = {new: raw[old] for old, new in OLDER_SETTING_NAMES.items() if old in raw}
    for name, value in {**renamed, **raw}.items():
        if name not in SETTING_BY_NAME:
            continue
        try:
            settings[name] = check_setting(name, value)
        except SettingError as error:
            complaints.append(str(error))
    return settings, complaints


def settings_table() -> list:
    """The table as JSON objects, for the page and for the README."""
    return [
        {
            "name": setting.name, "type": setting.type,
            "default": setting_as_json(setting.default),
            "minimum": setting.minimum, "maximum": setting.maximum,
            "choices": list(setting.choices), "unit": setting.unit, "help": setting.help,
            "bounds": describe_bounds(setting), "per_agent": setting.per_agent,
        }
        for setting in SETTINGS
    ]
