"""--dequantize, and what is said before an edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.test_dequantised import model
from tests.checkpoint.test_remarks import config
from tests.checkpoint.test_remarks import model as plain
from tests.conftest import read_tensors, same_bytes, write_checkpoint


@pytest.mark.parametrize("scales", [True, False], ids=["scales", "no scales"])
def test_the_advice_of_the_refusal_works(done, refused, scales: bool, tmp_path: Path) -> None:
    for seed, name in ((1, "base"), (2, "tuned")):
        model(tmp_path / name, seed, True, scales)
        model(tmp_path / f"{name}-numbers", seed, False, scales)
    words = ("-o", tmp_path / "out", "--allow-unrelated")
    fault, advice = refused("negate", tmp_path / "base", tmp_path / "tuned", *words)
    assert "quantised" in fault
    assert "--dequantize" in advice
    _, err = done("negate", tmp_path / "base", tmp_path / "tuned", *words, "--dequantize")
    assert "base: 2 float8 matrices are read as BF16" in err
    other = ("-o", tmp_path / "numbers", "--allow-unrelated")
    done("negate", tmp_path / "base-numbers", tmp_path / "tuned-numbers", *other)
    found, wanted = (read_tensors(tmp_path / name) for name in ("out", "numbers"))
    assert set(found) == set(wanted)
    assert all(same_bytes(found[name], tensor) for name, tensor in wanted.items())
    out, _ = done("diff", tmp_path / "base", tmp_path / "tuned", "--dequantize")
    assert "‖T‖" in out


def test_where_the_model_is_run_it_is_refused(refused, tmp_path: Path) -> None:
    model(tmp_path / "base", 1, True)
    fault, advice = refused(
        "project", tmp_path / "base", "--forget", "x.jsonl", "--keep", "y.jsonl",
        "-o", tmp_path / "out", "--dequantize",
    )  # fmt: skip
    assert "the model is run as it is stored" in fault
    assert "--scale 0 --dequantize" in advice


def test_what_is_odd_is_said_before_an_edit(done, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", plain(rows=16), 1, config())
    tuned = {name: tensor + 0.01 for name, tensor in plain(rows=16).items()}
    write_checkpoint(tmp_path / "tuned", tuned, 1, config())
    for more in (["--dry-run"], []):
        _, err = done(
            "negate", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "out", *more
        )
        assert "16 rows, vocab_size of the config is 12" in err.splitlines()[0]
