"""Perplexity of every way of rounding, each served by a mesh of its own, as a table and as JSON lines.

    python benchmarks/rounding.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf \
      --text tests/data/wikitext/wiki.test.head.raw --out rounding.jsonl w16 w8 w4/nearest w4/gptq w3/gptq/128/symmetric

A row is a scheme, then in any order a method of rounding, a group size and `symmetric`; what is left out is as in
`llmpq eval ppl`, which is what runs. Rows that are in the file already are not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmpq.plan import ROUNDING_METHODS


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=20_480)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="A file of JSON lines that rows are added to.")
    parser.add_argument("rows", nargs="+", metavar="SCHEME[/METHOD][/GROUP][/symmetric]")
    settings = parser.parse_args()
    command = [sys.executable, "-m", "llmpq.cli", "eval", "ppl", "--json"]
    for name in ("model", "text", "tokens", "window", "stages"):
        command += [f"--{name}", str(getattr(settings, name))]
    print("| row | perplexity | seconds |\n|---|---|---|")
    for row in settings.rows:
        key = {"row": row, "model": settings.model, "text": settings.text, "tokens": settings.tokens}
        result = _found(settings.out, key) or _measured(settings.out, key, command)
        print(f"| {row} | {result['perplexity']:.3f} | {result['wall_s']:.0f} |", flush=True)


def _found(out: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return next((result for result in map(json.loads, lines) if key.items() <= result.items()), None)


def _measured(out: Path, key: dict[str, Any], command: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    asked = [*command, *_flags(key["row"])]
    done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 our own program
    result = key | {"perplexity": json.loads(done.stdout)["perplexity"], "wall_s": time.monotonic() - started}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return result


def _flags(row: str) -> list[str]:
    scheme, *parts = row.split("/")
    flags = ["--scheme", scheme]
    for part in parts:
        if part in ROUNDING_METHODS:
            flags += ["--rounding", part]
        else:
            flags += ["--symmetric"] if part == "symmetric" else ["--group", part]
    return flags


if __name__ == "__main__":
    main()
