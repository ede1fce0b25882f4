{{/* Names and labels. A name never changes with the version, so that an upgrade keeps every object. */}}

{{/* KubeRay appends to the cluster's name and clips what passes 50 characters: 40 leave room for ours too. */}}
{{- define "hdet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "hdet.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "hdet.labels" -}}
{{ include "hdet.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* What KubeRay sets on the head's pod. */}}
{{- define "hdet.headSelector" -}}
ray.io/cluster: {{ include "hdet.fullname" . | quote }}
ray.io/node-type: head
{{- end -}}

{{- define "hdet.clientLabel" -}}
{{ include "hdet.fullname" . }}-client
{{- end -}}

{{- define "hdet.headAccount" -}}
{{- default (printf "%s-head" (include "hdet.fullname" .)) .Values.serviceAccount.headName -}}
{{- end -}}

{{- define "hdet.workerAccount" -}}
{{- default (printf "%s-worker" (include "hdet.fullname" .)) .Values.serviceAccount.workerName -}}
{{- end -}}

{{- define "hdet.stateClaim" -}}
{{- default (printf "%s-state" (include "hdet.fullname" .)) .Values.state.existingClaim -}}
{{- end -}}

{{- define "hdet.checkpointsClaim" -}}
{{- default (printf "%s-checkpoints" (include "hdet.fullname" .)) .Values.checkpoints.existingClaim -}}
{{- end -}}

{{/* Secret with Ray's token: KubeRay names its own after the cluster. */}}
{{- define "hdet.rayTokenSecret" -}}
{{- default (include "hdet.fullname" .) .Values.ray.auth.existingSecret -}}
{{- end -}}

{{/* Priority classes belong to the whole cluster, so the namespace is part of their name. */}}
{{- define "hdet.headPriority" -}}
{{- if .Values.priorityClasses.create -}}
{{- printf "%s-%s-head" .Release.Namespace (include "hdet.fullname" .) -}}
{{- else -}}
{{- .Values.head.priorityClassName -}}
{{- end -}}
{{- end -}}

{{- define "hdet.workerPriority" -}}
{{- printf "%s-%s-worker" .Release.Namespace (include "hdet.fullname" .) -}}
{{- end -}}

{{/* Whether something outside the cluster can reach the Service. */}}
{{- define "hdet.isPublic" -}}
{{- if or .Values.ingress.enabled (ne .Values.service.type "ClusterIP") }}true{{ end -}}
{{- end -}}

{{- define "hdet.isTlsTerminated" -}}
{{- if or .Values.controller.tlsTerminated (and .Values.ingress.enabled .Values.ingress.tlsSecret) }}true{{ end -}}
{{- end -}}

{{/* Image of a group: its own fields first, then the chart's. Takes a dict of root and own. */}}
{{- define "hdet.image" -}}
{{- $own := default dict .own -}}
{{- $repository := default .root.Values.image.repository $own.repository -}}
{{- if and .root.Values.image.digest (not $own.repository) (not $own.tag) -}}
{{- printf "%s@%s" $repository .root.Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default (default .root.Chart.AppVersion .root.Values.image.tag) $own.tag) -}}
{{- end -}}
{{- end -}}
