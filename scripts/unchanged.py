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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SETTINGS = {
    "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "SOURCE_DATE_EPOCH": "1700000000", "TERM": "dumb",
}  # fmt: skip
TEXTS = {".json", ".md", ".yaml", ".html", ".svg"}

# Name, and the command line; what one writes, later ones read.
EDITS = """
inspect            inspect base --json
inspect text       inspect base16
diff               diff base16 tuned16 --json
diff text          diff base16 tuned16
diff saved         diff base16 tuned16 -o diffed
diff html          diff base16 tuned16 --html diff.html
diff factors       diff base16 tuned16 -o diffed4 --rank 4
diff plan          diff base16 tuned16 --dry-run
subspace           subspace base16 tuned16 -o sub --rank 8
subspace energy    subspace base16 kept16 -o sub-energy --energy 0.5 --json
overlap            overlap base16 tuned16 kept16 sub --json
overlap text       overlap base16 tuned16 kept16
negate             negate base16 tuned16 -o negated --scale 0.75
negate json        negate base16 tuned16 -o negated-json --json
negate plan        negate base16 tuned16 -o none --dry-run
negate plan json   negate base16 tuned16 -o none --dry-run --json
negate factors     negate base16 sub -o negated-factors
negate saved       negate base16 diffed -o negated-saved
negate float32     negate base16 tuned16 -o negated-float32 --dtype float32
negate stochastic  negate base16 tuned16 -o negated-stochastic --rounding stochastic --seed 5
negate some        negate base16 tuned16 -o some --targets mlp --layers 1- --layer-scale 1=0.5
negate adapter     negate base16 tuned16 -o a-negated --as adapter --rank 4 --targets all-linear
negate checked     negate base tuned -o checked --check
add                add base16 tuned16:0.5 kept16:-0.25 -o added
add numbers        add base tuned -o added32 --scale 0 --json
export             export base16 sub -o adapter --scale -1
export dense       export base16 tuned16 -o adapter4 --rank 4 --targets all-linear --dtype float32
export plan        export base16 sub -o none --dry-run
by adapter         negate base16 adapter -o by-adapter
project            project base16 --forget tuned16 --keep kept16 -o projected --rank 8 --scale 2
project plan       project base16 --forget tuned16 --keep kept16 -o none --rank 8 --dry-run
project plan json  project base16 --forget tuned16 --keep kept16 -o none --dry-run --json
project left       project base16 --forget tuned16 --keep kept16 -o p-left --rank 8 --side left
project both       project base16 --forget sub --keep kept16 -o p-both --side both --keep-rank 3
project soft       project base16 --forget tuned16 --keep kept16 -o p-soft --rank 8 --side soft
project shared     project base16 --forget tuned16 --keep kept16 -o p-shared --rank 8 --side shared
project frobenius  project base16 --forget sub --keep sub-energy -o p-frobenius --side frobenius
project sum        project base16 --forget sub --keep sub-energy --keep kept16 -o p-sum --basis sum
project adapter    project base16 --forget tuned16 --keep kept16 -o p-adapter --as adapter --rank 4
learn              learn base16 --task tuned16 --keep kept16 -o learned --energy 0.8 --json
verify             verify projected
verify json        verify negated --json
recipe             run --from projected
recipe data        run --from negated --json
recipe adapter     run --from p-adapter
recipe again       run r.yaml -o projected-again
recipe typed       run typed.yaml --json
recipe plan        run typed.yaml -o elsewhere --dry-run
"""

TRAINED = """
identify           identify base forget.jsonl -o identified --steps 2 --lr 1e-3 --batch 4
identify plan      identify base forget.jsonl -o none --steps 2 --dry-run
identify plan json identify base forget.jsonl -o none --steps 2 --dry-run --json
identify joint     identify base forget.jsonl -o joint --mode joint --steps 2 --batch 4 --json
identify lora      identify base forget.jsonl -o lora --mode joint --lora-rank 2 --steps 2 --batch 4
identify literal   identify base forget.jsonl -o literal --mode literal --steps 2 --batch 4
identify inputs    identify base rest.jsonl -o statistics --mode activations
by inputs          project base --forget identified --keep statistics -o by-inputs --epsilon 0.1
neighbours         project base --forget forget.jsonl --keep rest.jsonl -o forgot $SHORT
neighbours plan    project base --forget forget.jsonl -o none $SHORT --dry-run
neighbours json    project base --forget forget.jsonl -o none $SHORT --dry-run --json
neighbours other   project base --forget asked.csv -o a-forgot --as adapter $SHORT --json
neighbours again   project base $SETS -o half --vector forgot.vector --scale 0.5 $SHORT
neighbours refused project base --forget forget.jsonl --keep rest.jsonl -o no $SMALL --budget 1e-9
taught             learn base --task more.jsonl --keep forget.jsonl -o taught $SHORT
strangers          project base --forget forget.jsonl --keep rest.jsonl -o strange $STRANGE
strangers mixed    project base --forget forget.jsonl --keep tuned -o mixed $STRANGE --json
strangers plan     project base --forget forget.jsonl --keep rest.jsonl -o none $STRANGE --dry-run
rounds             project base --forget forget.jsonl --keep rest.jsonl -o rounds $ROUNDS
learned            learn base --task forget.jsonl --keep rest.jsonl -o l $STRANGE --objective learn
verify vector      verify forgot.vector --json
recipe of data     run --from forgot
recipe of identify run --from identified
methods            unlearn --list
methods data       unlearn --list --json
npo                unlearn base --method npo $SETS -o npo --lr 1e-3 --steps 2
npo plan           unlearn base --method npo $SETS -o none --lr 1e-3 --steps 2 --dry-run
npo plan json      unlearn base --method npo $SETS -o none --steps 2 --dry-run --json
gradient ascent    unlearn base --method gradient-ascent --forget forget.jsonl -o ga --steps 1 --json
gradient diff      unlearn base --method gradient-difference $SETS -o gd --steps 1 --lora-rank 2
kul                unlearn base --method kul $SETS --unseen more.jsonl -o kul --steps 1
simnpo             unlearn base --method simnpo $SETS -o simnpo --steps 1 --set beta=0.5
kga                unlearn base --method kga $SETS --unseen more.jsonl -o kga --steps 1
eul                unlearn base --method eul $SETS -o eul --steps 1
au                 unlearn base --method au $SETS -o au --steps 1
rmu                unlearn base --method rmu $SETS -o rmu --steps 1
task vector        unlearn base --method task-vector $SETS -o tv --steps 2 --set scale=0.5
cpem               unlearn base --method cpem-lora $SETS -o cpem --steps 2 --set scale=0.5
ia3                unlearn base --method cpem-ia3 $SETS -o ia3 --steps 2 --set scale=0.5
negmerge           unlearn base --method negmerge $SETS -o negmerge --steps 1 --set scale=0.5
ethos              unlearn base --method ethos $SETS -o ethos --steps 1 --set scale=0.5
ext-sub            unlearn base --method ext-sub $SETS -o ext --steps 1 --set scale=0.5
recipe of npo      run --from npo
evaluate           evaluate forgot --against base $SETS --metric all --json
evaluate text      evaluate forgot --against base $SETS
evaluate icul      evaluate base --against base --in-context icul $SETS --json
relearn            attack relearn forgot --forget forget.jsonl --against base --steps 2 --json
relearn text       attack relearn forgot --forget forget.jsonl --steps 2
quantize           attack quantize forgot --forget forget.jsonl --method nf4 --method int8 --json
sweep              sweep base --forget tuned --keep kept $VALIDATION --scales 1,2 --ranks 4 --json
sweep text         sweep base --forget tuned --keep kept $VALIDATION --scales 1,2 --html sweep.html
"""  # noqa: E501

WORDS = {
    "$SHORT": "--steps 2 --batch 4 --neighbours 5 --wordings 0 --draws 3 --lora-rank 2"
              " --keep-weight 1 --device cpu --allow-harm",
    "$SMALL": "--steps 2 --batch 4 --neighbours 5 --wordings 0 --draws 3 --lora-rank 2"
              " --keep-weight 1 --device cpu",
    "$STRANGE": "--objective strangers --steps 2 --batch 8 --prompts 40 --allow-harm",
    "$ROUNDS": "--objective negate --rounds 2 --steps 2 --batch 8 --allow-harm",
    "$SETS": "--forget forget.jsonl --keep rest.jsonl",
    "$VALIDATION": "--forget-data forget.jsonl --keep-data rest.jsonl --threshold 0.01",
}  # fmt: skip

ERRORS = """
nowhere            inspect nowhere
no model           inspect prose
not a vector       negate base16 prose -o none
exists             negate base16 tuned16 -o negated
other dtypes       negate base tuned16 -o crossed
no command         nothing
no option          negate base16 tuned16 -o none --scal 2
no number          negate base16 tuned16 -o none --scale x
no dtype           negate base16 tuned16 -o none --dtype float12
no tensor          negate base16 tuned16 -o none --include nothing
bad pattern        negate base16 tuned16 -o none --layers x
both ranks         subspace base16 tuned16 -o none --rank 2 --energy 0.5
no rank            subspace base16 tuned16 -o none
bad side           project base16 --forget tuned16 --keep kept16 -o none --side up
keeps nothing      project base16 --forget tuned16 -o none
no room            project base16 --forget base16 --keep kept16 -o none
dense adapter      negate base16 tuned16 -o none --as adapter
mixed up           project base16 --forget tuned16 --keep kept16 -o none --steps 4
no data            identify base nowhere.jsonl -o none
bad data           identify base bad.jsonl -o none
odd columns        identify base odd.jsonl -o none
no such method     unlearn base --method nothing --forget forget.jsonl -o none
no such setting    unlearn base --method npo $SETS -o none --set nothing=1
needs unseen       unlearn base --method kul $SETS -o none
changed            verify changed
no record          verify base16
bad recipe         run bad.yaml
bad type           run type.yaml
doubled            run twice.yaml
other place        run away.yaml
mistyped option    run short.yaml
recipe and from    run r.yaml --from negated
nothing to run     run
no recipe          run --from base16
bad scores         evaluate base --forget forget.jsonl --metric nothing
no steps           attack relearn forgot --forget forget.jsonl --steps 0
no such rounding   attack quantize forgot --forget forget.jsonl --method int3
bad grid           sweep base --forget tuned --keep kept $VALIDATION --scales x
no bench           bench --world nothing
pushes nothing     push base16 owner/name
"""

PUSHED = """
push plan          push projected owner/projected --dry-run
push plan json     push projected owner/projected --dry-run --json
push               push projected owner/projected --json
push text          push negated owner/negated
push again         push negated owner/negated
push scored        push forgot owner/forgot --scores scores.json
push adapter       push adapter owner/adapter
push vector        push forgot.vector owner/vector
push unlearned     push npo owner/npo
push merged        push tv owner/tv
push sum           push added owner/added
push learned       push learned owner/learned
push statistics    push statistics owner/statistics
push pull request  push some owner/negated --pr --json
push over          push some owner/negated
push denied        push some stranger/model
remote inspect     inspect owner/negated --json
remote diff        diff base16 owner/negated --include *layers.0* --json
"""

RECIPES = {
    "typed.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nvectors: [tuned16]\n"
                  "out: typed\nscale: 0.7\nlayer-scale: [0=0.5, '*.mlp.*=0']\n",
    "bad.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nvectors: [tuned16]\nout: o\n"
                "scael: 1\n",
    "type.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nvectors: [tuned16]\nout: o\n"
                 "scale: [1]\n",
    "twice.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nbase: tuned16\n",
    "away.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nvectors: [tuned16]\n"
                 "out: ../o\n",
    "short.yaml": "weightsurgery: 1\ncommand: negate\nbase: base16\nvectors: tuned16\nout: o\n"
                  "dtype: float12\n",
}  # fmt: skip


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
    for name, text in RECIPES.items():
        (folder / name).write_text(text)


def lines(table: str) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each line."""
    for line in table.strip().splitlines():
        name, command = line[:19].strip(), line[19:]
        for word, meaning in WORDS.items():
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
    for name, words in (*lines(EDITS), *(() if quick else lines(TRAINED))):
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
    for name, words in lines(ERRORS):
        watch.note(name, forked.run(words, here))
    with StandIn() as server:
        hub = HubClient(server, here / "client")
        watch.scrub |= {server.endpoint: "HUB", server.endpoint.split("//")[1]: "HUB"}
        before: dict[str, str] = {}
        for name, words in lines(PUSHED):
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
