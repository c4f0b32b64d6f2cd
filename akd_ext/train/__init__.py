"""``akd-train``: trains what a torchdistill YAML describes. `trainer` tells a run from top to bottom.

In: a YAML file and flags. Out: the best student in its ``dst_ckpt``, and ``--output_dir`` with results, log and state.
May import: the plug-in `akd_ext.torchdistill` and the library. Needs ``pip install ".[experiments]"``.
"""
