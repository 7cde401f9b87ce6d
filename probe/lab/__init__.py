"""The lab: endless synthetic scenes with exact masks, and small models trained on their captions alone.

``probe.lab.scenes`` needs numpy and Pillow; ``probe.lab.llava`` and ``probe.lab.training`` load torch and transformers,
so nothing is imported here.
"""
