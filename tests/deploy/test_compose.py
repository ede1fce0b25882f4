"""The Compose file is valid, safe by default, and names only what is there."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from deploy.make_secrets import METRICS, OPERATOR, make
from deploy.tools.fetch import TOOLS
from hdet_service.auth import Role
from hdet_service.settings import Settings
from hdet_service.tokens import read_tokens_file
from tests.deploy.rendering import ROOT

FILE = ROOT / "deploy/compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("head", "worker")


def _resolved(text: str) -> str:
    """Variables as Compose resolves them where nobody has set one."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


@pytest.mark.deploy
@pytest.mark.parametrize("change", [None, ("services", "head", "volumess"), ("services", "head", "restart")])
def test_it_is_valid_by_the_published_schema(change: tuple[str, ...] | None) -> None:
    schema = json.loads((TOOLS / "schemas/compose-spec.json").read_text(encoding="utf-8"))
    compose = yaml.safe_load(_resolved(FILE.read_text(encoding="utf-8")))
    if change is not None:
        compose[change[0]][change[1]][change[2]] = 7
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(compose) == (change is None)


def test_every_service_has_a_health_check() -> None:
    # The head's is in the image.
    image = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert "HEALTHCHECK" in image
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["head"]


def test_ray_has_one_address_only() -> None:
    assert [SERVICES[name]["networks"] for name in OURS] == [["cluster"], ["cluster"]]


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_container_may_write_to_its_image_or_gain_rights() -> None:
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_what_is_mounted_from_the_checkout_is_there() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if isinstance(mount, str)]
    assert [s for s in sources if s.startswith(".") and not (FILE.parent / s).exists()] == []
    assert {s for s in sources if not s.startswith(".")} == set(COMPOSE["volumes"])


def test_the_heads_settings_are_ones_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES["head"]["environment"]
    given = {name: _resolved(value) for name, value in environment.items() if name.startswith("HDET_")}
    assert {name.removeprefix("HDET_").lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.host, settings.port) == ("0.0.0.0", 8470)
    assert settings.tokens_file == Path("/run/secrets/hdet_tokens")


def test_secrets_come_by_file_and_never_by_variable() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            is_secret = re.search("TOKEN|PASSWORD|SECRET", name)
            assert not is_secret or value.startswith("/run/secrets/"), name


def test_every_secret_that_compose_wants_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    wanted = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    given = read_tokens_file(folder / "hdet_tokens")
    assert [(token.name, token.role) for token in given] == [
        ("admin", Role.OPERATOR),
        ("prometheus", Role.METRICS),
    ]
    assert [token.token for token in given] == [(folder / name).read_text() for name in (OPERATOR, METRICS)]


def test_secrets_that_are_there_are_kept(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert make(tmp_path) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    (tmp_path / METRICS).unlink()
    assert make(tmp_path) == [METRICS, "hdet_tokens"]
    assert (tmp_path / OPERATOR).read_text() == before[OPERATOR]


def test_prometheus_scrapes_what_the_head_serves() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["head:" + SERVICES["head"]["environment"]["HDET_PORT"]]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in SERVICES["prometheus"]["secrets"]
    targets = [mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]]
    assert set(config["rule_files"]) <= set(targets)
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["head"]["networks"])


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((folder / "dashboards/hdet.yaml").read_text("utf-8"))["providers"]
    mounted = dict(mount.split(":")[:2][::-1] for mount in SERVICES["grafana"]["volumes"])
    assert mounted[provider["options"]["path"]] == "./grafana/dashboards"
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "deploy/grafana/dashboards" / home.name).exists()
