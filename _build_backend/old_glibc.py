"""Lets a library linked on a new Linux load on one with glibc 2.28 (``AKD_EXT_MANYLINUX=1``, set by tools/release.py).

glibc 2.34 moved threads and dlopen into libc.so.6, under a new version. A linker takes the newest version it sees, so the
static CUDA runtime would bind to ``pthread_create@GLIBC_2.34``. Linked first, the empty libraries made here offer the
same symbols under their old names and versions, which every glibc since 2.2.5 still has. Only x86-64 is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_PTHREAD = """
pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create pthread_key_delete
pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init pthread_mutexattr_setpshared
pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init pthread_rwlock_rdlock
pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock pthread_rwlock_trywrlock
pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy pthread_rwlockattr_init
pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init pthread_spin_lock
pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait sem_wait
"""
_SYMBOLS = {  # library -> version -> symbols
    "libpthread.so.0": {"GLIBC_2.2.5": _PTHREAD},
    "libdl.so.2": {"GLIBC_2.2.5": "dlclose dlerror dlopen dlsym dlvsym", "GLIBC_2.3.4": "dlmopen"},
    "librt.so.1": {"GLIBC_2.2.5": "shm_open shm_unlink"},
}


def link_flags(folder: Path, compiler: str, run: Callable[[list[str], Path], Path]) -> list[str]:
    """Makes the empty libraries in ``folder`` and returns what links to them where it is needed."""
    flags = ["-Wl,--as-needed"]
    for name, versions in _SYMBOLS.items():
        target, source, script = folder / name, folder / f"{name}.cpp", folder / f"{name}.map"
        if not target.exists():
            names = " ".join(versions.values()).split()
            source.write_text("".join(f'extern "C" void {symbol}() {{}}\n' for symbol in names))
            script.write_text("".join(f"{v} {{ {'; '.join(s.split())}; }};\n" for v, s in versions.items()))
            # -nostdlib -fno-builtin: these names mean something to a compiler and a C library
            made = [
                "-shared",
                "-fPIC",
                "-nostdlib",
                "-fno-builtin",
                f"-Wl,-soname,{name}",
                f"-Wl,--version-script,{script}",
            ]
            run([compiler, *made, str(source), "-o", str(target)], target)
        flags.append(str(target))
    return flags
