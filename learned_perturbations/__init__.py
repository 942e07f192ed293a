__version__ = "0.1.0"

from . import networks  # registers the networks that saved sets name
