"""Categories without labels: crops around lesions -> features -> clusters -> the network learns them -> features ...

``crops`` says what the network sees, ``backbone`` is the network, ``features`` runs it over many lesions, ``space``
makes the features comparable, ``clustering``, ``balance`` and ``stability`` find the categories.

``mining`` is the loop, with ``views`` and ``finetune`` as its training; ``pretrain`` may come before it, and ``rounds``
is the record of both. ``fit`` makes the categoriser of features, ``learn`` with all the training asked for.
``categorizer`` is the result as a file, ``names`` proposes names, ``cards`` and ``page`` show it, ``judge`` compares it
with known types, ``pipeline`` is the command. ``search`` finds alike lesions: ``retrieval`` ranks and judges, ``words``
compares texts, ``sheet`` draws.
"""

from data_prep.categorize.mining import MiningSettings
from data_prep.categorize.pipeline import CategorizeSummary, run
from data_prep.categorize.pretrain import PretrainSettings

__all__ = ["CategorizeSummary", "MiningSettings", "PretrainSettings", "run"]
