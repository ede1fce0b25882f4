{{/* Contradictions between values. The schema knows each value alone; here they meet. All complaints come at once,
     each with the value's name, what it is, and the remedy. */}}

{{- define "hdet.checks" -}}
{{- $found := list -}}
{{- range list "hdet.checkController" "hdet.checkWorkers" "hdet.checkPublic" "hdet.checkStorage" "hdet.checkRay" "hdet.checkMetrics" -}}
{{- $found = concat $found (include . $ | fromYamlArray) -}}
{{- end -}}
{{- if $found -}}
{{- fail (printf "\n%s\n" (join "\n" $found)) -}}
{{- end -}}
{{- end -}}

{{- define "hdet.checkController" -}}
{{- $controller := .Values.controller -}}
{{- if ne (int $controller.replicas) 1 }}
- "controller.replicas={{ $controller.replicas }}: the database has one writer, a second controller is refused by it; set it to 1"
{{- end }}
{{- if and (ge (int $controller.port) 10002) (le (int $controller.port) 19999) }}
- "controller.port={{ $controller.port }}: Ray gives 10002-19999 to its workers; take one outside, such as 8470"
{{- end }}
{{- if has (int $controller.port) (list 6379 8265 8080 10001 52365) }}
- "controller.port={{ $controller.port }}: one of Ray's own ports on the head; take another, such as 8470"
{{- end }}
{{- $name := include "hdet.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
- "fullnameOverride={{ $name }}: names of RayClusters begin with a letter and have only lower-case letters, digits and dashes; set fullnameOverride to such a name"
{{- end }}
{{- include "hdet.checkEnv" (dict "at" "head" "env" .Values.head.env) }}
{{- range $index, $group := (include "hdet.groups" . | fromYaml).groups }}
{{- $at := ternary "workers" (printf "extraWorkerGroups[%d]" (sub $index 1)) (eq $index 0) }}
{{- include "hdet.checkEnv" (dict "at" $at "env" $group.env) }}
{{- end }}
{{- end -}}

{{- define "hdet.checkEnv" -}}
{{- $at := .at -}}
{{- range $entry := .env }}
{{- range list "HDET_" "RAY_AUTH" "RAY_ADDRESS" "RAY_REDIS_ADDRESS" "REDIS_" }}
{{- if hasPrefix . $entry.name }}
- "{{ $at }}.env sets {{ $entry.name }}: names that begin with {{ . }} are the chart's own; use the value that stands for it"
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hdet.checkWorkers" -}}
{{- $root := . -}}
{{- $names := list -}}
{{- range $index, $group := (include "hdet.groups" . | fromYaml).groups }}
{{- $at := ternary "workers" (printf "extraWorkerGroups[%d]" (sub $index 1)) (eq $index 0) }}
{{- if has $group.name $names }}
- "{{ $at }}.name={{ $group.name }}: another group has this name; give each its own"
{{- end }}
{{- $names = append $names $group.name }}
{{- if gt (int $group.min) (int $group.max) }}
- "{{ $at }}.min={{ $group.min }} is greater than {{ $at }}.max={{ $group.max }}; lower min or raise max"
{{- end }}
{{- if and (not $root.Values.autoscaling.enabled) (ne (int $group.min) (int $group.max)) }}
- "{{ $at }}.min={{ $group.min }} differs from {{ $at }}.max={{ $group.max }} while autoscaling.enabled=false, so nothing would ever scale; make them equal or enable autoscaling"
{{- end }}
{{- $variant := dig "variant" $root.Values.image.variant (default dict $group.image) }}
{{- $variantAt := ternary (printf "%s.image.variant" $at) "image.variant" (hasKey (default dict $group.image) "variant") }}
{{- if and (eq $variant "cuda") (eq (int $group.gpus) 0) }}
- "{{ $variantAt }}=cuda while {{ $at }}.gpus=0: a GPU image on CPU workers; set {{ $at }}.gpus, or variant=cpu and the image built so"
{{- end }}
{{- if and (eq $variant "cpu") (gt (int $group.gpus) 0) }}
- "{{ $at }}.gpus={{ $group.gpus }} while {{ $variantAt }}=cpu: that image can't use a GPU; set variant=cuda and the image built so, or gpus to 0"
{{- end }}
{{- if and $root.Values.priorityClasses.create $group.priorityClassName }}
- "{{ $at }}.priorityClassName={{ $group.priorityClassName }} while priorityClasses.create=true, which makes one for it; leave one of them out"
{{- end }}
{{- end }}
{{- if and .Values.priorityClasses.create .Values.head.priorityClassName }}
- "head.priorityClassName={{ .Values.head.priorityClassName }} while priorityClasses.create=true, which makes one for it; leave one of them out"
{{- end }}
{{- if and .Values.priorityClasses.create (ge (int .Values.priorityClasses.workerValue) (int .Values.priorityClasses.headValue)) }}
- "priorityClasses.workerValue={{ .Values.priorityClasses.workerValue }} is not below priorityClasses.headValue={{ .Values.priorityClasses.headValue }}: a worker could push out the head, and with it every job; lower it"
{{- end }}
{{- end -}}

{{- define "hdet.checkPublic" -}}
{{- $ingress := .Values.ingress -}}
{{- $how := ternary "ingress.enabled=true" (printf "service.type=%s" .Values.service.type) $ingress.enabled -}}
{{- if and $ingress.enabled (not $ingress.host) }}
- "ingress.host is empty while ingress.enabled=true: it would answer for every host name; set ingress.host"
{{- end }}
{{- if and (not $ingress.enabled) $ingress.host }}
- "ingress.host={{ $ingress.host }} while ingress.enabled=false; enable the Ingress or leave the host out"
{{- end }}
{{- if include "hdet.isPublic" . }}
{{- if eq .Values.ray.auth.mode "disabled" }}
- "ray.auth.mode=disabled while {{ $how }}: a public service on a cluster without authentication; set ray.auth.mode=token, or ClusterIP and no Ingress"
{{- end }}
{{- if not (or (include "hdet.isTlsTerminated" .) .Values.controller.insecureIKnow) }}
- "{{ $how }} without TLS: tokens would travel in the clear; set ingress.tlsSecret, or controller.tlsTerminated=true where something else ends TLS, or accept it with controller.insecureIKnow=true"
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.allowExternal) (not .Values.networkPolicy.allowFrom) }}
- "networkPolicy.allowFrom is empty while {{ $how }}: nobody could reach it; name the Ingress controller's pods there, or set networkPolicy.allowExternal=true"
{{- end }}
{{- end }}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") }}
- "service.loadBalancerSourceRanges is set while service.type={{ .Values.service.type }}, where it means nothing; set service.type=LoadBalancer or leave it out"
{{- end }}
{{- if and .Values.networkPolicy.egress (not .Values.networkPolicy.restrictEgress) }}
- "networkPolicy.egress is set while networkPolicy.restrictEgress=false, where it restricts nothing; set networkPolicy.restrictEgress=true or leave it out"
{{- end }}
{{- end -}}

{{- define "hdet.checkStorage" -}}
{{- $checkpoints := .Values.checkpoints -}}
{{- if and (eq $checkpoints.kind "uri") (not $checkpoints.uri) }}
- "checkpoints.uri is empty while checkpoints.kind=uri; set it, such as s3://bucket/runs"
{{- end }}
{{- if and (eq $checkpoints.kind "volume") $checkpoints.uri }}
- "checkpoints.uri={{ $checkpoints.uri }} while checkpoints.kind=volume; set checkpoints.kind=uri or leave the URI out"
{{- end }}
{{- if and (eq $checkpoints.kind "uri") $checkpoints.existingClaim }}
- "checkpoints.existingClaim={{ $checkpoints.existingClaim }} while checkpoints.kind=uri; set checkpoints.kind=volume or leave the claim out"
{{- end }}
{{- if and (eq $checkpoints.kind "volume") $checkpoints.existingClaim (eq $checkpoints.existingClaim (include "hdet.stateClaim" .)) }}
- "checkpoints.existingClaim={{ $checkpoints.existingClaim }} is the controller's state, and workers would mount its database and tokens; give checkpoints a claim of their own"
{{- end }}
{{- end -}}

{{- define "hdet.checkRay" -}}
{{- $ft := .Values.ray.gcsFaultTolerance -}}
{{- if and (eq $ft.backend "redis") (not $ft.redisAddress) }}
- "ray.gcsFaultTolerance.redisAddress is empty while ray.gcsFaultTolerance.backend=redis; set it, such as redis:6379"
{{- end }}
{{- if and (ne $ft.backend "redis") (or $ft.redisAddress $ft.redisPasswordSecret) }}
- "ray.gcsFaultTolerance.redisAddress or redisPasswordSecret is set while ray.gcsFaultTolerance.backend={{ $ft.backend }}; set backend=redis or leave them out"
{{- end }}
{{- if and (eq .Values.ray.auth.mode "disabled") .Values.ray.auth.existingSecret }}
- "ray.auth.existingSecret={{ .Values.ray.auth.existingSecret }} while ray.auth.mode=disabled; set ray.auth.mode=token or leave the Secret out"
{{- end }}
{{- if not .Values.serviceAccount.create }}
{{- if or (not .Values.serviceAccount.headName) (not .Values.serviceAccount.workerName) }}
- "serviceAccount.headName and serviceAccount.workerName are needed while serviceAccount.create=false; name accounts that exist, or set create=true"
{{- end }}
{{- if .Values.serviceAccount.annotations }}
- "serviceAccount.annotations are set while serviceAccount.create=false; annotate the existing accounts and leave them out here"
{{- end }}
{{- end }}
{{- if eq (include "hdet.headAccount" .) (include "hdet.workerAccount" .) }}
- "serviceAccount.headName={{ .Values.serviceAccount.headName }} is also serviceAccount.workerName: workers would get the autoscaler's rights; give each its own"
{{- end }}
{{- end -}}

{{- define "hdet.checkMetrics" -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.serviceMonitor.tokenSecret) }}
- "metrics.serviceMonitor.tokenSecret is empty while metrics.serviceMonitor.enabled=true: scrapes would be refused; put a token of the role metrics into a Secret and name it"
{{- end }}
{{- end -}}
