"""Training a LLaVA or a DiffLMM in the paper's two stages, on conversations as LLaVA writes them; no grounding label anywhere.

>>> from probe.training.courses import train
>>> from probe.training.plans import TrainingPlan
>>> train("llava", TrainingPlan(data="pairs.json", images="images", ...), "runs/stage-1")      # doctest: +SKIP
"""
