"""The host's page in a real browser, on catalogues of real scans."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import urllib.request

import pytest

from tests import browser as browsers
from tests import processes, support

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(240)]

PLACES = {  # place → (selector, text) of what must be there when it is ready
    "#overview": (".tile", "Files"), "#library": (".files td .name", ""),
    "#folders": (".tree-name a", ""), "#duplicates": (".group", ""),
    "#duplicates?state=candidate": (".empty", ""),
    "#duplicates?state=folders": (".group", "2 files"),
    "#junk": (".plain td a", ""), "#machines": (".machine", "online"),
    "#settings": (".field", ""),
}
SCRIPT_NAME = "<script>alert(1)</script><img src=x onerror=alert(2)>.mkv.jpg"
FILES = 60
SMALL_FILES = 400
BIG_BYTES = 8 << 30  # some seconds of reading: the page hears of a scan once a second
COPIED = b"the same content in two places " * 9000


def make_library(root, videos) -> None:
    """Films with copies and a hard link, pictures, junk, unknown types and odd names."""
    films = root / "films" / "old ones"
    films.mkdir(parents=True)
    for clip in sorted(videos.iterdir())[:5]:
        shutil.copyfile(clip, films / clip.name)
    (root / "copies").mkdir()
    for name in ("first copy.bin2", "second copy.bin2"):
        (root / "copies" / name).write_bytes(COPIED)
    os.link(root / "copies" / "first copy.bin2", root / "copies" / "a hard link.bin2")
    for twin in ("holiday", "old laptop/holiday (copy)"):
        (root / "twins" / twin).mkdir(parents=True)
        for number in (1, 2):
            (root / "twins" / twin / f"{number} in {twin[:3]}.jpg").write_bytes(b"twin%d" % number)
    (root / "odd").mkdir()
    (root / "odd" / SCRIPT_NAME.replace("/", "\u2044")).write_bytes(b"not a script")
    if sys.platform == "linux":
        with open(os.path.join(os.fsencode(root), b"odd", b"caf\xe9 bytes.jpg"), "wb") as file:
            file.write(b"latin-1")
    (root / "odd" / "two\nlines.jpg").write_bytes(b"newline")
    (root / "odd" / "Thumbs.db").write_bytes(b"junk")
    (root / "odd" / "left over.tmp").write_bytes(b"junk too")
    (root / "pictures").mkdir()
    for number in range(FILES):
        (root / "pictures" / f"picture {number:03}.jpg").write_bytes(b"p" * (100 + number * 100))


def wait_for_scan(host, files: int) -> None:
    def done():
        summary = host.post("/api/summary")
        local = host.agents().get("local")
        return local and summary["files"] >= files and not (local["stats"] or {}).get("active")
    support.wait_until(done, 60, f"{files} scanned files", pause_s=0.2)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with processes.Machines(tmp_path_factory.mktemp("web")) as started:
        yield started


@pytest.fixture(scope="module")
def root(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("media") / "library"
    folder.mkdir()
    make_library(folder, videos)
    return folder


@pytest.fixture(scope="module")
def host(running, root):
    started = running.host(str(root)).start()
    wait_for_scan(started, FILES + 12)
    return started


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    started = browsers.Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def browser(window):
    """The window; afterwards nothing may have gone wrong or been asked of another place."""
    window.complaints()
    window.requests()
    window.resize(1280)
    window.scheme("light")
    yield window
    complaints = [one for one in window.complaints() if not is_expected(window, one)]
    assert not complaints
    strangers = [one for one in window.requests() if "//127.0.0.1:" not in one]
    assert not strangers
    window.tolerated = ()


def is_expected(window, complaint: str) -> bool:
    return any(text in complaint for text in getattr(window, "tolerated", ()))


def open_at(browser, host, place: str) -> None:
    browser.open(host.url, place)
    browser.shows(*PLACES.get(place, (".view", "")))


@pytest.mark.parametrize("place", PLACES)
def test_views_fit_and_are_accessible(browser, host, place):
    open_at(browser, host, place)
    assert not browser.violations()
    for scheme in ("dark", "light"):
        browser.scheme(scheme)
        assert not browser.violations(runOnly=["color-contrast"])
    for width in browsers.WIDTHS:
        browser.resize(width)
        browser.shows(*PLACES[place])
        assert not browser.reads_over(), f"at {width}"


def test_security_headers(host):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(host.url + "/", timeout=20) as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page
    assert " style=" not in page


def test_overview_has_the_figures(browser, host):
    open_at(browser, host, "#overview")
    summary = host.post("/api/summary")
    assert f"{summary['files']:,}" in browser.shows(".tile", "Files").text
    browser.shows(".card", "Video codec")
    browser.shows(".chart text.label", "image")
    browser.click(".chart a .label", "image")
    browser.shows(".files td .name", "picture")
    assert browser.place == "library?kind=image"
    browser.driver.back()
    browser.shows(".tile", "Files")


def test_search_filter_sort_and_back(browser, host):
    open_at(browser, host, "#overview")
    browser.press("/")
    browser.press("007 PICT")
    browser.until(lambda: browser.texts(".files td:first-child .name") == ["picture 007.jpg"],
                  "one hit")
    assert browser.shows(".total", "1 file")
    browser.type("#search", "picture")
    browser.shows(".total", f"{FILES} files")
    browser.click(".files th button", "Size")
    browser.until(lambda: browser.texts(".files td:first-child .name")[:1]
                  == [f"picture {FILES - 1:03}.jpg"], "largest first, by number")
    assert "sort=size" in browser.place
    browser.driver.back()
    browser.shows(".tile", "Files")
    browser.driver.forward()
    browser.shows(".total", f"{FILES} files")


def test_facets_ranges_and_chips(browser, host):
    open_at(browser, host, "#library")
    browser.click(".facet label", "video")
    browser.shows(".chip.on", "Kind: video")
    browser.until(lambda: set(browser.texts(".files td .kind")) == {"video"}, "only videos")
    browser.click(".chip.on", "Kind: video")
    browser.until(lambda: browser.place == "library", "no filter")
    browser.type("[aria-label='Size, at least']", "200 K\n")
    browser.shows(".chip.on", "Size: at least")
    browser.until(lambda: all("KiB" in size or "MiB" in size for size in
                              browser.texts(".files td:nth-child(2)")), "only large files")
    browser.go("#library?q=nothing+is+called+this")
    browser.shows(".empty", "Nothing matches")
    browser.click(".empty button")
    browser.shows(".files td .name")


def test_keyboard_and_drawer(browser, host):
    open_at(browser, host, "#library?kind=video&sort=name")
    names = browser.texts(".files td:first-child .name")
    browser.press("j")
    browser.press("j")
    browser.press("\ue007")
    browser.shows(".drawer h2", names[1])
    assert "open=" in browser.place
    browser.press("k")
    browser.shows(".drawer h2", names[0])
    browser.shows(".drawer section", "Hashes")
    browser.shows(".drawer table", "video")
    browser.press("c")
    browser.shows(".toast", "Path copied")
    browser.press("\ue00c")
    browser.until(lambda: "open=" not in browser.place, "Esc closes")
    browser.press("?")
    browser.shows("dialog", "Search")
    browser.press("\ue00c")
    browser.until(lambda: not browser.all("dialog"), "Esc closes the keys")
    browser.press("g")
    browser.press("f")
    browser.shows(".tree-name a")


def test_names_are_text_and_odd_ones_are_marked(browser, host):
    open_at(browser, host, "#library?q=odd&sort=name")
    browser.shows(".files td .name", "<script>alert(1)")
    names = browser.texts(".files td:first-child .name")
    assert any("two\u240alines.jpg" in name for name in names)
    if sys.platform == "linux":
        byte = browser.shows(".files .byte", "\\xE9")
        assert byte.get_attribute("title") == "byte 0xE9, which is not valid UTF-8"
        browser.click(".files td", "bytes.jpg")
        browser.shows(".drawer h2 .byte", "\\xE9")
    assert not browser.all("main script, main img[src='x']")


def test_copies_are_shown_apart(browser, host):
    open_at(browser, host, "#duplicates")
    group = browser.shows(".group", "copy")
    assert "confirmed" in group.text
    assert "2 copies" in group.text
    assert "1 hard link" in group.text
    gain = f"{len(COPIED) / 1024:.0f}"
    assert gain in browser.shows(".total", "can be freed").text
    browser.click(".group td a", "second copy")
    browser.shows(".drawer section", "Other copies (2)")
    browser.shows(".drawer .copies", "confirmed")


def test_identical_folders_are_one_row(browser, host):
    open_at(browser, host, "#duplicates?state=folders")
    groups = browser.texts(".group")
    assert len(groups) == 1
    assert "2 files" in groups[0]
    assert "confirmed" in groups[0]
    browser.click(".group td a", "old laptop")
    browser.shows(".crumbs", "old laptop")


def test_folders_are_drilled(browser, host, root):
    open_at(browser, host, "#folders")
    browser.click(".tree-name a", root.name)
    browser.shows(".crumbs", root.name)
    browser.click(".tree-name .twist")
    browser.click(".treemap a .cell")
    depth = 3  # all machines, the root, and one deeper
    browser.until(lambda: root.name + "%2F" in browser.place
                  and len(browser.texts(".crumbs a")) == depth, "one deeper")
    browser.press("\ue003")
    browser.until(lambda: len(browser.texts(".crumbs a")) == depth - 1, "one up")
    browser.shows(".total strong")


def test_an_extension_is_given_a_kind(browser, host):
    open_at(browser, host, "#junk")
    browser.shows(".card", "Junk by reason")
    browser.shows(".card", "Unknown types")
    browser.shows("td a", ".bin2")
    browser.click("[aria-label='Set the kind of .bin2']")
    browser.shows(".toast", ".bin2 is now other")
    answer = host.post("/api/files", {"filter": {"ext": ".bin2"}, "limit": 10})
    assert {file["kind"] for file in answer["files"]} == {"other"}


def test_settings_are_changed_refused_and_reset(browser, host):
    open_at(browser, host, "#settings")
    field = "input[type=number]"
    name = "agent_batch_size"
    browser.js("[...document.querySelectorAll('.field')].find((one) => one.textContent"
               f".includes('{name}')).querySelector('{field}').setAttribute('id', 'tested')")
    browser.type("#tested", "0")
    browser.click(".save-bar .primary")
    browser.shows(".field-problem", name)
    browser.tolerated = ("400",)
    browser.type("#tested", "123")
    browser.click(".save-bar .primary")
    browser.shows(".field.held .field-status", "default: 500")
    browser.until(lambda: setting_of(host, name) == 123, "the setting")
    browser.click(".field.held .field-status button")
    browser.click(".save-bar .primary")
    browser.until(lambda: setting_of(host, name) == 500, "the default again")


def setting_of(host, name: str):
    return next(one["value"] for one in host.post("/api/settings")["settings"]
                if one["name"] == name)


def test_export_of_this_view(browser, host):
    open_at(browser, host, "#library?q=picture&sort=size&order=desc")
    browser.shows(".total", f"{FILES} files")
    browser.click(".tools button", "Export")
    browser.click("dialog .choice", "CSV")
    target = browser.downloads / "medialib.csv"
    browser.until(lambda: target.exists() and not list(browser.downloads.glob("*.crdownload")),
                  "the download")
    with target.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = [int(row["size"]) for row in rows]
    assert len(sizes) == FILES
    assert sizes == sorted(sizes, reverse=True)


def test_columns_are_chosen(browser, host):
    open_at(browser, host, "#library")
    browser.click(".tools button", "Columns")
    browser.click("dialog label", "First seen")
    browser.click("dialog .primary")
    browser.shows(".files th", "First seen")
    browser.js("localStorage.clear()")


def test_a_folder_is_added_by_browsing_and_watched(browser, running, tmp_path):
    for number in range(SMALL_FILES):
        folder = tmp_path / "media" / "shows" / f"season {number // 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"episode {number}.jpg").write_bytes(b"%d" % number)
    with (tmp_path / "media" / "shows" / "a big film.iso").open("wb") as file:
        file.truncate(BIG_BYTES)  # sparse: it takes its time to be read, but no room
    empty = running.host(name="empty").start()
    browser.open(empty.url)
    browser.shows(".empty", "Nothing is catalogued yet")
    browser.click(".empty .primary")
    browser.type("dialog input", f"{tmp_path}\n")
    browser.click(".browse button", "media")
    browser.click(".browse button", "shows")
    browser.until(lambda: "season 0" in "".join(browser.texts(".browse button")), "the seasons")
    browser.click("dialog .primary")
    browser.shows(".roots", "shows")
    browser.shows(".progress-line progress")
    browser.go("#overview")
    # First what passes, then what stays: a page that was slow to show the sum would miss the scan.
    browser.shows(".activity .current", "a big film.iso")
    browser.shows(".tile", f"{SMALL_FILES + 1}", 60)
    browser.until(lambda: not browser.texts(".activity .progress-line"), "the end of the scan", 60)
    browser.go("#machines")
    browser.shows(".roots .state", "online")
    browser.shows(".how code", "agent.py")
    assert not browser.violations()


def test_a_lost_connection_is_told_and_mended(browser, running, tmp_path):
    browser.tolerated = ("ERR_CONNECTION", "Failed to load resource", "net::ERR", "EventSource")
    shaky = running.host(name="shaky").start()
    browser.open(shaky.url, "#machines")
    browser.shows(".live", "Live")
    shaky.kill()
    browser.shows(".lost", "lost")
    shaky.start()
    browser.shows(".live", "Live", 30)
    browser.until(lambda: not browser.texts(".lost")[0], "the notice to go")


def test_forgetting_says_the_count_first(browser, running, root, tmp_path):
    host = running.host(str(root / "pictures"), name="forgetful").start()
    wait_for_scan(host, FILES)
    browser.open(host.url, "#machines")
    browser.click(".menu summary", "More")
    browser.click(".menu-items button", "Forget")
    browser.shows("dialog", f"{FILES} files")
    browser.click("dialog footer .danger", f"Forget {FILES}")
    browser.until(lambda: host.post("/api/summary")["files"] in (0, FILES), "the answer")


def other_machine(host, algos: list) -> None:
    """A machine that can hash with these functions only, with one file."""
    about = {"id": "7f5b7d0c-0000-4000-8000-000000000001", "name": "old laptop",
             "hash_algos": algos, "version": "1.0.0", "protocol": 1}
    host.post("/ingest/hello", {"agent": {**about, "roots": [{"path": "/m", "state": "online"}]},
                                "stats": {}})
    digest = f"{1:064x}"
    host.post("/ingest/batch", {"batch_id": "1", "agent": about, "root": "/m", "files": [{
        "kind": "image", "path": "/m/1.jpg", "size": 5, "mtime": 1.6e9, "ctime": 1.6e9,
        "ext": ".jpg", "inode_key": "5:1600000000000000000:7:1", "hashes": {
            "algo": algos[-1], "sample_size": 65536, "sample_hash": digest,
            "full_hash": digest}}]})


def test_hashes_that_cannot_be_compared_are_told_and_mended(browser, running, root):
    host = running.host(str(root / "pictures"), name="mixed").start()
    wait_for_scan(host, FILES)
    own, own_name = (host.agents()["local"][key] for key in ("hash_algo", "name"))
    other_machine(host, ["sha256"] if own != "sha256" else ["xxhash64"])
    host.settings(hash_algo=own)
    if own == "sha256":  # then the other one is told to differ
        host.post("/api/agents/set", {"agent": "7f5b7d0c-0000-4000-8000-000000000001",
                                      "settings": {"hash_algo": "xxhash64"}})
    for place in ("#duplicates", "#machines"):
        browser.open(host.url, place)
        notice = browser.shows(".notice.warn", "cannot be found").text
        assert "on old laptop" in notice
        assert f"{own} on {own_name}" in notice
    assert not browser.violations()
    if own != "sha256":
        browser.click(".notice.warn button", "use sha256 everywhere")
        browser.click("dialog footer .primary", "Use sha256")
        browser.until(lambda: setting_of(host, "hash_algo") == "sha256", "the setting")
        browser.until(lambda: "cannot be found" not in "".join(browser.texts(".notice.warn")),
                      "the notice to go")


def test_identical_folders_are_exported(browser, host):
    open_at(browser, host, "#duplicates?state=folders")
    browser.click(".tools button", "Export")
    browser.click("dialog .choice", "CSV")
    target = browser.downloads / "medialib-identical-folders.csv"
    browser.until(target.exists, "the download")
    with target.open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.parametrize("sort", ["name", "size", "mtime", "changed", "first_seen", "duration"])
@pytest.mark.parametrize("filter_", [
    {}, {"kind": ["image", "video"]}, {"state": "present"}, {"q": "picture"},
    {"height": {"min": 1}},
])
def test_a_jump_lands_where_paging_does(host, sort, filter_):
    for order in ("asc", "desc"):
        body = {"filter": filter_, "sort": sort, "order": order}
        rows = support.all_rows(host.url, "/api/files", body, "files")
        for skip in (1, len(rows) // 2, len(rows) - 1, len(rows), len(rows) + 5):
            if skip > 0:
                answer = host.post("/api/files", {**body, "skip": skip, "limit": 3})
                assert answer["skipped"] == skip
                assert [file["id"] for file in answer["files"]] == [
                    file["id"] for file in rows[skip:skip + 3]]
        if len(rows) > 4:
            third = host.post("/api/files", {**body, "limit": 2})["next"]
            answer = host.post("/api/files", {**body, "after": third, "skip": 2, "limit": 1})
            assert answer["files"][0]["id"] == rows[4]["id"]
