"""Pixel-space image diffusion: train, sample, and ablate the noise schedule.

The package is lazy: importing it loads neither torch nor diffusers.
"""

__version__ = "0.1.0"
