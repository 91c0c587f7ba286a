"""How long ``import resilient_heads`` takes, and how much memory, beyond ``import torch``.

    python benchmarks/imports.py [--repeat 5]

Each statement runs in fresh interpreters; the table shows the median of seconds and megabytes above ``import torch``.
"""

import argparse
import statistics
import subprocess
import sys

BASE = "import torch"
STATEMENTS = {
    "import resilient_heads": "import resilient_heads as rh",
    "wrap a model": "import resilient_heads as rh; rh.TextGuidedHead; rh.wrap_model",
    "inject a fault": "import resilient_heads as rh; rh.inject; rh.BitFlip",
    "run a campaign": "import resilient_heads as rh; rh.run_campaign",
    "every public name": "import resilient_heads as rh; [getattr(rh, name) for name in rh.__all__]",
}
MEASURE = """
import resource, time
start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{statement}
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, (after - before) / 1024)
"""


def measure(statement: str, repeat: int) -> tuple[float, float]:
    """Return the median seconds and megabytes that a statement takes after ``import torch``."""
    program = f"{BASE}\n{MEASURE.format(statement=statement)}"
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeat)]
    seconds, megabytes = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return statistics.median(seconds), statistics.median(megabytes)


def main() -> None:
    """Print one row for each statement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="fresh interpreters for each statement")
    repeat = parser.parse_args().repeat
    print(f"| beyond `{BASE}` | seconds | MB |\n|---|---:|---:|")
    for name, statement in STATEMENTS.items():
        seconds, megabytes = measure(statement, repeat)
        print(f"| {name} | {seconds:.2f} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
