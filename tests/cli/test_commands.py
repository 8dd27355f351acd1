"""The commands as a user meets them: what is printed where, and how they end."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from tests.cli.typed import WS, two_lines, ws
from tests.conftest import read_tensors, same_bytes, snapshot, write_checkpoint


@pytest.mark.parametrize("name", ["inspect", "diff", "subspace", "overlap", "negate", "add",
                                  "project", "learn", "verify", "demo"])  # fmt: skip
def test_help_of_each_command(name):
    done = ws(name, "--help")
    assert done.returncode == 0
    assert f"ws {name}" in done.stdout
    assert "Example:" in done.stdout
    assert "--json" in done.stdout
    assert done.stderr == ""


def test_json_is_one_document_and_agrees_with_the_files(llama, tmp_path):
    done = ws(
        "negate", llama.base, llama.forget, "-o", tmp_path / "out", "--scale", "0.5", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["parameters"]["scale"] == 0.5
    assert document["command"][:2] == ["ws", "negate"]
    record = json.loads((tmp_path / "out/weightsurgery.json").read_text())
    assert {**record, "out": document["out"]} == document
    assert "Wrote" in done.stderr

    done = ws("inspect", llama.base, "--json")
    document = json.loads(done.stdout)
    tensors = read_tensors(llama.base)
    assert document["parameters"] == sum(t.numel() for t in tensors.values())
    assert document["tensors"] == len(tensors)

    done = ws("overlap", llama.base, llama.forget, llama.keep, "--rank", "4", "--json")
    document = json.loads(done.stdout)
    assert 0 < document["mean"][0]["inputs"] < 1

    done = ws("diff", llama.base, llama.forget, "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["tensors"]}
    finetuned = read_tensors(llama.forget)
    for name, tensor in tensors.items():
        change = finetuned[name].double() - tensor.double()
        assert rows[name]["norm"] == pytest.approx(float(change.norm()), rel=1e-4)


def test_quiet_prints_no_notices(llama, tmp_path):
    loud = ws("negate", llama.base, llama.forget, "-o", tmp_path / "a")
    assert "Wrote" in loud.stderr
    quiet = ws("negate", llama.base, llama.forget, "-o", tmp_path / "b", "-q")
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_dry_run_writes_nothing(llama, tmp_path):
    done = ws("project", llama.base, "--forget", llama.forget, "--keep", llama.keep,
              "-o", tmp_path / "out", "--dry-run", "--json")  # fmt: skip
    plan = json.loads(done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert plan["write_bytes"] == sum(p.stat().st_size for p in llama.base.glob("*.safetensors"))
    assert plan["edited"]
    assert not any("norm" in name or "embed" in name for name in plan["edited"])


def test_dry_run_refuses_what_the_run_would(llama, tmp_path):
    assert ws("negate", llama.base, llama.forget, "-o", tmp_path / "x", "--dry-run").returncode == 0
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    (tmp_path / "file").touch()
    for out in ("taken", "file", "file/below"):
        command = ["negate", llama.base, llama.forget, "-o", tmp_path / out]
        wet, dry = two_lines(ws(*command)), two_lines(ws(*command, "--dry-run"))
        assert wet == dry
        assert "--dry-run" not in wet[1]


def test_options_reach_the_edit(llama, tmp_path):
    done = ws("negate", llama.base, llama.forget, "-o", tmp_path / "out", "--targets", "mlp",
              "--layers", "1-", "--layer-scale", "*.up_proj.*=0", "--json")  # fmt: skip
    edited = json.loads(done.stdout)["tensors"]
    before, after = read_tensors(llama.base), read_tensors(tmp_path / "out")
    changed = {name for name in before if not same_bytes(before[name], after[name])}
    assert changed == {f"model.layers.1.mlp.{each}_proj.weight" for each in ("gate", "down")}
    assert set(edited) >= changed


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["inspect", "nowhere"], "no such directory", "org/name"),
        (["negate", "{base}", "{forget}", "-o", "{base}"], "input", "-o"),
        (["negate", "{base}", "{forget}", "-o", "{base}/sub"], "input", "-o"),
        (["negate", "{base}", "{forget}", "-o", "x", "--targets", "heads"], "heads", "all-linear"),
        (["negate", "{base}", "{forget}", "-o", "x", "--include", "nope*"], "nope*", "inspect"),
        (["negate", "{base}", "{forget}", "-o", "x", "--dtype", "int8"], "int8", "float32"),
        (["negate", "{base}", "{forget}", "-o", "x", "--rounding", "up"], "up", "stochastic"),
        (["negate", "{base}", "{forget}", "-o", "x", "--device", "tpu"], "tpu", "cpu"),
        (["negate", "{base}", "{forget}", "-o", "x", "--workers", "0"], "workers", "one"),
        (["negate", "{base}", "{forget}", "-o", "x", "--vocab", "guess"], "guess", "common-rows"),
        (["negate", "{base}", "{forget}", "-o", "x", "--layers", "3-0"], "backwards", "0-3"),
        (["negate", "{base}", "{forget}", "-o", "x", "--layer-scale", "5"], "5", "PATTERN=FACTOR"),
        (["negate", "{base}", "facts.jsonl", "-o", "x"], "data set", "ws identify"),
        (["subspace", "{base}", "{forget}", "-o", "x"], "no rank", "--rank"),
        (["subspace", "{base}", "{forget}", "-o", "x", "--rank", "0"], "rank 0", "from 1"),
        (["subspace", "{base}", "{forget}", "-o", "x", "--rank", "many"], "many", "auto"),
        (["subspace", "{base}", "{forget}", "-o", "x", "--energy", "2"], "energy 2", "(0, 1]"),
        (["overlap", "{base}", "{forget}"], "one vector", "two"),
        (["verify", "{base}"], "weightsurgery.json", "written by ws"),
        (["project", "{base}", "--forget", "{forget}", "--keep", "{keep}", "-o", "x",
          "--side", "inner"], "inner", "frobenius"),
        (["project", "{base}", "--forget", "{forget}", "--keep", "{keep}", "-o", "x",
          "--basis", "all"], "all", "joint"),
    ],
)  # fmt: skip
def test_bad_input_gets_two_lines_and_loses_nothing(llama, tmp_path, arguments, what, remedy):
    places = {"base": llama.base, "forget": llama.forget, "keep": llama.keep}
    before = snapshot(llama.base)
    lines = two_lines(ws(*(text.format(**places) for text in arguments), cwd=tmp_path))
    assert what in lines[0]
    assert remedy in lines[1]
    assert snapshot(llama.base) == before
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_with_2():
    for arguments in (["negate"], ["frobnicate"], ["inspect", "a", "--nonsense"]):
        done = ws(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""


def test_verify_names_the_damaged_file(llama, tmp_path):
    out = tmp_path / "out"
    assert ws("negate", llama.base, llama.forget, "-o", out).returncode == 0
    good = ws("verify", out)
    assert good.returncode == 0
    assert "all as recorded" in good.stdout
    shard = sorted(out.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    what, _ = two_lines(ws("verify", out))
    assert shard.name in what


def test_interrupted_exits_with_130_and_resumes(tmp_path):
    """Ctrl-C leaves the work to be continued; the result is that of an uninterrupted run."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.mlp.up_proj.weight": torch.randn(1024, 2048, generator=generator)
            for i in range(12)}  # fmt: skip
    tuned = {name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    write_checkpoint(tmp_path / "base", base, 3)
    write_checkpoint(tmp_path / "tuned", tuned, 2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    # Rounding by chance goes tensor by tensor, and takes long enough to be interrupted.
    slowly = ["--workers", "1", "--rounding", "stochastic"]
    command = ["negate", tmp_path / "base", tmp_path / "tuned", *slowly, "-o"]
    assert ws(*command, whole).returncode == 0

    journal = tmp_path / ".out.ws-partial/journal.jsonl"
    for _ in range(5):  # on a busy machine it can be done before the signal is sent
        shutil.rmtree(out, ignore_errors=True)
        patient = ["nice", "-n", "19", WS, *map(str, command), str(out)]
        # A shell starts what it puts in the background with the interrupt ignored.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        running = subprocess.Popen(patient, stderr=subprocess.PIPE, preexec_fn=heed)
        while running.poll() is None and not journal.exists():
            time.sleep(0.002)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
        if running.returncode != 0:
            break
    assert running.returncode == 130
    assert said.decode().strip() == (
        "Interrupted; the same command goes on where this one stopped."
    )
    assert not out.exists()
    done = ws(*command, out)
    assert done.returncode == 0, done.stderr
    first, second = snapshot(whole), snapshot(out)
    assert first.keys() == second.keys()
    for name in first.keys() - {"weightsurgery.json"}:  # the records hold different -o
        assert first[name] == second[name]
    assert not journal.parent.exists()


def test_names_are_printed_as_they_are(llama, tmp_path):
    """No colon becomes an emoji, no bracket markup."""
    for name in ("x:abc:y", "a[red]b[bold]", "[oops]"):
        what, _ = two_lines(ws("inspect", f"./{name}", cwd=tmp_path))
        assert f"./{name}:" in what
        (tmp_path / name).symlink_to(llama.base)
        assert ws("inspect", f"./{name}", cwd=tmp_path).stdout.startswith(f"./{name}\n")


def test_a_tilde_is_home_for_outputs_too(llama, tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    done = ws("negate", llama.base, llama.forget, "-o", "~/out", cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr
    assert ws("verify", "~/out", cwd=tmp_path, env=home).returncode == 0
    page = ["--html", "~/page.html"]
    done = ws("diff", llama.base, llama.forget, "-o", "~/v", *page, cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr
    for name in ("out", "v", "page.html"):
        assert (tmp_path / name).exists()
    assert not (tmp_path / "~").exists()


def test_an_empty_output_is_a_usage_error(llama, tmp_path):
    done = ws("negate", llama.base, llama.forget, "-o", "", cwd=tmp_path)
    assert done.returncode == 2
    assert "empty" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["{forget}", "--scale", "nan"],
        ["{forget}", "--scale", "1e40"],
        ["{forget}", "--layer-scale", "0=inf"],
        ["{forget}:nan"],
        ["{forget}:1e40"],
    ],
)
def test_scales_are_numbers_to_work_with(llama, tmp_path, arguments):
    typed = [text.format(forget=llama.forget) for text in arguments]
    _, remedy = two_lines(ws("add", llama.base, *typed, "-o", tmp_path / "out"))
    assert "finite" in remedy
    assert list(tmp_path.iterdir()) == []


def test_inspect_lists_every_tensor(llama):
    shown = ws("inspect", llama.base, "-v").stdout
    assert all(name in shown for name in read_tensors(llama.base))


def test_overlap_drops_no_vector(llama):
    same = [llama.forget] * 3
    done = ws("overlap", llama.base, *same, "--rank", "2", "--json")
    pairs = json.loads(done.stdout)["mean"]
    assert len({(pair["first"], pair["second"]) for pair in pairs}) == 3


def test_what_stdout_cannot_take_is_no_bug(llama, tmp_path):
    for options in ([], ["--json"]):
        command = [WS, "inspect", str(llama.base), *options]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        what, _ = done.stderr.strip().splitlines()
        assert "stdout" in what
        closed = subprocess.run(
            ["sh", "-c", 'exec "$0" "$@" >&-', *command], stderr=subprocess.PIPE, text=True
        )
        assert (closed.returncode, closed.stderr) == (0, "")
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = ws("diff", llama.base, llama.forget, env=plain)
    assert done.returncode == 0, done.stderr
    done = ws("diff", llama.base, llama.forget, "--json", env=plain)
    assert json.loads(done.stdout)["tensors"]


def test_a_name_the_record_cannot_hold_is_refused(llama, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff"
    done = subprocess.run(
        [WS, "negate", llama.base, llama.forget, "-o", odd], capture_output=True, text=True
    )
    what, remedy = two_lines(done)
    assert "UTF-8" in what
    assert "Rename" in remedy
    assert list(tmp_path.iterdir()) == []


def test_tables_fit_a_terminal_of_80_columns(llama):
    """Headings fold before lines break."""
    script = "from weightsurgery.cli.console import show; from weightsurgery.report.tables import"
    script += " Table; pairs = tuple(f'authors{i} / painters{i}' for i in range(4));"
    script += " show(Table('T', ('layer', *pairs), [('0', *('0.123',) * 4)]))"
    pipe = {**os.environ, "COLUMNS": "80", "PYTHONPATH": "."}
    master, slave = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stdout=slave, env=pipe, check=True)
    os.close(slave)
    lines = os.read(master, 65536).decode().splitlines()
    os.close(master)
    assert any("painters3" in line for line in lines)
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= 80 for line in lines)
