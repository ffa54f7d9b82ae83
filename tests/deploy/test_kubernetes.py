"""The manifests: rendered by kustomize, valid by the schemas of Kubernetes and KEDA, and in agreement with each other and
with what the service reads."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from gomodules import KEDA, kustomize, module, strict
from observing import ROOT

from streamer.settings import Settings, load_settings

K8S = ROOT / "deploy" / "k8s"
BASE, AUTOSCALED = "base", "overlays/autoscaled"
KUBERNETES = ("1.27", "1.31", "1.37")  # the oldest that has all fields, and two newer
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    """Folder -> its manifests. Warnings of kustomize (deprecated fields) are errors."""
    program, found = kustomize(), {}
    for folder in (BASE, AUTOSCALED):
        done = subprocess.run([program, "build", K8S / folder], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found[folder] = list(yaml.safe_load_all(done.stdout))
    return found


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    return one(manifests, "StatefulSet")["spec"]["template"]


def settings_of(manifests: list[Manifest], tmp_path: Path) -> Settings:
    """As the container reads them; the pod is streamer-0, the secret's user "user"."""
    pod = pod_of(manifests)["spec"]
    text = one(manifests, "ConfigMap")["data"]["settings.toml"]
    (tmp_path / "settings.toml").write_text(text)
    environment = {}
    for entry in pod["containers"][0]["env"]:
        source = entry.get("valueFrom", {})
        values = {"fieldRef": "streamer-0", "secretKeyRef": "user"}
        environment[entry["name"]] = entry.get("value") or values[next(iter(source))]
    settings, _ = load_settings(tmp_path / "settings.toml", (), environment)
    return settings


@pytest.mark.parametrize("folder", [BASE, AUTOSCALED])
@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_the_schemas_of_kubernetes(rendered, folder: str, version: str) -> None:
    for manifest in rendered[folder]:
        if "keda.sh" not in manifest["apiVersion"]:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_a_field_that_does_not_exist(rendered) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(one(rendered[BASE], "StatefulSet")))
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[0], strict=True)


def test_custom_resources_fit_keda_s_own_definitions(rendered) -> None:
    source = module(*KEDA)
    for kind, file in (("ScaledObject", "scaledobjects"), ("TriggerAuthentication", "triggerauthentications")):
        definition = yaml.safe_load((source / "config" / "crd" / "bases" / f"keda.sh_{file}.yaml").read_text())
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1alpha1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.validate(one(rendered[AUTOSCALED], kind), schema)
    scaler = (source / "pkg" / "scalers" / "kafka_scaler.go").read_text()
    (trigger,) = one(rendered[AUTOSCALED], "ScaledObject")["spec"]["triggers"]
    unknown = [key for key in trigger["metadata"] if f'"{key}"' not in scaler]
    assert unknown == [], "the trigger has settings that the scaler does not read"
    secrets = one(rendered[AUTOSCALED], "TriggerAuthentication")["spec"]["secretTargetRef"]
    assert [each["parameter"] for each in secrets if f'AuthParams["{each["parameter"]}"]' not in scaler] == []


@pytest.mark.parametrize("folder", [BASE, AUTOSCALED])
def test_pods_meet_the_restricted_pod_security_standard(rendered, folder: str) -> None:
    namespace = one(rendered[folder], "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod_of(rendered[folder])["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {"configMap", "secret", "emptyDir"}
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert all("hostPort" not in port for port in container["ports"])
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("folder", [BASE, AUTOSCALED])
def test_the_service_accepts_its_settings(rendered, folder: str, tmp_path: Path) -> None:
    settings = settings_of(rendered[folder], tmp_path)
    assert settings.kafka.instance == "streamer-0"
    assert settings.kafka.static_membership == (folder == BASE)
    assert settings.kafka.sasl_username == "user"
    spec = pod_of(rendered[folder])["spec"]
    drain_s = (settings.delivery.drain_timeout_ms + settings.delivery.commit_timeout_ms) / 1000
    assert drain_s < spec["terminationGracePeriodSeconds"] < settings.kafka.session_timeout_ms / 1000
    limit = spec["containers"][0]["resources"]["limits"]["memory"]
    assert limit == "1Gi"
    assert 105e6 + 2.1 * settings.state.max_bytes < 2**30, "as measured for small states: see the guide"


@pytest.mark.parametrize("folder", [BASE, AUTOSCALED])
def test_names_agree(rendered, folder: str, tmp_path: Path) -> None:
    manifests = rendered[folder]
    pod = pod_of(manifests)
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    (container,) = spec["containers"]
    service, budget, policy = (one(manifests, kind) for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"))
    for selector in (
        one(manifests, "StatefulSet")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert one(manifests, "StatefulSet")["spec"]["serviceName"] == service["metadata"]["name"]
    assert spec["serviceAccountName"] == one(manifests, "ServiceAccount")["metadata"]["name"]
    (port,) = container["ports"]
    assert port["containerPort"] == int(pod["metadata"]["annotations"]["prometheus.io/port"]) == 8080
    for use in (container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")):
        assert use == port["name"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["settings"]["configMap"]["name"] == one(manifests, "ConfigMap")["metadata"]["name"]
    assert {manifest["metadata"].get("namespace", "streamer") for manifest in manifests} == {"streamer"}
    document = tomllib.loads(one(manifests, "ConfigMap")["data"]["settings.toml"])
    for key in ("sasl_password_file", "ssl_cafile"):
        assert Path(document["kafka"][key]).parent == Path(mounts["secret"])
    (kafka_rule,) = [rule for rule in policy["spec"]["egress"] if rule["ports"] != policy["spec"]["egress"][0]["ports"]]
    assert document["kafka"]["bootstrap"].endswith(f":{kafka_rule['ports'][0]['port']}")


def test_probes_ask_what_the_service_answers(rendered) -> None:
    (container,) = pod_of(rendered[BASE])["spec"]["containers"]
    answered = set(re.findall(r'path == "(/\w+)"', (ROOT / "streamer" / "observe" / "http.py").read_text()))
    asked = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"/livez", "/readyz"}
    assert asked <= answered


def test_scaling_follows_the_service_and_respects_the_cost_of_a_restore(rendered, tmp_path: Path) -> None:
    manifests = rendered[AUTOSCALED]
    settings = settings_of(manifests, tmp_path)
    scaled = one(manifests, "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    metadata = trigger["metadata"]
    assert metadata["bootstrapServers"] == settings.kafka.bootstrap
    assert metadata["consumerGroup"] == settings.kafka.group
    assert metadata["topic"] == settings.input.topic
    assert metadata["offsetResetPolicy"] == settings.input.start
    assert metadata["sasl"] == settings.kafka.sasl_mechanism.lower().replace("-", "_").replace("sha_512", "sha512")
    assert trigger["authenticationRef"]["name"] == one(manifests, "TriggerAuthentication")["metadata"]["name"]
    target = one(manifests, "StatefulSet")
    assert scaled["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"], "kind": target["kind"], "name": target["metadata"]["name"]
    }  # fmt: skip
    assert "replicas" not in target["spec"], "it would undo the scaler's number at every apply"
    assert 1 <= scaled["minReplicaCount"] <= scaled["maxReplicaCount"]
    behaviour = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] >= 1800
    for direction in behaviour.values():
        assert [policy["value"] for policy in direction["policies"]] == [1], "one instance at a time"
