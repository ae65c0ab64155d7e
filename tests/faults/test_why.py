"""POST /api/why: each path gets the reason that is true for it."""

from __future__ import annotations

import os

from tests import support
from tests.faults import harness


def answer(host, path) -> str:
    body = {"agent": host.agent_id("box"), "path": str(path)}
    said = host.post("/api/why", body)
    assert said["text"]
    return said["answer"]


def test_every_reason(world):
    root = world.folder / "media"
    names = ["film.jpg", "gone.jpg", "half.part", "folder/inside.jpg"]
    (root / "folder").mkdir(parents=True)
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "thumb.jpg").write_bytes(b"x")
    for name in names:
        (root / name).write_bytes(name.encode())
    os.symlink("film.jpg", root / "link.jpg")
    host = world.host().start()
    agent = world.once(host, root)
    world.scan(agent)
    (root / "gone.jpg").unlink()
    world.scan(agent)
    expected = {
        "film.jpg": "present", "folder/inside.jpg": "present", "half.part": "junk",
        "gone.jpg": "missing", "link.jpg": "not seen", "never was.jpg": "not seen",
        "@eaDir/thumb.jpg": "ignored",
    }
    assert {name: answer(host, root / name) for name in expected} == expected
    assert answer(host, "/elsewhere/a.jpg") == "outside"
    root.rename(world.folder / "away")
    assert agent.run() == 3
    assert answer(host, root / "film.jpg") == "offline"
    assert answer(host, root / "never was.jpg") == "root offline"


def test_refused_record_and_bad_questions(world):
    host = world.host().start()
    bad = harness.record("/m/bad.jpg", size=-1)
    host.post("/ingest/batch", {"batch_id": "a", "agent": {"id": "script", "name": "box"},
                                "files": [harness.record("/m/good.jpg"), bad]})
    assert answer(host, "/m/bad.jpg") == "rejected"
    assert answer(host, "/m/good.jpg") == "present"
    for body in ({}, {"agent": 7, "path": "/a"}, {"agent": "script", "path": "relative"},
                 {"agent": "script", "path": "/a\0b"}, {"agent": "script", "path": ["/a"]}):
        assert support.request(host.url, "/api/why", body)[0] == 400, body
    assert support.request(host.url, "/api/why", {"agent": "nobody", "path": "/a"})[0] == 404
