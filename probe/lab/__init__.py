"""The lab: endless synthetic scenes with exact masks, and small models trained on them; alone ``sam`` learned from masks.

``probe.lab.scenes`` needs numpy and Pillow, ``probe.lab.storage`` nothing at all; the models ``probe.lab.llava``, ``clip``,
``diffusion``, ``sam`` and ``arms`` and their trainings ``training``, ``contrastive``, ``autoencoding``, ``denoising``,
``segmenting`` and ``twins`` load torch, transformers and diffusers, so nothing is imported here.
"""
