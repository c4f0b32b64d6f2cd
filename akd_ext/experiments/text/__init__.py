"""Text classification and regression for ``akd-train``: the GLUE tasks, and a user's own sentences."""
