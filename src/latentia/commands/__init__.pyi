# The commands, each written once: `lazy_loader` reads this file, type checkers do, and `latentia --help` lists them.

__all__: list[str]

from .anomalies import anomalies as anomalies
from .average import average as average
from .bounds import bounds as bounds
from .card import card as card
from .compare import compare as compare
from .convert import convert as convert
from .data import data as data
from .directions import directions as directions
from .doctor import doctor as doctor
from .edit import edit as edit
from .embed import embed as embed
from .evaluate import evaluate as evaluate
from .generate import generate as generate
from .pull import pull as pull
from .push import push as push
from .sheet import sheet as sheet
from .train import train as train
from .verify import verify as verify
from .votes import votes as votes
