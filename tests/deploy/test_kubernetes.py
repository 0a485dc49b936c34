"""The manifests of deploy/kubernetes: as Kubernetes wants them, as docker-compose.yml has it, and closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from api.settings import ApiSettings, DatabaseSettings
from api.webhooks import guard
from tests.support.kustomized import render
from tests.support.setting_names import known
from worker.settings import DispatcherSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OVERLAYS = ("one-node", "gpu")
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that has all that is used, and the newest whose schemas are at hand."""
OURS = {"migrate": DatabaseSettings, "api": ApiSettings, "dispatcher": DispatcherSettings, "worker": WorkerSettings}
SECRETS = {
    "DATABASE_URL": "postgresql+psycopg://duolora:0f3c9b@postgres:5432/duolora",
    "REDIS_URL": "redis://:0f3c9b@redis:6379/0",
    "S3_ACCESS_KEY_ID": "0f3c9b",
    "S3_SECRET_ACCESS_KEY": "0f3c9b0f3c9b",
    "SECRET_KEYS": "0f3c9b0f3c9b0f3c9b0f3c9b0f3c9b0f3c9b",
}
GENERATED = re.compile(r"^((?:[a-z]+-)?settings)-[a-z0-9]{10}$")


@pytest.fixture(params=OVERLAYS)
def manifests(request):
    return render(FOLDER / "overlays" / request.param)


def pods(manifests):
    """Templates of pods by the name of what makes them."""
    return {
        each["metadata"]["name"]: each["spec"]["template"] for each in manifests if "template" in each.get("spec", {})
    }


def by_name(manifests, kind):
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def environment(manifests, pod):
    """Variables of a pod's container; those from a secret have None."""
    [container] = pod["spec"]["containers"]
    maps = by_name(manifests, "ConfigMap")
    found = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each.get("value") for each in container.get("env", [])}


def without_hashes(node):
    if isinstance(node, dict):
        return {name: without_hashes(value) for name, value in node.items()}
    if isinstance(node, list):
        return [without_hashes(each) for each in node]
    return GENERATED.sub(r"\1", node) if isinstance(node, str) else node


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same(overlay):
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("there is no kubectl; the manifests are rendered by the tests' own reading of kustomize")
    done = subprocess.run(
        [kubectl, "kustomize", FOLDER / "overlays" / overlay], capture_output=True, text=True, check=True
    )
    theirs = [without_hashes(each) for each in yaml.safe_load_all(done.stdout)]
    ours = render(FOLDER / "overlays" / overlay)
    key = lambda each: (each["kind"], each["metadata"]["name"])  # noqa: E731
    assert sorted(theirs, key=key) == sorted(ours, key=key)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_schemas_accept_them(manifests, version):
    checked = [each for each in manifests if not each["apiVersion"].startswith("keda.sh/")]
    assert len(checked) > 20
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_check_would_find_a_field_that_is_not_there(manifests):
    manifest = by_name(manifests, "Deployment")["api"]
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("process", OURS)
def test_a_process_gets_settings_it_knows_and_takes(manifests, process, monkeypatch):
    given = environment(manifests, pods(manifests)[process])
    shared = set(by_name(manifests, "ConfigMap")["settings"]["data"])  # one list for all: S3's public name is the API's
    assert set(given) - set(known()[process]) - shared == set()
    for name in (*SECRETS, *known()[process]):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, SECRETS.get(name, "") if value is None else value)
    OURS[process]()


def test_no_setting_is_unknown_to_all(manifests):
    for name in known()["worker"].keys() & by_name(manifests, "ConfigMap")["api-settings"]["data"].keys():
        assert name in known()["api"]
    shared = by_name(manifests, "ConfigMap")["settings"]["data"]
    assert set(shared) - set().union(*known().values()) == set()


@pytest.mark.parametrize("process", OURS)
def test_a_process_is_what_it_is_in_compose(manifests, process):
    pod, service = pods(manifests)[process], SERVICES[process]
    [container] = pod["spec"]["containers"]
    assert container.get("args") == service.get("command")
    image = container["image"].split("/")[-1].removesuffix("-gpu:0.1.0").removesuffix(":0.1.0")
    assert image == service["image"].split(":")[0]
    wanted = {name for name in service["environment"] if name in {*SECRETS, "BASE_MODELS"}}
    assert {name for name in environment(manifests, pod) if name in {*SECRETS, "BASE_MODELS"}} >= wanted
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {place.split(":")[0] for place in service.get("tmpfs", [])} <= mounted


def test_the_version_is_the_projects():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in OVERLAYS:
        ours = [pod["spec"]["containers"][0]["image"] for pod in pods(render(FOLDER / "overlays" / name)).values()]
        assert {image.split(":")[1] for image in ours if "duolora-" in image} == {version}


@pytest.mark.parametrize("server", ["postgres", "redis", "object-store"])
def test_a_server_is_what_it_is_in_compose(server):
    pod, service = pods(render(FOLDER / "overlays/one-node"))[server], SERVICES[server]
    [container] = pod["spec"]["containers"]
    assert container["image"] == service["image"]
    command = service.get("command")
    wanted = command.split() if isinstance(command, str) else [part.replace("$$", "$") for part in command or []]
    assert container.get("args", []) == wanted
    assert {each["name"] for each in container["env"]} == set(service["environment"])
    assert pod["spec"]["terminationGracePeriodSeconds"] == int(service["stop_grace_period"].removesuffix("s"))
    places = {place.split(":")[1] for place in service["volumes"]} | set(service["tmpfs"])
    assert {mount["mountPath"] for mount in container["volumeMounts"]} - {"/dev/shm"} == places  # noqa: S108


def test_every_pod_is_confined(manifests):
    for name, pod in pods(manifests).items():
        spec, [container] = pod["spec"], pod["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name  # they would set S3_* and REDIS_* by the names of services
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name
        volumes = {each["name"] for each in spec.get("volumes", [])}
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert volumes <= mounted, name
        for kind in ("startupProbe", "livenessProbe"):
            assert (kind in container) == (name != "migrate"), name
    labels = by_name(manifests, "Namespace")["duolora"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_our_images_run_as_the_user_that_they_have(manifests):
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for name in OURS:
        context = pods(manifests)[name]["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))


def test_a_pod_has_the_time_that_its_process_takes_to_leave(manifests):
    found = pods(manifests)
    worker = found["worker"]["spec"]
    grace_s = float(environment(manifests, found["worker"])["WORKER_GRACE_S"])
    assert worker["terminationGracePeriodSeconds"] > grace_s + 1
    engine = WorkerSettings.model_fields["engine"].annotation.model_fields
    assert grace_s > engine["cancel_grace_s"].default + engine["term_grace_s"].default
    assert "lifecycle" not in worker["containers"][0]
    api = found["api"]["spec"]
    pause_s = api["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert api["terminationGracePeriodSeconds"] >= pause_s + int(SERVICES["api"]["stop_grace_period"].removesuffix("s"))


def matches(selector, labels):
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def test_every_selector_finds_pods(manifests):
    labels = [pod["metadata"]["labels"] for pod in pods(manifests).values()]
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            assert any(matches({"matchLabels": spec["selector"]}, pod) for pod in labels), each["metadata"]
        elif each["kind"] in {"PodDisruptionBudget", "Deployment", "StatefulSet"}:
            assert sum(matches(spec["selector"], pod) for pod in labels) == 1, each["metadata"]
        elif each["kind"] == "HorizontalPodAutoscaler":
            assert "replicas" not in by_name(manifests, "Deployment")[spec["scaleTargetRef"]["name"]]["spec"]


def sides(manifests, direction, pod):
    """The rules of one direction that apply to a pod; None if no policy speaks of it, which lets everything through."""
    policies = [each["spec"] for each in by_name(manifests, "NetworkPolicy").values()]
    applying = [spec for spec in policies if matches(spec["podSelector"], pod) and direction in spec["policyTypes"]]
    return [rule for spec in applying for rule in spec.get(direction.lower(), [])] if applying else None


def lets(rules, peer, port, end):
    return rules is None or any(
        port in {each["port"] for each in rule["ports"]}
        and any(
            "podSelector" in way and "namespaceSelector" not in way and matches(way["podSelector"], peer)
            for way in rule[end]
        )
        for rule in rules
    )


def test_pods_reach_the_servers_they_need_and_nothing_else():
    manifests = render(FOLDER / "overlays/one-node")
    found = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    ports = {
        name: [port["containerPort"] for port in pod["spec"]["containers"][0].get("ports", [])]
        for name, pod in pods(manifests).items()
    }
    reached = {
        (source, target, port)
        for source, one in found.items()
        for target, other in found.items()
        for port in ports[target]
        if lets(sides(manifests, "Egress", one), other, port, "to")
        and lets(sides(manifests, "Ingress", other), one, port, "from")
    }
    users = {"api", "dispatcher", "worker"}
    assert reached == {
        *((user, "postgres", 5432) for user in users | {"migrate"}),
        *((user, "redis", 6379) for user in users),
        *((user, "object-store", 8333) for user in users),
    }


def test_who_may_reach_a_server_is_who_has_its_address(manifests):
    for name in OURS:
        pod = pods(manifests)[name]
        given, labels = environment(manifests, pod), pod["metadata"]["labels"]
        for label, variable in (
            ("database", "DATABASE_URL"),
            ("broker", "REDIS_URL"),
            ("store", "S3_SECRET_ACCESS_KEY"),
        ):
            assert (labels.get(f"duolora/reaches-{label}") == "yes") == (variable in given), (name, label)


def test_webhooks_reach_what_the_dispatcher_would_allow_and_only_its_pods_do(manifests):
    policy = by_name(manifests, "NetworkPolicy")["webhooks"]["spec"]
    reaching = [
        name for name, pod in pods(manifests).items() if matches(policy["podSelector"], pod["metadata"]["labels"])
    ]
    assert reaching == ["dispatcher"]
    [rule] = policy["egress"]
    v4, v6 = (way["ipBlock"] for way in rule["to"])
    assert (v4["cidr"], v4["except"]) == ("0.0.0.0/0", [str(each) for each in guard._NOT_PUBLIC_V4])
    assert (v6["cidr"], v6["except"]) == (str(guard._GLOBAL_V6), [str(each) for each in guard._NOT_PUBLIC_V6])
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]


def test_no_way_to_the_world_is_one_to_private_networks(manifests):
    ways = [
        way["ipBlock"]
        for policy in by_name(manifests, "NetworkPolicy").values()
        for rule in policy["spec"].get("egress", [])
        for way in rule["to"]
        if "ipBlock" in way
    ]
    wide = [way for way in ways if way["cidr"] == "0.0.0.0/0"]
    assert wide
    private = ("10.96.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1", "127.0.0.1")
    for way in wide:
        left_out = [ip_network(each) for each in way["except"]]
        assert [one for one in private if not any(ip_address(one) in each for each in left_out)] == []


def test_a_gpu_worker_asks_for_one_card_and_may_be_on_a_spot_node():
    manifests = render(FOLDER / "overlays/gpu")
    spec = pods(manifests)["worker"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "duolora-worker-gpu" in spec["containers"][0]["image"]
    assert {each["key"] for each in spec["tolerations"]} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert json.loads(environment(manifests, pods(manifests)["worker"])["BASE_MODELS"]).keys() == {"sdxl"}


@pytest.mark.parametrize("component", sorted(path.name for path in (FOLDER / "components").iterdir()))
def test_a_component_can_be_used_without_any_other(component, tmp_path):
    way = os.path.relpath(FOLDER, tmp_path.resolve())
    words = {"resources": [f"{way}/base"], "components": [f"{way}/components/{component}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(words))
    manifests = render(tmp_path)
    assert {"api", "dispatcher", "worker"} <= by_name(manifests, "Deployment").keys()
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_cards_and_spot_nodes_go_together_in_any_order(tmp_path):
    way = os.path.relpath(FOLDER, tmp_path.resolve())
    found = []
    for order in (("gpu", "spot"), ("spot", "gpu")):
        words = {"resources": [f"{way}/base"], "components": [f"{way}/components/{name}" for name in order]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(words))
        found.append({each["key"] for each in pods(render(tmp_path))["worker"]["spec"]["tolerations"]})
    assert found[0] == found[1] > {"nvidia.com/gpu", "duolora/spot"}


def test_the_migration_can_be_applied_before_the_rest(manifests):
    """By the selector of the guide, which finds the Job and nothing that it would need new."""
    guide = (ROOT / "deploy/README.md").read_text()
    name, value = re.search(r"--selector (\S+)=(\S+)", guide).groups()
    found = [each for each in manifests if each["metadata"].get("labels", {}).get(name) == value]
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [("Job", "migrate")]
    [container] = found[0]["spec"]["template"]["spec"]["containers"]
    assert "envFrom" not in container


def test_the_guide_names_every_key_of_the_secrets(manifests):
    guide = (ROOT / "deploy/README.md").read_text()
    asked = {
        each["valueFrom"]["secretKeyRef"]["key"]
        for pod in pods(manifests).values()
        for each in pod["spec"]["containers"][0].get("env", [])
        if "valueFrom" in each
    }
    assert asked
    assert {key for key in asked if f"    {key}=" not in guide} == set()
