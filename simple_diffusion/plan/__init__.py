"""What a config will cost, before anyone pays for it: parameters, FLOPs, memory and rate."""

from simple_diffusion.plan.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
