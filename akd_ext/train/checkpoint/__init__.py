"""What a run keeps on disk: the best and last student, and a state from which the same command goes on.

In: the parts of a run at one moment. Out: the same parts at that moment, to the bit; nothing in a file is executed.
"""
