"""The plan of a run: its numbers, and how they look on paper."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.config import RunConfig, build_network, build_objective
from simple_diffusion.diffusion.objectives import Batch
from simple_diffusion.models.uvit import UViT
from simple_diffusion.plan.live import PARTS, Parts
from simple_diffusion.plan.phases import Phase, local_batch, rehearse
