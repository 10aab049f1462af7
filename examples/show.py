"""Prints what `nsbox run --json` reported: one outcome, or the table of all of them. Used by `examples/run`.

    show.py outcome FILE.json     output, verdict and exit status of one run
    show.py table FILE.json...    one line per run; exits with 1 unless each ended as it should

Beside each FILE.json lies FILE.status, the exit status of `nsbox run`.
"""

import json
import sys
from pathlib import Path

COLUMNS = {"sharpe_ratio": ".2f", "annual_return": ".1%", "max_drawdown": ".1%", "trades": ".0f"}


def load(path: Path) -> tuple[dict, int]:
    """The outcome and the exit status; the outcome is empty when nsbox ended without one."""
    text = path.read_text()
    return (json.loads(text) if text.strip() else {}), int(path.with_suffix(".status").read_text())


def as_expected(name: str, outcome: dict, status: int) -> bool:
    if name == "fails":
        return outcome.get("verdict") == "error" and status == 1 and "KeyError" in outcome["stderr"]
    return outcome.get("verdict") == "ok" and status == 0 and COLUMNS.keys() <= (outcome.get("metrics") or {}).keys()


def show_outcome(path: Path) -> None:
    outcome, status = load(path)
    print(f"\n=== {path.stem}{' (has a bug, on purpose)' if path.stem == 'fails' else ''}")
    print(outcome.get("stdout", ""), outcome.get("stderr", ""), sep="", end="")
    if outcome.get("message"):
        print(f"nsbox: {outcome['message']}")
    print(f"--- verdict {outcome.get('verdict', 'none')}, exit status {status}", end="")
    if "usage" in outcome:
        print(f", {outcome['usage']['wall_ms']:.0f} ms on backend {outcome['backend']}", end="")
    print()


def show_table(paths: list[Path]) -> int:
    all_expected = True
    print(f"\n{'strategy':<18}{'verdict':<13}{'exit':>4}", *(f"{column:>14}" for column in COLUMNS), "  as expected")
    for path in paths:
        outcome, status = load(path)
        metrics = outcome.get("metrics") or {}
        cells = (f"{metrics[c]:>14{f}}" if metrics.get(c) is not None else f"{'-':>14}" for c, f in COLUMNS.items())
        expected = as_expected(path.stem, outcome, status)
        all_expected &= expected
        verdict = outcome.get("verdict", "none")
        print(f"{path.stem:<18}{verdict:<13}{status:>4}", *cells, "  yes" if expected else "  NO")
    return 0 if all_expected else 1


if __name__ == "__main__":
    mode, *files = sys.argv[1:]
    if mode == "outcome":
        show_outcome(Path(files[0]))
    else:
        sys.exit(show_table([Path(file) for file in files]))
