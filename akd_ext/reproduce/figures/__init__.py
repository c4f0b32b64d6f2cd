"""``akd-reproduce figure2`` and ``figure3``: the paper's pictures, drawn from runs of our own."""
