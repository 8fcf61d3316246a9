"""The Kubernetes manifest against what its API allows, and against the config that it trains.

It was never run: no cluster where this runs.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simple_diffusion.config_files import load_config
from simple_diffusion.training.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
GIB = 2**30

# What the JobSet API (jobset.x-k8s.io/v1alpha2) and batch/v1 allow, of what the manifest uses: a
# dict of the keys, [item], or a type. Nothing else may be there, and "!" marks what must be.
POD = {
    "restartPolicy!": str,
    "terminationGracePeriodSeconds": int,
    "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int},
    "tolerations": [{"key": str, "operator": str, "effect": str}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey!": str, "labelSelector": {"matchLabels": dict}}
            ]
        }
    },
    "containers!": [
        {
            "name!": str,
            "image!": str,
            "command": [str],
            "args": [str],
            "env": [
                {"name!": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath!": str}}},
            ],
            "envFrom": [{"secretRef": {"name!": str, "optional": bool}}],
            "resources": {"requests": dict, "limits": dict},
            "volumeMounts": [{"name!": str, "mountPath!": str}],
        }
    ],
    "volumes": [
        {
            "name!": str,
            "emptyDir": {"medium": str, "sizeLimit": str},
            "persistentVolumeClaim": {"claimName!": str},
        }
    ],
}
JOB_SET = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {"name!": str},
    "spec!": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name!": str, "action!": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs!": [
            {
                "name!": str,
                "replicas": int,
                "template!": {
                    "spec!": {
                        "completionMode": str,
                        "parallelism": int,
                        "completions": int,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules!": [
                                {
                                    "action!": str,
                                    "onExitCodes": {
                                        "containerName": str,
                                        "operator!": str,
                                        "values!": [int],
                                    },
                                }
                            ]
                        },
                        "template!": {"spec!": POD},
                    }
                },
            }
        ],
    },
}


def misfits(value: Any, schema: Any, where: str = "") -> list[str]:
    """Where a document is not as the schema says."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [m for n, one in enumerate(value) for m in misfits(one, schema[0], f"{where}[{n}]")]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [f"{where}: {value!r} is no {schema.__name__}"]
    if not isinstance(value, dict):
        return [f"{where}: no mapping"]
    known = {key.rstrip("!"): inner for key, inner in schema.items()}
    missing = [key for key in schema if key.endswith("!") and key[:-1] not in value]
    found = [f"{where}: no {key[:-1]}" for key in missing]
    for key, inner in value.items():
        place = f"{where}.{key}"
        found += misfits(inner, known[key], place) if key in known else [f"{place}: unknown"]
    return found


class TestKubernetes:
    @pytest.fixture
    def tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = yaml.safe_load((DOCKER / "kubernetes_train.yaml").read_text())
        return tree

    @pytest.fixture
    def job(self, tree: dict[str, Any]) -> dict[str, Any]:
        job: dict[str, Any] = tree["spec"]["replicatedJobs"][0]["template"]["spec"]
        return job

    @pytest.fixture
    def pod(self, job: dict[str, Any]) -> dict[str, Any]:
        pod: dict[str, Any] = job["template"]["spec"]
        return pod

    def test_schema(self, tree: dict[str, Any]) -> None:
        assert misfits(tree, JOB_SET) == []
        assert (tree["apiVersion"], tree["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")

    def test_the_schema_finds_mistakes(self, tree: dict[str, Any]) -> None:
        tree["spec"]["failurePolicy"]["maxRestart"] = 3
        tree["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = "8"
        del tree["metadata"]["name"]
        assert misfits(tree, JOB_SET) == [
            ".metadata: no name",
            ".spec.failurePolicy.maxRestart: unknown",
            ".spec.replicatedJobs[0].template.spec.completions: '8' is no int",
        ]

    def test_what_restarts_it(self, tree: dict[str, Any], job: dict[str, Any]) -> None:
        """Everything but an error that would come again, which is exit code 2."""
        (rule,) = job["podFailurePolicy"]["rules"]
        container = job["template"]["spec"]["containers"][0]["name"]
        codes = {"containerName": container, "operator": "In", "values": [2, EXIT_INTERRUPTED]}
        assert rule == {"action": "FailJob", "onExitCodes": codes}
        assert EXIT_REQUEUE not in codes["values"]
        # podFailurePolicy needs this of its pods; a job then fails once any of them does
        assert job["template"]["spec"]["restartPolicy"] == "Never"
        assert job["backoffLimit"] == 0
        policy = tree["spec"]["failurePolicy"]
        assert policy["maxRestarts"] > 0
        (end,) = policy["rules"]
        assert (end["action"], end["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])

    def test_processes_find_each_other(self, tree: dict[str, Any], job: dict[str, Any]) -> None:
        container = job["template"]["spec"]["containers"][0]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        assert job["completions"] == job["parallelism"] == int(environment["NODES"] or 0)
        assert job["completionMode"] == "Indexed"
        name, group = tree["metadata"]["name"], tree["spec"]["replicatedJobs"][0]["name"]
        assert environment["MASTER_ADDR"] == f"{name}-{group}-0-0.{name}"
        assert set(environment) == {"NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}

    def test_its_command_is_in_the_image(self, pod: dict[str, Any]) -> None:
        program, script = pod["containers"][0]["command"]
        assert program == "python3"
        assert f"COPY {script} {script}" in (DOCKER / "Dockerfile").read_text()

    def test_config_and_limits_agree(self, pod: dict[str, Any]) -> None:
        path, *overrides = pod["containers"][0]["args"]
        config = load_config(ROOT / path, overrides)
        assert config.checkpoint.grace_seconds == pod["terminationGracePeriodSeconds"]
        mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert set(mounts.values()) == set(volumes)
        cache = volumes[mounts[str(Path(config.data.cache.folder or "").parent)]]
        room = int(cache["emptyDir"]["sizeLimit"].removesuffix("Gi")) * GIB
        assert config.data.cache.max_gb * 1e9 < room
        asked = pod["containers"][0]["resources"]["requests"]["ephemeral-storage"]
        assert int(asked.removesuffix("Gi")) * GIB > room
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claim = volumes[mounts[str(Path(config.run_dir).parent)]]
        assert "persistentVolumeClaim" in claim
        assert str(config.checkpoint.path).startswith("s3://")
