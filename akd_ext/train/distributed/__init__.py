"""Several processes: they meet, share the samples without padding, and train as one would.

In: what one process has. Out: what all of them have; with one process, the same without a call.
"""
