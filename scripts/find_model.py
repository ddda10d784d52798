"""Which model directory a path means, as people type it."""
from pathlib import Path

from data import InputError


def find(path: Path) -> Path:
    """The path itself, or of a run `pruned`, or of Meta's repositories `original`. Raises InputError with the
    command that makes a model directory of what is there instead."""
    for part in (".", "pruned", "original"):
        if (path / part / "params.json").exists():
            return path / part
    if (path / "ckpt.pt").exists():
        hint = f"a run that is not finished; python train.py --resume {path}"
    elif (path / "config.json").exists():
        hint = f"in Hugging Face's format; python scripts/convert_hf.py {path} models/{path.name}"
    elif path.suffix == ".gguf" and path.is_file():
        hint = f"a GGUF file; python scripts/from_gguf.py {path} models/{path.stem}"
    elif path.exists():
        hint = "no model directory, it has no params.json"
    else:
        hint = "no such directory; from the hub: hf download NAME --local-dir DIR, then python scripts/convert_hf.py DIR"
    raise InputError(f"{path}: {hint}")
