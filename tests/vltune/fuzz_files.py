"""Coverage-guided fuzzing of every parser that is ours: `make fuzz`, with a budget of seconds.

    python tests/vltune/fuzz_files.py [--seconds 60] [--target NAME]

Targets are the readers of `hostile_files`, one process each. Crashing inputs go to
`tests/vltune/fuzz_corpus/<target>/`, which `test_hostile_files.py` reads again in every test run.
What grew the coverage is kept in `build/fuzz/<target>/` and is where the next run begins.
"""

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "custom")]

with atheris.instrument_imports(include=["vltune"]):
    from hostile_files import NAMES, lay_out, outcome, readers

LARGEST = 4096
MEMORY_MB = 4096
SLOWEST_SECONDS = 20


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one reader in this process; libFuzzer ends it."""
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="vltune-fuzz-", dir=shared_memory())) / "site" / "run"
    lay_out(folder)
    reader = readers(folder)[name]
    slug = name.replace(" ", "_")
    corpus, found = ROOT / "build" / "fuzz" / slug, HERE / "fuzz_corpus" / slug
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "valid").write_bytes(reader.content)

    def once(content: bytes) -> None:
        try:
            outcome(reader, folder / reader.name, content)
        except Exception:
            found.mkdir(parents=True, exist_ok=True)
            (found / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
            raise

    limits = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", f"-rss_limit_mb={MEMORY_MB}"]
    limits += [f"-timeout={SLOWEST_SECONDS}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], once)
    atheris.Fuzz()


def shared_memory() -> str | None:
    """A folder in memory, where there is one: each input is a file."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """Fuzz one target, or all of them one after the other; 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=NAMES)
    asked = parser.parse_args()
    if asked.target:
        fuzz(asked.target, asked.seconds)
        return 0
    failed = []
    for name in NAMES:
        command = [sys.executable, __file__, "--seconds", str(asked.seconds), "--target", name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if "DONE" in line or "new_units" in line]
        sys.stdout.write(f"{name}: {'; '.join(last) or done.stderr[-800:]}\n")
        sys.stdout.flush()
        failed += [name] * bool(done.returncode)
    sys.stdout.write(f"found something in: {', '.join(failed)}\n" if failed else "nothing found\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
