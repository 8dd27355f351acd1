"""The TOFU study's attacks: what is trained on and asked, and that they go on after a kill."""

from dataclasses import replace

import pytest

from tests.cli.typed import Command
from tests.lab.test_tofu_study import TINY, files, tofu_data, tofu_steps, tofu_study  # noqa: F401
from tests.learning import tiny
from tests.learning.conftest import TEMPLATE

import tofu_probes  # isort: skip
import tofu_robust  # isort: skip
import tofu_robust_tables  # isort: skip


@pytest.mark.parametrize("size", [tofu_data.FULL, tofu_data.SMALL])
def test_no_attacker_has_what_is_scored(files, size):  # noqa: F811
    dealt = tofu_data.deal(files, size)
    found = tofu_probes.attackers(files, size, dealt)
    asked = {name: {row["question"] for row in rows} for name, rows in (dealt | found).items()}
    assert len(found["attack.forget"]) == 2 * size.forget
    assert asked["attack.forget"] < asked["choose.forget"]
    assert asked["attack.keep"] == asked["keep"]
    assert len(found["attack.new"]) == 20 * size.forget
    assert not asked["attack.new"] & (asked["taught"] | asked["holdout"])
    assert not (asked["attack.forget"] | asked["attack.keep"]) & asked["score.forget"]
    assert all(set(row) == {"question", "answer"} for rows in found.values() for row in rows)


def test_prompts_are_the_scored_questions_in_other_clothes(files):  # noqa: F811
    dealt = tofu_data.deal(files, tofu_data.FULL)
    found = tofu_probes.prompts(dealt)
    assert set(found) == {
        f"prompts.{name}" for name in (*tofu_probes.WRAPPINGS, "pair_forget", "pair_keep")
    }
    for n, row in enumerate(dealt["score.forget"]):
        lines = {name: rows[n] for name, rows in found.items()}
        assert lines["prompts.plain"]["prompt"] == row["question"]
        assert lines["prompts.paraphrased"]["prompt"] == "in other words?"
        assert lines["prompts.leading"]["prompt"] == f"Answer truthfully. {row['question']}"
        hint, question = lines["prompts.hint"]["prompt"].split("\n")
        number, of = (int(text.split()[1].rstrip("?")) for text in (hint, row["question"]))
        assert question == row["question"]
        assert number // 20 == of // 20  # about the same author
        assert number % 5 in (1, 3)  # and not scored
        assert lines["prompts.chat"]["messages"][0]["content"] == row["question"]
        keep = dealt["score.keep"][n]["question"]
        assert lines["prompts.pair_forget"]["prompt"] == f"{keep} {row['question']}"
        assert lines["prompts.pair_forget"]["completion"] == f" {row['answer']}"
        assert lines["prompts.pair_keep"]["prompt"] == f"{row['question']} {keep}"


@pytest.fixture
def study(files, tmp_path, capsys, monkeypatch):  # noqa: F811
    """A way to make the study of a tiny model; `study.ran` are the commands, of which some die."""
    base = tiny.save(tiny.tiny("llama", max_position_embeddings=512), tmp_path / "base")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    ws = Command(capsys, monkeypatch)

    def make(**settings):
        return tofu_study.Study(
            base, files, tmp_path / "work", replace(TINY, epochs=1, steps=2, candidates=1), 0,
            **settings,
        )  # fmt: skip

    def in_process(self, name, command, stdout):
        make.ran.append(name)
        if len(make.ran) in make.dies:
            raise KeyboardInterrupt
        out, _ = ws.done(*command)
        if stdout is not None:
            stdout.write_text(out)
        self.noted(name, command, 1.0)

    monkeypatch.setattr(tofu_steps.Runner, "_run", in_process)
    make.ran, make.dies, make.data, make.work = [], (), files, tmp_path / "work/small/seed0"
    return make


def test_models_are_attacked_and_asked(study, monkeypatch):
    monkeypatch.setattr(tofu_robust, "LOOKS", (1, 3))
    monkeypatch.setattr(tofu_robust, "TOKENS", 4)
    made = study(keeping=True)
    made.references()
    rows = [made.measure(each) for each in tofu_study.systems() if each.name == "negate"]
    (kept,) = [path.name for path in study.work.glob("negate.*")]
    assert made.chosen_of(rows[0])[0] == kept
    count = len(study.ran)
    study.dies = [count + 2, count + 11]
    for _ in study.dies:
        with pytest.raises(KeyboardInterrupt):
            tofu_robust.Robust(made, study.data).models(rows)
    assert (study.work / kept).is_dir()
    made.run.drop(kept)
    found = tofu_robust.Robust(made, study.data).models(rows)
    assert list(found) == ["taught", "retrained", "negate"]
    assert not (study.work / kept).exists()
    # Three models, five commands each; the reference; the model that was gone, and two deaths.
    assert len(study.ran) == count + 3 * 5 + 1 + 1 + 2
    for figures in found.values():
        assert list(figures["rounded"]) == ["before", "nf4", "int8", "int4"]
        before = figures["rounded"]["before"]["probability"]
        assert figures["rounded"]["int4"]["probability"] != before
        for curve in figures["trained"].values():
            assert list(curve) == ["before", "1", "2"]
            assert curve["before"]["probability"] == pytest.approx(before, rel=1e-2)
            assert curve["2"]["probability"] != curve["before"]["probability"]
        asked = figures["asked"]
        assert asked["worst"] >= max(asked[name] for name in tofu_probes.WRAPPINGS)
    assert found["retrained"]["rounded"]["before"]["forget_quality"] == 1
    assert found["taught"]["rounded"]["before"]["forget_quality"] <= 1
    count = len(study.ran)
    assert tofu_robust.Robust(made, study.data).models(rows) == found
    assert len(study.ran) == count
    found["broken"] = {"failed": "ws attack\nNaN\nLower the rate."}
    text = tofu_robust_tables.render_robust(found)
    asked = found["negate"]["asked"]
    assert f"| {asked['worst']:.3f} | {asked['pair_forget']:.3f} |" in text
    assert f"| {found['taught']['trained']['new']['2']['probability']:.3f} |\n" in text
    assert "broken failed: Lower the rate." in text
