"""Data sets: folders, parquet, the Hub, streams and built-in ones, through `load_images`; toys of the plane.

A process that only decodes need not import torch; the public names stand in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
