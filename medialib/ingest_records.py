"""Checking one record of a batch: what is wrong with it in words, or its clean form.

Whatever an agent, an older agent or a script sends, only values that the catalogue can hold get
through. Keys that are not known are ignored.
"""

from __future__ import annotations

import json
import re

from .catalog_rows import (
    INODE_MASK,
    INT64_MAX,
    NS_PER_S,
    FileRecord,
    algo_code,
    clamped_ns,
    ns_as_float,
    signed_inode,
)
from .catalog_schema import ALGO_CODES, ALGO_NAMES, FLAG_WHOLE, KIND_CODES
from .late import hashlib
from .scan_common import Classifier, ext_of, parse_inode_key
from .settings import is_absolute_text

PATH_LENGTH = 32_768
NAME_LENGTH = 4_096
TEXT_LENGTH = 500
STREAMS_LENGTH = 4 << 20
DIGEST_LENGTHS = {"blake3": 64, "sha256": 64, "xxhash64": 16}
HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
MEDIA_NUMBER_MAX = 1 << 53
# An identity as our own agents write it, in numbers that fit our columns but for the time.
PLAIN_KEY = re.compile(
    r"(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,18}):(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,17})")


class RecordError(ValueError):
    """What is wrong with one record, for the one who sent it."""


def is_clean_text(text) -> bool:
    """A string that can be stored and sent as UTF-8: no NUL, no lone surrogate."""
    if not isinstance(text, str):
        return False
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_path(path, what: str = "path") -> str:
    """An absolute text path without empty, "." or ".." parts."""
    if not isinstance(path, str) or not path:
        raise RecordError(f"{what} must be a non-empty text")
    if len(path) > PATH_LENGTH:
        raise RecordError(f"{what} is longer than {PATH_LENGTH} characters")
    if not is_clean_text(path):
        raise RecordError(f"{what} is not valid Unicode or holds a NUL")
    if not is_absolute_text(path):
        raise RecordError(f"{what} must be absolute")
    if path[-1] == "/":
        raise RecordError(f"{what} must not end with /")
    if ("//" in path or "/." in path) and any(
            part in ("", ".", "..") for part in path.split("/")[1:]):
        raise RecordError(f"{what} must not hold empty, . or .. parts")
    return path


class RecordChecker:
    """Checks the records of one batch. `prefix` is what their paths must begin with ("" if the
    batch names no root); `make_classifier()` is called when a record, as of an older agent, says
    only "media" or no kind at all.
    """

    def __init__(self, prefix: str = "", make_classifier=lambda: Classifier({})):
        self.prefix = prefix
        self._make_classifier = make_classifier
        self._classifier: Classifier | None = None
        self._folder: str | None = None  # the last folder found right, for the next file in it
        self._recipe = (None, None, 0)  # the last (algo, sample_size, digits) found right
        self._digest = hashlib.blake2b(digest_size=8)  # copying one costs half of making one

    def check_all(self, raws: list) -> tuple:
        """([FileRecord], [what the answer's "errors" says of the others])."""
        records, errors, index = [], [], 0
        while True:
            index = self._check_plain(raws, index, records)
            if index == len(raws):
                return records, errors
            raw = raws[index]
            try:
                records.append(self.check(index, raw))
            except RecordError as error:
                path = raw.get("path") if isinstance(raw, dict) else None
                shown = path[:1000] if isinstance(path, str) else None
                errors.append({"index": index, "path": shown, "error": str(error)})
            index += 1

    def _check_plain(self, raws: list, start: int, records: list) -> int:
        """Take records from `start` on while they look exactly as our own agents write a file that
        has just been hashed; the number of the first that does not. `check` says the same of each
        of them and takes three times as long: whatever is odd in any way is left to it.
        """
        algo, sample_size, digits = self._recipe
        algo_number, folder, cut = ALGO_CODES.get(algo), self._folder, len(self.prefix)
        parts_of_key, unpacked, index = PLAIN_KEY.fullmatch, bytes.fromhex, start
        try:
            for index in range(start, len(raws)):
                raw = raws[index]
                path, hashes, mtime, ctime = raw["path"], raw["hashes"], raw["mtime"], raw["ctime"]
                size, kind, sample = raw["size"], raw["kind"], hashes["sample_hash"]
                above, _, name = path.rpartition("/")
                if above != folder:
                    self._name(path)
                    folder = self._folder
                size_text, ns_text, ino_text, dev_text = parts_of_key(raw["inode_key"]).groups()
                mtime_ns, packed, full = int(ns_text), unpacked(sample), hashes["full_hash"]
                if (
                    len(raw) != 8 or "ext" not in raw or len(hashes) != 4
                    or name[0] == "." or not name.isprintable()
                    or len(path) > PATH_LENGTH or len(name) > NAME_LENGTH
                    or type(size) is not int or str(size) != size_text or mtime_ns > INT64_MAX
                    or type(mtime) is not float or type(ctime) is not float
                    or not -INT64_MAX < mtime < INT64_MAX or not -INT64_MAX < ctime < INT64_MAX
                    or hashes["algo"] != algo or hashes["sample_size"] != sample_size
                    or type(hashes["sample_size"]) is not int
                    or len(sample) != digits or packed.hex() != sample
                    or not (full is None or (full == sample and size <= 3 * sample_size))
                ):
                    break
                dot = name.rfind(".")
                if mtime_ns // NS_PER_S + 1e-9 * (mtime_ns % NS_PER_S) == mtime:
                    mtime = None  # see ns_as_float
                records.append(tuple.__new__(FileRecord, (
                    index, path, KIND_CODES[kind], name[dot:].lower() if dot > 0 else "", size,
                    mtime_ns, mtime, ctime, int(ino_text), int(dev_text), None, algo_number,
                    sample_size, packed, None, FLAG_WHOLE if full else 0, None, None, None, None,
                    folder, name, self._digest_of(
                        f"{path[cut:]}\0{size_text}:{ns_text}:{ino_text}\0{kind}\0{algo}\0"
                        f"{sample}\0{full or ''}\0{0}") if cut else None)))
            else:
                return len(raws)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            pass  # `check` says what is wrong with it, if anything is
        return index

    def _digest_of(self, text: str) -> bytes:
        digest = self._digest.copy()
        digest.update(text.encode("utf-8"))
        return digest.digest()

    def check(self, index: int, raw) -> FileRecord:
        """One record of any form."""
        if not isinstance(raw, dict):
            raise RecordError("a record must be an object")
        path = raw.get("path")
        name = self._name(path)
        ext = ext_of(name)
        kind, reason = self._kind(raw, name, ext)
        size = raw.get("size")
        if type(size) is not int or not 0 <= size <= INT64_MAX:
            raise RecordError("size must be a whole number from 0 to 2^63-1")
        mtime = check_time(raw.get("mtime"), "mtime")
        ctime = raw.get("ctime")
        if ctime is not None:
            ctime = check_time(ctime, "ctime")
        hashes = raw.get("hashes")
        metadata = raw.get("metadata")
        moved_from = raw.get("moved_from")
        error = raw.get("error")
        # Made without the named tuple's own __new__: this runs for every record of a batch.
        return tuple.__new__(FileRecord, (
            index, path, kind, ext, size, *check_identity(raw.get("inode_key"), size, mtime, ctime),
            *(NO_HASHES if hashes is None else self._hashes(hashes, size)), reason,
            None if metadata is None else check_metadata(metadata),
            None if moved_from is None else check_path(moved_from, "moved_from"),
            None if error is None else check_error(error), self._folder, name, None,
        ))

    def _hashes(self, hashes, size: int) -> tuple:
        checked = check_hashes(hashes, size)
        if checked[0] is not None:
            self._recipe = (ALGO_NAMES[checked[0]], checked[1], 2 * len(checked[2]))
        return checked

    def _name(self, path) -> str:
        """The name at the end of a record's path, when the path is right; the folder is looked at
        once for all of its files that follow one another.
        """
        cut = path.rfind("/") if isinstance(path, str) else -1
        if cut > 0 and path[:cut] == self._folder and len(path) <= PATH_LENGTH:
            name = path[cut + 1:]
            if name.isascii() and "\0" not in name and name not in ("", ".", "..") \
                    and len(name) <= NAME_LENGTH:
                return name
        check_path(path)
        if not path.startswith(self.prefix):
            raise RecordError("path is not inside the batch's root")
        name = path[cut + 1:]
        if not name or len(name) > NAME_LENGTH:
            raise RecordError(f"the name must have 1 to {NAME_LENGTH} characters")
        self._folder = path[:cut]
        return name

    def _kind(self, raw: dict, name: str, ext: str) -> tuple:
        """(code, reason); the reason is kept for junk only."""
        kind, reason = raw.get("kind"), raw.get("reason")
        if kind is None or kind == "media":
            kind, reason = self._classify(name, ext)
        code = KIND_CODES.get(kind) if isinstance(kind, str) else None
        if code is None:
            raise RecordError(f"kind must be one of {', '.join(sorted(KIND_CODES))}")
        if reason is None or kind != "junk":
            return code, None
        if not is_clean_text(reason):
            raise RecordError("reason must be a text")
        return code, reason[:TEXT_LENGTH] or None

    def _classify(self, name: str, ext: str) -> tuple:
        if self._classifier is None:
            self._classifier = self._make_classifier()
        return self._classifier.classify(name, ext)


def check_time(value, what: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise RecordError(f"{what} must be a number of seconds")
    if not abs(value) <= INT64_MAX:  # NaN as well
        raise RecordError(f"{what} must be a number of seconds that a disk can hold")
    return float(value)


def check_identity(key, size: int, mtime: float, ctime: float | None) -> tuple:
    """(mtime_ns, mtime, ctime, ino, dev, key_text), with None where the others tell it exactly."""
    if key is None:
        mtime_ns = clamped_ns(mtime)
        key_text = None if mtime_ns == mtime * NS_PER_S or abs(mtime_ns) < INT64_MAX else (
            f"{size}:{int(mtime * NS_PER_S)}:0:0")
        return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, 0, 0, key_text
    if not isinstance(key, str) or len(key) > 200:
        raise RecordError("inode_key must be a text such as size:mtime_ns:ino:dev")
    try:
        _, mtime_ns, ino, dev = key.split(":")
        mtime_ns, ino, dev = int(mtime_ns), int(ino), int(dev)
    except ValueError:
        return _unusual_identity(key, size, mtime, ctime)
    # Only the form that we write ourselves comes out as it went in.
    if key == f"{size}:{mtime_ns}:{ino}:{dev}" and 0 <= ino <= INT64_MAX and _fits(mtime_ns, dev):
        return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, ino, dev, None
    return _unusual_identity(key, size, mtime, ctime)


def _unusual_identity(key: str, size: int, mtime: float, ctime: float | None) -> tuple:
    """The same of an older agent's key, or of numbers that do not fit our columns."""
    try:
        key_size, mtime_ns, ino, dev = parse_inode_key(key)
    except ValueError:
        raise RecordError("inode_key must look like size:mtime_ns:ino:dev") from None
    if key_size != size:
        raise RecordError("inode_key tells another size than size")
    stored_ino = signed_inode(ino)
    key_text = None
    if key != f"{size}:{mtime_ns}:{stored_ino & INODE_MASK}:{dev}" or not _fits(mtime_ns, dev):
        key_text = key
        mtime_ns = clamped_ns(mtime)
        dev = dev if abs(dev) <= INT64_MAX else 0
    return mtime_ns, _exact_or_none(mtime, mtime_ns), ctime, stored_ino, dev, key_text


def _fits(mtime_ns: int, dev: int) -> bool:
    return -INT64_MAX <= mtime_ns <= INT64_MAX and -INT64_MAX <= dev <= INT64_MAX


def _exact_or_none(mtime: float, mtime_ns: int) -> float | None:
    return None if ns_as_float(mtime_ns) == mtime else mtime


NO_HASHES = (None, None, None, None, 0)


def check_hashes(hashes, size: int) -> tuple:
    """(algo, sample_size, sample_hash, full_hash, FLAG_WHOLE or 0)."""
    if not isinstance(hashes, dict):
        raise RecordError("hashes must be an object")
    algo, sample_size = hashes.get("algo"), hashes.get("sample_size")
    sample, full = hashes.get("sample_hash"), hashes.get("full_hash")
    if sample is None and full is None:
        return NO_HASHES
    if not isinstance(algo, str) or algo not in ALGO_CODES:
        raise RecordError(f"hashes.algo must be one of {', '.join(ALGO_CODES)}")
    if type(sample_size) is not int or not 0 < sample_size <= INT64_MAX:
        raise RecordError("hashes.sample_size must be a positive whole number")
    if algo == "xxhash64" and isinstance(sample or full, str) and len(sample or full) == 64:
        algo = "sha256"  # older agents without xxhash kept its label
    if sample is None:
        raise RecordError("hashes.sample_hash is missing")
    same, sample = full == sample, check_digest(sample, algo, "sample_hash")
    if full is not None:
        full = sample if same else check_digest(full, algo, "full_hash")
        if full == sample and size <= 3 * sample_size:
            return algo_code(algo), sample_size, sample, None, FLAG_WHOLE
    return algo_code(algo), sample_size, sample, full, 0


def check_digest(digest, algo: str, what: str) -> bytes:
    wanted = DIGEST_LENGTHS[algo]
    if isinstance(digest, str) and len(digest) == wanted:
        try:
            packed = bytes.fromhex(digest)  # it passes over blanks, which leave it too short
        except ValueError:
            packed = b""
        if 2 * len(packed) == wanted:
            return packed
    raise RecordError(f"hashes.{what} must be {wanted} hexadecimal digits for {algo}")


def check_metadata(metadata) -> tuple:
    """(duration, container, video_codec, audio_codecs as JSON text, width, height, bitrate,
    streams_json); what ffprobe did not tell ("N/A") is None.
    """
    if not isinstance(metadata, dict):
        raise RecordError("metadata must be an object")
    streams = metadata.get("streams_json")
    if streams is not None and (not is_clean_text(streams) or len(streams) > STREAMS_LENGTH):
        raise RecordError(f"metadata.streams_json must be a text of at most {STREAMS_LENGTH} bytes")
    return (
        _media_number(metadata, "duration", float),
        _media_text(metadata, "container"), _media_text(metadata, "video_codec"),
        _audio_codecs(metadata.get("audio_codecs")),
        _media_number(metadata, "width", int), _media_number(metadata, "height", int),
        _media_number(metadata, "bitrate", int), streams,
    )


def _media_number(metadata: dict, key: str, number_type):
    value = metadata.get(key)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None  # "N/A"
    if not isinstance(value, (int, float)):
        raise RecordError(f"metadata.{key} must be a number or null")
    if not 0 <= value <= MEDIA_NUMBER_MAX:  # nor NaN
        return None
    return number_type(value)


def _media_text(metadata: dict, key: str) -> str | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not is_clean_text(value) or len(value) > TEXT_LENGTH:
        raise RecordError(f"metadata.{key} must be a short text or null")
    return value


def _audio_codecs(value) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or len(value) > 1000 or not all(
            is_clean_text(codec) and len(codec) <= TEXT_LENGTH for codec in value):
        raise RecordError("metadata.audio_codecs must be a list of short texts or null")
    return json.dumps(value, ensure_ascii=False)


def check_error(error) -> tuple:
    """(stage, class, message) of what the agent could not do with the file."""
    if not isinstance(error, dict):
        raise RecordError("error must be an object")
    texts = [error.get(key, "") for key in ("stage", "class", "message")]
    if not all(is_clean_text(text) for text in texts):
        raise RecordError("error must hold the texts stage, class and message")
    return tuple(text[:TEXT_LENGTH] for text in texts)
