# The public names of the room; `lazy_loader` reads this file, and type checkers do.

from .decode import BadImage as BadImage
from .decode import open_image as open_image
from .factors import Factors as Factors
from .images import ImageData as ImageData
from .images import load_images as load_images
from .latents import LatentData as LatentData
from .latents import cached_latents as cached_latents
from .plane import PLANES as PLANES
from .plane import Plane as Plane
from .plane import PlaneData as PlaneData
from .plane import gaussian_mixture as gaussian_mixture
from .stacked import stacked_images as stacked_images
from .streaming import StreamedImages as StreamedImages
from .texts import TextData as TextData
from .texts import cached_texts as cached_texts
