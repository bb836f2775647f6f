"""Builds an app's image, starts its service in it, and asks for a prediction: what `make container` does. Standard library only.

Variables: ENGINE (docker, podman or buildah), APP, BASE, TORCH (cpu or cuda), MODEL (a bundle), INPUT (a file to predict). Docker and
Podman run the image as compose.yaml does. Buildah needs neither a daemon nor a registry of images: unless BASE is given, the base is made
by Debian's debootstrap, and PyTorch is PyPI's. That takes root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
PORT = 8000
PATIENCE_S = 600
_PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "default-timeout")
_PROBE = """
import os
writable = []
for folder in ("/", "/etc", "/opt/venv", "/model", "/tmp"):
    try:
        open(folder + "/probe", "w").close()
        writable.append(folder)
    except OSError:
        pass
print(f"user {os.getuid()}:{os.getgid()}, can write to: {', '.join(writable) or 'nothing'}")
"""


# Its mounts are seen by this process and its children only, and go with them.
_CHROOT = """
root=$1 model=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$model" "$root/model"
mount -t tmpfs -o nosuid,nodev tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
for folder in "$root" "$root/model"; do mount -o remount,bind,ro "$folder"; done
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to build and what to ask it."""

    engine: str
    app: str
    base: str
    """Empty: the Dockerfile's own, or debootstrap's for buildah."""
    torch: str
    model: Path
    input: Path

    @property
    def image(self) -> str:
        return f"fovea-{self.app}:{self.torch}"  # as in compose.yaml

    @classmethod
    def from_environment(cls) -> Settings:
        engine = os.environ.get("ENGINE") or _engine_here()
        if engine not in ("docker", "podman", "buildah"):
            raise SystemExit(f"ENGINE: found {engine!r}, expected docker, podman or buildah.")
        model = Path(os.environ.get("MODEL") or ROOT / "demo/run/model").resolve()
        if not (model / "config.yaml").is_file():
            raise SystemExit(f"{model}: no model folder. `make demo` makes one; MODEL names another.")
        given = os.environ.get("INPUT")
        source = Path(given) if given else min((ROOT / "demo/phantoms-test/images").glob("*"), default=Path("demo/phantoms-test/images"))
        if not source.is_file():
            raise SystemExit(f"{source}: no frame to predict. `make demo` makes some; INPUT names another file.")
        return cls(
            engine=engine,
            app=os.environ.get("APP") or "pranet",
            base=os.environ.get("BASE", ""),
            torch=os.environ.get("TORCH") or ("cuda" if engine == "buildah" else "cpu"),
            model=model,
            input=source,
        )


def main() -> None:
    """Prints what it does; exits with 1 if any of it fails."""
    settings = Settings.from_environment()
    started = time.monotonic()
    _build(settings)
    _say(f"built {settings.image} in {time.monotonic() - started:.0f} s, {_size(settings)}")
    started = time.monotonic()
    with (_buildah_service if settings.engine == "buildah" else _daemon_service)(settings) as inside:
        port = _wait_until_ready(inside.port, inside.alive)
        _say(f"ready after {time.monotonic() - started:.1f} s")
        _say(inside.run(["python3", "-c", _PROBE]).strip())
        inside.run(_health_command())
        _say("its health check passes")
        answer = _predict(port, settings.input)
        _say(f"asked about {settings.input.name}, it answers:")
        print(json.dumps(answer, indent=2))
    _say("stopped")


@dataclass(frozen=True, kw_only=True)
class _Inside:
    """A service that was started in its image."""

    port: Callable[[], int]
    alive: Callable[[], bool]
    run: Callable[[Sequence[str]], str]
    """Runs a command beside it, as the same user, and returns what it prints."""


def _engine_here() -> str:
    for engine in ("docker", "podman"):
        if shutil.which(engine) and subprocess.run([engine, "info"], capture_output=True).returncode == 0:
            return engine
    if shutil.which("buildah"):
        return "buildah"
    raise SystemExit("No engine: docker and podman do not answer, and buildah is not installed. On Debian: apt install buildah debootstrap")


def _build(settings: Settings) -> None:
    arguments = {"APP": settings.app, "TORCH": settings.torch, "VERSION": _version(), "REVISION": _revision()}
    command = [settings.engine, "build", "--file", str(ROOT / "docker/Dockerfile"), "--tag", settings.image]
    if settings.engine == "buildah":
        arguments["BASE"] = settings.base or _debootstrapped()
        command += ["--isolation", "chroot", "--layers=false"]
    elif settings.base:
        arguments["BASE"] = settings.base
    if settings.engine != "docker":
        command += ["--format", "docker"]  # OCI's own format has no HEALTHCHECK
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    with tempfile.TemporaryDirectory() as folder:
        _run([*command, *_pip_flags(settings.engine, Path(folder)), str(ROOT)])


def _pip_flags(engine: str, folder: Path) -> list[str]:
    """Lets pip in the build find its packages where pip on this machine does, by secrets and mounts that leave no trace in the image."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    options = dict(re.findall(r"^[^.]*\.([\w-]+)='(.*)'$", listed, flags=re.MULTILINE))
    config = {name: options[name] for name in _PIP_OPTIONS if name in options}
    flags = []
    if (authorities := Path(options.get("cert", ""))).is_file():
        config["cert"] = "/run/secrets/ca.pem"
        flags += ["--secret", f"id=ca.pem,src={authorities}"]
    # An index in a folder refers to packages beside it, so the folder that holds both is mounted. `docker build` mounts no folders.
    local = {Path(url).parent for url in re.findall(r"file://(\S+)", " ".join(config.values()))}
    local |= {Path(word) for word in config.get("find-links", "").split() if word.startswith("/")}
    if engine == "docker":
        config = {name: value for name, value in config.items() if not re.search(r"(^|\s)(file://|/)", value) or name == "cert"}
        local = set()
    for path in sorted(local):
        flags += ["--volume", f"{path}:{path}:ro"]
    if config:
        written = folder / "pip.conf"
        written.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in config.items()))
        flags += ["--secret", f"id=pip.conf,src={written}"]
    return flags


def _debootstrapped() -> str:
    """A slim base of Debian's packages, made once."""
    base = f"localhost/fovea-base:{SUITE}"
    if subprocess.run(["buildah", "inspect", "--type", "image", base], capture_output=True).returncode == 0:
        return base
    _say(f"making the base {base} by debootstrap")
    container = _output(["buildah", "from", "scratch"])
    try:
        folder = Path(_output(["buildah", "mount", container]))
        _run(["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", SUITE, str(folder)])
        for emptied in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(folder / emptied, ignore_errors=True)
        _run(["buildah", "commit", "--format", "docker", container, base])
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True)
    return base


@contextlib.contextmanager
def _daemon_service(settings: Settings) -> Iterator[_Inside]:
    """As compose.yaml runs it, without the key."""
    name = f"fovea-{uuid.uuid4().hex[:8]}"
    hardening = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    engine = settings.engine
    _run([engine, "run", "--detach", "--name", name, *hardening, "--publish", f"127.0.0.1::{PORT}",
          "--volume", f"{settings.model}:/model:ro", settings.image])  # fmt: skip
    try:
        yield _Inside(
            port=lambda: int(_output([engine, "port", name, str(PORT)]).splitlines()[0].rpartition(":")[2]),
            alive=lambda: _output([engine, "inspect", "--format", "{{.State.Running}}", name]) == "true",
            run=lambda command: _output([engine, "exec", name, *command]),
        )
    finally:
        subprocess.run([engine, "logs", name], stdout=sys.stderr)
        subprocess.run([engine, "rm", "--force", name], capture_output=True)


@contextlib.contextmanager
def _buildah_service(settings: Settings) -> Iterator[_Inside]:
    """In a chroot, as the image's user, without capabilities, the root filesystem read-only: what `buildah run` has no option for.

    A chroot shares the network of this machine, so the service listens on the loopback address only.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            raise SystemExit(f"Port {PORT} of this machine is in use, and with buildah the service needs it. Stop what uses it.")
    container = _output(["buildah", "from", "--pull-never", settings.image])
    try:
        config = json.loads(_output(["buildah", "inspect", container]))["Docker"]["config"]
        user, _, group = config["User"].partition(":")
        inside = ["unshare", "--mount", "sh", "-euc", _CHROOT, "sh", _output(["buildah", "mount", container]), str(settings.model)]
        inside += ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
        inside += ["env", "--ignore-environment", *config["Env"]]
        service = subprocess.Popen([*inside, *config["Entrypoint"], *config["Cmd"], "--host", "127.0.0.1"], stdin=subprocess.DEVNULL)
        try:
            yield _Inside(
                port=lambda: PORT,
                alive=lambda: service.poll() is None,
                run=lambda command: _output([*inside, *command]),
            )
        finally:
            service.terminate()
            service.wait()
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True)


def _health_command() -> list[str]:
    """The one in the Dockerfile, so that every engine runs it now and not in half a minute."""
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", (ROOT / "docker/Dockerfile").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def _wait_until_ready(port: Callable[[], int], alive: Callable[[], bool]) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _request(port(), "GET", "/readyz")[0] == 200:
                return port()
        time.sleep(0.2)
    raise SystemExit("The service did not become ready; it says why above.")


def _predict(port: int, source: Path) -> object:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{source.name}"\r\n\r\n'
    body = head.encode() + source.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Accept": "application/json"}
    status, answer = _request(port, "POST", "/v1/predictions", body, headers)
    if status != 200:
        raise SystemExit(f"The service answered {status}: {answer.decode(errors='replace')}")
    return json.loads(answer)


def _request(port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


def _size(settings: Settings) -> str:
    if settings.engine == "buildah":
        return str(json.loads(_output(["buildah", "images", "--json", settings.image]))[0]["size"])
    return f"{int(_output([settings.engine, 'image', 'inspect', '--format', '{{.Size}}', settings.image])) / 1e9:.2f} GB"


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _revision() -> str:
    answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _run(command: Sequence[str]) -> None:
    if (code := subprocess.run(command, stdout=sys.stderr).returncode) != 0:
        raise SystemExit(f"{' '.join(command[:2])} failed with exit code {code}; it says why above.")


def _output(command: Sequence[str]) -> str:
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        raise SystemExit(f"{' '.join(command[:2])} failed with exit code {answer.returncode}; it says why above.")
    return answer.stdout.strip()


def _say(line: str) -> None:
    print(f"container: {line}", flush=True)


if __name__ == "__main__":
    main()
