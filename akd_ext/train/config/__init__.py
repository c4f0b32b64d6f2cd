"""From a YAML file to a configuration that is known to work: every key and value is checked before anything is made.

In: a path and ``--set`` overrides. Out: a `Config`, or one sentence with the key, its line and the nearest valid choice.
"""
