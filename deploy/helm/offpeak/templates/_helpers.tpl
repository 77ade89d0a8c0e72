{{- define "offpeak.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "offpeak.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "offpeak.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "offpeak.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of what belongs to nodes of one kind: dict "root" $ "kind" "worker". */}}
{{- define "offpeak.kindName" -}}
{{- if eq .kind "all" -}}
{{- include "offpeak.fullname" .root -}}
{{- else -}}
{{- printf "%s-%s" (include "offpeak.fullname" .root) .kind -}}
{{- end -}}
{{- end -}}

{{/* Kinds of nodes that there are, and of those the one with the API and the one that sends. */}}
{{- define "offpeak.kinds" -}}
{{- if eq .Values.layout "all" -}}["all"]{{- else -}}["api","worker"]{{- end -}}
{{- end -}}
{{- define "offpeak.apiKind" -}}
{{- if eq .Values.layout "all" -}}all{{- else -}}api{{- end -}}
{{- end -}}
{{- define "offpeak.workerKind" -}}
{{- if eq .Values.layout "all" -}}all{{- else -}}worker{{- end -}}
{{- end -}}

{{- define "offpeak.selector" -}}
app.kubernetes.io/name: {{ include "offpeak.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "offpeak.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "offpeak.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "offpeak.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "offpeak.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "offpeak.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What nobody could run with is said before anything is installed. */}}
{{- define "offpeak.check" -}}
{{- if not .Values.config.upstreams -}}
{{- fail "config.upstreams is empty: say where requests are to be sent, such as [{url: http://vllm.models.svc:8000/v1}]" -}}
{{- end -}}
{{- if not .Values.database.existingSecret -}}
{{- fail "database.existingSecret is empty: name a secret whose entry database.key has the URL, postgres://…" -}}
{{- end -}}
{{- if not (hasPrefix "s3://" .Values.blobs.url) -}}
{{- fail (printf "blobs.url is %q: name a bucket, such as s3://offpeak?region=eu-central-1" .Values.blobs.url) -}}
{{- end -}}
{{- range list "database" "blobs" "data" "listen" "role" "node" "drain" -}}
{{- if hasKey $.Values.config . -}}
{{- fail (printf "config.%s is set: that is up to other values of this chart" .) -}}
{{- end -}}
{{- end -}}
{{- range .Values.config.upstreams -}}
{{- if hasKey . "key" -}}
{{- fail (printf "upstream %s has its key in config, where anybody can read it: put the key into a secret, name the secret in secretEnv, and its entry in key_env" .url) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.by "keda") (not .Values.autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus is empty: say where KEDA finds Prometheus, such as http://prometheus.monitoring.svc:9090" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host is empty: say under which name clients come" -}}
{{- end -}}
{{- end -}}
