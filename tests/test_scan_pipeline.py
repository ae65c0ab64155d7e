"""The scan with its cache and delivery against a toy host: I1 to I8, whatever happens."""

from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from medialib.base import log
from tests.agent_world import World, write

SIZES = (0, 1, 40, 4096, 12288, 12289, 20000)
NAMES = ("a.mkv", "b.jpg", "c.txt", "d.zzz")
FOLDERS = ("", "f", "g", "f/h", "f.x")


class TreeMachine(RuleBasedStateMachine):
    """Random changes, faults and scans; `converge` says what must be true at any time."""

    def __init__(self):
        super().__init__()
        log.disabled = True
        self.world = World(tempfile.mkdtemp(prefix="tree"), roots=("one", "two"))
        self.nested = False
        self.saved_host = self.world.host.backup()
        self.saved_cache = None
        self.rewritten = False  # a file kept its stamp, but not its bytes, since the cache's copy
        self.calm = True  # nothing was lost on either side since the last convergence
        self.last_ids = {}

    def teardown(self):
        try:
            self.converge()
        finally:
            self.world.close()

    # -- the tree --------------------------------------------------------------------------------

    def files(self) -> list:
        found = []
        for root in self.world.roots[:2]:
            for folder, _, names in os.walk(root):
                found += [os.path.join(folder, name) for name in names]
        return sorted(found)

    def some(self, number: int):
        files = self.files()
        return files[number % len(files)] if files else None

    places = st.tuples(st.integers(0, 1), st.sampled_from(FOLDERS), st.sampled_from(NAMES))

    def place(self, place) -> str:
        return os.path.join(self.world.roots[place[0]], place[1], place[2])

    @rule(place=places, size=st.sampled_from(SIZES))
    def create_or_change(self, place, size):
        write(self.place(place), os.urandom(size))

    @rule(number=st.integers(0, 99))
    def rewrite_keeping_stamp(self, number):
        """Between two scans, since with a move in between nothing could tell (I4)."""
        self.world.scan()
        path = self.some(number)
        if path:
            seen = os.stat(path)
            with open(path, "r+b") as file:
                file.write(os.urandom(seen.st_size))
            os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            self.rewritten = True
        self.world.scan()

    @rule(number=st.integers(0, 99))
    def change_mode(self, number):
        path = self.some(number)
        if path:
            os.chmod(path, 0o600 if os.stat(path).st_mode & 0o040 else 0o644)

    @rule(number=st.integers(0, 99), place=places)
    def rename_file(self, number, place):
        path, target = self.some(number), self.place(place)
        if path and not os.path.samefile(path, target) if path and os.path.exists(target) else path:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(path, target)

    @rule(number=st.integers(0, 99), other=st.integers(0, 99))
    def swap(self, number, other):
        one, two = self.some(number), self.some(other)
        if one and one != two:
            self.rotate([one, two])

    @rule(numbers=st.lists(st.integers(0, 99), min_size=3, max_size=3))
    def three_cycle(self, numbers):
        paths = list(dict.fromkeys(filter(None, map(self.some, numbers))))
        if len(paths) == 3:
            self.rotate(paths)

    def rotate(self, paths):
        spare = paths[0] + ".swap"
        os.rename(paths[0], spare)
        for here, there in zip(paths, paths[1:]):
            os.rename(there, here)
        os.rename(spare, paths[-1])

    @rule(number=st.integers(0, 99), place=places)
    def hard_link(self, number, place):
        path, target = self.some(number), self.place(place)
        if path and not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.link(path, target)

    @rule(number=st.integers(0, 99))
    def delete(self, number):
        path = self.some(number)
        if path:
            os.remove(path)

    @rule(root=st.integers(0, 1), folder=st.sampled_from(FOLDERS[1:]))
    def delete_folder(self, root, folder):
        if not self.nested:
            shutil.rmtree(os.path.join(self.world.roots[root], folder), ignore_errors=True)

    @rule(root=st.integers(0, 1), other=st.integers(0, 1), folder=st.sampled_from(FOLDERS[1:]),
          name=st.sampled_from(("g", "m", "f/n")))
    def rename_folder(self, root, other, folder, name):
        old = os.path.join(self.world.roots[root], folder)
        new = os.path.join(self.world.roots[other], name)
        fits = os.path.isdir(old) and not os.path.exists(new) and not self.nested
        if fits and not new.startswith(old + "/"):
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.rename(old, new)

    @rule()
    def nest(self):
        inner = os.path.join(self.world.roots[0], "f")
        if self.nested:
            self.world.set_roots(self.world.roots[:2])
        else:
            os.makedirs(inner, exist_ok=True)
            self.world.set_roots([*self.world.roots, inner])
        self.nested = not self.nested

    # -- faults ----------------------------------------------------------------------------------

    @rule(kinds=st.lists(st.sampled_from(("before", "after", None)), min_size=1, max_size=4))
    def posts_fail(self, kinds):
        self.world.host.fail = kinds

    @rule()
    def scan_only(self):
        self.world.scan()

    @rule()
    def deliver_only(self):
        self.world.deliver()

    @rule(after=st.integers(1, 6))
    def scan_cut_short(self, after):
        control = self.world.service.scanner.control
        left = [after]
        real = type(control).keep_going

        def keep_going(self=control):
            left[0] -= 1
            if left[0] <= 0:
                control.pause.set()
            return real(control)

        control.keep_going = keep_going
        try:
            self.world.scan()
        finally:
            del control.keep_going

    @rule()
    def away(self):
        """The host is away long enough for the outbox to be packed."""
        self.world.cache.outbox.pack(3)

    @rule()
    def restart(self):
        self.world.restart()

    @rule()
    def clear_cache(self):
        self.world.cache.clear()
        self.calm = False

    @rule()
    def copy_host(self):
        self.saved_host = self.world.host.backup()

    @rule()
    def restore_host(self):
        self.world.host.restore(self.saved_host)
        self.calm = False

    @rule()
    def new_library(self):
        self.world.host.new_library()
        self.calm = False

    @rule()
    def copy_cache(self):
        self.world.stop()
        self.saved_cache = os.path.join(self.world.folder, "copy.db")
        shutil.copy(self.world.cache_path, self.saved_cache)
        self.rewritten = False
        self.world.start()

    @precondition(lambda self: self.saved_cache)
    @rule()
    def restore_cache(self):
        self.world.stop()
        shutil.copy(self.saved_cache, self.world.cache_path)
        self.world.start()
        if self.rewritten:  # to this cache it happens only now: no move in between (see there)
            self.world.scan()
        self.calm = False

    @rule(corrupt=st.booleans())
    def lose_cache(self, corrupt):
        self.world.stop()
        if corrupt:
            with open(self.world.cache_path, "r+b") as file:
                file.seek(0)
                file.write(b"garbage!" * 600)
        else:
            os.remove(self.world.cache_path)
        self.world.start()
        self.calm = False

    # -- what must hold --------------------------------------------------------------------------

    @rule()
    def converge(self):
        self.accept_emptiness()
        self.world.host.fail = []
        before = self.world.host.out_of_step
        self.world.sync()
        self.world.check()
        if self.calm:
            assert self.world.host.out_of_step == before, "healed only by comparing"
            self.same_ids()
        self.world.check_quiet()
        self.calm = True
        self.last_ids = self.world.ids()

    def accept_emptiness(self):
        for root in self.world.cache.roots.all():
            self.world.cache.roots.save(root, accept_empty=1)

    def same_ids(self):
        """A file that is still there, wherever it moved, is the same row."""
        for identity, ids in self.world.ids().items():
            if len(self.last_ids.get(identity, ())) == 1 and len(ids) == 1:
                assert ids == self.last_ids[identity], identity


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=int(os.environ.get("TREE_EXAMPLES", "12")), stateful_step_count=25, deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate] + [Phase.shrink] * bool(os.environ.get("TREE_SHRINK")))
