"""latentia: every family of generative and representation learning behind the interface of Hugging Face diffusers.

The public names stand in `__init__.pyi`, and nothing heavy is imported before one of them is first used.
"""

from importlib.metadata import version

import lazy_loader

from latentia import registration

__version__ = version("latentia")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
registration.install()
registration.publish(__all__, __getattr__)
__all__ += ["__version__"]
