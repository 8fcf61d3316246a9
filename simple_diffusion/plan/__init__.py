"""What a config will cost, before anyone pays for it: parameters, FLOPs, memory and rate."""

from simple_diffusion.plan.cluster import ClusterPlan, Terms
from simple_diffusion.plan.cluster_text import cluster_json, cluster_text
from simple_diffusion.plan.plan import Plan, make_plan
from simple_diffusion.plan.planner import make_cluster_plan, parse_devices

__all__ = [
    "ClusterPlan",
    "Plan",
    "Terms",
    "cluster_json",
    "cluster_text",
    "make_cluster_plan",
    "make_plan",
    "parse_devices",
]
