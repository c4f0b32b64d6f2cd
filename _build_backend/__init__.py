"""Builds akd_ext: the PEP 517 hooks (``backend``), and what compiles the two kernel libraries (``native``).

Nothing here imports torch. The kernels use LibTorch's stable ABI, so a build needs its headers, its version and one library to
link to, and all three can be read from the files. That keeps a build out of the reach of a torch that does not import (a missing
CUDA library, another Python), and free of the assumptions of ``torch.utils.cpp_extension``: a visible GPU, a right guess of CUDA_HOME.
"""
