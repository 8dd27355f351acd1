"""Lays out what `scripts/docs` builds: the pages of the repository, and one of the public names."""

import json
import re
import shutil
import sys
from pathlib import Path

import weightsurgery

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
OPTIONS = {
    "docstring_style": "google",
    "show_source": False,
    "show_root_heading": True,
    "show_root_full_path": False,
    "heading_level": 3,
    "members_order": "source",
    "separate_signature": True,
    "signature_crossrefs": True,
}
TITLES = {
    "checkpoint": "Checkpoints", "vectors": "Vectors", "algebra": "Factors", "surgery": "Edits",
    "learning": "Models", "unlearning": "Vectors from data", "procedures": "From data, by data",
    "hub": "Publishing", "errors": "Errors",
}  # fmt: skip


def sources() -> dict[Path, str]:
    """The Markdown that is linked from the README on, by file, and its name as a page."""
    pages = {ROOT / "README.md": "index.md"}
    todo = [*pages]
    for page in todo:
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            target = target / "README.md" if target.is_dir() else target
            if target.suffix == ".md" and target not in pages:
                name = target.relative_to(ROOT).as_posix().removeprefix("docs/")
                pages[target] = name.lower().replace("/", "-")
                todo.append(target)
    return pages


def page(path: Path, names: dict[Path, str]) -> str:
    """A page with its links to other pages; to files that are none, their names alone."""

    def linked(match: re.Match[str]) -> str:
        words, link, rest = match.group(1), match.group(2), match.group(3) or ""
        target = (path.parent / link).resolve()
        if not target.exists():
            raise SystemExit(f"{path}: leads nowhere: {link}")
        target = target / "README.md" if target.is_dir() else target
        return f"[{words}]({names[target]}{rest})" if target in names else words

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", linked, path.read_text())


def api() -> str:
    """The public names by room, each as its docstring tells it."""
    rooms: dict[str, list[str]] = {}
    for name, module in weightsurgery._PUBLIC.items():
        rooms.setdefault(module.split(".")[0], []).append(f"weightsurgery.{module}.{name}")
    parts = ["# Python\n", str(weightsurgery.__doc__).replace("::", ":")]
    for room in TITLES:
        parts.append(f"## {TITLES[room]}\n")
        parts += [f"::: {name}\n" for name in sorted(rooms.pop(room, ()))]
    assert not rooms, rooms
    return "\n".join(parts)


def on_page_content(html: str, **_: object) -> str:
    """A hook of mkdocs: the roles of docstrings (Sphinx's) as the names they stand for."""
    role = re.compile(r":(?:func|class|meth|mod|data|attr):<code>~?(?:[\w.]+\.)?(\w+)</code>")
    return role.sub(r"<code>\1</code>", html)


def main(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "docs").mkdir(parents=True)
    names = sources()
    for path, name in names.items():
        (directory / "docs" / name).write_text(page(path, names))
    (directory / "docs/api.md").write_text(api())
    config = {
        "site_name": "WeightSurgery",
        "docs_dir": "docs",
        "use_directory_urls": False,
        # Nothing is loaded from elsewhere.
        "theme": {"name": "material", "font": False},
        "markdown_extensions": ["tables", "fenced_code", "toc"],
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {
                "paths": [str(ROOT)], "options": OPTIONS}}}},
        ],
        "validation": {"links": {"anchors": "warn"}},
        "hooks": [str(Path(__file__))],
    }  # fmt: skip
    (directory / "mkdocs.yml").write_text(json.dumps(config, indent=1))  # YAML, too


if __name__ == "__main__":
    main(Path(sys.argv[1]))
