"""Says what an upgrade from one manifest to another would make Kubernetes refuse, lose or orphan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Objects = list[dict[str, Any]]


def obstacles(before: Objects, after: Objects) -> list[str]:
    """Everything in ``after`` that stands in the way of an upgrade from ``before``."""
    new = {_key(item): item for item in after}
    found = []
    for item in before:
        if "helm.sh/hook" in item["metadata"].get("annotations", {}):
            continue  # deleted and made anew each time
        key = _key(item)
        if key not in new:
            found.append(f"{key} is gone")
            continue
        for path, value in _immutable(item):
            now = _at(new[key], path)
            if now != value:
                found.append(f"{key}: {'/'.join(map(str, path))} was {value!r}, is {now!r}")
        if item["kind"] == "RayCluster":
            found += _changes_of_cluster(item, new[key])
    return found


def _key(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return f"{item['apiVersion']} {item['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def _immutable(item: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """What Kubernetes refuses to change in an object that exists, and what it has now."""
    match item["kind"]:
        case "PersistentVolumeClaim":
            # A claim may only be asked to grow.
            for field in ("accessModes", "storageClassName", "volumeName", "volumeMode", "selector"):
                yield ("spec", field), item["spec"].get(field)
            # Without it, helm deletes a claim that a later chart no longer has.
            policy = ("metadata", "annotations", "helm.sh/resource-policy")
            yield policy, _at(item, policy)
        case "PriorityClass":
            yield ("value",), item["value"]
            yield ("preemptionPolicy",), item.get("preemptionPolicy")
        case "Service":
            yield ("spec", "clusterIP"), item["spec"].get("clusterIP")
            # Not immutable, but another selector would leave the running head behind.
            yield ("spec", "selector"), item["spec"]["selector"]
        case "ServiceAccount" | "ConfigMap" | "Secret":
            yield ("immutable",), item.get("immutable")


def _changes_of_cluster(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """KubeRay keeps pods by group and cluster name; the head keeps its state by the claim that it mounts."""
    groups = [{group["groupName"] for group in item["spec"]["workerGroupSpecs"]} for item in (before, after)]
    if not groups[0] <= groups[1]:
        yield f"worker groups {sorted(groups[0] - groups[1])} are gone"
    claims = [_claims(item["spec"]["headGroupSpec"]["template"]["spec"]) for item in (before, after)]
    if claims[0] != claims[1]:
        yield f"the head's claims were {claims[0]}, are {claims[1]}"


def _claims(pod: dict[str, Any]) -> dict[str, str]:
    volumes = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    return {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in volumes}


def _at(item: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        if not isinstance(item, dict) or step not in item:
            return None
        item = item[step]
    return item
