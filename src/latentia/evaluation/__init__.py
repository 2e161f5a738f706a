"""Metrics: samples in, numbers out, with the score that real data gets at the same n beside every distance.

A metric's dependencies are imported when it is first used; the public names stand in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
