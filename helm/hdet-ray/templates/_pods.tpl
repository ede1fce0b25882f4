{{/* What the pods of head and workers share. */}}

{{- define "hdet.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser | int64 }}
runAsGroup: {{ .Values.podSecurity.group | int64 }}
fsGroup: {{ .Values.podSecurity.group | int64 }}
# A volume of many checkpoints would else be walked at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "hdet.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "hdet.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where a pod runs. Takes the group's values and its priority class. */}}
{{- define "hdet.placement" -}}
{{- with .priority }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Limits equal requests: Ray offers what the limits say, and a node must really have it. */}}
{{- define "hdet.resources" -}}
{{- $resources := dict "cpu" (toString .cpu) "memory" .memory -}}
{{- if gt (int (default 0 .gpus)) 0 }}{{ $_ := set $resources .gpuResource (toString .gpus) }}{{ end -}}
{{- range $name, $amount := default dict .extraResources }}{{ $_ := set $resources $name (toString $amount) }}{{ end -}}
limits:
  {{- toYaml $resources | nindent 2 }}
requests:
  {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{/* Writable places of a container whose root file system is not. */}}
{{- define "hdet.scratchMounts" -}}
- name: scratch
  mountPath: /tmp
  subPath: tmp
- name: scratch
  mountPath: /home/hdet
  subPath: home
# Ray's session: the controller's container finds Ray's sockets here, and KubeRay's autoscaler its logs.
- name: ray-logs
  mountPath: /tmp/ray
{{- end -}}

{{- define "hdet.scratchVolumes" -}}
- name: scratch
  emptyDir: {}
- name: ray-logs
  emptyDir: {}
{{- end -}}

{{- define "hdet.checkpointsMount" -}}
{{- if eq .Values.checkpoints.kind "volume" }}
- name: checkpoints
  mountPath: /checkpoints
{{- end }}
{{- end -}}

{{- define "hdet.checkpointsVolume" -}}
{{- if eq .Values.checkpoints.kind "volume" }}
- name: checkpoints
  persistentVolumeClaim:
    claimName: {{ include "hdet.checkpointsClaim" . | quote }}
{{- end }}
{{- end -}}

{{- define "hdet.credentials" -}}
{{- with .Values.checkpoints.credentialsSecret }}
envFrom:
- secretRef:
    name: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Ray's token for a container that KubeRay doesn't know. */}}
{{- define "hdet.rayTokenEnv" -}}
{{- if eq .Values.ray.auth.mode "token" }}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "hdet.rayTokenSecret" . | quote }}
      key: auth_token
{{- end }}
{{- end -}}

{{/* The controller's settings: hdet_service.settings reads them in the container that supervises it. */}}
{{- define "hdet.controllerEnv" -}}
- name: HDET_HOME
  value: /var/lib/hdet
- name: HDET_HOST
  value: 0.0.0.0
- name: HDET_PORT
  value: {{ .Values.controller.port | quote }}
{{- if include "hdet.isTlsTerminated" . }}
- name: HDET_TLS_TERMINATED
  value: "true"
{{- else }}
# Inside the cluster nothing ends TLS; the NetworkPolicy says who reaches the port. docs/security.md
- name: HDET_INSECURE_I_KNOW
  value: "true"
{{- end }}
{{- if .Values.ingress.enabled }}
# What people use. `hdet up` and the probes ask the listener itself, so this need not lead anywhere from in here.
- name: HDET_URL
  value: {{ printf "%s://%s" (ternary "https" "http" (ne .Values.ingress.tlsSecret "")) .Values.ingress.host | quote }}
{{- end }}
- name: HDET_STORAGE
  value: {{ ternary "/checkpoints/runs" .Values.checkpoints.uri (eq .Values.checkpoints.kind "volume") | quote }}
- name: HDET_MAX_RUNNING_JOBS
  value: {{ .Values.controller.maxRunningJobs | quote }}
- name: HDET_REQUESTS_PER_S
  value: {{ .Values.controller.requestsPerSecond | quote }}
- name: HDET_FINISHED_SERIES_GRACE_S
  value: {{ .Values.controller.finishedSeriesGraceSeconds | quote }}
{{- with .Values.controller.entrypointAllowlist }}
- name: HDET_ENTRYPOINT_ALLOWLIST
  value: {{ toJson . | quote }}
{{- end }}
{{- if .Values.tokens.existingSecret }}
- name: HDET_TOKENS_FILE
  value: /etc/hdet/tokens
{{- end }}
{{- end -}}

{{/* State and tokens: only the head's pod has them. */}}
{{- define "hdet.stateMounts" -}}
- name: state
  mountPath: /var/lib/hdet
{{- if .Values.tokens.existingSecret }}
- name: tokens
  mountPath: /etc/hdet
  readOnly: true
{{- end }}
{{- end -}}
