"""glibc keeps what a training step frees."""

import platform
import resource
import subprocess
import sys

import pytest

# Maps and frees 64 MiB a few times and says how often the system had to hand out a page.
PAGES = """
import ctypes, resource
from akd_ext.train.system.allocator import keep_freed_memory
if {keep}: assert keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
def use():
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(ctypes.c_void_p(block))
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.integration
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
def test_pages_are_handed_out_once():
    counts = []
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", PAGES.format(keep=keep)], capture_output=True, text=True, check=True
        )
        counts.append(int(done.stdout))
    pages = (64 << 20) // resource.getpagesize()
    if counts[0] < 4 * pages:
        pytest.skip("the system gives malloc huge pages, so there is nothing to save")
    assert counts[1] < pages // 10
