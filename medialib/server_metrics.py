"""/metrics in Prometheus' text form, from numbers that are kept anyway; no paths as labels."""

from __future__ import annotations

from .base import VERSION
from .catalog_roots import read_roots
from .catalog_summary import duplicate_counts, kind_counts

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def label_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class MetricsText:
    """Collects families; each has HELP and TYPE once."""

    def __init__(self):
        self.lines: list = []

    def family(self, name: str, kind: str, text: str, samples) -> None:
        """`samples`: (labels, value) pairs."""
        self.lines += [f"# HELP medialib_{name} {text}", f"# TYPE medialib_{name} {kind}"]
        for labels, value in samples:
            shown = ",".join(f'{key}="{label_text(str(one))}"' for key, one in labels.items())
            self.lines.append(f"medialib_{name}{{{shown}}} {value}" if shown
                              else f"medialib_{name} {value}")

    def one(self, name: str, kind: str, text: str, value) -> None:
        self.family(name, kind, text, [({}, value)])


def metrics_text(db, ingest, presence, writer, now: float) -> str:
    """The whole page."""
    out, roots, kinds = MetricsText(), read_roots(db), kind_counts(db)
    out.family("build_info", "gauge", "Version of the host.", [({"version": VERSION}, 1)])
    out.family("files", "gauge", "Present files by kind.",
               [({"kind": kind}, count["files"]) for kind, count in sorted(kinds.items())])
    out.family("file_bytes", "gauge", "Bytes of present files by kind.",
               [({"kind": kind}, count["bytes"]) for kind, count in sorted(kinds.items())])
    out.one("missing_files", "gauge", "Files that are gone from their folder.",
            sum(root.missing for root in roots))
    out.one("offline_files", "gauge", "Files on disks that are not connected.",
            sum(root.files for root in roots if root.state == "offline"))
    _root_metrics(out, db, roots)
    _duplicate_metrics(out, duplicate_counts(db))
    _agent_metrics(out, presence, now)
    for name, text in (("batches", "Batches applied."), ("files", "Records accepted."),
                       ("rejected", "Records refused."), ("repeated", "Batches sent again.")):
        out.one(f"ingest_{name}_total", "counter", text, ingest.counts[name])
    out.one("commits_total", "counter", "Transactions committed.", writer.commits)
    return "\n".join(out.lines) + "\n"


def _root_metrics(out: MetricsText, db, roots: list) -> None:
    names = dict(db.execute("SELECT id, name FROM agent").fetchall())
    states: dict = {}
    for root in roots:
        key = (names[root.agent], root.state)
        states[key] = states.get(key, 0) + 1
    out.family("roots", "gauge", "Roots by agent and state.",
               [({"agent": agent, "state": state}, count)
                for (agent, state), count in sorted(states.items())])


def _duplicate_metrics(out: MetricsText, counts: dict) -> None:
    out.family("duplicate_groups", "gauge", "Groups of duplicates.",
               [({"state": "confirmed"}, counts["confirmed_groups"]),
                ({"state": "candidate"}, counts["candidate_groups"])])
    out.one("reclaimable_bytes", "gauge", "Bytes of confirmed copies beyond the first.",
            counts["reclaimable_bytes"])


def _agent_metrics(out: MetricsText, presence, now: float) -> None:
    live = sorted(presence.all().values(), key=lambda agent: agent.agent_id)
    out.family("agent_up", "gauge", "Whether the agent was heard of lately.",
               [({"agent": agent.about.get("name", agent.agent_id), "id": agent.agent_id},
                 int(agent.is_alive(now))) for agent in live])
    out.family("agent_last_seen_timestamp_seconds", "gauge", "When the agent was heard of last.",
               [({"agent": agent.about.get("name", agent.agent_id), "id": agent.agent_id},
                 round(agent.last_seen, 3)) for agent in live])
