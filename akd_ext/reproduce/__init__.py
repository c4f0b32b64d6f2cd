"""``akd-reproduce``: every run of one of the paper's tables, in the right order, and the table.

In: the table's name. Out: ``table.md``, ``table.json`` and pictures beside the runs, each of which is one ``akd-train``.
May import: everything else in akd_ext. Needs ``pip install ".[experiments]"``.
"""
