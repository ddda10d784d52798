"""Two processes on the CPU, started as a user would by torchrun, end where one does."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import command

import data
import export
import llama
import train

CHECKED = """
import atp, data, export, os, sys, train
write, decide = export.write, atp.Groups.decide

def disagreeing(groups, *rest):
    return decide(groups, *rest).roll(int(os.environ["RANK"]))

def checked(model, *rest):
    for weight in (linear.weight for linear in model.linears()):
        assert "--shard" not in sys.argv or weight.to_local().shape[0] <= -(-weight.shape[0] // 2)
    return write(model, *rest)

export.write, atp.Groups.decide = checked, disagreeing
data.command(train.main)
"""


def torchrun(out, *arguments) -> str:
    """What `torchrun --nproc_per_node=2 train.py ... --out OUT` prints.

    The second's own decisions are made to differ, as those of another GPU may in a last bit: the first's must
    count. Before the export, with --shard, a process must hold no more than half of any linear's rows."""
    script = out.with_name("checked.py")
    script.write_text(f"import sys\nsys.path.insert(0, {os.path.dirname(train.__file__)!r})\n{CHECKED}")
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    done = subprocess.run([*how, *map(str, arguments), "--out", out], capture_output=True, text=True,
                          timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def long(arguments):
    return pytest.param(arguments, marks=pytest.mark.long)


@pytest.mark.parametrize("extra", [
    "--batch-size 5",  # one has 3 rows, the other 2
    "--alternate --shard",
    long("--shard"), long("--shard --no-slice-at-freeze --checkpointing"), long("--paper --accumulate 2"),
    long("--decisions activation --shard")])
def test_two_processes_end_where_one_does(monkeypatch, options, tmp_path, extra):
    """Up to rounding: off by a few times what other orders of the rows in each batch make in one process."""
    alone = [flag for flag in extra.split() if flag != "--shard"]
    assert command(monkeypatch, *options, *alone) == 0
    output = torchrun(tmp_path / "two", *options, *extra.split())
    batch = data.Rows.batch
    orders = {"flipped": lambda t: t.flip(0), "rolled": lambda t: t.roll(1, 0), "both": lambda t: t.flip(0).roll(1, 0)}
    for name, order in orders.items():
        with monkeypatch.context() as patch:
            patch.setattr(data.Rows, "batch", lambda *which: tuple(order(t) for t in batch(*which)))
            assert command(patch, *options, *alone, "--out", tmp_path / name) == 0
    one, two, *turned = (llama.read_tensors(tmp_path / name / "ckpt.pt", mmap=False)
                         for name in ("run", "two", *orders))
    assert torch.equal(one["d"], two["d"])

    def distance(other):
        return max(float((other["lora"][name] - p).abs().max()) for name, p in one["lora"].items())

    of_order = max(map(distance, turned))
    print(f"other orders {[distance(other) for other in turned]}, two processes {distance(two)}")
    assert 0 < of_order < 1e-3 and distance(two) < 5 * of_order
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "two")]
    for name in ("base", "pruned", "exported"):
        assert summaries[1]["val_loss"][name] == pytest.approx(summaries[0]["val_loss"][name], abs=1e-4)
    assert output.count("rounding moves logits") == 1  # the first process speaks for all
    exported = dict(llama.load(tmp_path / "two/pruned").named_parameters())
    for name, p in llama.load(tmp_path / "run/pruned").named_parameters():
        torch.testing.assert_close(p, exported[name], rtol=1e-2, atol=1e-3)
    if "--shard" in extra:  # the checkpoint is whole: one process exports from it what the two have exported
        assert command(monkeypatch, tmp_path / "two", "--out", tmp_path / "again", main=export.main) == 0
        for name, p in llama.load(tmp_path / "again").named_parameters():
            torch.testing.assert_close(p, exported[name])


def test_shard_needs_torchrun(monkeypatch, options, capsys):
    assert command(monkeypatch, *options, "--shard") == 2
    error = capsys.readouterr().err
    assert "torchrun" in error and error.count("\n") == 1
