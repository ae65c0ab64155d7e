"""Names as text, kinds, identities, records: exact for whatever a disk or an old peer holds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medialib.scan_common import (
    DIGEST_MODULUS,
    KINDS,
    Classifier,
    ext_of,
    folder_key,
    inode_key,
    join_rel,
    name_of,
    parent_of,
    parse_inode_key,
    record_of,
    row_digest,
    same_version,
    to_native,
    to_text,
    version_prefix,
)
from tests import support

ODD_BYTES = (
    b"caf\xe9.mkv", b"line\nbreak", b"quo\"te'<script>", b"-i", b"a" * 255, b"\xff" * 255,
    "caf\u00e9".encode(), "cafe\u0301".encode(), "\uef80\uefe9\uefff".encode(), b"\xee\xbe",
    "\ue000\uf8ff\U0010ffff".encode(), b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\x80",
)


@given(st.binary(min_size=1, max_size=255))
def test_every_name_comes_back_exactly(raw):
    native = os.fsdecode(raw)
    text = to_text(native)
    text.encode("utf-8")  # valid Unicode
    assert os.fsencode(to_native(text)) == raw


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_names_never_share_a_text(one, other):
    assert (one == other) == (to_text(os.fsdecode(one)) == to_text(os.fsdecode(other)))


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_proper_text_stays_itself_unless_it_could_be_mistaken(text):
    native = os.fsdecode(text.encode("utf-8"))
    if not any(0xEF80 <= ord(letter) <= 0xEFFF for letter in text):
        assert to_text(native) == text


@pytest.mark.parametrize("raw", ODD_BYTES)
def test_odd_names_survive_the_disk(tmp_path, raw):
    folder = os.fsencode(tmp_path)
    with open(os.path.join(folder, raw), "wb"):
        pass
    [native] = os.listdir(tmp_path)
    text = to_text(native)
    assert os.fsencode(to_native(text)) == raw
    assert os.path.exists(os.path.join(str(tmp_path), to_native(text)))


def test_the_mapping_is_the_documented_one():
    assert to_text(os.fsdecode(b"\xe9")) == "\uefe9"
    assert to_text(os.fsdecode("\uefe9".encode())) == "\uefee\uefbf\uefa9"
    assert to_text(os.fsdecode("\uef7f\uf000".encode())) == "\uef7f\uf000"


def test_text_with_a_surrogate_is_refused():
    with pytest.raises(ValueError, match="Unicode"):
        to_native("\ud800x")


@pytest.mark.parametrize("settings", [
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C"},
    {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "latin1", "PYTHONUTF8": "0"},
])
def test_every_locale_gives_the_same_text(tmp_path, settings):
    if settings["LC_ALL"] == "latin1":
        settings = {**settings, **latin_locale(tmp_path)}
    folder = tmp_path / "names"
    folder.mkdir()
    for raw in ODD_BYTES:
        with open(os.path.join(os.fsencode(folder), raw), "wb"):
            pass
    code = (
        "import os,sys\nfrom medialib.scan_common import *\n"
        "for native in os.listdir(sys.argv[1]):\n"
        "    text = to_text(native)\n"
        "    assert to_native(text) == native\n"
        "    print(ascii(text), sys.getfilesystemencoding(), file=sys.stdout)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(support.ROOT), **settings}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=env, check=True,
                          stdout=subprocess.PIPE)
    lines = done.stdout.decode().splitlines()
    if "LOCPATH" in settings:
        assert {line.split()[-1].lower() for line in lines} <= {"iso8859-1", "iso-8859-1"}
    shown = {line.rsplit(" ", 1)[0] for line in lines}
    assert shown == {ascii(to_text(os.fsdecode(raw))) for raw in ODD_BYTES}


def latin_locale(tmp_path) -> dict:
    """A private Latin-1 locale, so that the file system encoding really differs."""
    support.need("localedef")
    made = subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")],
        stderr=subprocess.DEVNULL,
    )
    if made.returncode not in (0, 1) or not (tmp_path / "en_US.ISO-8859-1").exists():
        pytest.skip("this system has no sources of locales")
    return {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}


def test_helpers_of_paths():
    assert join_rel("", "a") == "a"
    assert join_rel("a/b", "c") == "a/b/c"
    assert name_of("a/b.c") == "b.c"
    assert name_of("b.c") == "b.c"
    assert parent_of("a/b/c") == "a/b"
    assert parent_of("a") == ""
    folders = ["a.b", "a/b", "a", "", "a/b/c", "a-b"]
    assert sorted(folders, key=folder_key) == ["", "a", "a/b", "a/b/c", "a-b", "a.b"]


@given(st.text(alphabet="a.M-ü", max_size=12))
def test_ext_of_is_splitext_in_lower_case(name):
    assert ext_of(name) == os.path.splitext(name)[1].lower()


def classified(name, config=None):
    return Classifier(config or {}).classify(name, ext_of(name))


@pytest.mark.parametrize(("name", "kind"), [
    ("a.MKV", "video"), ("a.flac", "audio"), ("a.jpeg", "image"), ("a.srt", "subtitle"),
    ("movie.nfo", "xml"), ("a.pdf", "other"), ("a.qqq", "unknown"), ("README", "unknown"),
    (".mkv", "unknown"), ("a.rar", "other"), ("a.r5", "unknown"), ("a.ra", "audio"),
    ("Ä.mp4", "video"), ("a.mkv ", "unknown"), ("sample.mkv", "video"),
])
def test_kinds(name, kind):
    assert classified(name) == (kind, None)
    assert kind in KINDS


@pytest.mark.parametrize(("name", "reason"), [
    ("x.TMP", "*.tmp"), (".tmp", "*.tmp"), ("Thumbs.DB", "thumbs.db"), ("._film.mkv", "._*"),
    ("film.mkv.part", "*.part"), ("notes~", "*~"), ("~$doc.docx", "~$*"), ("x.r00", "(.r00)"),
    ("x.R99", "(.r99)"), ("x.r100", "(.r100)"), ("Icon\r", "icon"), ("RARBG.com.txt", "rarbg*.txt"),
])
def test_junk_says_why(name, reason):
    kind, said = classified(name)
    assert kind == "junk"
    assert reason in said


def test_configured_patterns():
    config = {"junk_patterns": ["*sample*", "[z-a", "*.Bad", "x?y"], "media_extensions": ["AVI"],
              "junk_exclude_extensions": ["srt", ".r01", ".bad"]}
    assert classified("my SAMPLE.avi", config) == ("junk", "name matches *sample*")
    assert classified("my sample.srt", config) == ("subtitle", None)
    assert classified("a.r01", config) == ("unknown", None)
    assert classified("a.bad", config) == ("unknown", None)
    assert classified("a.r02", config)[0] == "junk"
    assert classified("[z-a", config)[0] == "junk"
    assert classified("XzY", config)[0] == "junk"
    assert classified("a.avi", config) == ("video", None)
    assert classified("a.mkv", config) == ("unknown", None)
    assert classified("a.tmp", config) == ("unknown", None)


def test_fingerprint_follows_what_decides_the_kind():
    base = Classifier({}).fingerprint
    assert Classifier({"junk_patterns": None, "other": 1}).fingerprint == base
    assert Classifier({"ignore_dirs": ["x"]}).fingerprint == base
    assert Classifier({"junk_patterns": ["*.x"]}).fingerprint != base
    assert Classifier({"media_extensions": [".mkv"]}).fingerprint != base
    assert Classifier({"junk_exclude_extensions": [".mkv"]}).fingerprint != base


def test_ignored_folders():
    classifier = Classifier({})
    for name in ("@eaDir", "@EADIR", "#recycle", "$RECYCLE.BIN", ".Trash-1000", "lost+found",
                 "System Volume Information", ".snapshots", ".zfs"):
        assert classifier.ignored_dir(name), name
    assert not any(map(classifier.ignored_dir, ("Films", ".hidden", "Trash", "recycle")))
    assert Classifier({"ignore_dirs": ["*Cache"]}).ignored_dir("thumbCACHE")
    assert not Classifier({"ignore_dirs": []}).ignored_dir("@eaDir")


@pytest.mark.parametrize("mtime_ns", [
    -1, -1_500_000_000, 0, 1_700_000_000_123_456_789, 15_032_385_535 * 10**9, 4_102_444_800 * 10**9,
])
def test_identity_of_any_date(tmp_path, mtime_ns):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(mtime_ns, mtime_ns))
    seen = path.stat()
    key = inode_key(seen)
    assert parse_inode_key(key) == (1, seen.st_mtime_ns, seen.st_ino, seen.st_dev)
    assert version_prefix(key) == f"1:{seen.st_mtime_ns}:{seen.st_ino}:"
    assert same_version(key, version_prefix(key) + "7")


def test_identities_of_older_agents():
    new, old = "5:1700000000987654321:77:3", "5:1700000000:1700000001:77:3"
    assert parse_inode_key(old) == (5, 1_700_000_000 * 10**9, 77, 3)
    assert same_version(new, old)
    assert same_version(old, new)
    assert not same_version(new, "5:1700000001:1700000001:77:3")
    assert version_prefix(old) == "5:1700000000000000000:77:"


def test_same_version():
    assert same_version("1:2:3:4", "1:2:3:5")
    assert not same_version("1:2:3:4", "1:2:9:4")
    assert same_version("1:2:3:4", "1:2:9:4", inodes_stable=False)
    assert not same_version("1:2:3:4", "1:5:3:4", inodes_stable=False)
    assert not same_version("junk", "1:2:3:4")
    assert same_version("junk", "junk")


@pytest.mark.parametrize("key", [
    "", "1:2:3", "1:2:3:4:5:6", "-1:2:3:4", "1:2.5:3:4", "1_0:2:3:4", "\u0663:2:3:4", "1:2:3:4\n",
    "1:2:3:" + "9" * 99, " 1:2:3:4", "a:b:c:d",
])
def test_bad_identities(key):
    with pytest.raises(ValueError, match="inode key"):
        parse_inode_key(key)
    with pytest.raises(ValueError, match="inode key"):
        version_prefix(key)


def test_records_leave_out_what_is_unknown():
    common = {"path": "/a", "size": 1, "mtime": 1.5, "ctime": 2.5, "inode_key": "1:2:3:4",
              "ext": ".x"}
    assert record_of(kind="other", reason="no", **common) == {"kind": "other", **common}
    assert record_of(kind="junk", reason="why", **common)["reason"] == "why"
    record = record_of(kind="video", hashes={"algo": "x"}, metadata={"width": 1}, **common)
    assert record["hashes"] == {"algo": "x"}
    assert record["metadata"] == {"width": 1}


def test_digest_counts_every_part_but_the_device():
    parts = ["a/b", "1:2:3:4", "video", "blake3", "aa", "bb", True]
    base = row_digest(*parts)
    assert 0 <= base < DIGEST_MODULUS
    assert row_digest("a/b", "1:2:3:99", "video", "blake3", "aa", "bb", 1) == base
    for place, other in enumerate(["a/c", "1:2:5:4", "audio", "sha256", None, None, False]):
        changed = [*parts[:place], other, *parts[place + 1:]]
        assert row_digest(*changed) != base
