"""What the project does on one GPU, in one script: `python -m benchmarks.gpu [--dry-run] [--out FOLDER] [--only PART ...]`

It needs torch (2.11 or newer), transformers, numpy, pyarrow and pydantic, no Ray, and downloads nothing: models have random
weights of real shapes. It is meant to end within eight minutes on one H200, and has not been timed there. Parts, in this order:

    attention    why an eager pass waits for the host: cuDNN's attention on and off, one shape and many
    equality     the decoder's array programs against the reference, on this device
    decode       searches, beside the bare forward passes of the same shapes, captured as well; the mask alone
    training     steps, beside a plain loop; MFU
    engine       samples of the transformers engine
    chain        SciFact in the paper's way, if --model and --data are given: passes 1, 2, 4, and how it is searched

Every part writes its rows into the folder as soon as it has them, so that a run which is cut off keeps what it measured; with
the same folder the next run leaves out what is there. `--dry-run` goes through all of it with toy shapes on a CPU. The last
line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import torch

PARTS = ("attention", "equality", "decode", "training", "engine", "chain")


def main() -> None:
    """Runs the parts that are not there yet, and prints what all of them measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="toy shapes, on a CPU as well")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--model", help="folder of a model for the chain; without it, the chain is left out")
    parser.add_argument("--data", type=Path, help="folder of a BEIR collection for the chain")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.dry_run:
        parser.error("there is no GPU here; --dry-run goes through all of it on a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dry_run": arguments.dry_run,
    }
    for name in arguments.only:
        file = arguments.out / f"{name}.json"
        if not file.exists():
            start = time.monotonic()
            part = importlib.import_module(f"benchmarks.gpu.{name}")
            rows = part.measure(device, arguments)
            if rows is None:
                continue
            file.write_text(json.dumps({"seconds": round(time.monotonic() - start, 1), "rows": rows}, indent=1))
        found[name] = json.loads(file.read_text())
        _show(name, found[name])
    print(json.dumps(found))


def _show(name: str, part: dict[str, Any]) -> None:
    print(f"\n{name}, {part['seconds']:.0f} s")
    columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
    cells = [columns, *([_text(row.get(column)) for column in columns] for row in part["rows"])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
