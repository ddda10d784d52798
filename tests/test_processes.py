"""Two processes on the CPU (gloo, started as a user would by torchrun) end where one does; bad ways to start them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import command

import export
import llama
import train


CHECKED = """
import atp, export, llama, sys, train
write, decide = export.write, atp.Groups.decide

def disagreeing(groups, *rest):
    d, edge = decide(groups, *rest)
    return d.roll(llama.process_rank()), edge

def checked(model, *rest):
    for weight in (linear.weight for linear in model.linears()):
        assert "--shard" not in sys.argv or weight.to_local().shape[0] <= -(-weight.shape[0] // 2)
    return write(model, *rest)

export.write, atp.Groups.decide = checked, disagreeing
llama.command(train.main)
"""


def torchrun(options, *extra):
    """`torchrun --nproc_per_node=2 train.py ...`; what it printed and its exit status.

    The second's own decisions are made to differ, as those of another GPU may in a last bit: the first's must count.
    Before the export, with --shard, a process must hold no more than half of any linear's rows."""
    script = Path(options[options.index("--out") + 1]).with_name("checked.py")
    script.write_text(f"import sys\nsys.path.insert(0, {os.path.dirname(train.__file__)!r})\n{CHECKED}")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           script, *map(str, options), *extra],
                          capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return done.stdout + done.stderr, done.returncode


@pytest.mark.parametrize("extra", [[], ["--shard"], ["--shard", "--no-slice-at-freeze", "--checkpointing"],
                                   ["--paper", "--accumulate", "2"], ["--decisions", "activation", "--shard"], ["--alternate", "--shard"]])
def test_two_processes_end_where_one_does(monkeypatch, options, tmp_path, extra):
    """Up to rounding: off by at most a few times what another order of the rows in each batch makes in one process."""
    if "--decisions" in extra:
        options = options[:-2]
    alone = [flag for flag in extra if flag != "--shard"]
    assert command(monkeypatch, *options, *alone) == 0
    output, status = torchrun(options, "--out", str(tmp_path / "two"), *extra)
    assert status == 0, output
    batch = train.Run.batch
    monkeypatch.setattr(train.Run, "batch", lambda *arguments: [t.flip(0) if t.dim() else t for t in batch(*arguments)])
    assert command(monkeypatch, *options, *alone, "--out", tmp_path / "turned") == 0
    one, two, turned = (export.read_checkpoint(tmp_path / name) for name in ("run", "two", "turned"))
    assert torch.equal(one["d"], two["d"])

    def distance(other):
        return max(float((other["lora"][name] - p).abs().max()) for name, p in one["lora"].items())

    assert 0 < distance(turned) < 1e-3 and distance(two) < 5 * distance(turned)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "two")]
    for name in ("base", "pruned", "exported"):
        assert summaries[1]["val_loss"][name] == pytest.approx(summaries[0]["val_loss"][name], abs=1e-4)
    assert output.count("largest logit difference") == 1  # the first process speaks for all
    for a, b in zip(llama.load(tmp_path / "run/pruned").parameters(), llama.load(tmp_path / "two/pruned").parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_a_checkpoint_of_sharded_processes_is_whole(monkeypatch, options, tmp_path):
    """One process exports from it what the two have exported."""
    output, status = torchrun(options, "--shard")
    assert status == 0, output
    assert command(monkeypatch, tmp_path / "run", "--out", tmp_path / "again", main=export.main) == 0
    for a, b in zip(llama.load(tmp_path / "run/pruned").parameters(), llama.load(tmp_path / "again").parameters()):
        torch.testing.assert_close(a, b)


def test_shard_without_torchrun_and_rows_that_cannot_be_shared(monkeypatch, options, capsys):
    assert command(monkeypatch, *options, "--shard") == 2
    assert "torchrun" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert command(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert "--batch-size 4: 3 processes" in error and error.count("\n") == 1
