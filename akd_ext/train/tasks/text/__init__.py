"""GLUE, and a user's own sentences, with models of Hugging Face. Needs ``pip install ".[glue]"``."""
