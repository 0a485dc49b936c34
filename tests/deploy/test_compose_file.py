"""What docker-compose.yml promises, read without an engine; `make compose-e2e` runs it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from api.settings import ApiSettings
from tests.support.setting_names import documented, known
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
PROCESSES = {
    "migrate": "migrate",
    "api": "api",
    "dispatcher": "dispatcher",
    "worker": "worker",
    "worker-gpu": "worker",
}


def set_by_image(service):
    """Variables that the Dockerfile's target gives a value."""
    target = "worker" if service.startswith("worker") else "api"
    recipe = (ROOT / "deploy/Dockerfile").read_text()
    [stage] = re.findall(rf"^FROM base AS {target}\n(.*?)^CMD", recipe, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\b([A-Z_]+)=", stage))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert ("cap_add" in service) == (name == "object-store")


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_or_our_own(name):
    image = SERVICES[name]["image"]
    assert image.startswith("duolora-") or re.search(r":v?\d+\.\d+", image)
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert image.startswith("duolora-") == (image in built)


def test_only_what_callers_need_is_published():
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api", "object-store", "grafana"}
    assert SERVICES["grafana"]["profiles"] == ["observability"]
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["inside"]


def test_every_secret_that_is_asked_for_is_made():
    asked = set(re.findall(r"\$\{(\w+):\?", TEXT))
    made = set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE))
    assert asked == made


def test_the_example_names_all_that_the_file_takes_and_nothing_else():
    named = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    passed_on = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    hosts = "".join(path.read_text() for path in (ROOT / "deploy/hosts").iterdir())
    taken = (
        set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT + hosts)) | passed_on | set(yaml.safe_load(TEXT)["x-build"]["args"])
    )
    assert named == taken | {"COMPOSE_PROFILES"}


def test_the_example_tells_the_defaults_as_they_are():
    told = dict(re.findall(r"^#(\w+)=([\d.]+|true|false)$", EXAMPLE, re.MULTILINE))
    defaults = {name: value for process in known().values() for name, value in process.items()}
    compared = {name: value for name, value in told.items() if defaults.get(name) is not None}
    assert len(compared) > 20
    assert {name: float(json.loads(value)) for name, value in compared.items()} == {
        name: float(defaults[name]) for name in compared
    }


@pytest.mark.parametrize(("name", "process"), PROCESSES.items())
def test_every_documented_setting_is_passed_on_and_no_unknown_one(name, process):
    given = set(SERVICES[name]["environment"]) | set_by_image(name)
    assert documented(process) - given == set()
    assert set(SERVICES[name]["environment"]) - set(known()[process]) - {"HEALTH"} == set()


def test_the_worker_is_given_longer_than_it_takes_to_leave():
    [grace_s] = re.findall(r"^\$\{WORKER_STOP_S:-(\d+)\}s$", SERVICES["worker"]["stop_grace_period"])
    assert int(grace_s) > WorkerSettings.model_fields["worker_grace_s"].default + 10


def test_what_is_sent_in_has_a_bounded_place():
    [place] = SERVICES["api"]["tmpfs"]
    default = re.fullmatch(r"/tmp:size=\$\{API_TMP:-(\d+)g\}", place)  # noqa: S108 - inside the container
    fields = ApiSettings.model_fields
    most = fields["max_request_bytes"].default + fields["lora_parallel"].default * fields["lora_max_bytes"].default
    assert int(default[1]) * 2**30 > most


def test_what_is_mounted_is_there():
    mounted = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume[0] == "."
    ]
    assert len(mounted) == 4
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_every_command_goes_into_the_images():
    """Or none works there: `duolora` loads them all."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["duolora.commands"]
    folders = ["/".join(place.partition(":")[0].split(".")[:-1]) for place in commands.values()]
    assert [folder for folder in folders if not {folder, folder.split("/")[0]} & kept] == []


def test_prometheus_asks_every_process_that_tells_metrics():
    config = yaml.safe_load((ROOT / "deploy/observability/prometheus.yml").read_text())
    (names,) = config["scrape_configs"][0]["dns_sd_configs"]
    ours = {name for name, service in SERVICES.items() if service["image"].startswith("duolora-")}
    assert set(names["names"]) == ours - {"migrate", "sbom"}


class TestSeveralHosts:
    """What `deploy/hosts` changes of the compose file; Compose itself was asked by hand whether it takes it."""

    @staticmethod
    def read(name):
        text = (ROOT / "deploy/hosts" / name).read_text().replace("!reset ", "").replace("!override ", "")
        return text, yaml.safe_load(text)["services"]

    def test_the_servers_are_published_at_an_address_that_must_be_named(self):
        text, services = self.read("servers.yml")
        assert set(services) == {"postgres", "redis", "object-store"}
        assert all(port.startswith("${SERVERS_BIND") for service in services.values() for port in service["ports"])
        assert "${SERVERS_BIND:?" in text

    def test_workers_elsewhere_wait_for_nobody_and_ask_the_same_servers(self):
        text, services = self.read("worker.yml")
        assert set(services) == {"worker", "worker-gpu"}
        for service in services.values():
            assert not service["depends_on"]
            assert set(service["environment"]) == {"DATABASE_URL", "REDIS_URL", "S3_ENDPOINT"}
            here = SERVICES["worker"]["environment"]
            there = {name: value.split("@")[0] for name, value in service["environment"].items() if "@" in value}
            assert {name: re.sub(r":\?[^}]*", "", here[name]).split("@")[0] for name in there} == there
        assert "${SERVERS_HOST:?" in text
