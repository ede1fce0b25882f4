"""Values that can't work are refused when the chart is rendered, by name and with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.rendering import RefusedError, render_text

pytestmark = pytest.mark.deploy

# Wrong by themselves: the schema's own words, which name the value and what is allowed.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"worker": {}}, "''", "'worker' not allowed"),
    ({"workers": {"maximum": 4}}, "/workers", "'maximum' not allowed"),
    ({"metrics": {"serviceMonitor": {"enable": True}}}, "/metrics/serviceMonitor", "'enable' not allowed"),
    ({"extraWorkerGroups": [{"name": "a", "min": 0, "max": 1, "gpu": 1}]}, "/0", "'gpu' not allowed"),
    ({"extraWorkerGroups": [{"name": "a", "min": 0}]}, "/extraWorkerGroups/0", "missing property 'max'"),
    ({"image": {"variant": "rocm"}}, "/image/variant", "'cpu', 'cuda'"),
    ({"image": {"repository": "Registry/Image"}}, "/image/repository", "does not match pattern"),
    ({"image": {"digest": "sha256:12"}}, "/image/digest", "does not match pattern"),
    ({"controller": {"port": "8470"}}, "/controller/port", "want integer"),
    ({"controller": {"port": 70000}}, "/controller/port", "65,535"),
    ({"controller": {"maxRunningJobs": 0}}, "/controller/maxRunningJobs", "minimum"),
    ({"ray": {"version": "latest"}}, "/ray/version", "does not match pattern"),
    ({"ray": {"auth": {"mode": "off"}}}, "/ray/auth/mode", "'token', 'disabled'"),
    ({"ray": {"upgradeStrategy": "Rolling"}}, "/ray/upgradeStrategy", "'None', 'Recreate'"),
    ({"head": {"cpu": "lots"}}, "/head/cpu", "does not match pattern"),
    ({"head": {"cpu": 0}}, "/head/cpu", "minimum"),
    ({"head": {"memory": "512m"}}, "/head/memory", "Ki|Mi|Gi"),
    ({"workers": {"min": -1}}, "/workers/min", "minimum"),
    ({"workers": {"gpus": 1.5}}, "/workers/gpus", "want integer"),
    ({"workers": {"nodeSelector": {"pool": True}}}, "/workers/nodeSelector/pool", "want string"),
    ({"workers": {"labels": {"team": "a b"}}}, "/workers/labels/team", "does not match pattern"),
    ({"workers": {"tolerations": [{"key": "a", "effect": "Never"}]}}, "/tolerations/0/effect", "'NoExecute'"),
    ({"workers": {"env": [{"name": "A-B", "value": "1"}]}}, "/workers/env/0/name", "does not match pattern"),
    ({"state": {"accessMode": "ReadWriteMany"}}, "/state/accessMode", "'ReadWriteOncePod'"),
    ({"state": {"size": 20}}, "/state/size", "want string"),
    ({"checkpoints": {"kind": "nfs"}}, "/checkpoints/kind", "'volume', 'uri'"),
    ({"service": {"type": "Public"}}, "/service/type", "'LoadBalancer'"),
    ({"ingress": {"enabled": "yes"}}, "/ingress/enabled", "want boolean"),
    ({"networkPolicy": {"egress": [{"cidr": "10.0.0.300/8", "port": 1}]}}, "/egress/0/cidr", "pattern"),
    ({"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser", "minimum"),
    ({"podDisruptionBudget": {"maxUnavailable": 2}}, "/podDisruptionBudget/maxUnavailable", "maximum"),
    ({"metrics": {"serviceMonitor": {"interval": "fast"}}}, "/serviceMonitor/interval", "pattern"),
    ({"fullnameOverride": "n" * 41}, "/fullnameOverride", "does not match pattern"),
]

INGRESS = {"enabled": True, "host": "hdet.example.com", "tlsSecret": "tls"}
REACHED = {"allowFrom": [{"podLabels": {"app": "ingress"}}]}

# Right by themselves, wrong together: the chart's own words.
CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"controller": {"replicas": 2}}, "controller.replicas=2", "set it to 1"),
    ({"controller": {"port": 12000}}, "controller.port=12000", "take one outside"),
    ({"controller": {"port": 8265}}, "controller.port=8265", "take another"),
    ({"workers": {"min": 5}}, "workers.min=5", "lower min or raise max"),
    (
        {"extraWorkerGroups": [{"name": "a", "min": 3, "max": 1}]},
        "extraWorkerGroups[0].min=3",
        "lower min or raise max",
    ),
    (
        {"extraWorkerGroups": [{"name": "workers", "min": 0, "max": 1}]},
        "extraWorkerGroups[0].name=workers",
        "give each its own",
    ),
    ({"autoscaling": {"enabled": False}}, "autoscaling.enabled=false", "make them equal"),
    ({"image": {"variant": "cuda"}}, "image.variant=cuda", "set workers.gpus"),
    ({"workers": {"gpus": 1}}, "workers.gpus=1", "set variant=cuda"),
    (
        {"workers": {"image": {"variant": "cuda"}}},
        "workers.image.variant=cuda while workers.gpus=0",
        "set workers.gpus",
    ),
    ({"ingress": {"enabled": True}}, "ingress.host is empty", "set ingress.host"),
    ({"ingress": {"host": "hdet.example.com"}}, "ingress.host=hdet.example.com", "enable the Ingress"),
    (
        {"ingress": INGRESS | {"tlsSecret": ""}, "networkPolicy": REACHED},
        "ingress.enabled=true without TLS",
        "set ingress.tlsSecret",
    ),
    ({"ingress": INGRESS}, "networkPolicy.allowFrom is empty", "networkPolicy.allowExternal=true"),
    (
        {"ingress": INGRESS, "networkPolicy": REACHED, "ray": {"auth": {"mode": "disabled"}}},
        "ray.auth.mode=disabled while ingress.enabled=true",
        "set ray.auth.mode=token",
    ),
    (
        {
            "service": {"type": "LoadBalancer"},
            "networkPolicy": {"allowExternal": True},
            "controller": {"tlsTerminated": True},
            "ray": {"auth": {"mode": "disabled"}},
        },
        "ray.auth.mode=disabled while service.type=LoadBalancer",
        "set ray.auth.mode=token",
    ),
    ({"service": {"type": "NodePort"}}, "service.type=NodePort without TLS", "controller.tlsTerminated=true"),
    (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "service.loadBalancerSourceRanges",
        "set service.type=LoadBalancer",
    ),
    (
        {"networkPolicy": {"egress": [{"cidr": "10.0.0.0/8", "port": 443}]}},
        "networkPolicy.egress",
        "set networkPolicy.restrictEgress=true",
    ),
    ({"checkpoints": {"kind": "uri"}}, "checkpoints.uri is empty", "s3://bucket/runs"),
    ({"checkpoints": {"uri": "s3://b/r"}}, "checkpoints.uri=s3://b/r", "set checkpoints.kind=uri"),
    (
        {"checkpoints": {"kind": "uri", "uri": "s3://b/r", "existingClaim": "runs"}},
        "checkpoints.existingClaim=runs",
        "leave the claim out",
    ),
    (
        {"state": {"existingClaim": "same"}, "checkpoints": {"existingClaim": "same"}},
        "checkpoints.existingClaim=same",
        "a claim of their own",
    ),
    (
        {"ray": {"gcsFaultTolerance": {"backend": "redis"}}},
        "ray.gcsFaultTolerance.redisAddress is empty",
        "such as redis:6379",
    ),
    (
        {"ray": {"gcsFaultTolerance": {"redisAddress": "redis:6379"}}},
        "ray.gcsFaultTolerance.redisAddress",
        "set backend=redis",
    ),
    (
        {"ray": {"auth": {"mode": "disabled", "existingSecret": "ray"}}},
        "ray.auth.existingSecret=ray",
        "set ray.auth.mode=token",
    ),
    ({"serviceAccount": {"create": False}}, "serviceAccount.headName", "set create=true"),
    (
        {"serviceAccount": {"headName": "one", "workerName": "one"}},
        "serviceAccount.headName=one",
        "give each its own",
    ),
    (
        {"priorityClasses": {"create": True}, "head": {"priorityClassName": "high"}},
        "head.priorityClassName=high",
        "leave one of them out",
    ),
    (
        {"priorityClasses": {"create": True, "workerValue": 200_000}},
        "priorityClasses.workerValue=200000",
        "lower it",
    ),
    (
        {"workers": {"env": [{"name": "HDET_PORT", "value": "1"}]}},
        "workers.env sets HDET_PORT",
        "use the value that stands for it",
    ),
    (
        {"metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.serviceMonitor.tokenSecret is empty",
        "into a Secret and name it",
    ),
]


@pytest.mark.parametrize(
    ("values", "name", "remedy"),
    [*WRONG, *CONTRADICTIONS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_with_the_name_of_the_value_and_what_to_do(
    values: dict[str, Any], name: str, remedy: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        render_text(values)
    assert name in str(refused.value)
    assert remedy in str(refused.value)


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(RefusedError) as refused:
        render_text({"controller": {"replicas": 3}, "workers": {"min": 9, "gpus": 2}})
    for name in ("controller.replicas=3", "workers.min=9", "workers.gpus=2"):
        assert name in str(refused.value)
