"""Inference: one `__call__` per pipeline, images out. They alone convert to and from [0, 255]."""
