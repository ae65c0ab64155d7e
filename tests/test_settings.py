"""The settings table: defaults are valid, bounds are kept and named, older names are read."""

from __future__ import annotations

import pytest

from medialib.settings import (
    SETTINGS,
    SettingError,
    check_setting,
    clean_settings,
    default_settings,
    normal_root_path,
    settings_table,
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_default_is_valid_and_described(setting):
    value = default_settings()[setting.name]
    assert check_setting(setting.name, value) == value
    assert setting.help
    assert len(setting.help.split()) > 2


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.type == "int"],
                         ids=lambda setting: setting.name)
def test_bounds_are_inclusive_and_named(setting):
    assert check_setting(setting.name, setting.minimum) == setting.minimum
    assert check_setting(setting.name, setting.maximum) == setting.maximum
    for bad in (setting.minimum - 1, setting.maximum + 1, "5", None, True, 1.5, [1]):
        with pytest.raises(SettingError, match=f"{setting.name}.*{setting.maximum}") as caught:
            check_setting(setting.name, bad)
        assert caught.value.name == setting.name


@pytest.mark.parametrize(("name", "bad"), [
    ("hash_algo", "md5"), ("do_full_hash", 1), ("do_full_hash", "yes"), ("remote_roots", ["a/b"]),
    ("remote_roots", "/a"), ("junk_patterns", [""]), ("junk_patterns", ["a/b"]),
    ("media_extensions", [7]), ("ignore_dirs", ["\ud800"]), ("ignore_dirs", ["a\0b"]),
    ("no_such", 1),
])
def test_bad_values_are_refused(name, bad):
    with pytest.raises(SettingError, match=name):
        check_setting(name, bad)


def test_extensions_and_roots_are_normalised():
    assert check_setting("media_extensions", ["MKV", ".mkv", " .Mp4"]) == [".mkv", ".mp4"]
    assert check_setting("remote_roots", ["/a/", "/a", "C:\\Media\\x"]) == ["/a", "C:/Media/x"]
    assert [normal_root_path(path) for path in ("/", "C:/", "C:\\", "/a//")] == [
        "/", "C:/", "C:/", "/a"]


def test_a_hosts_configuration_is_read_leniently():
    settings, complaints = clean_settings({
        "batch_size": 77, "hash_algo": "whirlpool", "future_setting": 1, "agent_max_workers": 2})
    assert settings["agent_batch_size"] == 77
    assert settings["hash_algo"] == "blake3"
    assert settings["agent_max_workers"] == 2
    assert len(complaints) == 1
    assert "hash_algo" in complaints[0]
    assert clean_settings({"batch_size": 7, "agent_batch_size": 9})[0]["agent_batch_size"] == 9
    assert clean_settings([1])[0] == default_settings()


def test_table_has_all_that_a_form_needs():
    assert [row["name"] for row in settings_table()] == [setting.name for setting in SETTINGS]
    for row in settings_table():
        assert row["bounds"]
        assert row["type"] in ("int", "bool", "choice", "names", "extensions", "paths")
