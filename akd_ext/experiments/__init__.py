"""Commands built on top of the library and the torchdistill plug-in: ``akd-train`` and ``akd-reproduce``.

Needs the extra dependencies: ``pip install "akd_ext[experiments]"``.
"""
