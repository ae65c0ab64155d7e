"""Hashes: the right bytes under the right label, and none for a file that changes."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from medialib import hashing
from medialib.hashing import (
    FileChanging,
    available_algorithms,
    digest_algorithm,
    effective_algorithm,
    full_hash_file,
    new_hasher,
    sample_hash_file,
)
from medialib.walk import FolderListing, find_files
from tests.test_walk import as_nobody, let_others_in

SAMPLE = 1000


def seen(path, follow=False):
    [found] = find_files(FolderListing("", str(path.parent), follow), [path.name])
    return found


def sampled(content: bytes, sample: int) -> bytes:
    if len(content) <= 3 * sample:
        return content
    middle = len(content) // 2 - sample // 2
    return content[:sample] + content[middle:middle + sample] + content[-sample:]


def digest(content: bytes, algo: str) -> str:
    hasher = new_hasher(algo)
    hasher.update(content)
    return hasher.hexdigest()


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mkv"
    path.write_bytes(os.urandom(5 * SAMPLE + 7))
    return path


def test_known_digests():
    """The labels name the functions that the rest of the world knows by them."""
    wanted = {
        "sha256": hashlib.sha256(b"abc").hexdigest(), "xxhash64": "44bc2cf5ad770999",
        "blake3": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    }
    assert "sha256" in available_algorithms()
    for algo in available_algorithms():
        assert digest(b"abc", algo) == wanted[algo]


def test_a_missing_algorithm_is_not_claimed(monkeypatch):
    monkeypatch.setattr(hashing, "blake3", None)
    monkeypatch.setattr(hashing, "xxhash", None)
    assert available_algorithms() == ["sha256"]
    assert [effective_algorithm(name) for name in ("blake3", "xxhash64", "sha256", "md5")] == (
        ["sha256"] * 4)
    with pytest.raises(ValueError, match="blake3"):
        new_hasher("blake3")


def test_what_is_there_is_used():
    for algo in available_algorithms():
        assert effective_algorithm(algo) == algo


def test_labels_of_older_agents():
    assert digest_algorithm("a" * 64, "xxhash64") == "sha256"
    assert digest_algorithm("a" * 16, "xxhash64") == "xxhash64"
    assert digest_algorithm("a" * 64, "blake3") == "blake3"


@pytest.mark.parametrize("algo", available_algorithms())
@pytest.mark.parametrize("size", [
    0, 1, SAMPLE, 3 * SAMPLE, 3 * SAMPLE + 1, 4 * SAMPLE + 1, 10 * SAMPLE, (1 << 20) + 5,
])
def test_the_layout_of_samples(tmp_path, algo, size):
    path = tmp_path / "f"
    content = os.urandom(size)
    path.write_bytes(content)
    found = seen(path)
    before = time.time()
    result = sample_hash_file(str(path), found, algo, SAMPLE)
    assert result.sample_hash == digest(sampled(content, SAMPLE), algo)
    assert result.full_hash == (digest(content, algo) if size <= 3 * SAMPLE else None)
    assert (result.algo, result.sample_size) == (algo, SAMPLE)
    assert before <= result.hashed_at <= time.time()
    counted = []
    for chunk in (1 << 20, 999):
        full = full_hash_file(str(path), found, algo, keep_going=lambda: True, chunk=chunk,
                              on_bytes=counted.append)
        assert full == digest(content, algo)
    assert sum(counted) == 2 * size


def test_a_large_sample_is_read_in_pieces(tmp_path):
    path = tmp_path / "f"
    content = os.urandom((3 << 20) + 5)
    path.write_bytes(content)
    result = sample_hash_file(str(path), seen(path), "sha256", 2 << 20)
    assert result.full_hash == hashlib.sha256(content).hexdigest()


def test_a_sparse_file_of_terabytes(tmp_path):
    path = tmp_path / "f"
    with open(path, "wb") as file:
        file.truncate(4 << 40)
    result = sample_hash_file(str(path), seen(path), "sha256", SAMPLE)
    assert result.sample_hash == hashlib.sha256(bytes(3 * SAMPLE)).hexdigest()


def both(path, expected, **options):
    yield lambda: sample_hash_file(str(path), expected, "sha256", SAMPLE, **options)
    yield lambda: full_hash_file(str(path), expected, "sha256", keep_going=lambda: True, **options)


@pytest.mark.parametrize("change", ["append", "truncate", "replace", "touch", "folder", "fifo"])
def test_a_file_that_changed_since_the_walk(film, change):
    expected = seen(film)
    content = film.read_bytes()
    if change == "append":
        film.write_bytes(content + b"x")
    elif change == "truncate":
        film.write_bytes(content[:-1])
    elif change == "touch":
        os.utime(film, ns=(1, 1))
    else:
        film.rename(film.with_name("old"))
        {"replace": lambda: film.write_bytes(content), "folder": film.mkdir,
         "fifo": lambda: os.mkfifo(film)}[change]()
        if change == "replace":
            os.utime(film, ns=(1, int(expected.inode_key.split(":")[1])))
    for attempt in both(film, expected):
        with pytest.raises(FileChanging):
            attempt()


def test_a_replaced_file_where_inodes_mean_nothing(film):
    expected = seen(film)
    content = film.read_bytes()
    film.rename(film.with_name("old"))
    film.write_bytes(content)
    os.utime(film, ns=(1, int(expected.inode_key.split(":")[1])))
    for attempt in both(film, expected, inodes_stable=False):
        attempt()
    os.utime(film, ns=(1, 1))
    for attempt in both(film, expected, inodes_stable=False):
        with pytest.raises(FileChanging):
            attempt()


@pytest.mark.parametrize("change", ["append", "truncate", "touch"])
def test_a_file_that_changes_while_it_is_read(film, change, monkeypatch):
    expected = seen(film)
    real = hashing.new_hasher

    class Meddler:
        def __init__(self, algo):
            self.hasher = real(algo)

        def update(self, data):
            self.hasher.update(data)
            if change == "touch":
                os.utime(film, ns=(1, 1))
            else:
                size = film.stat().st_size
                os.truncate(film, size + 1 if change == "append" else max(size - 3 * SAMPLE, 0))

        def hexdigest(self):
            return self.hasher.hexdigest()

    monkeypatch.setattr(hashing, "new_hasher", Meddler)
    with pytest.raises(FileChanging):
        sample_hash_file(str(film), expected, "sha256", SAMPLE)
    film.write_bytes(os.urandom(5 * SAMPLE))
    with pytest.raises(FileChanging):
        full_hash_file(str(film), seen(film), "sha256", keep_going=lambda: True, chunk=SAMPLE)


def test_links_are_followed_only_when_asked(film):
    link = film.with_name("link")
    link.symlink_to(film.name)
    expected = seen(link, follow=True)
    for attempt in both(link, expected):
        with pytest.raises(OSError, match="symbolic links"):
            attempt()
    for attempt in both(link, expected, follow=True):
        attempt()


def test_a_full_hash_stops_when_told(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(10_000))
    looks = iter([True, True, False])
    counted = []
    assert full_hash_file(str(path), seen(path), "sha256", keep_going=lambda: next(looks),
                          chunk=1000, on_bytes=counted.append) is None
    assert counted == [1000, 1000]


def test_nothing_leaks(film):
    expected = seen(film)
    film.write_bytes(b"other")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for attempt in both(film, expected):
            with pytest.raises(FileChanging):
                attempt()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_access_time_stays(film):
    os.utime(film, ns=(1, film.stat().st_mtime_ns))
    for attempt in both(film, seen(film)):
        attempt()
    assert film.stat().st_atime_ns == 1


def test_somebody_elses_file_is_read_too(film):
    """O_NOATIME is refused to all but the owner."""
    let_others_in(film)
    os.chmod(film, 0o644)
    digest_there = as_nobody(
        lambda: sample_hash_file(str(film), seen(film), "sha256", 1 << 20).full_hash)
    assert digest_there == hashlib.sha256(film.read_bytes()).hexdigest()


def test_several_threads_at_once(tmp_path):
    paths = []
    for number in range(50):
        path = tmp_path / str(number)
        path.write_bytes(os.urandom(number * 100))
        paths.append(path)
    wrong = []

    def check():
        for path in paths:
            result = sample_hash_file(str(path), seen(path), "sha256", 65536)
            if result.full_hash != hashlib.sha256(path.read_bytes()).hexdigest():
                wrong.append(path)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
