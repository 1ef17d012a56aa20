"""repsim: do self-supervised and supervised methods learn similar visual representations?

A thin helper of the notebooks: models, losses, and the comparison of everything with everything by CKA.
"""

__version__ = "0.1.0"
