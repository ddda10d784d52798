"""Training killed and starved of room: nothing is lost but the steps since the last checkpoint.

What is killed is a process of its own; what goes on from there runs in this one, and must end with the same
log and the same model, bit for bit, as a run that nothing happened to.

    python -m pytest tests/test_faults.py --long        # twice 50 random kills, some minutes
"""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import assert_same_run, command

import train

ROOT = Path(train.__file__).parent
OPTIONS = ["--device", "cpu", "--steps", 40, "--seq-len", 32, "--batch-size", 8, "--rank", 1,
           "--freeze-at", 0.5, "--eval-every", 1, "--log-every", 1]


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "train.py", *map(str, arguments)], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def when(process, condition, action) -> int:
    """Calls `action` as soon as `condition()` holds; the process's exit status."""
    while process.poll() is None:
        if condition():
            action()
            break
        time.sleep(0.0005)
    return process.wait()


def log_has(run, text):
    return lambda: (run / "log.jsonl").exists() and text in (run / "log.jsonl").read_text()


def any_file(run, pattern):
    return lambda: any(run.glob(pattern))


@pytest.fixture(scope="module")
def base(tmp_path_factory, model_dir, data_file):
    """The options of a run, its uninterrupted outcome, and how long that trains, in seconds."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    options = ["--model", model_dir, "--data", data_file, *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *options, "--out", out) == 0
    return options, out, sum(json.loads((out / "summary.json").read_text())["seconds"].values())


def test_stopped_at_the_worst_moments(base, tmp_path, monkeypatch):
    """Asked to stop; killed while a checkpoint is written, at the freeze, while the model is exported."""
    options, reference, _ = base
    run = tmp_path / "run"
    process = start(*options, "--out", run)
    assert when(process, log_has(run, '"search"'), process.terminate) == 130
    assert (run / "ckpt.pt").exists() and not (run / "pruned").exists()
    writing, exporting = any_file(run, "ckpt.pt.*tmp"), any_file(run, "pruned*")
    for condition in (writing, log_has(run, '"tune"'), exporting):
        assert not condition()
        process = start("--resume", run)
        assert when(process, condition, process.kill) == -signal.SIGKILL
    assert not (run / "pruned").exists()
    assert command(monkeypatch, "--resume", run) == 0
    assert_same_run(run, reference)
    assert not list(run.glob("*.tmp"))  # what the kills have left behind


@contextmanager
def files_of_at_most(size: int):
    """A disk that takes no more: files cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_gets_one_line_and_leaves_no_half_file(base, tmp_path, monkeypatch, capfd):
    options, reference, _ = base
    run = tmp_path / "run"
    with files_of_at_most(60_000):
        assert command(monkeypatch, *options, "--out", run) == 2
    error = capfd.readouterr().err
    assert "ckpt.pt: cannot be written" in error and error.count("\n") == 1, error
    assert not list(run.glob("*.tmp")) and not (run / "ckpt.pt").exists()
    assert command(monkeypatch, *options, "--out", run) == 0  # with room again, the same command works
    assert_same_run(run, reference)


def test_a_disk_that_fills_up_later_keeps_the_checkpoint(base, tmp_path, monkeypatch, capfd):
    """The checkpoint fits, the exported model does not; after making room, resuming gives the same model."""
    options, reference, _ = base
    run, model = tmp_path / "run", (reference / "pruned/consolidated.00.pth").stat().st_size
    assert (reference / "ckpt.pt").stat().st_size < model - 1000
    process = start(*options, "--out", run)
    assert when(process, any_file(run, "pruned*"), process.kill) == -signal.SIGKILL
    before, (unfinished,) = (run / "ckpt.pt").read_bytes(), run.glob("pruned*")
    (unfinished / "tokenizer.json").write_text("what a killed export has left is no part of the next")
    with files_of_at_most(model - 1000):
        assert command(monkeypatch, "--resume", run) == 2
    error = capfd.readouterr().err
    assert "cannot be written" in error and error.count("\n") == 1, error
    assert (run / "ckpt.pt").read_bytes() == before and not (run / "pruned").exists()
    assert command(monkeypatch, "--resume", run) == 0
    assert_same_run(run, reference)
    assert set(os.listdir(run / "pruned")) == set(os.listdir(reference / "pruned"))


def test_random_kills(base, tmp_path, request, monkeypatch):
    options, reference, seconds = base
    rng = random.Random(0)
    for i in range(50 if request.config.getoption("--long") else 1):
        run = tmp_path / str(i)
        process, delay = start(*options, "--out", run), rng.uniform(0, 1.3 * seconds)
        while not (run / "ckpt.pt").exists() and process.poll() is None:
            time.sleep(0.001)
        until = time.monotonic() + delay
        killed = when(process, lambda: time.monotonic() > until, process.kill) == -signal.SIGKILL
        assert command(monkeypatch, "--resume", run) == 0
        assert_same_run(run, reference)
        print(f"kill {i}: after {delay:.2f} s{'' if killed else ', the run had ended'}")


def test_random_kills_of_two_processes_on_one_directory(base, tmp_path, request, monkeypatch):
    """Both are new runs that may replace what is there, or one goes on with it: whatever comes, the checkpoint
    that is there can be resumed to the end, and a foreign file stays."""
    options, reference, seconds = base
    rng, counts = random.Random(1), {"finished": 0, "refused": 0, "killed": 0}
    for i in range(50 if request.config.getoption("--long") else 1):
        run = tmp_path / str(i)
        (run / "pruned").mkdir(parents=True)
        for name in ("notes.txt", "pruned/notes.txt", "ckpt.pt.tmp"):
            (run / name).write_text("years of work")
        begin = time.monotonic()
        first = start(*options, "--out", run, "--overwrite")
        if rng.random() < 0.5:  # the second comes when there is something already, or both begin at once
            while not (run / "ckpt.pt").exists() and first.poll() is None:
                time.sleep(0.001)
        resumes = (run / "ckpt.pt").exists() and rng.random() < 0.7
        second = start(*(["--resume", run] if resumes else [*options, "--out", run, "--overwrite"]))
        while not (run / "ckpt.pt").exists() and None in (first.poll(), second.poll()):
            time.sleep(0.001)
        scale = time.monotonic() - begin + 2 * seconds  # about as long as both take
        ends = [(time.monotonic() + rng.uniform(0, scale), process) for process in (first, second)]
        for until, process in sorted(ends, key=lambda end: end[0]):
            status = when(process, lambda: time.monotonic() > until, process.kill)
            assert status in (0, 2, -signal.SIGKILL), status
            counts["killed" if status < 0 else "refused" if status else "finished"] += 1
        assert command(monkeypatch, "--resume", run) == 0
        assert_same_run(run, reference)
        for name in ("notes.txt", "pruned/notes.txt", "ckpt.pt.tmp"):
            assert (run / name).read_text() == "years of work"
        print(f"schedule {i}: {time.monotonic() - begin:.1f} s; so far {counts}")
