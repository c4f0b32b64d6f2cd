"""What a person sees of a run: console, log, progress bar, ``results.json``, TensorBoard, curves.

In: numbers. Out: text, files, pictures. Nothing here changes a run.
"""
