"""What differs between kinds of data: images, and (in `text`) sentences.

In: a batch of a loader. Out: inputs on the device, scores, checkpoints in the form of the kind.
"""
