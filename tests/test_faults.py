"""Real training processes, killed and starved: nothing is lost but the steps since the last checkpoint.

    python -m pytest tests/test_faults.py --long        # 50 random kills, some ten minutes
"""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import llama

ROOT = Path(llama.__file__).parent
OPTIONS = ["--device", "cpu", "--steps", "40", "--seq-len", "32", "--batch-size", "8", "--eval-every", "10", "--log-every", "1",
           "--checkpoint-every", "1"]


def train(*arguments, **how) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "train.py", *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)


def finished(process) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def kill_when(process, condition) -> bool:
    """SIGKILL as soon as `condition()` holds; whether it came before the end."""
    while process.poll() is None:
        if condition():
            process.kill()
            break
        time.sleep(0.0005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def log_of(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same(run, reference):
    assert log_of(run) == log_of(reference)
    ours, theirs = (torch.load(path / "pruned/consolidated.00.pth", weights_only=True) for path in (run, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def base(tmp_path_factory, model_dir, data_file):
    """The options of a run, its uninterrupted outcome, and how long that trains, in seconds."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    options = ["--model", model_dir, "--data", data_file, *OPTIONS]
    finished(train(*options, "--out", out))
    return options, out, json.loads((out / "summary.json").read_text())["seconds"]


def test_killed_at_the_worst_moments(base, tmp_path):
    """While a checkpoint is written, at the freeze, while the model is exported; resumed each time."""
    options, reference, _ = base
    run = tmp_path / "run"
    log = run / "log.jsonl"
    conditions = [lambda: (run / "ckpt.pt.tmp").exists() and (run / "ckpt.pt").exists(),
                  lambda: log.exists() and '"tune"' in log.read_text(),
                  lambda: (run / "pruned.tmp").exists()]
    process = train(*options, "--out", run)
    for condition in conditions:
        assert kill_when(process, condition)
        process = train("--resume", run)
    finished(process)
    assert_same(run, reference)


def test_sigterm_saves_and_says_how_to_go_on(base, tmp_path):
    options, reference, _ = base
    run = tmp_path / "run"
    process = train(*options, "--checkpoint-every", 1000, "--out", run)
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text().splitlines()) < 3:
        time.sleep(0.001)
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 130 and f"--resume {run}" in out
    finished(train("--resume", run))
    assert_same(run, reference)


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_full_disk_gets_one_line_and_leaves_no_half_file(base, tmp_path):
    options, _, _ = base
    run = tmp_path / "run"
    process = train(*options, "--out", run, preexec_fn=limit_files)
    _, error = process.communicate()
    assert process.returncode == 2 and "ckpt.pt: cannot be written" in error and error.count("\n") == 1, error
    assert not list(run.glob("*.tmp")) and not (run / "ckpt.pt").exists()
    (run / "log.jsonl").unlink()  # with room again, the same command works
    finished(train(*options, "--out", run))


def test_a_disk_that_fills_up_later_keeps_the_checkpoint(base, tmp_path):
    """The checkpoint fits, the exported model does not; after making room, resuming gives the same model."""
    options, _, _ = base
    run = tmp_path / "run"
    narrow = [*options, "--rank", 1]
    finished(train(*narrow, "--out", tmp_path / "whole"))
    process = train(*narrow, "--out", run)
    assert kill_when(process, lambda: (run / "pruned.tmp").exists())
    before, small = (run / "ckpt.pt").read_bytes(), (tmp_path / "whole/pruned/consolidated.00.pth").stat().st_size - 1000
    process = train("--resume", run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, small)))
    _, error = process.communicate()
    assert process.returncode == 2 and "cannot be written" in error, error
    assert (run / "ckpt.pt").read_bytes() == before and not (run / "pruned").exists()
    finished(train("--resume", run))
    assert_same(run, tmp_path / "whole")


def test_a_read_only_output_is_refused_before_training(base, tmp_path):
    if os.geteuid() == 0:
        target = Path("/proc/run")  # root may write anywhere else
    else:
        target = tmp_path / "locked"
        target.mkdir(mode=0o500)
    process = train(*base[0], "--out", target)
    out, error = process.communicate()
    assert process.returncode == 2 and "cannot be written" in error and "step" not in out


def test_random_kills(base, tmp_path, request):
    options, reference, seconds = base
    rng = random.Random(0)
    for i in range(50 if request.config.getoption("--long") else 1):
        run = tmp_path / str(i)
        process, delay = train(*options, "--out", run), rng.uniform(0, 1.3 * seconds)
        while not (run / "ckpt.pt").exists():
            time.sleep(0.001)
        until = time.monotonic() + delay
        killed = kill_when(process, lambda: time.monotonic() > until)
        finished(train("--resume", run))
        assert_same(run, reference)
        print(f"kill {i}: after {delay:.2f} s{'' if killed else ', the run had ended'}")


def test_two_runs_with_one_seed_are_the_same(base, tmp_path):
    options, reference, _ = base
    finished(train(*options, "--out", tmp_path / "again"))
    assert_same(tmp_path / "again", reference)
