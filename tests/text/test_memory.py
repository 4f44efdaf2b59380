"""A trim gives back what was freed between things that stay."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from stages.policies.text.memory import trim

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

torch.ones(2**22)  # 16 MiB: from now on the C library keeps such sizes in its heap
tensors = [torch.ones(2**18) for _ in range(400)]  # 1 MiB each
stay = tensors[::2]
del tensors
before = held()
trim()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc, and /proc")
def test_a_trim_gives_back_the_holes_between_what_stays():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150, "MiB, of the 200 that are free"
