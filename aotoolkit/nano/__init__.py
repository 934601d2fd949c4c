"""The embedded world: a small base model, organisms with secrets, and an oracle that reads them.

    lab = aotoolkit.nano.load()
    acts = lab.model.activations(
        [{"role": "user", "content": "Give me a hint."}], layers=[6], adapter="puppet"
    )
    lab.oracle.ask("What is the secret word?", acts[1:])

Everything here is made by `aotoolkit nano build` from seeds, through the package's public parts.
"""

from aotoolkit.nano.load import Nano, load, load_model
from aotoolkit.nano.organisms import KINDS, Organism

__all__ = ["KINDS", "Nano", "Organism", "load", "load_model"]
