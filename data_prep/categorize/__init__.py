"""Categories without labels: crops around lesions -> features of a pretrained network -> clusters -> a categoriser.

``crops`` says what the network sees, ``backbone`` is the network, ``features`` runs it over many lesions,
``space`` makes the features comparable, ``clustering`` and ``stability`` find the categories, ``categorizer`` is the
result as a file, ``cards`` draws it, ``pipeline`` is the command.
"""

from data_prep.categorize.pipeline import CategorizeSummary, run

__all__ = ["CategorizeSummary", "run"]
