"""The fields of KubeRay 1.7.0 and of Kubernetes that `deploy/` uses, as JSON Schema, written by hand.

This is not the operator's CRD, which is a megabyte. Names, types and limits of KubeRay's fields were
read off its API reference (docs/reference/api.md at v1.7.0) and the rules below off what its operator checks
(ray-operator/controllers/ray/utils/validation.go). Of Kubernetes there are only the fields that the manifests have. What is not
in here is refused: whoever adds a field looks it up first.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
STRING: Schema = {"type": "string", "minLength": 1}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
POSITIVE: Schema = {"type": "integer", "minimum": 1}
PERCENT: Schema = {"type": "integer", "minimum": 0, "maximum": 100}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """Returns the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    """Returns the schema of a list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    """Returns the schema of a text out of a few."""
    return {"enum": list(values)}


# Kubernetes
NAMED = fields("name", name=STRING, optional=BOOLEAN)
SECRET_KEY = fields("name key", name=STRING, key=STRING, optional=BOOLEAN)
PROBE = fields("httpGet", httpGet=fields("path port", path=STRING, port=STRING))
CONTAINER = fields(
    "name image securityContext",
    name=STRING,
    image=STRING,
    command=many(STRING),
    args=many(STRING),
    env=many(fields("name", name=STRING, value=STRING, valueFrom=fields("secretKeyRef", secretKeyRef=SECRET_KEY))),
    envFrom=many(fields("secretRef", secretRef=NAMED)),
    ports=many(fields("containerPort", name=STRING, containerPort=POSITIVE)),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    resources=fields(
        "requests",
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
    ),
    securityContext=fields(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=fields("drop", drop={"const": ["ALL"]}),
    ),
    volumeMounts=many(fields("name mountPath", name=STRING, mountPath=STRING)),
)
POD = fields(
    "containers securityContext",
    serviceAccountName=STRING,
    nodeSelector=STRINGS,
    tolerations=many(fields("key operator effect", key=STRING, operator=one_of("Exists"), effect=one_of("NoSchedule"))),
    terminationGracePeriodSeconds=POSITIVE,
    restartPolicy=one_of("Never"),
    securityContext=fields(
        "runAsNonRoot runAsUser seccompProfile",
        runAsNonRoot={"const": True},
        runAsUser=POSITIVE,
        fsGroup=POSITIVE,
        seccompProfile=fields("type", type=one_of("RuntimeDefault")),
    ),
    containers=many(CONTAINER),
    volumes=many(fields("name", name=STRING, configMap=NAMED, emptyDir=fields())),
)
META = fields("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47})
TEMPLATE = fields("spec", metadata=fields(annotations=STRINGS, labels=STRINGS), spec=POD)

# KubeRay
DELETION_RULE = fields(
    "policy condition",
    policy=one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"),
    condition={
        **fields(
            jobStatus=one_of("SUCCEEDED", "FAILED"), jobDeploymentStatus=one_of("Failed"), ttlSeconds=COUNT
        ),
        "oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}],
    },
)  # fmt: skip
RAY_CLUSTER = fields(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=STRING,
    authOptions=fields("mode", mode=one_of("disabled", "token"), secretName=STRING),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        securityContext=CONTAINER["properties"]["securityContext"],
    ),
    headGroupSpec=fields(
        "rayStartParams template",
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        rayStartParams=STRINGS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=many(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=STRING,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            priority={"type": "integer"},
            idleTimeoutSeconds=COUNT,
            rayStartParams=STRINGS,
            template=TEMPLATE,
        )
    ),
)
RAY_JOB = fields(
    "entrypoint rayClusterSpec",
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    backoffLimit=COUNT,
    activeDeadlineSeconds=POSITIVE,
    preRunningDeadlineSeconds=POSITIVE,
    shutdownAfterJobFinishes=BOOLEAN,
    deletionStrategy=fields("deletionRules", deletionRules=many(DELETION_RULE)),
    rayClusterSpec=RAY_CLUSTER,
)
RAY_SERVICE = fields(
    "serveConfigV2 rayClusterConfig",
    upgradeStrategy=fields(
        "type",
        type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
        clusterUpgradeOptions=fields(
            "gatewayClassName stepSizePercent intervalSeconds",
            gatewayClassName=STRING,
            maxSurgePercent=PERCENT,
            stepSizePercent=PERCENT,
            intervalSeconds=POSITIVE,
        ),
    ),
    excludeHeadPodFromServeSvc=BOOLEAN,
    rayClusterDeletionDelaySeconds=COUNT,
    serveConfigV2=STRING,
    rayClusterConfig=RAY_CLUSTER,
)

SPECS: dict[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("ray.io/v1", "RayService"): RAY_SERVICE,
    ("v1", "Service"): fields(
        "selector ports", selector=STRINGS, ports=many(fields("port", name=STRING, port=POSITIVE, targetPort=STRING))
    ),
    ("apps/v1", "StatefulSet"): fields(
        "serviceName selector template",
        serviceName=STRING,
        replicas=POSITIVE,
        selector=fields("matchLabels", matchLabels=STRINGS),
        template=TEMPLATE,
        volumeClaimTemplates=many(
            fields(
                "metadata spec",
                metadata=META,
                spec=fields(
                    "accessModes resources",
                    accessModes=many(one_of("ReadWriteOnce")),
                    resources=fields("requests", requests=fields("storage", storage=QUANTITY)),
                ),
            )
        ),
    ),
    ("batch/v1", "Job"): fields("template", backoffLimit=COUNT, template=TEMPLATE),
}
"""(apiVersion, kind) -> its spec."""


def schema_of(document: dict[str, Any]) -> Schema:
    """Returns the schema of a manifest, of the kind that it says it is."""
    kind = (document["apiVersion"], document["kind"])
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": kind[0]},
        kind={"const": kind[1]},
        metadata=META,
        spec=SPECS[kind],
    )


def refusals(cluster: dict[str, Any], job: dict[str, Any] | None = None) -> list[str]:
    """Returns what KubeRay's operator would say of a cluster, and of the job that makes it, beyond what a schema can."""
    found = []
    has_autoscaler = cluster.get("enableInTreeAutoscaling", False)
    is_v2 = has_autoscaler and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in cluster["workerGroupSpecs"]:
        if group["minReplicas"] > group["maxReplicas"]:
            found.append(f"{group['groupName']} has minReplicas greater than maxReplicas")
        if not is_v2 and {"priority", "idleTimeoutSeconds"} & group.keys():
            found.append(f"{group['groupName']} needs autoscaler v2")
    if job and "deletionStrategy" in job:
        rules = job["deletionStrategy"]["deletionRules"]
        if job.get("shutdownAfterJobFinishes"):
            found.append("shutdownAfterJobFinishes and deletionRules are mutually exclusive")
        if has_autoscaler and any(rule["policy"] == "DeleteWorkers" for rule in rules):
            found.append("DeleteWorkers is not supported with autoscaling enabled")
    return found
