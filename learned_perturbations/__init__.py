"Learn real perturbations from pairs of images, attack inside them, harden and certify."
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attacks import pgd
    from .certification import certified_accuracy, certify
    from .classifiers import load_classifier
    from .criteria import farthest, nearest
    from .cvae import LearnedSet
    from .evaluation import evaluate
    from .masking import self_check
    from .pairs import KnownPairs, TensorPairs, digits
    from .robust_training import HardenRecipe, harden
    from .sets import PerturbationSet, RTSSet
    from .suite import attack_suite
    from .training import Recipe, train
    from .transforms import RandomPoint

_home = dict(PerturbationSet="sets", RTSSet="sets", LearnedSet="cvae", TensorPairs="pairs", KnownPairs="pairs", digits="pairs",
             Recipe="training", train="training", evaluate="evaluation", nearest="criteria", farthest="criteria",
             pgd="attacks", attack_suite="suite", self_check="masking", HardenRecipe="robust_training", harden="robust_training",
             load_classifier="classifiers", RandomPoint="transforms", certify="certification", certified_accuracy="certification")
__all__ = ["__version__", *_home]

def __getattr__(name):
    if name in _home: return getattr(import_module(f"{__name__}.{_home[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

def __dir__(): return sorted({*globals(), *__all__})
