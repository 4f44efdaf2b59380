"""What every benchmark says: the machine, a table, and its section of RESULTS.md."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("torch", "diffusers", "transformers")


def machine(packages: Sequence[str] = PACKAGES, threads: int = 0) -> str:
    """What the times depend on: processor, threads (0: those that torch takes), versions."""
    if not threads:
        import torch

        threads = torch.get_num_threads()
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {told}" for name in packages if (told := _version(name)))
    return f"{cpu}, {threads} thread(s); Python {platform.python_version()}, {versions}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the range where there is one.

    >>> spread([3.0, 1.0, 2.0], 0)
    '2 (1 to 3)'
    """
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers.

    >>> print(table(["", "s"], [["fast", "1"]]))
    |  | s |
    |---|---:|
    | fast | 1 |
    """
    lines = [head, *rows]
    told = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([told[0], "|---|" + "---:|" * (len(head) - 1), *told[1:]])


def goal(name: str, values: Sequence[float], wanted: float, *, at_most: bool = False) -> str:
    """A line that says whether the median of some ratios reaches what is wanted.

    >>> goal("speed", [2.0, 3.0, 4.0], 2.5)
    '- speed: 3.00 (2.00 to 4.00), goal at least 2.5: reached'
    """
    middle = statistics.median(values)
    reached = middle <= wanted if at_most else middle >= wanted
    told = f"goal at {'most' if at_most else 'least'} {wanted:g}: {'reached' if reached else 'missed'}"
    return f"- {name}: {spread(values)}, {told}"


def publish(title: str, body: str, file: Path) -> None:
    """Put a section into the file of results in place of the one of that title."""
    text = file.read_text(encoding="utf-8") if file.exists() else "# Results\n\nWritten by the scripts beside it.\n"
    head, *sections = text.split("\n## ")
    kept = [section for section in sections if section.partition("\n")[0] != title]
    sections = sorted([*(section.strip("\n") for section in kept), f"{title}\n\n{body.strip()}"])
    file.write_text("\n\n## ".join([head.strip("\n"), *sections]) + "\n", encoding="utf-8")
