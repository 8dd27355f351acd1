"""Model cards: what they say, and that nobody's words break out of their place."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.hub.standin import check_card
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import DataError, HubError
from weightsurgery.lab.bench.figures import figure, worst_drift
from weightsurgery.lab.bench.results import read_bench
from weightsurgery.report import card_text
from weightsurgery.report.card import Base, Place, card_section, front_matter
from weightsurgery.report.card_figures import layer_bars, layer_picture
from weightsurgery.report.card_limits import YARDSTICK, limits, measured
from weightsurgery.report.card_merge import BEGIN, END, merge_card, split_card
from weightsurgery.report.card_method import provenance_of
from weightsurgery.report.card_scores import read_scores, score_tables, scores_file
from weightsurgery.unlearning.methods import SYSTEMS

HOSTILE = (
    "a|b", "`tick`", "``", "[link](http://evil.example)", "<script>alert(1)</script>", "a\nb",
    "\n---\nlicense: mit\n---\n", BEGIN, END, "x --> y", "**bold**", "_under_score_", "\\|", "&lt;",
    "```\n# heading", "'; rm -rf ~ #", "$(date)", "\u202eback", "\x00\x07", "~~gone~~", "| --- |",
    "<!--", "*", "![x](y)", "http://evil.example", "@someone", "#1", "  ", "\ud7ff\u2028",
)  # fmt: skip
MARKDOWN = MarkdownIt("commonmark").enable("table")


def record(kind="checkpoint", command=("ws", "negate", "base", "tuned", "-o", "out"), **more):
    """A record such as `ws negate` writes."""
    given = {
        "parameters": {"scale": 0.5, "selection": {"targets": "all"}, "storage": {"dtype": None}},
        "inputs": {
            "base": {"kind": "checkpoint", "name": "org/base@main", "revision": "a" * 40},
            "vector": {"kind": "finetuned", "name": "tuned", "revision": None, "factor": 1.0},
        },
        "files": {
            "model.safetensors": {"sha256": "1" * 64, "bytes": 100},
            "config.json": {"sha256": "2" * 64, "bytes": 10},
        },
        "tensors": {
            f"model.layers.{layer}.mlp.up_proj.weight": {"relative_change": 0.1 * (layer + 1)}
            for layer in range(3)
        },
        "summary": {"relative_change": 0.2, "edited": 3, "copied": 1, "edit_check": 0.98},
        "lineage": [{"vector": "tuned", "verdict": "related", "cosine": 0.99}],
        "versions": {"weightsurgery": "0.1.0"},
    }
    return EditRecord(kind, list(command), **{**given, **more})


def whole(made, base=None, place=None, existing=None):
    base = base or Base("org/base", "a" * 40, {"license": "mit", "language": ["en"]})
    place = place or Place("me/edited")
    return merge_card(
        existing,
        "README.md",
        front_matter(made, base),
        lambda alone: card_section(made, base, place, alone),
    )


def text_of(html: str) -> str:
    """What a reader sees."""
    from html import unescape

    return unescape(re.sub(r"<[^>]*>", "", html))


# --- names ---------------------------------------------------------------------------------------


@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40)))
def test_any_name_is_one_cell_that_shows_it(name):
    for written in (card_text.code, card_text.literal):
        text = card_text.table(("a", "b"), [(written(name), "end")], frozenset({0}))
        html = MARKDOWN.render(text)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", html, re.S)
        assert len(cells) == 2
        assert cells[1] == "end"
        assert not re.search(r"<(?!/?code>)", cells[0])  # nothing but code became markup
        assert BEGIN not in text
        assert END not in text
        shown = text_of(cells[0])
        visible = [letter for letter in name if letter.isprintable() and not letter.isspace()]
        if visible:
            assert [letter for letter in shown if letter in visible] == visible
        assert all(letter.isprintable() for letter in shown)


def test_without_escapes_names_do_break_out():
    html = MARKDOWN.render(card_text.table(("a", "b"), [("x|<script>", "end")], frozenset()))
    assert re.findall(r"<td[^>]*>(.*?)</td>", html, re.S) != ["x|&lt;script&gt;", "end"]


def test_the_command_is_the_command():
    words = ["ws", "negate", *(name for name in HOSTILE if "\x00" not in name and "/" not in name)]
    told = card_text.shown_command(words, frozenset())
    assert "\n" not in told
    assert "<!--" not in told
    assert "`" not in told
    script = f"printf '%s\\0' {told}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode().split("\0")[:-1] == words


def test_paths_are_shown_by_their_last_part():
    command = [
        "ws", "project", "/home/alice/base", "--forget=/home/alice/secret/authors.jsonl", "--keep",
        "../bob/painters:2", "--keep", "org/keep@v1:0.5", "-o", "~/out", "--include", "*.mlp.*",
    ]  # fmt: skip
    told = card_text.shown_command(command, frozenset({"org/keep@v1"}))
    assert shlex.split(told) == [
        "ws", "project", "base", "--forget=authors.jsonl", "--keep", "painters:2", "--keep",
        "org/keep@v1:0.5", "-o", "out", "--include", "*.mlp.*",
    ]  # fmt: skip
    inputs = {
        "base": {"kind": "checkpoint", "name": "/home/alice/base", "revision": None},
        "forget": {"kind": "finetuned", "name": "/home/alice/secret/ft", "factor": 1.0},
        "keep1": {"kind": "finetuned", "name": "org/keep@v1", "revision": "b" * 40, "factor": 1.0},
    }
    data = {"forget": {"name": "/home/alice/secret/authors.jsonl", "sha256": {}}}
    lineage = [{"vector": "/home/alice/x", "verdict": "unknown", "evidence": "/home/alice/y"}]
    made = record(command=command, inputs=inputs, lineage=lineage, parent={"name": "/home/alice/b"})
    made.parameters = {**made.parameters, "data": data}
    text = whole(made, base=Base()).text
    assert "alice" not in text
    assert "bob" not in text
    assert "`authors.jsonl`" in text
    assert "last part of their path" in text
    published = card_text.without_paths(made)
    assert "alice" not in published.to_json()
    assert "bob" not in published.to_json()
    assert published.inputs["keep1"] == inputs["keep1"]
    assert published.inputs["forget"]["name"] == "ft"
    assert (published.files, published.tensors) == (made.files, made.tensors)
    again = card_text.without_paths(published)
    assert again is published


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "task-vector", "activation-statistics"])
def test_hostile_names_stay_in_their_places(name, kind):
    factor = {"factor": 1.0}
    made = record(
        kind,
        command=("ws", "project", name, "--keep", name),
        inputs={
            "base": {"kind": name, "name": name, "revision": None},
            "forget": {"kind": name, "name": name, "revision": name or "x", **factor},
            "keep1": {"kind": name, "name": [name, name], "revision": None},
            name: {"kind": "data", "name": name},
        },
        parameters={
            "rank": name,
            "side": name,
            "basis": name,
            "rule": name,
            "mode": name,
            "edit": name,
            "selection": {"targets": name, "include": [name], "layers": name},
            "storage": {"rounding": name, "dtype": name},
            "data": {"forget": {"name": name}, name: {"name": name}},
        },
        files={name: {"sha256": name, "bytes": 1}},
        tensors={name: {"norm": 1.0}, f"model.layers.0.{name}": {"relative": 1.0}},
        lineage=[{"vector": name, "verdict": name, "cosine": None}],
        versions={name: name},
        summary={"left_out": [name], "tensors": 1, "rank": 1},
        parent={"name": name},
    )
    scores = {
        "against": name,
        "sets": [{"name": name, "role": name, "examples": 1, "scores": {
            name: {"value": 0.5, "interval": [0.4, 0.6]}}}],
        "tasks": [{"task": name, "metric": name, "value": 1.0}],
    }  # fmt: skip
    place = Place("me/edited", scores=[scores])
    text = whole(made, place=place).text
    html = MARKDOWN.render(text.partition(END)[0].partition(BEGIN)[2])
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.count("-->") == 3
    assert "<script" not in html
    assert "<img" not in html
    assert set(re.findall(r'href="([^"]*)"', html)) <= {
        "https://arxiv.org/abs/2212.04089",
        "https://arxiv.org/abs/2408.04140",
        "https://arxiv.org/abs/2311.15766",
    }
    assert check_card(text) == ([], [])
    assert ModelCard(text).data.base_model == "org/base"
    for drawn in re.findall(r"<table>.*?</table>", html, re.S):
        widths = {len(re.findall("<t[dh]", row)) for row in re.findall("<tr>.*?</tr>", drawn, re.S)}
        assert len(widths) == 1
    headings = re.findall(r"<h\d>(.*?)</h\d>", html)
    plain = Place("me/edited", scores=[{"against": None, "sets": []}])
    expected = card_section(record(kind), Base("org/base"), plain, True)
    assert headings == re.findall(r"<h\d>(.*?)</h\d>", MARKDOWN.render(expected))
    assert whole(made, place=place, existing=text).text == text


# --- what it says --------------------------------------------------------------------------------


def test_front_matter():
    base = Base(
        "org/base",
        "a" * 40,
        {
            "license": "other",
            "license_name": "llama3.2",
            "license_link": "LICENSE",
            "language": ["en", "de"],
            "pipeline_tag": "text-generation",
            "tags": ["not-ours"],
            "datasets": ["x/y"],
        },
    )
    front = front_matter(record(), base)
    assert front == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "pipeline_tag": "text-generation",
        "tags": ["weightsurgery", "task-arithmetic", "unlearning"],
    }
    adapter = front_matter(record("adapter", ("ws", "export", "base", "sub")), base)
    assert adapter["base_model_relation"] == "adapter"
    assert adapter["library_name"] == "peft"
    assert "lora" in adapter["tags"]
    vector = front_matter(record("task-vector", ("ws", "diff", "base", "sub")), base)
    assert vector["library_name"] == "weightsurgery"
    assert "base_model_relation" not in vector
    assert "pipeline_tag" not in vector
    unknown = front_matter(record(), Base())
    assert set(unknown) == {"library_name", "tags"}


@pytest.mark.parametrize(
    ("made", "sign", "removed"),
    [
        (record(), -1, True),
        (record(command=("ws", "add", "base", "tuned")), 1, False),
        (record(command=("ws", "project", "base")), -1, True),
        (record(parameters={"scale": -0.5}), 1, False),
        (record("adapter", ("ws", "export", "base", "x")), 1, False),
        (record("adapter", ("ws", "negate", "base", "x", "--as", "adapter")), -1, True),
    ],
)
def test_what_was_removed_and_what_was_added(made, sign, removed):
    assert provenance_of(made).sign == sign
    text = whole(made).text
    assert (("**removed** | `tuned`" in text), ("**added** | `tuned`" in text)) == (
        removed,
        not removed,
    )
    assert ("unlearning" in front_matter(made, Base())["tags"]) == removed
    assert ("without `tuned`" in text) == removed
    assert ("with `tuned` added" in text) != removed


def test_a_negative_factor_is_the_opposite():
    inputs = {
        "base": {"name": "b"},
        "vector.1": {"name": "gone", "factor": 2.0},
        "vector.2": {"name": "come", "factor": -1.0},
    }
    text = whole(record(inputs=inputs)).text
    assert "**removed** | `gone`" in text
    assert "**added** | `come`" in text


def test_methods_and_papers():
    negate = whole(record()).text
    assert "`W' = W − λT`, with `λ = 0.5`" in negate
    assert "arxiv.org/abs/2212.04089" in negate
    given = {"scale": 2.0, "rank": "64", "side": "right", "basis": "joint", "epsilon": 0.1}
    inputs = {
        "base": {"name": "b"},
        "forget": {"name": "f", "factor": 1.0},
        "keep1": {"name": "k"},
        "keep_inputs1": {"name": "s"},
    }
    project = whole(record(command=("ws", "project"), parameters=given, inputs=inputs)).text
    for words in ("**reconstruction** of UNLEARN", "2408.04140", "`T' = T (I − P_V)`", "ρ = 0.1",
                  "`W' = W − λT'`, with `λ = 2`", "keeping `k` and `s`"):  # fmt: skip
        assert words in project
    del inputs["keep_inputs1"]
    given = {**given, "side": "soft"}
    soft = whole(record(command=("ws", "project"), parameters=given, inputs=inputs)).text
    assert "`T' = T ρ(C + ρI)⁻¹` with `C = Σ T_jᵀ T_j`" in soft
    assert "`ρ = 0.1 · tr(C)/n`" in soft
    assert "By activations" not in soft
    assert "P_V" not in soft
    given = {"edit": "learn", "objective": "learn", "epsilon": 0.001, "scale": 1.0,
             "data": {"task": {"name": "n.jsonl"}, "keep_data1": {"name": "k.jsonl"}}}  # fmt: skip
    learned = whole(record(command=("ws", "learn"), parameters=given)).text
    assert "`W' = W + λT`" in learned
    assert "with `n.jsonl` added, keeping `k.jsonl`" in learned
    assert "No guarantee of erasure" in negate
    assert "No guarantee of erasure" not in learned


def test_snippets_name_what_is_to_be_loaded():
    llama = Place("me/edited", architecture="LlamaForCausalLM")
    text = whole(record(), place=llama).text
    assert 'AutoModelForCausalLM.from_pretrained("me/edited", dtype="auto")' in text
    assert "AutoTokenizer" not in text  # none is among the files
    text = whole(record(), place=Place("me/edited", "side")).text
    assert 'AutoModel.from_pretrained("me/edited", revision="side", dtype="auto")' in text
    text = whole(record("adapter")).text
    assert f'.from_pretrained("org/base", revision="{"a" * 40}")' in text
    assert 'PeftModel.from_pretrained(base, "me/edited")' in text
    assert "ws add org/base me/edited" in whole(record("task-vector")).text


def test_lineage_that_is_in_doubt_is_told():
    lineage = [{"vector": "tuned", "verdict": "unrelated", "cosine": 0.01}]
    assert (
        "Lineage of `tuned`: **unrelated** (median cosine 0.010)"
        in whole(record(lineage=lineage)).text
    )
    assert "Lineage of" not in whole(record()).text


def test_where_the_weights_changed():
    made = record()
    bars = layer_bars(made)
    lengths = [line.count("█") for line in bars.splitlines() if line.startswith("layer")]
    assert lengths == [11, 21, 32]
    assert "30.00 %" in bars
    picture = layer_picture(made)
    assert picture.startswith(b"\x89PNG")
    assert layer_picture(made) == picture
    assert layer_picture(record(tensors={})) is None
    assert layer_bars(record(tensors={})) == ""
    assert "█" in whole(made).text
    assert "weightsurgery-layers.png" in whole(made, place=Place("me/e", picture=True)).text


ROOT = Path(__file__).parents[2]


def test_the_yardstick_is_what_was_measured():
    """Each row from the outcomes themselves; and the tables of the pages show nothing else."""
    found = read_bench(ROOT / "scripts" / "reproduce" / "results" / "systems.json")
    rows = {}
    for method, _, outcomes in found.by_row():
        assert len({each.seed for each in outcomes}) == 3
        rows[method] = (
            figure(outcomes, lambda each: 100 * each.target),
            figure(outcomes, worst_drift),
            figure(outcomes, lambda each: 100 * each.rounded["target"]),
            figure(outcomes, lambda each: 100 * each.relearned["rest"]),
        )
    assert {method: row[1:] for method, row in YARDSTICK.items()} == {
        method: rows[method] for method in YARDSTICK
    }
    shown = []
    for line in (ROOT / "docs/yardsticks.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 7 and "±" in line:
            shown.append((cells[1], *cells[3:6]))
    assert len(shown) > 20
    assert set(shown) <= set(rows.values())
    short = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))[1:]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and "±" in line
    ]
    assert len(short) > 5
    assert set(short) <= {(left, drift, again) for left, drift, _, again in shown}


@pytest.mark.parametrize("method", SYSTEMS)
def test_every_system_s_card_says_what_the_yardstick_measured(method):
    given = {"edit": "unlearn", "method": method, "settings": {}}
    row = measured(record(parameters=given))
    assert row == YARDSTICK.get(method)
    if row is not None:
        assert f"{row.label} left {row.left} %" in limits(record(parameters=given))
    assert measured(record(parameters={**given, "method": "another"})) is None


def test_the_yardstick_measured_the_systems_of_the_survey():
    assert len(set(SYSTEMS) & set(YARDSTICK)) == 15  # newer ones have no figures yet


def test_which_row_a_card_shows():
    assert measured(record()) == YARDSTICK["negate"]
    assert measured(record(command=["ws", "add", "b", "v", "-o", "o"])) is None
    npo = {"edit": "unlearn", "method": "npo", "settings": {"retain": "klr"}}
    assert measured(record(parameters=npo)) == YARDSTICK["npo-klr"] != YARDSTICK["npo"]
    project = ["ws", "project", "b", "-o", "o"]
    by_vectors = record(command=project, inputs={"forget": {}, "keep": {}})
    assert measured(by_vectors) == YARDSTICK["right"]
    other_side = {"command": project, "inputs": by_vectors.inputs, "parameters": {"side": "left"}}
    assert measured(record(**other_side)) is None
    soft = {**other_side, "parameters": {"side": "soft", "epsilon": 0.1}}
    assert measured(record(**soft)) == YARDSTICK["weights-ridge"]
    by_inputs = record(command=project, inputs={"forget": {}, "keep_inputs": {}})
    assert measured(by_inputs) == YARDSTICK["activations"]
    from_data = {"edit": "project", "data": {}}
    assert measured(record(parameters=from_data)) == YARDSTICK["subspace"]
    by_neighbours = {**from_data, "objective": "neighbours"}
    assert measured(record(parameters=by_neighbours)) is None  # a method for real models
    negated = {**from_data, "objective": "negate"}
    assert measured(record(parameters=negated)) == YARDSTICK["rounds"]


# --- a user's own card ---------------------------------------------------------------------------

OWN = (
    "---\n# chosen with care\nlicense: apache-2.0   # mine\ntags:\n  - mine   # first\n\n"
    "widget:\n- text: >-\n    a\n    b\n---\n\nHello  \n\n---\n\n  world\n"
)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_a_user_s_words_stay_byte_for_byte(body, line, with_front):
    body = body.replace("\r", "").replace("\n", line)
    head = f"---{line}title: x{line}---{line}" if with_front else ""
    if not with_front and re.match(r"\ufeff?---[ \t]*\r?\n", body):
        return  # that is front matter
    first = whole(record(), existing=head + body).text
    assert body in first
    outside = first[: first.index(BEGIN)] + first[first.index(END) + len(END) :]
    front, words = split_card(first, "README.md")
    assert words.strip() == body.removeprefix("\ufeff").strip()
    assert ("title" in front) == with_front
    assert front["license"] == "mit"
    assert len(outside) > len(body)
    second = whole(record(), existing=first)
    assert second.text == first
    third = whole(record(command=("ws", "add", "base", "tuned")), existing=first).text
    assert third != first
    assert split_card(third, "README.md")[1] == words


def test_front_matter_that_a_user_set_wins():
    merged = whole(record(), existing=OWN)
    assert merged.text.startswith(
        "---\n# chosen with care\nlicense: apache-2.0   # mine\ntags:\n- mine\n- weightsurgery\n"
        "- task-arithmetic\n- unlearning\n\nwidget:\n- text: >-\n    a\n    b\n"
        "base_model: org/base\n"
    )
    assert "\n---\n\nHello  \n\n---\n\n  world\n" in merged.text
    assert "## How this was made" in merged.text
    assert "\n# " not in merged.text.partition("---\n\nHello")[2]
    assert any("license" in text for text in merged.notices)
    assert any("your text stays" in text for text in merged.notices)
    assert check_card(merged.text) == ([], [])
    assert ModelCard(merged.text).data.license == "apache-2.0"


def test_what_is_ours_may_change_and_what_is_theirs_may_not():
    first = whole(record(), existing=OWN).text
    other = Base("org/other", "b" * 40, {"license": "gpl-3.0"})
    made = record(command=("ws", "add", "base", "tuned"))
    second = whole(made, base=other, existing=first).text
    front, _ = split_card(second, "README.md")
    assert front["base_model"] == "org/other"
    assert front["license"] == "apache-2.0"
    assert "language" not in front
    assert front["tags"] == ["mine", "weightsurgery", "task-arithmetic"]
    mine = first.replace("base_model: org/base", "base_model: my/choice")
    front, _ = split_card(whole(made, base=other, existing=mine).text, "README.md")
    assert front["base_model"] == "my/choice"
    assert "base_model_relation" not in front


def test_a_licence_of_the_user_s_takes_no_name_of_the_base_s():
    base = Base("org/base", None, {"license": "other", "license_name": "x", "license_link": "y"})
    front, _ = split_card(whole(record(), base=base, existing=OWN).text, "README.md")
    assert front["license"] == "apache-2.0"
    assert not {"license_name", "license_link"} & set(front)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"a {BEGIN} b", "once"),
        (f"{END} a {BEGIN}", "once"),
        (f"{BEGIN}{END}{BEGIN}{END}", "once"),
        ("---\na: [\n---\n", "no YAML"),
        ("---\n- a\n---\n", "no mapping"),
        ("---\n1: a\n---\n", "no mapping"),
    ],
)
def test_damaged_cards_are_refused(text, what):
    with pytest.raises(HubError, match=what):
        whole(record(), existing=text)


@pytest.mark.parametrize(
    "front",
    ["{a: 1, tags: [x]}", "tags: x", "tags:", "'tags': [x]", "a: |\n  # x"],
)
def test_front_matter_in_other_clothes(front):
    import yaml

    before = yaml.safe_load(f"{front}\n")
    found, _ = split_card(whole(record(), existing=f"---\n{front}\n---\nx").text, "README.md")
    assert {key: found[key] for key in before if key != "tags"} == {
        key: value for key, value in before.items() if key != "tags"
    }
    theirs = before.get("tags") or []
    theirs = [theirs] if isinstance(theirs, str) else theirs
    assert found["tags"] == [*theirs, "weightsurgery", "task-arithmetic", "unlearning"]


# --- scores --------------------------------------------------------------------------------------


def evaluation(checkpoint, **more):
    def estimate(value, low, high):
        return {"value": value, "interval": [low, high], "examples": 10, "why": ""}

    return {
        "checkpoint": str(checkpoint),
        "against": "/home/alice/base",
        "sets": [
            {
                "name": "/home/alice/authors.jsonl", "path": "/home/alice/authors.jsonl",
                "role": "forget", "examples": 10, "chance": 0.1,
                "scores": {"exact_match": estimate(0.1, 0.0, 0.3)},
                "before": {"exact_match": estimate(1.0, 1.0, 1.0)},
                "forgetting": {"exact_match": estimate(90.0, 70.0, 100.0)},
                "normalised_forgetting": {}, "drift": None,
            },
            {
                "name": "painters", "path": "painters.jsonl", "role": "keep", "examples": 10,
                "chance": 0.1, "scores": {"perplexity": estimate(2.5, 2.0, 3.0)},
                "before": {"perplexity": estimate(2.0, 1.5, 2.5)}, "forgetting": None,
                "normalised_forgetting": None, "drift": {"perplexity": estimate(0.25, 0.1, 0.4)},
            },
        ],
        "tasks": [],
        **more,
    }  # fmt: skip


def test_scores_become_a_table(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(evaluation(out)))
    found = read_scores(file, out)
    text = score_tables([found])
    assert (
        "| `authors.jsonl` | forget | 10 | exact match | 100.0 % [100.0, 100.0]"
        " | 10.0 % [0.0, 30.0] | forgotten 90.0 % [70.0, 100.0] |"
    ) in text
    assert "perplexity | 2 [1.5, 2.5] | 2.5 [2, 3] | drift 25.0 % [10.0, 40.0] |" in text
    assert "alice" not in text
    kept = scores_file([found]).decode()
    assert "alice" not in kept
    assert str(tmp_path) not in kept
    assert json.loads(kept)[0]["sets"][0]["scores"] == found["sets"][0]["scores"]
    assert text in whole(record(), place=Place("me/edited", scores=[found])).text


def test_a_real_evaluation_is_read(tmp_path):
    """What the library's own dataclasses become under --json."""
    from dataclasses import asdict

    from weightsurgery.learning.evaluate import Evaluation, SetScores
    from weightsurgery.learning.harness import TaskScore
    from weightsurgery.learning.intervals import Estimate

    some = {"exact_match": Estimate(0.5, (0.25, 0.75), 4), "el": Estimate(None, None, 0, "short")}
    sets = (
        SetScores("f", "f.jsonl", "forget", 4, 0.0, some, some, some, {}, None),
        SetScores("k", "k.jsonl", "keep", 4, 0.0, some, some, None, None, some),
        SetScores("alone", "k.jsonl", "keep", 4, 0.0, some),
    )
    found = asdict(Evaluation(str(tmp_path), "org/base", sets, 10, True, 0, 2000))
    found["tasks"] = [asdict(TaskScore("arc", "acc,none", 0.5, 0.1, 0.6, None))]
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(found))
    text = score_tables([read_scores(file, tmp_path)])
    assert "| `f` | forget | 4 | exact match | 50.0 % [25.0, 75.0] | 50.0 % [25.0, 75.0] |" in text
    assert "| EL | – | – |" in text
    assert "drift 50.0 % [25.0, 75.0]" in text
    assert "| `arc` | `acc,none` | 0.6000 | 0.5000 ± 0.1000 |" in text
    assert "Before: `org/base`." in text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not json", "no JSON"),
        ("[]", "no document"),
        ('{"checkpoint": "OUT"}', "no document"),
        ('{"checkpoint": "OUT", "against": null, "sets": []}', "no scores"),
        ('{"checkpoint": "OUT", "against": null, "sets": [{"name": "a"}]}', "no document"),
        ('{"checkpoint": "elsewhere", "against": null, "sets": []}', "elsewhere"),
        (None, "No such file"),
    ],
)
def test_other_documents_are_no_scores(tmp_path, content, what):
    file = tmp_path / "scores.json"
    if content is not None:
        file.write_text(content.replace("OUT", str(tmp_path)))
    with pytest.raises(DataError, match=what):
        read_scores(file, tmp_path)


def test_scores_in_a_context_are_none_of_the_output(tmp_path):
    from dataclasses import asdict

    from weightsurgery.learning.evaluate import Evaluation

    found = asdict(Evaluation(str(tmp_path), "org/base", (), 10, True, 0, 2000))
    found["tasks"] = [{"task": "t", "metric": "m", "value": 0.5}]
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(found))
    assert read_scores(file, tmp_path)["contexts"] is None
    found["contexts"] = {"method": "icul", "shots": 4, "weights": "unchanged"}
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match="asked in a context"):
        read_scores(file, tmp_path)


def test_broken_numbers_are_no_scores(tmp_path):
    found = evaluation(tmp_path)
    found["sets"][0]["scores"]["exact_match"]["interval"] = [0.1]
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match="no document"):
        read_scores(file, tmp_path)


@pytest.mark.parametrize(
    "front",
    [
        "license: &a [*a]",
        "license: &a {b: *a}",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlicense: *c",
        "x: &x {license: mit}\n<<: *x",
        "license: " + "[" * 5000,
        "license: " + "a" * (1 << 20),
    ],
)
def test_front_matter_that_stands_for_more_than_it_is(front):
    with pytest.raises(HubError) as error:
        split_card(f"---\n{front}\n---\n# Card\n", "org/base/README.md")
    assert "org/base/README.md: its front matter" in error.value.what
    assert len(error.value.what) < 500


def test_front_matter_with_aliases_is_refused():
    """They stand for as much as they like, ten-fold a level, and themselves included."""
    for front in ("a: &k [x]\ntags: *k", "license: &k [*k]"):
        with pytest.raises(HubError, match="aliases"):
            whole(record(), existing=f"---\n{front}\n---\nx")
