"""Whether a change of the code changes what `ws` says and writes.

    scripts/unchanged.py FILE.json      # the first time: writes down what there is
    scripts/unchanged.py FILE.json      # later: prints what differs, and exits with 1 where it does
    scripts/unchanged.py FILE.json -q   # the same without what trains: a third of the time

Runs every command on small fixed inputs (kept beside FILE) and notes exit status, both outputs and
SHA-256 of all files written; records, cards and recipes as text, so that a difference can be read.
A few minutes on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SETTINGS = {
    "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "SOURCE_DATE_EPOCH": "1700000000", "TERM": "dumb",
}  # fmt: skip
TEXTS = {".json", ".md", ".yaml", ".html", ".svg"}

CASES = tomllib.loads((ROOT / "scripts/unchanged.toml").read_text())


def make_inputs(folder: Path) -> None:
    """A small model that knows something, two changes of it, the same in bfloat16, and data."""
    import torch

    from tests.learning.known import FORGET, REST, teach

    torch.set_num_threads(1)
    known = teach()
    for name, seed in (("base", 0), ("tuned", 1), ("kept", 2)):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weights = {n: p.clone() for n, p in known.model.named_parameters()}
            for parameter in known.model.parameters() if seed else ():
                parameter += 0.003 * torch.randn(parameter.shape, generator=draw)
        known.model.save_pretrained(folder / name)
        known.model.to(torch.bfloat16).save_pretrained(folder / f"{name}16", max_shard_size="80KB")
        known.model.to(torch.float32).load_state_dict(weights)
        for checkpoint in (name, f"{name}16"):
            known.tokenizer.save_pretrained(folder / checkpoint)
    (folder / "base16/README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Base\n")
    rows = {"forget": FORGET, "rest": REST, "more": [*REST[1:], REST[0]][:3]}
    for name, examples in rows.items():
        lines = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    questions = "".join(f"{fact.prompt},{fact.completion.strip()}\n" for fact in FORGET)
    (folder / "asked.csv").write_text("question,answer\n" + questions)
    (folder / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    (folder / "odd.jsonl").write_text('{"left": "a", "right": "b"}\n')
    (folder / "prose").mkdir()
    (folder / "prose/notes.txt").write_text("Nothing.\n")
    for name, text in CASES["recipes"].items():
        (folder / name).write_text(text)


def lines(table: str) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each line."""
    for line in table.strip().splitlines():
        name, command = line[:19].strip(), line[19:]
        for word, meaning in CASES["words"].items():
            command = command.replace(word, meaning)
        yield name, shlex.split(command)


class Watch:
    """Runs commands in a directory, and notes what they say and write."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.digests = self.files()
        self.results: dict[str, dict[str, object]] = {}
        self.scrub: dict[str, str] = {str(here): "HERE"}

    def files(self) -> dict[str, str]:
        """SHA-256 of each file here."""
        digests = {}
        for path in sorted(self.here.rglob("*")):
            if path.is_file() and path.relative_to(self.here).parts[0] not in (".cache", "client"):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                digests[str(path.relative_to(self.here))] = digest
        return digests

    def plain(self, text: str) -> str:
        """Without what no two runs share."""
        for word, other in self.scrub.items():
            text = text.replace(word, other)
        # Times, and the lines of progress that a slow machine adds.
        text = re.sub(r"^[a-z][^:\n]*: [\d.,]+(?: \w+)?/\d.*\n", "", text, flags=re.M)
        # And how full the disk is.
        text = re.sub(r'("free_bytes": |free where it goes +)[\d.]+', r"\1SPACE", text)
        text = re.sub(r'("[a-z_]*seconds[a-z_]*": )[\d.e-]+', r"\1SECONDS", text)
        return re.sub(r"\b\d+(?:\.\d+)? (?:s|ms|min)\b", "SECONDS", text)

    def note(self, name: str, result: object) -> None:
        """What a command did."""
        present = self.files()
        written = {}
        for path in sorted({*present, *self.digests}):
            if present.get(path) == self.digests.get(path):
                continue
            suffix = Path(path).suffix
            if path in present and suffix in TEXTS and "tokenizer" not in path:
                written[path] = self.plain((self.here / path).read_text())
            else:
                written[path] = present.get(path, "removed")
        self.digests = present
        assert name not in self.results, name
        self.results[name] = {
            "code": result.returncode, "stdout": self.plain(result.stdout),
            "stderr": self.plain(result.stderr), "files": written,
        }  # fmt: skip


def helps() -> Iterator[list[str]]:
    """Every command that has a help of its own."""
    import typer

    from weightsurgery.cli.main import app

    def below(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, subcommand in getattr(command, "commands", {}).items():
            yield from below(subcommand, [*words, name])

    yield from below(typer.main.get_command(app), [])


def look(inputs: Path, here: Path, quick: bool) -> dict[str, dict[str, object]]:
    """What all commands say and write."""
    from tests.cli import forked
    from tests.hub.standin import HubClient, StandIn

    for entry in inputs.iterdir():
        (here / entry.name).symlink_to(entry)
    watch, begun = Watch(here), time.monotonic()
    for words in helps():
        watch.note(shlex.join(["ws", *words, "--help"]), forked.run([*words, "--help"], here))
    for name, words in (*lines(CASES["edits"]), *(() if quick else lines(CASES["trained"]))):
        result = forked.run(words, here)
        watch.note(name, result)
        print(f"{time.monotonic() - begun:5.0f} s  {name}: {result.returncode}", file=sys.stderr)
        if name == "recipe":
            (here / "r.yaml").write_text(result.stdout)
        if name == "evaluate":
            (here / "scores.json").write_text(result.stdout)
    changed = here / "changed"
    changed.mkdir()
    for path in (here / "negated").iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "config.json").write_text("{}")
    watch.digests = watch.files()
    for name, words in lines(CASES["errors"]):
        watch.note(name, forked.run(words, here))
    with StandIn() as server:
        hub = HubClient(server, here / "client")
        watch.scrub |= {server.endpoint: "HUB", server.endpoint.split("//")[1]: "HUB"}
        before: dict[str, str] = {}
        for name, words in lines(CASES["pushed"]):
            if quick and words[0] == "push" and not (here / words[1]).exists():
                continue
            result = hub.ws(*words, cwd=here)
            watch.note(name, result)
            print(
                f"{time.monotonic() - begun:5.0f} s  {name}: {result.returncode}", file=sys.stderr
            )
            stored = {
                f"{repo} {path}": (
                    watch.plain(data.decode()) if Path(path).suffix in TEXTS
                    and "tokenizer" not in path else hashlib.sha256(data).hexdigest()
                )
                for repo, entry in server.repos.items() for path, data in entry.files().items()
            }  # fmt: skip
            differing = {key: text for key, text in stored.items() if before.get(key) != text}
            watch.results[name]["hub"], before = differing, stored
    return watch.results


def differences(old: object, new: object, where: str = "") -> Iterator[str]:
    """Each difference, as lines to read."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inside = f"{where} > {key}" if where else key
            yield from differences(old.get(key), new.get(key), inside)
    elif old != new and (first := _lines(old)) != (second := _lines(new)):
        differing = difflib.unified_diff(first, second, lineterm="", n=1)
        yield f"== {where}"
        yield from (line for line in differing if not line.startswith(("---", "+++")))


def _lines(text: object) -> list[str]:
    """Of a document with its keys sorted: their order says nothing."""
    with contextlib.suppress(ValueError):
        read = json.loads(re.sub(r": (SPACE|SECONDS)\b", r': "\1"', str(text)))
        text = json.dumps(read, indent=1, sort_keys=True, ensure_ascii=False)
    return ("" if text is None else str(text)).splitlines()


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("-q", "--quick", action="store_true", help="without what trains")
    given = parser.parse_args()
    file = given.file.absolute()
    inputs = file.with_suffix(".inputs")
    os.environ.update(SETTINGS)
    if not inputs.exists():
        make_inputs(inputs)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name).resolve() / "here"
        here.mkdir()
        os.environ["WEIGHTSURGERY_CACHE"] = str(here / ".cache")
        os.environ["HF_HOME"] = str(here / ".cache/hf")
        results = look(inputs, here, given.quick)
    if not file.exists():
        file.write_text(json.dumps(results, indent=1))
        failed = sum(1 for result in results.values() if result["code"])
        print(f"{file}: {len(results)} commands, {failed} of them end in an error")
        return
    before = json.loads(file.read_text())
    if given.quick:
        before = {name: result for name, result in before.items() if name in results}
    differing = list(differences(before, json.loads(json.dumps(results))))
    print("\n".join(differing) or f"{len(results)} commands: nothing differs")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
