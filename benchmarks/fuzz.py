"""Random and hostile files for every reader: how many are read, how many refused by name, and what else happens.

    python -m benchmarks.fuzz [READER …] [--n 20000] [--seconds S] [--seed 0] [--atheris]

Files begin as the golden ones in tests/golden and are changed by tests/fuzz/mutate.py, mostly with checksums made right
again. Memory is limited to 4 GiB of addresses, and an input that takes more than thirty seconds counts as a hang. With
--atheris, one reader is driven by coverage (`pip install atheris`; CPython 3.11 to 3.13).
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

COMMAND_LINE = "command line"
_MOST_ADDRESSES = 2**32


class FromBytes(random.Random):
    """Random choices that a fuzzer makes: bits from its bytes, and zeros after their end."""

    def __new__(cls, data: bytes) -> "FromBytes":
        """As `random.Random`, which would hash the bytes."""
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        """Take the bytes."""
        super().__init__(0)
        self._left = memoryview(data)

    def getrandbits(self, k: int) -> int:
        """The next bits."""
        n = (k + 7) // 8
        taken, self._left = bytes(self._left[:n]), self._left[n:]
        return int.from_bytes(taken, "little") % (1 << k) if k else 0

    def random(self) -> float:
        """From the next four bytes."""
        return self.getrandbits(32) / 2**32


def readers(*, is_instrumented: bool = False) -> tuple[dict[str, Any], Any]:
    """The readers by name, and the command line; imported so that atheris sees which code runs, where that is wanted."""
    context = nullcontext()
    if is_instrumented:
        import atheris

        context = atheris.instrument_imports(include=["param_features"])  # pyright: ignore[reportAttributeAccessIssue]
    with context:
        from tests.fuzz import command_line
        from tests.fuzz.readers import READERS
    return READERS, command_line


def one_input(name: str, rng: random.Random) -> str:
    """The outcome of one input of a reader; exceptions that no reader may raise go on."""
    known, command_line = readers()
    if name != COMMAND_LINE:
        return known[name].outcome(known[name].input(rng))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        command_line.folder(Path(folder), rng)
        os.chdir(folder)
        try:
            return command_line.outcome(command_line.arguments(rng))
        finally:
            os.chdir(before)


def fuzzed(name: str, n: int, seconds: float, seed: int, say: Callable[[str], None]) -> Counter:
    """Counts of outcomes; each kind of exception is printed once, with the seed that raised it."""
    counts: Counter = Counter()
    seen: set[str] = set()
    end = time.monotonic() + seconds
    for number in range(n):
        if time.monotonic() > end:
            break
        try:
            outcome = one_input(name, random.Random(seed + number))
            counts["read" if outcome == "read" else "refused"] += 1
        except BaseException as error:  # everything else is what is looked for
            if isinstance(error, KeyboardInterrupt):
                break
            counts["other"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            if kind not in seen:
                seen.add(kind)
                say(f"{name}, seed {seed + number}: {kind}: {str(error)[:200]!r}")
        counts["inputs"] += 1
    return counts


def by_coverage(name: str, arguments: list[str]) -> None:
    """One reader by atheris, whose bytes are the choices of a mutation. Ends the process."""
    import atheris

    def one(data: bytes) -> None:
        one_input(name, FromBytes(data))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> None:
    """Parse the arguments, fuzz, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="all by default; another name prints them")
    parser.add_argument("--n", type=int, default=20_000, help="inputs of each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="drive one reader by coverage, until Ctrl-C or --seconds")
    options = parser.parse_args()
    names = [*readers(is_instrumented=options.atheris)[0], COMMAND_LINE]
    chosen = options.readers or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no reader {sorted(unknown)}; readers: {names}")
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if options.atheris:
        limit = [] if options.seconds == float("inf") else [f"-max_total_time={int(options.seconds)}"]
        by_coverage(chosen[0], [*limit, f"-seed={options.seed + 1}", "-max_len=256", "-len_control=0"])
    print("| reader | inputs | refused by name | read | other exceptions | seconds |\n|---|---|---|---|---|---|")
    n_other = 0
    for name in chosen:
        start = time.monotonic()
        counts = fuzzed(
            name, options.n, options.seconds, options.seed, lambda line: print(line, file=sys.stderr, flush=True)
        )
        cells = [counts[key] for key in ("inputs", "refused", "read", "other")]
        n_other += counts["other"]
        row = [name, *(f"{cell:,}" for cell in cells), f"{time.monotonic() - start:.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)
    sys.exit(n_other > 0)


if __name__ == "__main__":
    main()
