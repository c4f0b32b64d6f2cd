"""The machine: device, precision, memory, signals, and what its failures are called.

May import: nothing of akd-train but the files beside it.
"""
