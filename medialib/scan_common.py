"""What a scan says about one file: its name as text, its kind, its identity, its record.

Names. A name on disk is bytes; everything we store or send is valid Unicode. The mapping is exact:
the bytes are read as UTF-8, each byte that cannot be (0x80 to 0xff) becomes the private character
U+EF00 + byte, and the genuine characters U+EF80 to U+EFFF are written as their own three bytes
escaped in the same way. "native" is the str that the functions of `os` give and take; "text" is
the mapped form, with "/" between folders on every platform.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re

from .late import hashlib

KINDS = ("video", "audio", "image", "subtitle", "xml", "other", "unknown", "junk")
IGNORE_MARKER = ".medialib-ignore"  # a folder that holds it is left out with everything below
DIGEST_MODULUS = 1 << 64

DEFAULT_VIDEO_EXTENSIONS = (
    ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".dvr-ms", ".evo", ".f4v", ".flv",
    ".gxf", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mj2", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nsv", ".nut", ".nuv", ".ogm", ".ogv", ".ogx", ".qt", ".rec", ".rm", ".rmvb", ".tod", ".tp",
    ".trp", ".ts", ".vob", ".vro", ".webm", ".wmv", ".wtv", ".xvid",
)
DEFAULT_AUDIO_EXTENSIONS = (
    ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".au", ".caf", ".dff",
    ".dsf", ".dts", ".eac3", ".flac", ".m4a", ".m4b", ".m4r", ".mid", ".midi", ".mka", ".mp2",
    ".mp3", ".mpc", ".oga", ".ogg", ".opus", ".ra", ".snd", ".spx", ".tak", ".thd", ".tta",
    ".voc", ".wav", ".wma", ".wv",
)
DEFAULT_IMAGE_EXTENSIONS = (
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".ico",
    ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".nef", ".orf", ".pef", ".png", ".psd", ".raf",
    ".raw", ".rw2", ".srw", ".svg", ".tga", ".tif", ".tiff", ".webp", ".xcf",
)
DEFAULT_SUBTITLE_EXTENSIONS = (
    ".ass", ".dfxp", ".idx", ".lrc", ".mks", ".mpl", ".pjs", ".sbv", ".smi", ".srt", ".ssa",
    ".stl", ".sub", ".sup", ".ttml", ".usf", ".vtt",
)
DEFAULT_XML_EXTENSIONS = (".nfo", ".opf", ".xml", ".xmp", ".xsd", ".xsl", ".xslt")
DEFAULT_OTHER_EXTENSIONS = (
    ".7z", ".bin", ".bup", ".cbr", ".cbz", ".csv", ".cue", ".doc", ".docx", ".epub", ".gz",
    ".htm", ".html", ".ifo", ".img", ".iso", ".json", ".m3u", ".m3u8", ".md", ".mobi", ".odt",
    ".pdf", ".pls", ".rar", ".rtf", ".tar", ".torrent", ".txt", ".xls", ".xlsx", ".yaml", ".yml",
    ".zip",
)
DEFAULT_JUNK_PATTERNS = (
    "._*", ".ds_store", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "folder.desktop", ".directory", ".localized", "icon\r", ".nfs*", ".fuse_hidden*", ".#*",
    ".~lock.*#", "~$*", "*~", "*.tmp", "*.temp", "*.bak", "*.swp", "*.swo", "*.part",
    "*.partial", "*.crdownload", "*.download", "*.opdownload", "*.aria2", "*.!qb", "*.!ut",
    "*.!bt", "*.bc!", "*.jc!", "*.nzb", "*.par2", "*.sfv", "*.srr", "*.srs", "*.lnk", "*.url",
    "*.website", "*.webloc", "rarbg*.txt", "rarbg*.exe",
)
DEFAULT_JUNK_EXCLUDE_EXTENSIONS = ()
DEFAULT_IGNORE_DIRS = (
    "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN",
    "RECYCLER", "System Volume Information", ".Trash", ".Trash-*", ".Trashes", ".snapshot",
    ".snapshots", ".zfs", ".btrfs", "lost+found", ".fseventsd", ".Spotlight-V100",
    ".DocumentRevisions-V100", ".TemporaryItems", ".AppleDouble", ".AppleDB", ".AppleDesktop",
    ".@__thumb", ".thumbnails", ".medialib", ".git", ".svn", ".stfolder", ".stversions",
)

CLASSIFIER_VERSION = 1  # raise it when the same configuration gives other kinds than before
_UNKNOWN_ANSWER = ("unknown", None)
_ESCAPED_FIRST, _ESCAPED_LAST = 0xEF80, 0xEFFF
_TO_ESCAPED = {
    **{0xDC00 + byte: chr(0xEF00 + byte) for byte in range(0x80, 0x100)},
    **{code: "".join(chr(0xEF00 + byte) for byte in chr(code).encode("utf-8"))
       for code in range(_ESCAPED_FIRST, _ESCAPED_LAST + 1)},
}
_FROM_ESCAPED = {0xEF00 + byte: 0xDC00 + byte for byte in range(0x80, 0x100)}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPLIT_ARCHIVE = re.compile(r"\.r[0-9]{2,}\Z")
_INODE_KEY = re.compile(r"([0-9]{1,20}):(-?[0-9]{1,30}):([0-9]{1,40}):(-?[0-9]{1,20})\Z")
_OLD_INODE_KEY = re.compile(
    r"([0-9]{1,20}):(-?[0-9]{1,20}):-?[0-9]{1,20}:([0-9]{1,40}):(-?[0-9]{1,20})\Z"
)


# Names

def to_text(native: str) -> str:
    """The valid Unicode form of a native name or path; `to_native` gives exactly it back."""
    if os.sep != "/":
        native = native.replace(os.sep, "/")
    if native.isascii():
        return native
    decoded = os.fsencode(native).decode("utf-8", "surrogateescape")
    return decoded.translate(_TO_ESCAPED)


def to_native(text: str) -> str:
    """The native form of a text; ValueError when no name on this platform can have it."""
    if os.sep != "/":
        text = text.replace("/", os.sep)
    if text.isascii():
        return text
    if _SURROGATE.search(text):
        raise ValueError("the path is not valid Unicode")
    return os.fsdecode(text.translate(_FROM_ESCAPED).encode("utf-8", "surrogateescape"))


def join_rel(folder: str, name: str) -> str:
    """The relative path of a name in a relative folder ("" is the root itself)."""
    return f"{folder}/{name}" if folder else name


def name_of(path: str) -> str:
    """The last component of a text path."""
    return path[path.rfind("/") + 1:]


def parent_of(rel: str) -> str:
    """The folder of a relative text path; "" for what lies in the root itself."""
    return rel[:max(rel.rfind("/"), 0)]


def folder_key(rel: str) -> list:
    """Folders sorted by this key come in the order of the walk ("a/b" before "a.b")."""
    return rel.split("/")


def ext_of(name: str) -> str:
    """The extension as `os.path.splitext` gives it, in lower case: ".mkv"; "" if there is none."""
    dot = name.rfind(".")
    if dot <= 0:
        return ""
    if name[0] == ".":  # leading dots do not start an extension
        return os.path.splitext(name)[1].lower()
    return name[dot:].lower()


# Kinds

class NamePatterns:
    """Case-insensitive globs over a whole name, compiled once.

    Most names match nothing, so most are let go after a look at their first two letters: only
    patterns that begin with a wildcard have to be tried on every name.
    """

    def __init__(self, patterns):
        self.patterns = tuple(str(pattern) for pattern in patterns)
        heads, headed, ends, others = set(), [], [], []
        for low in (pattern.lower() for pattern in self.patterns):
            if not _has_wildcard(low[:2]):
                heads.add(low[:2])
                headed.append(_glob_expression(low))
            elif low.startswith("*") and not _has_wildcard(low[1:]):
                ends.append(low[1:])
            else:
                others.append(_glob_expression(low))
        self._heads, self._headed = frozenset(heads), _any_expression(headed)
        self._ends, self._others = tuple(ends), _any_expression(others)
        self._singles = None

    def match(self, name: str) -> bool:
        low = name.lower()
        return (
            (low[:2] in self._heads and self._headed.match(low) is not None)
            or low.endswith(self._ends)
            or (self._others is not None and self._others.match(low) is not None)
        )

    def first(self, name: str) -> str | None:
        """The first pattern that matches, as it was written."""
        if self._singles is None:  # compiling each alone takes a while and is rarely needed
            self._singles = [re.compile(_glob_expression(one.lower())) for one in self.patterns]
        low = name.lower()
        return next(
            (pattern for pattern, single in zip(self.patterns, self._singles) if single.match(low)),
            None,
        )


def _has_wildcard(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")


def _any_expression(expressions: list):
    return re.compile("|".join(expressions)) if expressions else None


def _glob_expression(pattern: str) -> str:
    """The glob as a regular expression; one that cannot be compiled means itself literally."""
    expression = fnmatch.translate(pattern)
    try:
        re.compile(expression)
    except re.error:
        return re.escape(pattern) + r"\Z"
    return f"(?:{expression})"


def normal_extension(ext: str) -> str:
    """An extension of a setting in the form of `ext_of`: "MKV" and ".mkv" are the same."""
    low = ext.strip().lower()
    return low if not low or low.startswith(".") else f".{low}"


class Classifier:
    """Tells the kind of a file from its name, by the configuration; keys that lack have defaults.

    `fingerprint` changes exactly when the same names could get other kinds.
    """

    _EXTENSION_KEYS = (  # the first that lists an extension decides
        ("video", "media_extensions", DEFAULT_VIDEO_EXTENSIONS),
        ("audio", "audio_extensions", DEFAULT_AUDIO_EXTENSIONS),
        ("image", "image_extensions", DEFAULT_IMAGE_EXTENSIONS),
        ("subtitle", "subtitle_extensions", DEFAULT_SUBTITLE_EXTENSIONS),
        ("xml", "xml_extensions", DEFAULT_XML_EXTENSIONS),
        ("other", "other_extensions", DEFAULT_OTHER_EXTENSIONS),
    )

    def __init__(self, config: dict):
        self._answers = {}
        for kind, key, default in self._EXTENSION_KEYS:
            for ext in _listed(config, key, default):
                self._answers.setdefault(normal_extension(ext), (kind, None))
        patterns = _listed(config, "junk_patterns", DEFAULT_JUNK_PATTERNS)
        excluded = _listed(config, "junk_exclude_extensions", DEFAULT_JUNK_EXCLUDE_EXTENSIONS)
        self._never_junk = frozenset(normal_extension(ext) for ext in excluded)
        self._ignored = NamePatterns(_listed(config, "ignore_dirs", DEFAULT_IGNORE_DIRS))
        self._junk = NamePatterns(patterns)
        self.fingerprint = self._fingerprint()
        self._other_junk = self._separate_extensions()

    def _fingerprint(self) -> str:
        relevant = [
            CLASSIFIER_VERSION, sorted(self._answers.items()), self._junk.patterns,
            sorted(self._never_junk),
        ]
        packed = json.dumps(relevant).encode("ascii")
        return hashlib.blake2b(packed, digest_size=8).hexdigest()

    def _separate_extensions(self) -> NamePatterns:
        """Answer patterns like "*.tmp" from the table of extensions; the others are returned."""
        others = []
        for pattern in self._junk.patterns:
            ext = pattern[1:].lower()
            plain = ext.rfind(".") == 0 and len(ext) > 1 and not _has_wildcard(ext)
            if pattern[:1] != "*" or not plain:
                others.append(pattern)
            elif ext not in self._never_junk and self._answers.get(ext, "?")[0] != "junk":
                self._answers[ext] = ("junk", f"name matches {pattern}")
        return NamePatterns(others)

    def classify(self, name: str, ext: str) -> tuple:
        """(kind, reason): the reason says why a file is junk and is None for every other kind.

        `ext` is what `ext_of` gives for the name.
        """
        answer = self._answers.get(ext, _UNKNOWN_ANSWER)
        if ext in self._never_junk or answer[1] is not None:
            return answer
        junk = self._other_junk if ext else self._junk  # ".tmp" alone has no extension
        if junk.match(name):
            return ("junk", f"name matches {junk.first(name)}")
        if ext.startswith(".r") and _SPLIT_ARCHIVE.match(ext):
            return ("junk", f"part of a split archive ({ext})")
        return answer

    def ignored_dir(self, name: str) -> bool:
        """True for a folder that is never opened."""
        return self._ignored.match(name)


def _listed(config: dict, key: str, default: tuple):
    value = config.get(key)
    return default if value is None else value


# Identity

def inode_key(stat_result) -> str:
    """The identity "size:mtime_ns:ino:dev"; whole numbers throughout, whatever the date."""
    return (
        f"{stat_result.st_size}:{stat_result.st_mtime_ns}:{stat_result.st_ino}:{stat_result.st_dev}"
    )


def parse_inode_key(key: str) -> tuple:
    """(size, mtime_ns, ino, dev) of an identity, also of the older form in whole seconds
    "size:mtime:ctime:ino:dev"; ValueError for anything else.
    """
    found = _INODE_KEY.match(key)
    if found:
        size, mtime_ns, ino, dev = found.groups()
        return int(size), int(mtime_ns), int(ino), int(dev)
    found = _OLD_INODE_KEY.match(key)
    if not found:
        raise ValueError(f"not an inode key: {key[:80]!r}")
    size, mtime_s, ino, dev = found.groups()
    return int(size), int(mtime_s) * 1_000_000_000, int(ino), int(dev)


def inode_number(key: str) -> int:
    """The inode of an identity of either form, within the numbers SQLite has room for."""
    return int(key.rsplit(":", 2)[1]) & 0x7FFF_FFFF_FFFF_FFFF


def version_prefix(key: str) -> str:
    """"size:mtime_ns:ino:": what all keys of one content version start with."""
    if _INODE_KEY.match(key):
        return key[:key.rfind(":") + 1]
    size, mtime_ns, ino, _ = parse_inode_key(key)
    return f"{size}:{mtime_ns}:{ino}:"


def same_version(a: str, b: str, inodes_stable: bool = True) -> bool:
    """True when both identities mean the same content: size, mtime and inode agree.

    The device number may change with every boot and does not count; nor does the inode where the
    file system makes up new ones. An older key in whole seconds is compared in whole seconds.
    """
    if a == b:
        return True
    try:
        size_a, mtime_a, ino_a, _ = parse_inode_key(a)
        size_b, mtime_b, ino_b, _ = parse_inode_key(b)
    except ValueError:
        return False
    if size_a != size_b or (inodes_stable and ino_a != ino_b):
        return False
    if a.count(":") == b.count(":"):
        return mtime_a == mtime_b
    return _whole_seconds(mtime_a) == _whole_seconds(mtime_b)


def _whole_seconds(mtime_ns: int) -> int:
    """Cut towards zero, as the older agents did."""
    return mtime_ns // 1_000_000_000 if mtime_ns >= 0 else -(-mtime_ns // 1_000_000_000)


# Records

def record_of(*, kind: str, path: str, size: int, mtime: float, ctime: float, inode_key: str,
              ext: str, reason: str | None = None, hashes: dict | None = None,
              metadata: dict | None = None) -> dict:
    """One file as it goes over the wire; what is not known yet is absent, not null."""
    record = {
        "kind": kind, "path": path, "size": size, "mtime": mtime, "ctime": ctime,
        "inode_key": inode_key, "ext": ext,
    }
    if kind == "junk" and reason:
        record["reason"] = reason
    if hashes is not None:
        record["hashes"] = hashes
    if metadata is not None:
        record["metadata"] = metadata
    return record


def row_digest(rel_path: str, inode_key: str, kind: str, algo: str | None,
               sample_hash: str | None, full_hash: str | None, probed) -> int:
    """A 64-bit number for one row. The sum over a root modulo DIGEST_MODULUS does not depend on
    the order, so both sides can compare what they hold without sending it.
    """
    text = (
        f"{rel_path}\0{inode_key[:inode_key.rfind(':')]}\0{kind}\0{algo or ''}\0"
        f"{sample_hash or ''}\0{full_hash or ''}\0{'1' if probed else '0'}"
    )
    packed = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")
