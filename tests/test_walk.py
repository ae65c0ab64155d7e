"""The walk: order, resume, everything counted, nothing incomplete mistaken for empty."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medialib import walk as walk_module
from medialib import walk_names
from medialib.scan_common import (
    IGNORE_MARKER,
    Classifier,
    folder_key,
    to_native,
    to_text,
    version_prefix,
)
from medialib.walk import (
    LEDGER_KEYS,
    FileProblem,
    FolderListing,
    FoundFile,
    files_at_rest,
    find_files,
    walk_folders,
)
from tests import support

CLASSIFIER = Classifier({})


def walk(root, **options):
    device = options.pop("root_device", None) or os.stat(root).st_dev
    return list(walk_folders(str(root), classifier=CLASSIFIER, root_device=device, **options))


def rels(root, **options):
    return [listing.rel for listing in walk(root, **options)]


def make(root, *paths):
    for path in paths:
        full = root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            full.mkdir(exist_ok=True)
        else:
            full.write_bytes(b"x")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    make(root, "b.mkv", "a/x", "a/b/c", "a/b/d/", "a.b/c", "a-b/1/2/3/f", "z/", "é/ü", "Z/q")
    with open(os.path.join(os.fsencode(root), b"caf\xe9"), "wb"):
        pass
    os.mkdir(os.path.join(os.fsencode(root), b"d\xe9p\xf4t"))
    return root


@contextlib.contextmanager
def mounted(target, *options):
    """A real mount for the time of a test; skipped where that is not allowed."""
    support.need_root()
    support.need("mount", "umount")
    done = subprocess.run(["mount", *options, str(target)], stderr=subprocess.PIPE)
    if done.returncode:
        support.lack(f"mount: {done.stderr.decode('utf-8', 'replace').strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


def test_order_is_that_of_the_keys(tree):
    found = rels(tree)
    assert found == sorted(found, key=folder_key)
    assert found[0] == ""
    assert set(found) == {
        "", "a", "a/b", "a/b/d", "a.b", "a-b", "a-b/1", "a-b/1/2", "a-b/1/2/3", "z", "é", "Z",
        "d\uefe9p\ueff4t",
    }
    for listing in walk(tree):
        assert listing.native == os.path.join(str(tree), to_native(listing.rel)).rstrip("/")
        assert [to_text(name) for name in listing.names] == sorted(map(to_text, listing.names))


def test_resume_after_every_folder_gives_exactly_the_rest(tree):
    found = rels(tree)
    for position, rel in enumerate(found):
        assert rels(tree, after=rel) == found[position + 1:], rel
        assert rels(tree, until=rel) == found[:position + 1], rel
        for end in found[position:]:
            part = found[position + 1:found.index(end) + 1]
            assert rels(tree, after=rel, until=end) == part


def test_resume_after_a_folder_that_is_gone(tree):
    found = rels(tree)
    for gone in ("a/a", "a/b/cc", "0", "a/b/d/e/f", "zz", "a-b/1/1/1"):
        wanted = [rel for rel in found if folder_key(rel) > folder_key(gone)]
        assert rels(tree, after=gone) == wanted, gone


def test_resume_lists_only_the_ancestors(tmp_path):
    for number in range(50):
        make(tmp_path, f"d{number:02d}/s{number % 3}/f")
    listed = []
    real = os.scandir

    def counting(path):
        listed.append(path)
        return real(path)

    os.scandir = counting
    try:
        assert rels(tmp_path, after="d48/s0") == ["d49", "d49/s1"]
    finally:
        os.scandir = real
    assert len(listed) == 5  # the root, d48, d48/s0, then the two that are given


@pytest.mark.parametrize("seed", range(5))
def test_random_trees_resume_anywhere(tmp_path, seed):
    chosen = random.Random(seed)
    for _ in range(40):
        parts = [chosen.choice(["a", "a.b", "a b", "B", "é", "a-", "0"]) for _ in range(4)]
        os.makedirs(tmp_path.joinpath(*parts[:chosen.randint(1, 4)]), exist_ok=True)
    found = rels(tmp_path)
    assert found == sorted(found, key=folder_key)
    for position, rel in enumerate(found):
        assert rels(tmp_path, after=rel) == found[position + 1:]


def test_everything_is_counted_once(tree):
    os.mkfifo(tree / "fifo")
    os.symlink("b.mkv", tree / "link")
    os.symlink("a", tree / "folder link")
    os.symlink("nowhere", tree / "dangling")
    os.symlink("self", tree / "self")
    make(tree, "@eaDir/x", "#recycle/y", "#recycle/deep/z")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tree / "socket"))
        listing = walk(tree)[0]
    assert listing.counts == {
        "files": 2, "folders": 7, "links": 4, "specials": 2, "other_mounts": 0, "ignored": 2,
        "nested_roots": 0, "loops": 0,
    }
    assert listing.held == []
    for one in walk(tree):
        assert tuple(one.counts) == LEDGER_KEYS
        assert sum(one.counts.values()) == len(os.listdir(one.native))


def test_devices_are_special(tmp_path):
    support.need_root()
    try:
        os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    except PermissionError:
        support.lack("may not make device nodes")
    assert walk(tmp_path)[0].counts["specials"] == 1


def test_followed_links(tree, tmp_path):
    make(tmp_path, "elsewhere/deep/film.mkv")
    os.symlink(tmp_path / "elsewhere", tree / "out")
    os.symlink(tree, tree / "a" / "up")
    os.symlink("..", tree / "a" / "b" / "up")
    os.symlink("../b.mkv", tree / "a" / "file")
    os.symlink("nowhere", tree / "a" / "dangling")
    os.symlink("same", tree / "a" / "same")
    found = {listing.rel: listing for listing in walk(tree, follow_symlinks=True)}
    assert "out/deep" in found
    assert found["a"].counts["loops"] == found["a/b"].counts["loops"] == 1
    assert found["a"].names == ["file", "x"]
    assert found["a"].counts["links"] == 2
    assert found["a"].held == ["dangling", "same"]
    [one] = find_files(found["a"], ["file"])
    assert one.size == 1
    found = {listing.rel: listing for listing in walk(tree)}
    [one] = find_files(found["a"], ["file"])
    assert one.error.errno == errno.EINVAL


def test_a_link_to_itself_in_circles_ends(tmp_path):
    os.makedirs(tmp_path / "a" / "b")
    os.symlink("../../a", tmp_path / "a" / "b" / "again")
    os.symlink(".", tmp_path / "dot")
    assert rels(tmp_path, follow_symlinks=True) == ["", "a", "a/b"]


def test_the_root_may_be_a_link(tree, tmp_path):
    os.symlink(tree, tmp_path / "alias")
    assert rels(tmp_path / "alias") == rels(tree)
    nested = {os.path.realpath(tree / "a")}
    assert "a" not in rels(tmp_path / "alias", other_roots=nested)


def test_nested_roots_are_held(tree):
    listing = walk(tree, other_roots={str(tree / "a"), str(tree), "/elsewhere"})[0]
    assert listing.held == ["a"]
    assert listing.counts["nested_roots"] == 1
    assert "a" not in listing.subfolders
    assert "a/b" in [one.rel for one in walk(tree, other_roots={str(tree / "a" / "b" / "d")})]


def test_marked_folders_are_ignored(tree):
    make(tree, f"a/{IGNORE_MARKER}")
    found = {listing.rel: listing for listing in walk(tree)}
    assert found["a"].ignored
    assert (found["a"].names, found["a"].subfolders, found["a"].error) == ([], [], None)
    assert found["a"].counts["ignored"] == 3  # x, b and the marker
    assert "a/b" not in found
    make(tree, IGNORE_MARKER)
    assert rels(tree) == [""]


def test_a_missing_root_is_an_error_not_empty(tmp_path):
    [listing] = walk(tmp_path / "gone", root_device=1)
    assert listing.error.errno == errno.ENOENT
    (tmp_path / "file").write_bytes(b"")
    [listing] = walk(tmp_path / "file")
    assert isinstance(listing.error, OSError)


def test_another_device_at_the_root_is_an_error(tree):
    [listing] = walk(tree, root_device=os.stat(tree).st_dev + 1)
    assert listing.error.errno == errno.ESTALE
    assert listing.names == []


def test_a_folder_that_vanishes_is_an_error(tree):
    steps = walk_folders(str(tree), classifier=CLASSIFIER, root_device=os.stat(tree).st_dev)
    next(steps)
    subprocess.run(["rm", "-r", str(tree / "a")], check=True)
    listings = {listing.rel: listing for listing in steps}
    assert listings["a"].error.errno == errno.ENOENT
    assert listings["z"].error is None


def test_a_folder_replaced_by_a_link_is_not_followed(tree, tmp_path):
    make(tmp_path, "secret/f")
    steps = walk_folders(str(tree), classifier=CLASSIFIER, root_device=os.stat(tree).st_dev)
    next(steps)
    os.rename(tree / "a", tmp_path / "moved")
    os.symlink(tmp_path / "secret", tree / "a")
    listings = {listing.rel: listing for listing in steps}
    assert listings["a"].error is not None
    assert listings["a"].names == []


def as_nobody(function):
    """What the function returns (as JSON) in a process without any privilege. It is forked, so
    that the interpreter itself need not be readable for others.
    """
    support.need_root()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def let_others_in(path):
    """Open pytest's own folders above the path, and no others."""
    for folder in path.parents:
        if "pytest" not in str(folder):
            return
        os.chmod(folder, 0o755)


def listed_as_nobody(root, **options):
    return as_nobody(lambda: [
        [one.rel, len(one.names), len(one.subfolders), getattr(one.error, "errno", None)]
        for one in walk(root, **options)
    ])


def test_unreadable_folders_are_errors(tree):
    let_others_in(tree)
    os.chmod(tree / "a", 0)
    os.chmod(tree / "a-b", 0o444)  # may be listed, but nothing in it may be looked at
    try:
        lines = {line[0]: line[1:] for line in listed_as_nobody(tree)}
        again = listed_as_nobody(tree, after="a/b")
    finally:
        os.chmod(tree / "a", 0o755)
        os.chmod(tree / "a-b", 0o755)
    assert lines["a"] == [0, 0, errno.EACCES]
    assert lines["a-b"] == [0, 1, None]
    assert lines["a-b/1"][2] == errno.EACCES
    assert lines["z"][2] is None
    assert again[0] == ["a", 0, 0, errno.EACCES]  # its later subfolders are left out
    assert "z" in [line[0] for line in again]


def test_an_error_in_the_middle_of_a_listing(tmp_path):
    support.need("strace")
    make(tmp_path, *(f"{'n' * 100}{number}" for number in range(2000)), "sub/f")
    program = textwrap.dedent("""
        import os, sys
        from medialib.scan_common import Classifier
        from medialib.walk import walk_folders
        root = sys.argv[1]
        for one in walk_folders(root, classifier=Classifier({}),
                                root_device=os.stat(root).st_dev):
            print(one.rel, len(one.names), getattr(one.error, "errno", None))
    """)
    inject = ["strace", "-f", "-o", os.devnull, "-P", str(tmp_path), "-e", "trace=getdents64",
              "-e", "inject=getdents64:error=EIO:when=3"]
    done = subprocess.run(
        [*inject, sys.executable, "-c", program, str(tmp_path)], check=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(support.ROOT)},
    )
    rel, names, error = done.stdout.decode().splitlines()[0].split(" ")
    assert (rel, error) == ("", str(errno.EIO))
    assert 0 < int(names) < 2000


def test_other_mounts_are_held(tree):
    with mounted(tree / "a" / "b", "-t", "tmpfs", "tmpfs"):
        make(tree / "a" / "b", "inside")
        for points in (None, {str(tree / "a" / "b"), "/"}):
            found = {listing.rel: listing for listing in walk(tree, mount_points=points)}
            assert found["a"].held == ["b"]
            assert found["a"].counts["other_mounts"] == 1
            assert "a/b" not in found
        # Another device number without a mount is a subvolume.
        assert "a/b" in rels(tree, mount_points={"/"})


def test_bind_mounts_of_the_same_device(tree):
    with mounted(tree / "z", "--bind", str(tree / "a")):
        found = {listing.rel: listing for listing in walk(tree, mount_points={str(tree / "z")})}
        assert found["z"].names == ["x"]
    with mounted(tree / "a" / "b", "--bind", str(tree)):
        found = {listing.rel: listing for listing in walk(tree)}
        assert found["a"].counts["loops"] == 1


def test_a_root_unmounted_while_it_is_walked(tree):
    """The folders under the mount point look alike, but are another file system's."""
    top = tree / "mnt"
    make(tree, "mnt/a/under", "mnt/b/under")
    with mounted(top, "-t", "tmpfs", "tmpfs"):
        make(top, "a/over", "b/over")
        steps = walk_folders(str(top), classifier=CLASSIFIER, mount_points={str(top)},
                             root_device=os.stat(top).st_dev)
        assert next(steps).rel == ""
        assert next(steps).names == ["over"]
        subprocess.run(["umount", "-l", str(top)], check=True)
        try:
            last = next(steps)
        finally:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(top)], check=True)
        assert last.rel == "b"
        assert last.error.errno == errno.ESTALE
        assert last.names == []


def test_find_files(tree):
    os.utime(tree / "b.mkv", ns=(0, 15_032_385_535 * 10**9))
    listing = walk(tree)[0]
    found = {one.name: one for one in find_files(listing, listing.names)}
    film = found["b.mkv"]
    seen = os.stat(tree / "b.mkv")
    assert type(film) is FoundFile
    assert film == ("b.mkv", str(tree / "b.mkv"), 1, seen.st_mtime, seen.st_ctime,
                    f"1:{seen.st_mtime_ns}:{seen.st_ino}:{seen.st_dev}", 1)
    assert os.path.exists(found["caf\uefe9"].native)


def test_files_at_rest_are_as_each_of_them_is_found(tree):
    """Comparing folders as a whole must see what comparing file by file sees."""
    listing = walk(tree)[0]
    assert files_at_rest(listing, "/mnt/") == {
        ("/mnt/" + one.name, version_prefix(one.inode_key), one.ctime, 1)
        for one in find_files(listing, listing.names)}
    listing.names.append("linked")  # followed, so that it was not looked at with the listing
    assert files_at_rest(listing, "/mnt/") is None


def test_a_huge_folder_is_not_looked_at_as_a_whole(tmp_path):
    for number in range(2001):
        (tmp_path / str(number)).touch()
    [listing] = walk(tmp_path)
    assert len(listing.names) == 2001
    assert len(listing.stats) == 2000
    assert files_at_rest(listing, "") is None
    assert len(list(find_files(listing, listing.names))) == 2001


NATIVE_NAMES = st.lists(st.binary(min_size=1, max_size=12).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw).map(os.fsdecode), unique=True, max_size=60)


@given(runs=st.lists(NATIVE_NAMES, min_size=1, max_size=5), strange=NATIVE_NAMES)
def test_packed_names_are_those_of_a_sorted_list(runs, strange):
    with mock.patch.object(walk_names, "NAMES_BLOCK_BYTES", 40):
        names = list(dict.fromkeys(itertools.chain(*runs)))
        packed = walk_names.PackedNames()
        left = set(names)
        for run in runs:
            packed.add([name for name in run if name in left])
            left -= set(run)
        packed.sort()
    assert len(packed) == len(names)
    assert list(packed) == sorted(names, key=to_text)
    assert list(packed) == sorted(names, key=to_text)
    for name in [*names, *strange, "a", "zz"]:
        assert (to_text(name) in packed) == (name in names)


def test_the_names_of_a_huge_folder_are_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(walk_module, "_LOOKED_AT_MOST", 10)
    monkeypatch.setattr(walk_module, "_NAMES_UNPACKED", 20)
    names = [f"{number * 7919 % 1000:03d}é.txt" for number in range(90)] + ["\udcff.mkv"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "z").mkdir()
    listing = walk(tmp_path)[0]
    assert isinstance(listing.names, walk_names.PackedNames)
    assert list(listing.names) == sorted(names, key=to_text)
    assert listing.counts["files"] == 91
    assert listing.subfolders == ["z"]
    found = [one.native for one in find_files(listing, listing.names)]
    assert found == [str(tmp_path / name) for name in sorted(names, key=to_text)]


def test_find_files_reports_what_went_wrong(tree):
    listing = FolderListing("", str(tree))
    os.mkfifo(tree / "fifo")
    os.symlink("b.mkv", tree / "link")
    found = list(find_files(listing, ["gone", "fifo", "a", "link", "b.mkv", "n" * 300]))
    assert [type(one) for one in found] == [FileProblem] * 4 + [FoundFile, FileProblem]
    assert [one.error.errno for one in found if type(one) is FileProblem] == [
        errno.ENOENT, errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.ENAMETOOLONG]


def test_a_deep_tree_ends(tmp_path):
    """Deeper than any path may be long: what cannot be opened by its path is an error."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=descriptor)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    listings = walk(tmp_path)
    assert listings[-1].error.errno == errno.ENAMETOOLONG
    assert all(listing.error is None for listing in listings[:-1])


def test_no_descriptor_is_left(tree):
    before = len(os.listdir("/proc/self/fd"))
    steps = walk_folders(str(tree), classifier=CLASSIFIER, root_device=os.stat(tree).st_dev)
    for _ in range(3):
        next(steps)
    assert len(os.listdir("/proc/self/fd")) == before
