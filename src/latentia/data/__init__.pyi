# The public names of the room; `lazy_loader` reads this file, and type checkers do.

from .base import Dataset as Dataset
from .captions import CaptionData as CaptionData
from .captions import cached_captions as cached_captions
from .decode import BadImage as BadImage
from .decode import open_image as open_image
from .factors import Factors as Factors
from .images import ImageData as ImageData
from .latents import LatentData as LatentData
from .latents import cached_latents as cached_latents
from .left_out import LeftOut as LeftOut
from .loading import load_images as load_images
from .pairs import Degradation as Degradation
from .pairs import PairedImages as PairedImages
from .pairs import load_pairs as load_pairs
from .plane import PLANES as PLANES
from .plane import Plane as Plane
from .plane import PlaneData as PlaneData
from .plane import gaussian_mixture as gaussian_mixture
from .stacked import stacked_images as stacked_images
from .streaming import StreamedImages as StreamedImages
from .tables import TableData as TableData
from .tables import load_table as load_table
from .texts import TextData as TextData
from .texts import load_text as load_text
