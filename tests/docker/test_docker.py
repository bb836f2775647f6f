"""The image and the services are what a careful administrator would let in; `make container` runs them, these tests read them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import run_here

ROOT = Path(__file__).resolve().parents[2]
APPS = sorted(path.parent.name for path in (ROOT / "apps").glob("*/__main__.py"))
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :].replace("\\\n", " ")
# Compose's own substitution, with none of the variables set.
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker/compose.yaml").read_text()))
SERVICES = COMPOSE["services"]


def instruction(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in FINAL_STAGE.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_finds_nothing_to_say_about_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    answer = subprocess.run([hadolint, str(ROOT / "docker/Dockerfile")], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_the_compose_file_keeps_the_compose_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    parsed = compose_spec.PyCompose.from_json(json.dumps(COMPOSE))
    parsed.validate()  # each secret and volume that a service names is defined
    broken = json.loads(json.dumps(COMPOSE))
    broken["services"][f"{APPS[0]}"]["read_onli"] = True
    with pytest.raises(ValueError, match="read_onli"):
        compose_spec.PyCompose.from_json(json.dumps(broken))


def test_the_image_runs_as_a_user_without_rights_and_needs_nothing_built_in_it() -> None:
    (user,) = instruction("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "numbers, so that Kubernetes can see that it is not root"
    assert not instruction("RUN")
    assert not instruction("ADD")
    assert instruction("COPY") == ["--from=build /opt/venv /opt/venv"]


def test_no_credential_or_mirror_of_the_build_reaches_the_image() -> None:
    assert not re.search(r"^(ARG|ENV) .*(PIP_\w*(INDEX|LINKS|CERT|PROXY)|PASSWORD|TOKEN|KEY)", DOCKERFILE, flags=re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored, "everything stays outside, except what is named"


@pytest.mark.parametrize("app", APPS)
def test_the_build_finds_what_it_installs(app: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert app.replace("_", "-") in project["project"]["optional-dependencies"]
    assert "serve" in project["project"]["optional-dependencies"]
    assert f"apps.{app}" in project["project"]["scripts"]
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], *project["project"]["license-files"]}
    let_in = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split("\n") if line.startswith("!")}
    assert needed | {"pyproject.toml", "constraints.txt"} == let_in


@pytest.mark.parametrize("app", APPS)
def test_the_app_understands_the_commands_of_the_image_and_of_the_services(app: str) -> None:
    commands = [json.loads(instruction("CMD")[0]), *(SERVICES[name]["command"] for name in (app, f"{app}-gpu"))]
    for command in commands:
        answer = run_here(app, *command, "--print_config")
        assert answer.code == 0, answer.err
        settings = yaml.safe_load(answer.out)
        assert (settings["model"], settings["host"], settings["port"]) == ("/model", "0.0.0.0", int(instruction("EXPOSE")[0]))


@pytest.mark.parametrize("app", APPS)
def test_every_app_has_a_service_for_cpus_and_one_for_gpus(app: str) -> None:
    for name, torch in ((app, "cpu"), (f"{app}-gpu", "cuda")):
        build = SERVICES[name]["build"]
        assert build["args"] == {"APP": app, "TORCH": torch}
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).samefile(ROOT / "docker/Dockerfile")
    assert "profiles" not in SERVICES[app]
    assert SERVICES[f"{app}-gpu"]["profiles"] == ["gpu"]
    assert SERVICES[f"{app}-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_no_more_than_it_needs(name: str) -> None:
    service: dict[str, Any] = SERVICES[name]
    assert service["read_only"] is True
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "the network is for the administrator to open"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["secrets"] == ["api_key"]
    assert service["command"][-2:] == ["--api_key_file", "/run/secrets/api_key"]
    assert not {variable for variable in service["environment"] if "KEY" in variable}
    ports = [port for other in SERVICES.values() for port in other["ports"]]
    assert len(ports) == len(set(ports)), "all services can run at once"


def test_the_health_check_tells_a_live_service_from_a_dead_one() -> None:
    command = json.loads(re.search(r"CMD (\[.*\])", instruction("HEALTHCHECK")[0])[1])  # type: ignore[index]
    with answering(200) as port:
        assert health(command, port) == 0
    with answering(503) as port:
        assert health(command, port) != 0
    assert health(command, port) != 0, "nobody listens"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"ENGINE": "rkt"}, "ENGINE: found 'rkt', expected docker, podman or buildah."),
        ({"ENGINE": "buildah", "MODEL": "nowhere"}, "no model folder. `make demo` makes one; MODEL names another."),
    ],
)
def test_make_container_says_what_it_lacks_before_it_builds(variables: dict[str, str], complaint: str) -> None:
    script = [sys.executable, str(ROOT / "docker/container.py")]
    answer = subprocess.run(script, capture_output=True, text=True, env={**os.environ, **variables})
    assert answer.returncode == 1
    assert complaint in answer.stderr
    assert "Traceback" not in answer.stderr


def health(command: list[str], port: int) -> int:
    """The exit code of the image's check, asked about another port than the image's."""
    words = [sys.executable, *(word.replace(instruction("EXPOSE")[0], str(port)) for word in command[1:])]
    return subprocess.run(words, capture_output=True).returncode


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server on this machine that answers ``status`` to /healthz and 404 to anything else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
