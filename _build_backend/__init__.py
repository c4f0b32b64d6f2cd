"""Builds akd_ext: the PEP 517 hooks (``backend``), and what compiles the two kernel libraries (``native``).

Nothing here imports torch. The kernels use LibTorch's stable ABI, so a build needs its headers, its version and one library to
link to, and all three can be read from the files. That keeps a build out of the reach of a torch that does not import (a missing
CUDA library, another Python), and free of the assumptions of ``torch.utils.cpp_extension``: a visible GPU, a right guess of CUDA_HOME.

Why this and not scikit-build-core (1.1.2, read for that question). It can write a py3-none wheel (``wheel.py-api = "py3"``), and a second
try without CMake can follow a build that failed (``if.failed``). What it does not do:

- The torch that is installed. Its hooks ask for CMake and Ninja and for nothing that depends on the target environment, so torch would
  stand in ``requires`` and pip would fetch gigabytes for every build in isolation. Leaving that out takes hooks of our own again.
- Find that torch from within the isolated build (``find_torch``), or compile against a CUDA torch without a CUDA toolkit: its CMake
  package ends with an error there, and the CPU kernel must be built all the same. Headers and library would still be found by us.
- ``auto`` that never fails, kernel by kernel. ``if.failed`` starts again without CMake, all or nothing: a CPU kernel with no CUDA kernel
  beside it, each with its reason, is not in its words. And without network the CMake and Ninja it asks for are two more things that may
  be missing.
- The one line of what was built and why (``report``), and build.json, which ``akd_ext.info`` prints, from what was decided.

It would take the place of ``compile``, ``commands`` and setup.py (220 lines) and bring a CMakeLists.txt and two more tools to every build.
"""
