#!/usr/bin/env python3
"""Make agent.py and server.py from the modules of medialib/, or name the first broken rule.

    python3 tools/amalgamate.py           write both files
    python3 tools/amalgamate.py --check   compare in memory, write nothing; exit 1 when they differ

Bodies are copied verbatim. All imports are gathered at the top; `from .module` imports disappear,
since every top-level name is unique. The output depends on the sources alone.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

from bundle_rules import RuleError, load_modules, read_text

ROOT = Path(__file__).resolve().parent.parent
SHARED = [
    "base", "late", "launch", "allocator", "app_folder", "scan_common", "settings",
    "walk_names", "walk", "mounts", "hashing", "leash", "probe_run", "ffprobe", "sqlite_store",
    "http_body", "http_gate", "http_deadline", "http_json", "http_answer", "http_listener",
    "http_shares", "http_server", "http_client", "progress", "cache_schema", "cache_changes",
    "cache_batch", "index_writer", "cache_feed", "cache_outbox", "cache_roots", "agent_cache",
    "scan_buffer", "scan_plan", "hash_window", "root_volume", "root_check", "scan_moves",
    "scan_seal", "scan_pipeline", "scan_passes", "scan_run", "host_copy", "delivery",
    "host_link", "agent_service", "stop_signals",
]
AGENT = [
    "agent_identity", "agent_routes", "plain_scan", "agent_cli",
]
SERVER = [
    "catalog_schema", "catalog_rows", "catalog_roots", "catalog_tallies", "catalog_facts",
    "catalog_apply", "catalog_duplicates", "catalog_search", "catalog_word_sql", "catalog_settings",
    "catalog_why", "catalog_compare", "catalog_show", "catalog_writer", "catalog_check",
    "catalog_summary", "catalog", "host_agents", "catalog_agents", "host_upkeep", "ingest_records",
    "ingest_repeats", "catalog_filter", "catalog_folders", "catalog_tokens", "catalog_copies",
    "catalog_propose", "catalog_words", "catalog_places", "catalog_by_path", "catalog_sections",
    "catalog_sample", "catalog_skip", "catalog_files", "catalog_changes", "catalog_facets",
    "catalog_same_folders", "ingest_outline", "ingest_order", "ingest", "local_scan", "web_assets",
    "catalog_forget", "catalog_reclassify", "server_agents", "server_turns", "server_events",
    "server_export", "server_metrics", "server_openapi", "server_routes", "server_cli",
]
BUNDLES = {
    "agent": (SHARED + AGENT, "copy it to a machine and run `python3 agent.py HOST`"),
    "server": (SHARED + SERVER, "run `python3 server.py FOLDER` and open the page it names"),
}

RULER = "# " + "=" * 97
NEWLINE = "\n"  # an f-string of Python 3.8 holds no backslash
HEADER = '''#!/usr/bin/env python3
"""medialib's {program}, whole in this one file: {usage}.

Made from medialib/ by tools/amalgamate.py: change the modules there, not this file. Each section
is one module's code, verbatim: low level first, the command line last. `line` is where it begins
here, `there` where in the module: that maps a traceback back.

    line  there  section
'''


def gathered_imports(modules: list) -> str:
    """Each import of the standard library once, then the optional ones as they are written."""
    plain, members, optional = {"import sys\n"}, {}, ""
    for module in modules:
        for node in module.imports:
            if isinstance(node, ast.Try):
                optional += ast.get_source_segment(module.text, node) + "\n"
            elif isinstance(node, ast.Import):
                plain.update(f"import {alias.name}\n" for alias in node.names)
            elif not node.level:
                members.setdefault(node.module, set()).update(alias.name for alias in node.names)
    lines = [f"from {name} import {', '.join(sorted(members[name]))}\n" for name in sorted(members)]
    return "".join(sorted(plain) + lines) + "\n" + optional


def web_section(root: Path) -> str:
    """The UI's files as raw text, filled into the table WEB_FILES that web_assets leaves empty."""
    entries = ""
    folder = root / "medialib/web"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        shown, name = (path.relative_to(start).as_posix() for start in (root, folder))
        text = read_text(root, shown)
        quote = "'''" if "'''" not in text else '"""'
        if quote in text:
            raise RuleError(shown, 1, "holds both kinds of triple quotes")
        entries += f'    "{name}": r{quote}{text}{quote},\n'
    return "WEB_FILES.update({\n" + entries + "})\n"


def sections(root: Path, modules: list):
    """(path, its first line, what it is, text) of each section in order."""
    for module in modules:
        yield module.path, module.first, module.docstring.split("\n")[0], module.body
        if module.name == "web_assets":
            yield "medialib/web/", 1, "The files of the web UI.", web_section(root)


def build(root: Path, program: str) -> str:
    """The whole text of one generated file."""
    names, usage = BUNDLES[program]
    modules = load_modules(root, names)
    parts = list(sections(root, modules))
    body = "\nfrom __future__ import annotations\n\n" + gathered_imports(modules)
    head = HEADER.format(program=program, usage=usage)
    height = head.count("\n") + len(parts) + 3
    for path, first, summary, text in parts:
        body += f"\n\n{RULER}\n# {path}, from its line {first}\n# {summary}\n{RULER}\n\n"
        head += f"  {height + body.count(NEWLINE):6} {first:6}  {path}: {summary}\n"
        body += text
    body += f'\n\nif __name__ == "__main__":\n    launch({program}_main)\n'
    digest = hashlib.sha256(body.encode("utf-8")).hexdigest()
    return f'{head}"""\n# sha256 of all below this line: {digest}\n{body}'


def main(argv: list, root: Path = ROOT) -> int:
    try:
        outputs = {root / f"{program}.py": build(root, program).encode() for program in BUNDLES}
    except RuleError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path in outputs if not path.is_file() or path.read_bytes() != outputs[path]]
    for path in stale:
        if "--check" in argv:
            print(f"{path.name}:1: is not what tools/amalgamate.py makes now", file=sys.stderr)
            continue
        path.write_bytes(outputs[path])
        path.chmod(0o755)
        print(f"{path.name}: {outputs[path].count(10)} lines")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
