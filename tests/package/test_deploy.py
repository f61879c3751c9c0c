"""The image, the services of compose and the manifests for Kubernetes: linted, and held together
with what the router takes and serves."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from slime_router.cli.flags import read_config
from slime_router.config import Config
from slime_router.server.app import Gateway
from tests.integration.gateway import checkpoint

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEPLOY = ROOT / "docs" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
YAML = sorted(path for path in DEPLOY.rglob("*.yaml"))
VERSION = "1.31"  # the oldest of Kubernetes that the manifests are for
PINNED = re.compile(r".+:v?\d+(\.\d+)+(-\w+)*")
OWN_KINDS = ("ServiceMonitor", "Kustomization")  # no part of Kubernetes: they have no schema there


def loaded(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def compose() -> Any:
    [document] = loaded(DEPLOY / "compose.yaml")
    return document


def resources(folder: Path = KUBERNETES) -> Iterator[tuple[Path, Any]]:
    """All objects of a kustomization, those of others that it names too."""
    [kustomization] = loaded(folder / "kustomization.yaml")
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        if path.is_dir():
            yield from resources(path)
        else:
            yield from ((path, document) for document in loaded(path))


def of_kind(kind: str) -> dict[str, Any]:
    monitored = resources(KUBERNETES / "monitoring")
    return {each["metadata"]["name"]: each for _, each in monitored if each["kind"] == kind}


def container(name: str) -> Any:
    [found] = of_kind("StatefulSet")[name]["spec"]["template"]["spec"]["containers"]
    return found


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    """What follows an instruction, in the last stage."""
    last = re.split(r"^FROM ", dockerfile(), flags=re.MULTILINE)[-1]
    return re.findall(rf"^\s*{name} +(.*)$", last, re.MULTILINE)


def image_variables() -> dict[str, str]:
    words = (word for line in instructions("ENV") for word in shlex.split(line))
    return dict(word.split("=", 1) for word in words)


def router_commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """The router's arguments and variables, as the shell or Kubernetes would have put them in."""
    service, pod = compose()["services"]["router"], container("router")
    variables = {each["name"]: each.get("value", "") for each in pod["env"]}
    return {
        "compose": (service["command"], service["environment"]),
        "kubernetes": (pod["args"], variables),
    }


@pytest.fixture(scope="module")
def routes() -> Iterator[set[str]]:
    gateway = Gateway(Config(hf_checkpoint=str(checkpoint())))
    found = (route.resource for route in gateway.app().router.routes() if route.method == "GET")
    yield {resource.canonical for resource in found if resource is not None}
    gateway.tokenizer.close()


# Linted


def test_the_dockerfile_has_no_bad_habits():
    done = subprocess.run(
        [BIN / "hadolint", "--format", "json", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_the_yaml_has_no_bad_habits():
    command = [
        str(BIN / "yamllint"),
        "--strict",
        "-c",
        str(DEPLOY / ".yamllint.yaml"),
        *map(str, YAML),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_objects_are_those_of_kubernetes():
    validated = []
    for path, document in resources(KUBERNETES / "monitoring"):
        if document["kind"] not in OWN_KINDS:
            kubernetes_validate.validate(document, VERSION, strict=True)
            validated.append((path.stem, document["kind"]))
    objects = ("StatefulSet", "Service", "PodDisruptionBudget")
    assert sorted(validated) == sorted((n, k) for n in ("router", "workers") for k in objects)


def test_a_wrong_manifest_would_be_noticed():
    wrong = {**of_kind("Service")["router"], "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


# What the router is started with


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
def test_the_router_takes_its_arguments(place, tmp_path):
    arguments, variables = router_commands()[place]
    secret = tmp_path / "key"
    secret.write_text("secret-1")
    for name in variables:
        if name.endswith("_FILE"):
            variables = {**variables, name: str(secret)}
    config = read_config(arguments, {**image_variables(), **variables})
    assert (config.host, config.port, config.api_key) == ("0.0.0.0", 30000, "secret-1")
    kept = config.journal if place == "kubernetes" else config.store
    assert kept in ("/var/lib/slime-router/journal", "redis://valkey:6379/0")


@pytest.mark.parametrize("place", ["compose", "kubernetes"])
def test_the_command_itself_does(place):
    arguments, _ = router_commands()[place]
    command = [sys.executable, "-m", "slime_router", *arguments, "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={})
    assert done.returncode == 0, done.stderr
    assert "shutdown_grace_period_secs = " in done.stdout


def test_where_workers_are_looked_for_is_where_they_are():
    arguments, _ = router_commands()["kubernetes"]
    [source] = read_config(arguments, {}).worker_discovery
    service = of_kind("Service")["workers"]
    assert service["spec"]["clusterIP"] == "None"
    assert source == f"dns:workers:{service['spec']['ports'][0]['port']}"
    arguments, _ = router_commands()["compose"]
    assert read_config(arguments, {}).worker_urls == ("http://sglang:30000",)
    for flags in (container("workers")["args"], compose()["services"]["sglang"]["command"]):
        assert flags[flags.index("--port") + 1] == "30000"


def test_the_store_is_a_service_that_keeps_what_it_has():
    services = compose()["services"]
    assert services["router"]["environment"]["SLIME_ROUTER_STORE"] == "redis://valkey:6379/0"
    assert "valkey" in services["router"]["depends_on"]
    command = services["valkey"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"


def test_there_is_time_to_end():
    """The pod outlives what it does before, the grace period, and what is written at the end."""
    arguments, _ = router_commands()["kubernetes"]
    grace_s = read_config(arguments, {}).shutdown_grace_period_s
    pod = of_kind("StatefulSet")["router"]["spec"]["template"]["spec"]
    before_s = float(container("router")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before_s + grace_s + 10
    arguments, _ = router_commands()["compose"]
    grace_s = read_config(arguments, {}).shutdown_grace_period_s
    stop = compose()["services"]["router"]["stop_grace_period"]
    assert float(stop.removesuffix("s")) >= grace_s + 10


# What is asked of it


def test_probes_and_scrapes_ask_for_routes_that_there_are(routes):
    probes = [
        container("router")[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    ]
    assert probes == ["/liveness", "/liveness", "/readiness"]
    [monitor] = of_kind("ServiceMonitor").values()
    [scrape] = loaded(DEPLOY / "prometheus.yaml")[0]["scrape_configs"]
    [check] = instructions("HEALTHCHECK")
    [checked] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)
    assert checked[0] == image_variables()["SLIME_ROUTER_PORT"]
    asked = {*probes, monitor["spec"]["endpoints"][0]["path"], scrape["metrics_path"], checked[1]}
    assert asked - routes == set()


def test_the_monitor_finds_the_service():
    [monitor] = of_kind("ServiceMonitor").values()
    service = of_kind("Service")["router"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in service["spec"]["ports"]}


def test_selectors_select_the_pods():
    for name, workload in of_kind("StatefulSet").items():
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels
        assert of_kind("Service")[name]["spec"]["selector"].items() <= labels
        budget = of_kind("PodDisruptionBudget")[name]["spec"]
        assert budget["selector"]["matchLabels"].items() <= labels


# The image and the services


def test_the_image_does_not_run_as_root():
    [user] = instructions("USER")
    assert all(int(number) > 0 for number in user.split(":"))
    assert instructions("ENTRYPOINT") == ['["slime-router"]']
    pod = of_kind("StatefulSet")["router"]["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"


def test_what_the_image_copies_is_there_and_let_in():
    let_in = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = re.findall(r"^COPY ((?!--from).*) \S+$", dockerfile(), re.MULTILINE)
    sources = {Path(word).name for line in copied for word in line.split()}
    assert "slime_router" in sources
    assert all((ROOT / name).exists() for name in sources)
    assert {f"!{name}" for name in sources} <= set(let_in)
    assert let_in[0] == "*"


def test_the_services_name_what_there_is():
    document = compose()
    for name, service in document["services"].items():
        assert set(service.get("depends_on", ())) <= document["services"].keys(), name
        assert set(service.get("secrets", ())) <= document.get("secrets", {}).keys(), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            is_path = source.startswith(".")
            assert (DEPLOY / source).exists() if is_path else source in document["volumes"], volume
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / "Dockerfile").exists()
        else:
            assert PINNED.fullmatch(service["image"]), service["image"]


def test_only_this_machine_reaches_the_services():
    services = compose()["services"].values()
    ports = [port for service in services for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_is_written_down():
    text = "".join(path.read_text("utf-8") for path in YAML)
    assert re.findall(r"api_key[=:] *[\"']?[\w-]{16,}", text) == []
    assert "api_key" in (DEPLOY / ".gitignore").read_text("utf-8").split()
